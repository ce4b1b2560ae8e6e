"""The input features of the embedded quality network, in numpy: numbers of a patch that change with damage.

Each feature is a log, a share or a ratio, so that dark and bright, flat and busy pictures are comparable. Sources: natural
scene statistics of normalised luma (Mittal, Moorthy, Bovik, BRISQUE, IEEE TIP 2012), blockiness on a grid of 8 px (Wang,
Sheikh, Bovik, ICIP 2002), noise in flat blocks (Immerkaer, CVIU 1996). Others are the slope of the spectrum, and the number of
luma levels in use.
"""

import cv2
import numpy as np

_BLOCK = 8
_TINY = 1e-3
_GMSD_C = 170.0  # of GMSD (Xue, Zhang, Mou, Bovik, IEEE TIP 2014), for luma 0 to 255
_DIFFERENCE, _SMOOTH = np.array([1, 0, -1], np.float32), np.full(3, 1 / 3, np.float32)  # Prewitt's
_RINGS = 12  # of equal width in frequency, from 0 to the corner


def patch_features(patches_PHW: np.ndarray) -> np.ndarray:
    """Return the features, float32 [P, F], of patches uint8 [P, 64, 64] that lie on the codec's grid of 8 px."""
    x = patches_PHW.astype(np.float32)
    by_pixels = (_gradients(x), _flat_shares(x), _grid_steps(x), _spectrum(x), _statistics(x))
    groups = (*by_pixels, _luma_levels(patches_PHW), _cosine_bands(x), _damage_response(patches_PHW))
    return np.concatenate(groups, 1).astype(np.float32)


def _log(values: np.ndarray) -> np.ndarray:
    return np.log(values + _TINY)


def _mean(values: np.ndarray) -> np.ndarray:
    return values.mean((1, 2))


def _gradients(x: np.ndarray) -> np.ndarray:
    """Strength of luma differences along x and y, how it grows with distance and falls with order, and their tails."""
    columns = []
    for axis in (1, 2):
        first, second, third = (np.diff(x, order, axis) for order in (1, 2, 3))
        sizes = [_mean(np.abs(d)) for d in (first, second, third)]
        far = [_mean(np.abs(_differences(x, axis, step))) for step in (2, 4, 8)]
        columns += [_log(sizes[0]), _log(sizes[1]) - _log(sizes[0]), _log(sizes[2]) - _log(sizes[1])]
        columns += [_log(size) - _log(sizes[0]) for size in far]
        columns += [_log(np.sqrt(_mean(d * d))) - _log(size) for d, size in zip((first, second), sizes, strict=False)]
    return np.stack(columns, 1)


def _differences(x: np.ndarray, axis: int, step: int) -> np.ndarray:
    return x[:, step:] - x[:, :-step] if axis == 1 else x[:, :, step:] - x[:, :, :-step]


def _flat_shares(x: np.ndarray) -> np.ndarray:
    """Shares of neighbours that are equal or nearly equal. Banding and coarse coding increase them, noise removes them."""
    columns = []
    for axis in (1, 2):
        step = np.abs(np.diff(x, 1, axis))
        columns += [_mean(step < limit) for limit in (0.5, 1.5, 3.5)]
        columns += [_mean(np.abs(np.diff(x, 2, axis)) < 0.5)]
        columns += [_log(np.sort(step[:, ::4, ::4].reshape(len(x), -1), 1)[:, -8])]
    return np.stack(columns, 1)


def _grid_steps(x: np.ndarray) -> np.ndarray:
    """How much stronger steps are across the grid of 8 px (and of 4 px) than elsewhere, and the largest and smallest phase."""
    columns = []
    for axis in (1, 2):
        for order in (1, 2):
            steps = np.abs(np.diff(x, order, axis))
            profile = steps.mean(3 - axis)[:, : _BLOCK * 7].reshape(len(x), 7, _BLOCK).mean(1)
            mean, edge = _log(profile.mean(1)), profile[:, _BLOCK - order : _BLOCK].mean(1)
            half = profile[:, _BLOCK // 2 - order : _BLOCK // 2].mean(1)
            columns += [_log(edge) - mean, _log(half) - mean, _log(profile.max(1)) - mean, _log(profile.min(1)) - mean]
    return np.stack(columns, 1)


def _spectrum(x: np.ndarray) -> np.ndarray:
    """Energy in rings of frequency. Blur and upscaling reduce it in the outer rings, noise and blocks increase it there."""
    size = x.shape[1]
    window = np.hanning(size).astype(np.float32)
    centred = (x - x.mean((1, 2), keepdims=True)) * window * window[:, None]
    power = np.abs(np.fft.rfft2(centred)) ** 2 / size**2
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)) / 0.5**0.5
    ring = np.minimum((frequency * _RINGS).astype(int), _RINGS - 1).ravel()
    member = np.eye(_RINGS, dtype=np.float32)[ring]
    energy = _log(power.reshape(len(x), -1).astype(np.float32) @ (member / member.sum(0)))
    along = [
        _log(power[:, :2, band].mean((1, 2))) - _log(power[:, band, :2].mean((1, 2))) for band in (slice(8, 16), slice(20, 32))
    ]
    return np.concatenate([energy, np.diff(energy, 1, 1), np.stack(along, 1)], 1)


