"""Every network of `MODELS` on small data, and the parts of single networks."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from conditions import NULL_LABEL, Condition
from dataset.items import shape_config
from models import MODELS, build_model, cost, model_config
from models.dit import DiT, position_embedding
from models.layers import TimestepEmbedding, attend
from models.unet import AddingBlock, Block, UNet, UpBlock


def without_zeros(model):
    """The model with random weights in place of those that it initializes to zero."""
    torch.manual_seed(0)
    for p in model.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    return model.eval()


SHAPES = [(1, 8, 8), (3, 28, 28), (1, 32, 32), (1, 128, 128), (3, 24, 40), (1, 40, 12), (2,)]
CASES = [
    (name, shape)
    for name, network in MODELS.items()
    for shape in SHAPES
    if network.kind == ("points" if len(shape) == 1 else "images")
]


def small_shape(name: str, channels: int = 1) -> tuple[int, ...]:
    """The shape of small data of a network's kind."""
    return (2,) if MODELS[name].kind == "points" else (channels, 8, 8)


def small(name: str, shape, **options):
    """A small network without zero weights, with data x_t and timesteps t for it."""
    options = {"channels": 16, **options}
    if name == "cnn":
        options["channels"] = 1
    model = without_zeros(build_model(model_config(name, shape_config(shape), 1000, options)))
    return model, torch.randn(3, *shape), torch.tensor([0, 500, 999])


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_output_has_the_shape_of_the_input(name, shape):
    model, x_t, t = small(name, shape)
    assert model(x_t, t).shape == x_t.shape


@pytest.mark.parametrize("name", MODELS)
def test_learned_variance_doubles_the_channels(name):
    shape = small_shape(name, channels=3)
    model, x_t, t = small(name, shape, learn_sigma=True)
    assert model(x_t, t).shape == (3, 2 * shape[0], *shape[1:])


@pytest.mark.parametrize(("name", "shape"), [c for c in CASES if c[1][-1] in (28, 2)])
def test_every_weight_is_used(name, shape):
    model, x_t, t = small(name, shape)
    model.train()
    model(x_t, t).square().sum().backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # BatchNorm subtracts the mean, so a bias before it has no effect.
    assert [n for n in unused if not (name == "cnn" and n.endswith("0.bias"))] == []


@pytest.mark.parametrize(("name", "shape"), [c for c in CASES if c[1][-1] in (8, 2)])
def test_items_of_a_batch_do_not_affect_each_other(name, shape):
    model, x_t, t = small(name, shape)
    together = model(x_t, t)
    alone = torch.cat([model(x_t[i : i + 1], t[i : i + 1]) for i in range(3)])
    assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_all_networks_but_the_cnn_depend_on_the_timestep(name):
    model, x_t, t = small(name, small_shape(name))
    same = torch.allclose(model(x_t, t), model(x_t, t.flip(0)), atol=1e-3)
    assert same == (name == "cnn")


@pytest.mark.parametrize("name", [name for name in MODELS if name != "cnn"])
def test_labels_change_the_output_and_no_label_is_the_null_label(name):
    shape = small_shape(name)
    model, x_t, t = small(name, shape, num_classes=4)
    x_t, t = x_t[:1].repeat(5, *[1] * len(shape)), t[:1].repeat(5)
    out = model(x_t, t, Condition(label=torch.tensor([0, 1, 2, 3, NULL_LABEL])))
    assert torch.pdist(out.flatten(1)).min() > 1e-3
    without_label = out[4].expand_as(out)
    assert_close(model(x_t, t), without_label)
    assert_close(model(x_t, t, Condition()), without_label)
    assert_close(model(x_t, t, Condition(label=torch.arange(5) % 4).null()), without_label)


@pytest.mark.parametrize("name", MODELS)
def test_a_network_without_classes_ignores_labels(name):
    model, x_t, t = small(name, small_shape(name))
    assert_close(model(x_t, t, Condition(label=torch.arange(3))), model(x_t, t))


@pytest.mark.parametrize("name", MODELS)
def test_ends_are_the_first_and_the_last_layer(name):
    model, x_t, t = small(name, small_shape(name, channels=3))
    first, last = model.ends()
    seen = []
    first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].numel()))
    last.register_forward_hook(lambda module, inputs, out: seen.append(out.numel()))
    model(x_t, t)
    assert seen == [x_t.numel(), x_t.numel()]  # before and after the patches


