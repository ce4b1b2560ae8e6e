"""Autoencoder and text encoder: the libraries' own classes, tiny and random, through the code that loads the real ones."""

import json

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
diffusers = pytest.importorskip("diffusers", reason="the extra `train` is not installed")
transformers = pytest.importorskip("transformers", reason="the extra `train` is not installed")

from curation.errors import InputError  # noqa: E402
from model.backbone import text, vae  # noqa: E402
from model.backbone.tiny_decoder import TinyDecoder, load_tiny_decoder  # noqa: E402
from model.evaluation.decoders import compare_decoders  # noqa: E402


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


def latents_of(codec, frames=17, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return codec.encode(torch.rand(1, 3, frames, 32, 32, generator=generator) * 2 - 1)


def test_a_video_that_is_decoded_in_pieces_is_the_same(codec):
    latents = latents_of(codec)
    stream = codec.stream_decoder()
    pieces = [stream.decode(part) for part in latents.split([1, 1, 3], 2)]
    assert [piece.shape[2] for piece in pieces] == [1, 4, 12]
    torch.testing.assert_close(torch.cat(pieces, 2), codec.decode(latents), atol=1e-5, rtol=1e-4)


def test_sessions_do_not_disturb_each_other_nor_the_autoencoder(codec):
    a, b = latents_of(codec), latents_of(codec, seed=1)
    streams = codec.stream_decoder(), codec.stream_decoder()
    pieces = [], []
    for parts in zip(a.split(1, 2), b.split(1, 2), strict=True):
        for stream, piece, part in zip(streams, pieces, parts, strict=True):
            piece.append(stream.decode(part))
        codec.decode(a[:, :, :2])  # clears what diffusers stores in the autoencoder
    for piece, latents in zip(pieces, (a, b), strict=True):
        torch.testing.assert_close(torch.cat(piece, 2), codec.decode(latents), atol=1e-5, rtol=1e-4)


def test_a_cloned_stream_continues_alone(codec):
    latents = latents_of(codec)
    stream = codec.stream_decoder()
    stream.decode(latents[:, :, :2])
    other = stream.clone()
    first = stream.decode(latents[:, :, 2:4])
    torch.testing.assert_close(other.decode(latents[:, :, 2:4]), first)
    assert not torch.equal(stream.decode(latents[:, :, 3:4]), first[:, :, 4:]), "the stream went on"


def test_the_condition_of_an_endless_video_is_that_of_a_long_one(codec):
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    whole = codec.encode_first_frame(image, frames=1 + 4 * 39)
    stream = codec.first_frame_stream(image)
    parts = [stream.condition(3, 0), stream.condition(1, 3), stream.condition(36, 4)]
    torch.testing.assert_close(torch.cat(parts, 2), whole, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(stream.condition(2, 7), whole[:, :, 7:9], atol=1e-4, rtol=1e-4)
    far = stream.condition(2, 10_000)
    torch.testing.assert_close(far, whole[:, :, -1:].expand(-1, -1, 2, -1, -1), atol=1e-4, rtol=1e-4)
    assert len(stream._latents) < 39, "grey frames that change nothing are not encoded"


@pytest.fixture(scope="module")
def tiny_codec(codec):
    torch.manual_seed(0)
    return vae.VideoCodec(codec.vae, TinyDecoder((16, 12, 8, 8)).eval())


def test_the_tiny_decoder_in_pieces_is_the_same(tiny_codec):
    latents = latents_of(tiny_codec)
    stream = tiny_codec.stream_decoder()
    pieces = [stream.decode(part) for part in latents.split([2, 1, 2], 2)]
    assert [piece.shape for piece in pieces] == [(1, 3, frames, 32, 32) for frames in (5, 4, 8)]
    assert pieces[0].std() > 0
    torch.testing.assert_close(torch.cat(pieces, 2), tiny_codec.decode(latents))
    torch.testing.assert_close(
        torch.cat([tiny_codec.stream_decoder().decode(latents[:, :, :2]), stream.clone().decode(latents[:, :, 2:])], 2)[
            :, :, :5
        ],
        pieces[0],
    )


def test_a_tiny_decoder_sees_one_latent_at_a_time_and_those_before(tiny_codec):
    latents = latents_of(tiny_codec)
    changed = latents.clone()
    changed[:, :, 2] += 1
    same = (tiny_codec.decode(latents) == tiny_codec.decode(changed)).all(dim=(0, 1, 3, 4))
    assert same.tolist()[:5] == [True] * 5
    assert not same[5:].any()


def test_published_weights_of_the_tiny_decoder_load_by_name(tmp_path):
    """The file also has an encoder. Its first division of frames, which is not used, has the rows of two frames."""
    torch.manual_seed(0)
    theirs = TinyDecoder().state_dict()
    assert sorted(theirs)[:4] == ["decoder.1.bias", "decoder.1.weight", "decoder.10.conv.0.bias", "decoder.10.conv.0.weight"]
    shapes = {
        name: tuple(theirs[f"decoder.{name}.weight"].shape) for name in ("1", "3.conv.0", "7.conv", "13.conv", "14", "22")
    }
    assert shapes == {
        "1": (256, 16, 3, 3),
        "3.conv.0": (256, 512, 3, 3),
        "7.conv": (256, 256, 1, 1),
        "13.conv": (256, 128, 1, 1),
        "14": (64, 128, 3, 3),
        "22": (3, 64, 3, 3),
    }
    doubled = torch.cat([torch.zeros(256, 256, 1, 1), theirs["decoder.7.conv.weight"]])
    file = tmp_path / "taew2_1.pth"
    torch.save({**theirs, "decoder.7.conv.weight": doubled, "encoder.0.weight": torch.zeros(64, 3, 3, 3)}, file)
    loaded = load_tiny_decoder(str(file)).state_dict()
    assert all(torch.equal(loaded[name], theirs[name]) for name in theirs)
    for wrong in (b"", b"no weights"):
        file.write_bytes(wrong)
        with pytest.raises(InputError, match="no weights of TAEHV"):
            load_tiny_decoder(str(file))
    with pytest.raises(InputError, match="no weights of TAEHV"):
        load_tiny_decoder(str(tmp_path / "none.pth"))


def test_two_decoders_are_compared_on_the_same_latents(codec, tiny_codec):
    latents = latents_of(codec)
    own = compare_decoders(codec.stream_decoder(), codec.stream_decoder(), latents)
    assert own.psnr == own.worst_psnr == float("inf")
    tiny = compare_decoders(tiny_codec.stream_decoder(), codec.stream_decoder(), latents)
    assert 0 < tiny.worst_psnr <= tiny.psnr < 30
    assert tiny.seconds > 0 < tiny.reference_seconds


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
