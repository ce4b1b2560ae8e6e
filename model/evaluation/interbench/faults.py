"""Faults that are put into a video of which everything is known, to put a judge on trial.

A take is a pair of videos from the same place: one with an interaction, one without. Each fault changes when, where or how the
interaction shows, so that it lowers one dimension and the rule of the scale says how far.

F frames, H W px.
"""

from typing import NamedTuple

import numpy as np

# The dimension that a fault lowers, and the highest score that is right there. "" for what lowers none.
FAULTS: dict[str, tuple[str, int]] = {
    "no_trigger": ("trigger", 0),
    "late": ("", 5),
    "vanishing": ("end_state", 1),
    "teleport": ("fluency", 1),
    "flicker": ("fluency", 1),
    "wrong_scope": ("scope", 1),
    "wrong_object": ("align", 1),
    "interpenetration": ("physics", 1),
}
_CHANGED = 24  # levels by which a pixel belongs to what the interaction changed
_LATE_SHARE, _VANISH_SHARE = 0.8, 0.65


class Take(NamedTuple):
    """A take: pictures uint8 [F, H, W, 3] with the interaction, and without; the frame at which it begins; its subset.

    scope: global or local, what the interaction's extent should be.
    """

    name: str
    subset: str
    pictures: np.ndarray
    background: np.ndarray
    onset: int
    scope: str
    base_prompt: str = ""


def possible(scope: str, end: str) -> list[str]:
    """Return the faults that are faults in an interaction of this scope and end, as suite.yaml names them.

    An extent that is open cannot be wrong, what may pass does not vanish, and what flashes may flicker. Weather has no place
    from which it could jump, and nothing that could pass through things.
    """
    wrong = {
        "wrong_scope": scope == "either",
        "vanishing": end != "lasting",
        "flicker": end == "passing",
        "teleport": scope == "global",
        "interpenetration": scope == "global",
    }
    return [fault for fault in FAULTS if not wrong.get(fault)]