@pytest.mark.parametrize("name", MODELS)
def test_cost_counts_multiplications_and_additions(name):
    shape = small_shape(name)
    config = model_config(name, shape_config(shape), 1000, {"channels": 16})
    parameters, flops = cost(config, shape)
    model = build_model(config)
    assert parameters == sum(p.numel() for p in model.parameters())
    # A matrix is applied once to a point, and a convolution at most once to each pixel.
    matrices = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    assert matrices < flops < 2 * matrices * 64 + 10_000
    if name == "mlp":
        assert flops == 2 * matrices


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("unet", (2,), {}, "the model unet is for images; for points there are mlp"),
        ("mlp", (1, 8, 8), {}, "mlp is for points; for images there are unet, naive_unet, cnn"),
        ("lenet", (1, 8, 8), {}, "unknown model 'lenet'; choose from unet"),
        ("cnn", (1, 8, 8), {"num_classes": 10}, "the model cnn has no num_classes; it has"),
        ("dit", (1, 28, 28), {"patch_size": 5}, "patches of 5 do not divide .* 1, 2, 4, 7, 14, 28"),
        ("dit", (1, 24, 36), {"patch_size": 8}, "divide images of 24x36; these do: 1, 2, 3, 4, 6,"),
        ("dit", (1, 28, 28), {"channels": 30}, "multiple of 4, not 30"),
        ("naive_unet", (1, 28, 28), {"channels": 20}, "must be a multiple of 8, the groups"),
        ("naive_unet", (1, 4, 4), {}, "image sizes from 8 up, not 4"),
        ("naive_unet", (1, 32, 4), {}, "image sizes from 8 up, not 32x4"),
        ("mlp", (2,), {"channels": 9}, "must be an even number"),
    ],
)
def test_invalid_networks_raise(name, shape, options, message):
    with pytest.raises(ValueError, match=message):
        build_model(model_config(name, shape_config(shape), 1000, options))


def test_the_naive_unet_depends_on_t_as_a_fraction_of_the_timesteps():
    config = {"image_size": 8, "image_channels": 1}
    models = {}
    for timesteps in (100, 1000):
        torch.manual_seed(0)
        models[timesteps] = build_model(model_config("naive_unet", config, timesteps, {}))
    x_t = torch.randn(1, 1, 8, 8)
    assert_close(models[100](x_t, torch.tensor([50])), models[1000](x_t, torch.tensor([500])))


def test_position_embeddings_differ_by_row_and_by_column():
    positions = position_embedding(5, 7, 16).view(5, 7, 16)
    assert_close(positions[3, 0, :8], positions[3, 6, :8])  # the half for the row
    assert_close(positions[0, 5, 8:], positions[4, 5, 8:])  # the half for the column
    assert_close(position_embedding(7, 7, 16).view(7, 7, 16)[:5], positions)
    assert torch.pdist(positions.flatten(0, 1)).min() > 0.1


def test_transformer_blocks_start_as_the_identity():
    model = DiT(8, 1, channels=16)
    tokens, emb = torch.randn(2, 16, 16), torch.randn(2, 16)
    for block in model.blocks:
        assert_close(block(tokens, emb), tokens)


def test_long_skips_connect_the_first_blocks_to_the_last():
    with_skips = DiT(8, 1, channels=16, blocks=5, long_skips=True)
    assert len(with_skips.joins) == 2
    without_zeros(with_skips)
    seen = {}
    for i, block in enumerate(with_skips.blocks):
        block.register_forward_hook(lambda m, inputs, out, i=i: seen.__setitem__(i, out))
    for j, join in enumerate(with_skips.joins):
        join.register_forward_pre_hook(lambda m, inputs, j=j: seen.__setitem__(f"join {j}", inputs))
    with_skips(torch.randn(1, 1, 8, 8), torch.tensor([5]))
    for j, (before, partner) in enumerate([(2, 1), (3, 0)]):
        assert_close(seen[f"join {j}"][0], torch.cat([seen[before], seen[partner]], dim=2))


def test_the_default_unet_has_about_two_million_parameters():
    parameters = sum(p.numel() for p in UNet(28, 1).parameters())
    assert 1.8e6 < parameters < 2.3e6


def test_the_unet_starts_with_zero_output():
    out = UNet(28, 1, channels=16)(torch.randn(2, 1, 28, 28), torch.tensor([0, 999]))
    assert_close(out, torch.zeros_like(out))


@pytest.mark.parametrize("efficient", [True, False])
def test_sizes_that_cannot_be_halved_are_rounded_up(efficient):
    model = UNet((9, 14), 1, channels=16, multipliers=(1, 1, 2), efficient=efficient)
    with_sizes = []
    for layer in model.down:
        layer.register_forward_hook(lambda m, inputs, out: with_sizes.append(tuple(out.shape[2:])))
    out = model(torch.randn(1, 1, 9, 14), torch.tensor([3]))
    assert out.shape == (1, 1, 9, 14)
    assert sorted(set(with_sizes)) == [(3, 4), (5, 7), (9, 14)][: 2 if efficient else 3]


def test_an_adding_block_is_a_block_on_the_sum():
    torch.manual_seed(0)
    block = without_zeros(AddingBlock(32, 16, 48, 8, 0.0, True))
    x, other, emb = torch.randn(2, 32, 4, 2), torch.randn(2, 16, 7, 4), torch.randn(2, 8)
    fitted = F.interpolate(block.fit(x), scale_factor=2.0)[:, :, :7]
    assert_close(block(x, emb, other), Block.forward(block, fitted + other, emb))


