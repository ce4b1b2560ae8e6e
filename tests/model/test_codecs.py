"""Autoencoder and text encoder: the libraries' own classes, tiny and random, through the code that loads the real ones."""

import json

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
diffusers = pytest.importorskip("diffusers", reason="the extra `train` is not installed")
transformers = pytest.importorskip("transformers", reason="the extra `train` is not installed")

from model.backbone import text, vae  # noqa: E402


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    torch.manual_seed(0)
    folder = str(tmp_path_factory.mktemp("vae"))
    diffusers.AutoencoderKLWan(base_dim=8, num_res_blocks=1).save_pretrained(folder)
    return vae.load(folder)


def test_latents_are_normalised_and_come_back(codec):
    video = torch.rand(1, 3, 9, 32, 32) * 2 - 1
    latents = codec.encode(video)
    raw = codec.vae.encode(video).latent_dist.mode()
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (codec.vae.config.latents_mean, codec.vae.config.latents_std))
    torch.testing.assert_close(latents, (raw - mean) / std)
    torch.testing.assert_close(codec.decode(latents), codec.vae.decode(raw).sample.clamp(-1, 1), atol=1e-5, rtol=1e-4)
    assert codec.decode(latents).shape == video.shape


def test_the_image_stands_in_the_first_latent_with_its_mask(codec):
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    found = codec.encode_first_frame(image, frames=9)
    assert found.shape == (2, 20, 3, 4, 4)
    assert found[:, :4, 0].eq(1).all()
    assert found[:, :4, 1:].eq(0).all()
    torch.testing.assert_close(found[:, 4:, :1], codec.encode(image[:, :, None]), atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """UMT5 with words for tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("text")
    words = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", "a", "door", "opens", "slowly"])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(folder / "tokenizer")
    config = transformers.UMT5Config(vocab_size=16, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    torch.manual_seed(0)
    transformers.UMT5EncoderModel(config).save_pretrained(folder / "text_encoder")
    assert json.loads((folder / "text_encoder" / "config.json").read_text())["d_model"] == 24
    return text.load(str(folder), dtype=torch.float32)


def test_padding_is_zero_and_words_are_not(encoder):
    found = encoder(["a door  opens", "a door"])
    assert found.shape == (2, 512, 24)
    assert found[0, :3].abs().amin(0).max() > 0
    assert not found[0, 3:].any()
    assert not found[1, 2:].any()


def test_white_space_and_neighbours_do_not_matter(encoder):
    torch.testing.assert_close(encoder(["a door opens", "a"])[0], encoder(["a\n door\topens "])[0], atol=1e-6, rtol=1e-5)


def test_an_empty_text_is_all_zeros(encoder):
    assert not encoder([""]).any()
