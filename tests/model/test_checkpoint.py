"""Checkpoints go both ways: diffusers' folders, original folders, in parts, in bfloat16."""

import json

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
pytest.importorskip("safetensors", reason="the extra `train` is not installed")

from curation.errors import Unavailable  # noqa: E402
from model.backbone.convert import original_names, to_diffusers  # noqa: E402
from model.backbone.dit import FP32, Expert  # noqa: E402
from model.backbone.load_weights import load, meta_expert, parameter_dtype, save  # noqa: E402
from model.config import tiny, wan22_i2v_a14b  # noqa: E402


@pytest.fixture
def expert():
    torch.manual_seed(0)
    return Expert(tiny())


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize("largest_file", [10**9, 20_000])
def test_what_is_saved_is_loaded(expert, tmp_path, original, largest_file):
    save(expert, str(tmp_path), original=original, largest_file=largest_file)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (largest_file < 10**9)
    again = load(str(tmp_path))
    assert again.config == expert.config
    assert equal(again, expert)


def test_diffusers_loads_ours_and_we_load_diffusers(expert, tmp_path):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    save(expert, str(tmp_path / "ours"), largest_file=20_000)
    theirs = diffusers.WanTransformer3DModel.from_pretrained(str(tmp_path / "ours"))
    assert {n: t.shape for n, t in theirs.state_dict().items()} == {n: t.shape for n, t in expert.state_dict().items()}
    theirs.save_pretrained(str(tmp_path / "theirs"))
    assert equal(load(str(tmp_path / "theirs")), expert)


def test_half_precision_leaves_the_islands_whole(expert, tmp_path):
    save(expert, str(tmp_path))
    half = load(str(tmp_path), dtype=torch.bfloat16)
    kinds = {name: p.dtype for name, p in half.named_parameters()}
    islands = {name for name in kinds if any(part in name for part in FP32)}
    assert {kinds[name] for name in islands} == {torch.float32}
    assert {kinds[name] for name in set(kinds) - islands} == {torch.bfloat16}
    assert any("norm2" in name for name in islands)
    config = tiny()
    x, time_BT, text = torch.randn(1, 36, 2, 4, 4), torch.full((1, 2), 300.0), torch.randn(1, 5, config.text_dim)
    with torch.no_grad():
        exact = expert(x, time_BT, text)
        rough = half(x.bfloat16(), time_BT, text.bfloat16())
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).norm() < 0.03 * exact.norm()


def test_names_are_one_to_one_for_the_whole_of_wan22():
    names = [name for name, _ in meta_expert(wan22_i2v_a14b()).named_parameters()]
    originals = original_names(names)
    assert len(set(originals.values())) == len(names) == 1095
    assert [to_diffusers(originals[name]) for name in names] == names
    assert originals["blocks.3.norm2.weight"] == "blocks.3.norm3.weight"
    assert originals["blocks.39.attn2.to_out.0.bias"] == "blocks.39.cross_attn.o.bias"


def test_the_paper_size_is_built_without_memory():
    large = meta_expert(wan22_i2v_a14b())
    assert sum(p.numel() for p in large.parameters()) == 14_288_901_184
    assert {p.device.type for p in large.parameters()} == {"meta"}


def test_a_foreign_name_is_refused():
    with pytest.raises(ValueError, match=r"'img_emb\.proj\.0\.weight' is no parameter"):
        to_diffusers("img_emb.proj.0.weight")


@pytest.mark.parametrize(
    ("break_it", "error", "words"),
    [
        (lambda f: (f / "diffusion_pytorch_model-00002-of-00003.safetensors").unlink(), Unavailable, "00002-of"),
        (lambda f: rewrite(f, num_layers=3), ValueError, "lacks .* tensors, the first blocks.2"),
        (lambda f: rewrite(f, num_layers=1), ValueError, r"holds 'blocks\.1\..*which the model does not have"),
        (lambda f: rewrite(f, ffn_dim=64), ValueError, r"ffn\.net\.\S+ is \(.*, the model's is \("),
    ],
)
def test_a_broken_folder_is_an_error_that_names_it(expert, tmp_path, break_it, error, words):
    size = sum(t.nbytes for t in expert.state_dict().values())
    save(expert, str(tmp_path), largest_file=size // 2 - 3000)
    break_it(tmp_path)
    with pytest.raises(error, match=words):
        load(str(tmp_path))


def rewrite(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_precision_by_name():
    assert parameter_dtype("blocks.0.attn1.to_q.weight", torch.bfloat16) == torch.bfloat16
    assert parameter_dtype("blocks.0.scale_shift_table", torch.bfloat16) == torch.float32