def test_upsampling_late_gives_the_output_of_the_whole_block():
    torch.manual_seed(0)
    block = without_zeros(UpBlock(32, 16, 16, 8, 0.0, False).double())
    x, other, emb = torch.randn(2, 32, 3, 2), torch.randn(2, 16, 6, 4), torch.randn(2, 8)
    inputs = [each.double().requires_grad_() for each in (x, other, emb)]
    wanted = [*inputs, *block.parameters()]
    late = block(inputs[0], inputs[2], inputs[1])
    both = torch.cat([F.interpolate(inputs[0], scale_factor=2.0), inputs[1]], dim=1)
    whole = Block.forward(block, both, inputs[2])
    assert_close(late, whole)
    gradients = [torch.autograd.grad(out.square().sum(), wanted) for out in (late, whole)]
    assert_close(*gradients)


def test_channels_last_gives_the_same_output():
    model, x = without_zeros(UNet(28, 1, channels=16)), torch.randn(2, 1, 28, 28)
    t = torch.tensor([0, 999])
    expected = model(x, t)
    model = model.to(memory_format=torch.channels_last)
    actual = model(x.to(memory_format=torch.channels_last), t)
    assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        (29, {}, "multiples of its patches of 2, not 29; the nearest are 28 and 30"),
        (1, {"patch_size": 2}, "not 1; the nearest are 2"),
        ((29, 48), {}, "patches of 2, not 29x48; the nearest are 28x48 and 30x48"),
        ((8, 8, 8), {}, "an image size is N or .height, width., not .8, 8, 8."),
        ((16, 32), {"attention_resolutions": (2,)}, "attention resolution 2; there are 16, 8, 4"),
        (28, {"attention_resolutions": (7, 9)}, "attention resolution 9; there are 14, 7, 4"),
        (28, {"blocks": 0}, "at least 1"),
        (28, {"dropout": 1.0}, "dropout"),
    ],
)
def test_invalid_unet_options_raise(size, options, message):
    with pytest.raises(ValueError, match=message):
        UNet(size, 1, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"multipliers": (1,)},
        {"multipliers": (1, 2, 2), "patch_size": 1},
        {"blocks": 2},
        {"efficient": False, "blocks": 2},
        {"attention_resolutions": (14, 7, 4)},
        {"patch_size": 7, "channels": 40},
        {"channels": 50},  # not divisible by 16 or 32
        {"channels": 1},
    ],
)
def test_unet_options_keep_the_shape(options):
    model = UNet(28, 3, **{"channels": 16, **options})
    assert model(torch.randn(2, 3, 28, 28), torch.tensor([0, 9])).shape == (2, 3, 28, 28)


def test_larger_unet_options_add_parameters():
    def count(**options):
        return sum(p.numel() for p in UNet(32, 3, **options).parameters())

    for options in [
        {"channels": 96},
        {"multipliers": (1, 2, 2)},
        {"blocks": 2},
        {"attention_resolutions": (8,)},
        {"efficient": False},
    ]:
        assert count(**options) > count()


def test_dropout_acts_only_in_training():
    model = without_zeros(UNet(8, 1, channels=16, dropout=0.5))
    x, t = torch.randn(1, 1, 8, 8), torch.tensor([5])
    assert_close(model(x, t), model(x, t))
    model.train()
    assert not torch.allclose(model(x, t), model(x, t))


def test_attention_matches_pytorch():
    q, k, v = torch.randn(3, 2, 4, 49, 32)
    assert_close(attend(q, k, v), F.scaled_dot_product_attention(q, k, v), rtol=1e-4, atol=1e-5)
    q, k, v = torch.randn(3, 1, 2, 300, 8)  # long enough for the fused kernel
    expected = (q @ k.mT / 8**0.5).softmax(-1) @ v
    assert_close(attend(q, k, v), expected, rtol=1e-4, atol=1e-5)


def test_timestep_embedding_has_cosines_and_sines():
    features = TimestepEmbedding(256)(torch.tensor([0, 1, 999]))
    assert features.shape == (3, 256)
    assert_close(features[0], torch.cat([torch.ones(128), torch.zeros(128)]))
    angle = torch.tensor(999.0)  # the first frequency is 1
    assert_close(features[2, [0, 128]], torch.stack([angle.cos(), angle.sin()]))


def test_unknown_models_and_arguments_raise():
    with pytest.raises(ValueError, match="unknown model 'x'; choose from unet"):
        build_model({"name": "x"})
    with pytest.raises(ValueError, match="not the arguments of a unet"):
        build_model({"name": "unet", "image_size": 28, "image_channels": 1, "heads": 3})