def make(take: Take, fault: str, seed: int = 0) -> np.ndarray:
    """Return the pictures of a take with a fault. "true" and "wrong_object" leave them; for the latter the question changes."""
    frames, rng = len(take.pictures), np.random.default_rng(seed)
    number = np.arange(frames)
    if fault in ("true", "wrong_object"):
        return take.pictures
    if fault == "no_trigger":
        return take.background
    if fault == "late":
        return _by_time(take, np.where(number < _LATE_SHARE * frames, -1, _squeezed(take, int(_LATE_SHARE * frames))))
    if fault == "vanishing":
        return _by_time(take, np.where(number < _VANISH_SHARE * frames, number, -1))
    if fault == "flicker":
        shown = (number < take.onset) | ((number - take.onset) // 2 % 2 == 0)
        return _by_time(take, np.where(shown, number, -1))
    if fault == "teleport":
        return _teleported(take, rng)
    if fault == "wrong_scope":
        return _wrong_scope(take)
    if fault == "interpenetration":
        return _pushed_through(take)
    raise ValueError(f"unknown fault {fault!r}; known: true, {', '.join(FAULTS)}")


def _by_time(take: Take, source_F: np.ndarray) -> np.ndarray:
    """Return for each frame that frame of the interaction, or the background at the same time where it is -1."""
    rows = [take.pictures[s] if s >= 0 else take.background[f] for f, s in enumerate(source_F.tolist())]
    return np.stack(rows)


def _squeezed(take: Take, start: int) -> np.ndarray:
    """Return frames of the interaction, from its onset to its end, played in the frames from `start` on."""
    frames = len(take.pictures)
    place = np.clip((np.arange(frames) - start) / max(1, frames - 1 - start), 0, 1)
    return (take.onset + place * (frames - 1 - take.onset)).astype(int)


def _mask(take: Take) -> np.ndarray:
    """Return what the interaction changed at its end, bool [H, W]."""
    difference = np.abs(take.pictures[-1].astype(int) - take.background[-1]).max(2)
    return difference > _CHANGED


def _teleported(take: Take, rng: np.random.Generator) -> np.ndarray:
    """Shift what the interaction changed to another place every few frames; where all changed, shuffle its time."""
    frames, mask = len(take.pictures), _mask(take)
    if take.scope == "global" or mask.mean() > 0.5 or not mask.any():
        later = np.arange(take.onset, frames)
        blocks = [later[k : k + 3] for k in range(0, len(later), 3)]
        order = np.concatenate([blocks[k] for k in rng.permutation(len(blocks))])
        return take.pictures[np.concatenate([np.arange(take.onset), order])]
    height, width = mask.shape
    video = take.pictures.copy()
    shift = np.zeros(2, int)
    for frame in range(take.onset, frames):
        if (frame - take.onset) % 4 == 0:
            shift = np.array([rng.integers(-height // 5, height // 5 + 1), rng.integers(-width // 2, width // 2 + 1)])
        video[frame] = _moved(take.pictures[frame], take.background[frame], shift)
    return video


def _moved(picture: np.ndarray, background: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Return the background with what differs from it moved by rows and columns; what leaves the picture is cut off."""
    mask = np.abs(picture.astype(int) - background).max(2) > _CHANGED
    moved = background.copy()
    rows, columns = np.nonzero(mask)
    to_rows, to_columns = rows + shift[0], columns + shift[1]
    inside = (to_rows >= 0) & (to_rows < mask.shape[0]) & (to_columns >= 0) & (to_columns < mask.shape[1])
    moved[to_rows[inside], to_columns[inside]] = picture[rows[inside], columns[inside]]
    return moved


def _wrong_scope(take: Take) -> np.ndarray:
    """Confine a global effect to a small rectangle, or spread a local one: tiled over the whole picture."""
    video = take.background.copy()
    height, width = video.shape[1:3]
    if take.scope == "global":
        part = (slice(None), slice(height // 3, height // 2), slice(width // 3, width // 2))
        video[part] = take.pictures[part]
        return video
    for frame in range(take.onset, len(video)):
        picture = take.pictures[frame]
        for row in (-1, 0, 1):
            for column in (-1, 0, 1):
                shift = np.array([row * height // 3, column * width // 3])
                copy = _moved(picture, take.background[frame], shift)
                changed = np.abs(copy.astype(int) - take.background[frame]).max(2) > _CHANGED
                video[frame][changed] = copy[changed]
    return video


def _pushed_through(take: Take) -> np.ndarray:
    """Tear what the interaction changed in two, and push the halves through each other and into the scene, there and back.

    Where more than half of the picture changed there is nothing to cut out, and stripes of the picture pass each other.
    """
    video, mask = take.pictures.copy(), _mask(take)
    height = mask.shape[0]
    columns = np.flatnonzero(mask.any(0))
    for frame in range(take.onset, len(video)):
        phase = float(np.sin((frame - take.onset) / 4))
        picture, background = take.pictures[frame], take.background[frame]
        if 0 < mask.mean() <= 0.5:
            middle, reach = int(np.median(columns)), max(4, len(columns) // 2)
            left, right = picture.copy(), picture.copy()
            left[:, middle:], right[:, :middle] = background[:, middle:], background[:, :middle]
            shift = np.array([-int(0.3 * height * abs(phase)), int(reach * phase)])
            torn = _moved(left, background, shift)
            other = _moved(right, background, -shift // [3, 1])
            changed = np.abs(other.astype(int) - background).max(2) > _CHANGED
            torn[changed] = other[changed]
            video[frame] = torn
        else:
            stripes = (np.arange(height) // max(1, height // 12)) % 2
            rows = zip(picture, stripes.tolist(), strict=True)
            video[frame] = np.stack([np.roll(row, int(40 * phase) * (1 if odd else -1), 0) for row, odd in rows])
    return video