def _statistics(x: np.ndarray) -> np.ndarray:
    """Moments of luma that is normalised by its surroundings, and of the products of neighbours."""
    tall = x.reshape(-1, x.shape[2])
    mean = cv2.GaussianBlur(tall, (7, 7), 7 / 6)
    spread = np.sqrt(np.maximum(cv2.GaussianBlur(tall * tall, (7, 7), 7 / 6) - mean * mean, 0))
    normal, spread = ((tall - mean) / (spread + 1)).reshape(x.shape), spread.reshape(x.shape)
    squares = normal * normal
    square = _mean(squares)
    columns = [_log(square), _log(_mean(squares * squares)) - 2 * _log(square), _log(_mean(np.abs(normal))) - _log(square) / 2]
    columns += [_mean(a * b) / (square + _TINY) for a, b in _neighbour_pairs(normal)]
    # Every 16th place is enough for a quantile.
    ordered = np.sort(spread[:, ::4, ::4].reshape(len(x), -1), 1)
    columns += [_log(ordered[:, int(q * ordered.shape[1])]) for q in (0.02, 0.1, 0.5, 0.9)]
    return np.stack(columns, 1)


def _neighbour_pairs(n: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of pixels that are horizontal, vertical and diagonal neighbours, and those at a distance of two."""
    return [
        (n[:, :, 1:], n[:, :, :-1]),
        (n[:, 1:], n[:, :-1]),
        (n[:, 1:, 1:], n[:, :-1, :-1]),
        (n[:, :, 2:], n[:, :, :-2]),
        (n[:, 2:], n[:, :-2]),
    ]


def _luma_levels(patches_PHW: np.ndarray) -> np.ndarray:
    """How many luma levels are in use, in each patch and in all together, and how rough their histogram is."""
    count = len(patches_PHW)
    flat = patches_PHW.reshape(count, -1).astype(np.int64) + 256 * np.arange(count)[:, None]
    own = np.bincount(flat.ravel(), minlength=256 * count).reshape(count, 256).astype(np.float32)
    columns = [*_histogram(own), *(np.repeat(value, count) for value in _histogram(own.sum(0, keepdims=True)))]
    return np.stack(columns, 1)


def _histogram(counts_P256: np.ndarray) -> list[np.ndarray]:
    share = counts_P256 / counts_P256.sum(1, keepdims=True)
    used = counts_P256 > 0
    reach = 256 - used.argmax(1) - used[:, ::-1].argmax(1)
    rough = np.abs(np.diff(share, 2, 1)).sum(1)
    smooth = np.abs(share[:, 4:] - share[:, :-4]).sum(1)
    return [used.sum(1) / reach, _log(reach / 256), _log(rough), _log(rough) - _log(smooth), _log((share**2).sum(1))]


def _cosine_bands(x: np.ndarray) -> np.ndarray:
    """Cosine coefficients of 8 x 8 blocks on the grid: energy and share of small values in each band, noise in flat blocks."""
    count = len(x)
    blocks = x.reshape(count, 8, _BLOCK, 8, _BLOCK).transpose(0, 1, 3, 2, 4).reshape(count, 64, _BLOCK, _BLOCK)
    coefficients = np.abs(_COSINE_BASIS @ blocks @ _COSINE_BASIS.T).reshape(count, 64, 64)
    columns = []
    for band in _BANDS:
        inside = coefficients[:, :, band]
        columns += [_log(inside.mean((1, 2))), (inside < 0.7).mean((1, 2)), (inside < 2).mean((1, 2))]
    quiet = np.sort(coefficients[:, :, _BANDS[-1]].mean(2), 1)
    columns += [_log(quiet[:, at]) for at in (3, 16, 48)]
    return np.stack(columns, 1)


def _damage_response(patches_PHW: np.ndarray) -> np.ndarray:
    """How much further damage changes a patch. After a codec or a blur, a second one has little left to remove.

    Each damage is applied once, to all patches side by side. Only the part of each patch that no neighbour influences is
    measured. For the third damage that is the whole patch, since its blocks end at the patches' edges; only the slopes at the
    very edge depend on a neighbour.
    """
    count, margin = len(patches_PHW), _BLOCK // 2
    on_grid, off_grid = _side_by_side(patches_PHW), _side_by_side(patches_PHW[:, margin:-margin, margin:-margin])
    whole, shifted = _PatchRow(on_grid, count, margin), _PatchRow(off_grid, count, 0)
    columns = [
        whole.compare(_jpeg(on_grid, 50)),
        whole.compare(_jpeg(on_grid, 20)),
        shifted.compare(_jpeg(off_grid, 50)),
        whole.compare(cv2.GaussianBlur(on_grid, (7, 7), 1.0)),
        whole.compare(cv2.medianBlur(on_grid, 3)),
    ]
    return np.concatenate([*columns, columns[0][:, :1] - columns[2][:, :1]], 1)


def _side_by_side(patches_PHW: np.ndarray) -> np.ndarray:
    """Put patches into one row [H, P * W], because filters are several times as fast on wide pictures as on tall ones."""
    return np.ascontiguousarray(patches_PHW.transpose(1, 0, 2)).reshape(patches_PHW.shape[1], -1)


def _jpeg(luma_HW: np.ndarray, quality: int) -> np.ndarray:
    coded = cv2.imencode(".jpg", luma_HW, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(coded, cv2.IMREAD_GRAYSCALE))


class _PatchRow:
    """Patches side by side, uint8 [H, P * W], and their slopes. A margin around each patch is not measured."""

    def __init__(self, wide: np.ndarray, count: int, margin: int) -> None:
        self._shape, self._inner = (len(wide), count, -1), slice(margin, len(wide) - margin)
        self._wide, self._slope = wide, _slope(wide)
        self._mean_slope = _log(self._patch_means(self._slope))

    def compare(self, after: np.ndarray) -> np.ndarray:
        """Compare with the same row after damage.

        Return for each patch [P, 5]: mean change, the same relative to its slope, the change of the slope, and mean and spread
        of the slopes' similarity.
        """
        change, slope = _log(self._patch_means(cv2.absdiff(self._wide, after))), _slope(after)
        similarity = (2 * self._slope * slope + _GMSD_C) / (self._slope**2 + slope**2 + _GMSD_C)
        mean = self._patch_means(similarity)
        spread = np.sqrt(np.maximum(self._patch_means(similarity * similarity) - mean * mean, 0))
        slope_change = _log(self._patch_means(slope)) - self._mean_slope
        return np.stack([change, change - self._mean_slope, slope_change, _log(1 - mean), _log(spread)], 1)

    def _patch_means(self, values: np.ndarray) -> np.ndarray:
        return values.reshape(self._shape)[self._inner, :, self._inner].mean((0, 2), np.float32)


def _slope(luma_HW: np.ndarray) -> np.ndarray:
    """Return the strength of Prewitt's gradient, float32 [H, W]."""
    x = luma_HW.astype(np.float32)
    across, down = cv2.sepFilter2D(x, -1, _DIFFERENCE, _SMOOTH), cv2.sepFilter2D(x, -1, _SMOOTH, _DIFFERENCE)
    # Not cv2.magnitude: its last digits depend on the picture's place in memory, and chunks must join to equal bytes.
    slope: np.ndarray = np.sqrt(across * across + down * down)
    return slope


def _cosine_basis() -> np.ndarray:
    k, n = np.mgrid[:_BLOCK, :_BLOCK]
    basis = np.cos(np.pi * (2 * n + 1) * k / (2 * _BLOCK)) * np.sqrt(2 / _BLOCK)
    basis[0] /= np.sqrt(2)
    return basis.astype(np.float32)


_COSINE_BASIS = _cosine_basis()
_ORDER = np.add.outer(np.arange(_BLOCK), np.arange(_BLOCK)).ravel()
_BANDS = tuple(np.flatnonzero(np.isin(_ORDER, np.arange(*orders))) for orders in ((1, 3), (3, 6), (6, 9), (9, 15)))
