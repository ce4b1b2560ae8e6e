"""The discriminator that a decoder of pictures may be trained against.

N pictures in [-1, 1], H W px.
"""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

_GAIN = 8.0


class PatchDiscriminator(nn.Module):
    """Scores patches of pictures: high for real ones, low for decoded ones. Spectral norms keep its slope bounded.

    Pictures are multiplied by `_GAIN` first. Decoded ones lack detail with an amplitude of a few hundredths, from which a slope
    of 1 cannot make scores that differ by more.
    Each of three convolutions halves the picture, so that a score sees patches of 22 px.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [_spectral_norm(nn.Conv2d(before, after, 4, 2, 1)), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, _spectral_norm(nn.Conv2d(widths[-1], 1, 3, 1, 1)))

    def forward(self, pictures_N3HW: Tensor) -> Tensor:
        scores: Tensor = self.layers(_GAIN * pictures_N3HW)
        return scores


def _spectral_norm(layer: nn.Module) -> nn.Module:
    return nn.utils.parametrizations.spectral_norm(layer)


def discriminator_loss(real_scores: Tensor, decoded_scores: Tensor) -> Tensor:
    """Return the hinge loss of a discriminator: real scores should be over 1, others under -1."""
    return functional.relu(1 - real_scores).mean() + functional.relu(1 + decoded_scores).mean()
