"""Wan's decoder in parts of the picture: the halo is as wide as it must be, and no wider."""

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
diffusers = pytest.importorskip("diffusers", reason="the extra `train` is not installed")

from model.accelerate.split_decode import SplitWanDecoder, halo_of, spans  # noqa: E402
from model.backbone.vae import VideoCodec  # noqa: E402


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    return VideoCodec(diffusers.AutoencoderKLWan(base_dim=8, num_res_blocks=1)).double()


def test_the_halo_of_wans_decoder_is_thirteen_latents():
    with torch.device("meta"):
        decoder = diffusers.AutoencoderKLWan().decoder
    assert halo_of(decoder) == 13


def test_columns_are_divided_evenly():
    assert spans(104, 4) == [range(26), range(26, 52), range(52, 78), range(78, 104)]
    assert [len(part) for part in spans(33, 2)] == [16, 17]
    with pytest.raises(ValueError, match="2 latent columns do not divide into 3 parts"):
        spans(2, 3)


def test_with_its_halo_a_part_is_exact_and_with_less_it_is_not(codec):
    """In float64, where rounding does not hide a seam."""
    halo, latents = halo_of(codec.vae.decoder), torch.randn(1, 16, 3, 3, 48, dtype=torch.float64)
    whole = codec.stream_decoder().decode(latents)

    def seam(columns):
        split = SplitWanDecoder(codec.vae, codec.to_decoder, 2, halo=columns)
        pieces = [split.decode(part) for part in latents.split([1, 2], 2)]
        return float((torch.cat(pieces, 2) - whole).abs().max())

    assert halo == 9, "one residual block a level less than Wan's"
    assert seam(halo) < 1e-6
    assert seam(2) > 1e-4


def test_a_failed_piece_leaves_a_divided_stream_as_it_was(codec, monkeypatch):
    latents = torch.randn(1, 16, 2, 3, 24, dtype=torch.float64)
    split, plain = (SplitWanDecoder(codec.vae, codec.to_decoder, 2) for _ in range(2))
    expected = torch.cat([plain.decode(part) for part in latents.split(1, 2)], 2)
    first = split.decode(latents[:, :, :1])
    with monkeypatch.context() as patch:
        patch.setattr(codec.vae.decoder.norm_out, "forward", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            split.decode(latents[:, :, 1:])
    torch.testing.assert_close(torch.cat([first, split.decode(latents[:, :, 1:])], 2), expected)
