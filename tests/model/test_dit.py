"""One expert against diffusers' own class, weight for weight."""

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

from model.backbone.attention import AttentionLayout  # noqa: E402 (after the packages are known to be here)
from model.backbone.dit import Expert  # noqa: E402
from model.config import BackboneConfig, tiny  # noqa: E402

SIZES = [(3, 4, 6), (1, 2, 2), (5, 2, 8)]


def pair(config, seed=0):
    """Diffusers' model with perturbed weights (fresh ones hide swapped norms and tables), and ours with the same."""
    torch.manual_seed(seed)
    settings = {k: v for k, v in config.to_diffusers().items() if not k.startswith("_")}
    theirs = diffusers.WanTransformer3DModel(**settings)
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    ours = Expert(config)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def inputs(config, sizes, batch=2, seed=1):
    torch.manual_seed(seed)
    x = torch.randn(batch, config.in_channels, *sizes)
    return x, 1000 * torch.rand(batch, sizes[0]), torch.randn(batch, 7, config.text_dim)


def run_diffusers(theirs, x, time_BT, text):
    """Run diffusers' model, which takes times by token only."""
    tokens = (x.shape[3] // 2) * (x.shape[4] // 2)
    return theirs(x, time_BT.repeat_interleave(tokens, 1), text, return_dict=False)[0]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("layers", [1, 8])
def test_values_are_diffusers(sizes, layers):
    config = BackboneConfig(**{**tiny().__dict__, "num_layers": layers})
    theirs, ours = pair(config)
    x, time_BT, text = inputs(config, sizes)
    with torch.no_grad():
        expected = run_diffusers(theirs, x, time_BT, text)
        found = ours(x, time_BT, text)
    assert expected.abs().max() > 1
    assert (found - expected).abs().max() < 1e-5


def test_gradients_are_diffusers():
    config = tiny()
    theirs, ours = pair(config)
    x, time_BT, text = inputs(config, SIZES[0])
    torch.manual_seed(2)
    weight = torch.randn(2, config.out_channels, *SIZES[0])
    for model, out in ((theirs, run_diffusers(theirs, x, time_BT, text)), (ours, ours(x, time_BT, text))):
        (out * weight).sum().backward()
        assert all(p.grad is not None for p in model.parameters())
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        if name.endswith("to_k.bias"):  # softmax does not see it: its gradient is rounding
            continue
        true = expected[name].grad
        assert (parameter.grad - true).norm() <= 2e-5 * true.norm(), name


def test_a_frames_noise_level_touches_what_it_should():
    """Per-frame levels are not their mean: a change of the last frame's changes the output."""
    config = tiny()
    _, ours = pair(config)
    x, time_BT, text = inputs(config, (3, 4, 4))
    other = time_BT.clone()
    other[:, 2] += 200
    with torch.no_grad():
        assert (ours(x, time_BT, text) - ours(x, other, text)).abs().amax((1, 3, 4))[:, 2].min() > 1e-3


def test_a_block_further_on_equals_the_whole_where_nothing_else_differs():
    """Rotary positions are relative: all frames shifted alike give the same picture, to rounding."""
    config = tiny()
    _, ours = pair(config)
    x, time_BT, text = inputs(config, (3, 4, 4))
    with torch.no_grad():
        torch.testing.assert_close(
            ours(x, time_BT, text),
            ours(x, time_BT, text, layout=AttentionLayout(ours.rotary(range(20, 23), 2, 2, x.device))),
            atol=2e-5,
            rtol=0,
        )


def test_no_control_is_bitwise_a_control_of_zeros():
    config = tiny()
    _, ours = pair(config)
    x, time_BT, text = inputs(config, (3, 4, 4))
    with torch.no_grad():
        zeros = torch.zeros(2, 3 * 2 * 2, config.width)
        assert torch.equal(ours(x, time_BT, text), ours(x, time_BT, text, control_BLD=zeros))


def test_odd_sizes_are_refused_not_cropped():
    config = tiny()
    _, ours = pair(config)
    x, time_BT, text = inputs(config, (3, 5, 4))
    with pytest.raises(ValueError, match=r"\(3, 5, 4\) .* do not divide into patches of \(1, 2, 2\)"):
        ours(x, time_BT, text)


def test_more_latents_than_positions_are_refused():
    config = tiny()
    _, ours = pair(config)
    with pytest.raises(ValueError, match=r"frames 1022 to 1025, .* an axis has 1024 positions"):
        ours.rotary(range(1022, 1025), 2, 2, torch.device("cpu"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_dim": 1280}, "image_dim is 1280"),
        ({"qk_norm": "layer_norm"}, "qk_norm is 'layer_norm'"),
        ({"patch_size": [2, 2, 2]}, "one latent frame"),
    ],
)
def test_a_config_that_is_not_wan22_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        BackboneConfig.from_diffusers({**tiny().to_diffusers(), **change})


def test_a_config_survives_diffusers_words():
    assert BackboneConfig.from_diffusers(tiny().to_diffusers()) == tiny()
