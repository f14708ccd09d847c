import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from models import MODELS, build_model
from models.unet import TimestepEmbedding, UNet, attend


def awake(model):
    """The model with random weights where it starts with zeros."""
    torch.manual_seed(0)
    for p in model.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [8, 28, 32, 64])
@pytest.mark.parametrize("image_channels", [1, 3])
def test_keeps_the_shape(name, size, image_channels):
    model = build_model(
        {"name": name, "image_size": size, "image_channels": image_channels, "channels": 16}
    )
    x = torch.randn(2, image_channels, size, size)
    assert model(x, torch.tensor([0, 999])).shape == x.shape


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_is_used(name):
    config = {"image_size": 28, "image_channels": 1, "channels": 16}
    model = awake(build_model({"name": name, **config})).train()
    model(torch.randn(2, 1, 28, 28), torch.tensor([3, 700])).square().sum().backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == []


@pytest.mark.parametrize("name", MODELS)
def test_images_of_a_batch_do_not_see_each_other(name):
    config = {"image_size": 8, "image_channels": 1, "channels": 16}
    model = awake(build_model({"name": name, **config}))
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([0, 500, 999])
    together = model(x, t)
    alone = torch.cat([model(x[i : i + 1], t[i : i + 1]) for i in range(3)])
    assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_the_default_has_about_two_million_parameters():
    parameters = sum(p.numel() for p in UNet(28, 1).parameters())
    assert 1.8e6 < parameters < 2.3e6


def test_starts_at_zero():
    out = UNet(28, 1, channels=16)(torch.randn(2, 1, 28, 28), torch.tensor([0, 999]))
    assert_close(out, torch.zeros_like(out))


def test_sees_the_time():
    model = awake(UNet(8, 1, channels=16))
    x = torch.randn(1, 1, 8, 8)
    assert not torch.allclose(model(x, torch.tensor([0])), model(x, torch.tensor([500])), atol=1e-3)


def test_channels_last_changes_nothing():
    model, x = awake(UNet(28, 1, channels=16)), torch.randn(2, 1, 28, 28)
    t = torch.tensor([0, 999])
    expected = model(x, t)
    model = model.to(memory_format=torch.channels_last)
    actual = model(x.to(memory_format=torch.channels_last), t)
    assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        (30, {}, "multiples of 4 .* not 30; the nearest are 28 and 32"),
        (2, {"patch_size": 2}, "not 2; the nearest are 4"),
        (28, {"multipliers": (1, 2, 2, 2)}, "multiples of 16 .* the nearest are 16 and 32"),
        (9, {}, "multiples of 2 .* the nearest are 8 and 10"),
        (28, {"attention_resolutions": (7, 9)}, "attention resolution 9; there are 14, 7"),
        (28, {"blocks": 0}, "at least 1"),
        (28, {"dropout": 1.0}, "dropout"),
    ],
)
def test_refuses_what_does_not_fit(size, options, message):
    with pytest.raises(ValueError, match=message):
        UNet(size, 1, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"multipliers": (1,)},
        {"multipliers": (1, 2, 2), "patch_size": 1},
        {"blocks": 2},
        {"attention_resolutions": (14, 7)},
        {"patch_size": 7, "channels": 40},
        {"channels": 50},  # a width that 16 and 32 do not divide
        {"channels": 1},
    ],
)
def test_other_configurations(options):
    model = UNet(28, 3, **{"channels": 16, **options})
    assert model(torch.randn(2, 3, 28, 28), torch.tensor([0, 9])).shape == (2, 3, 28, 28)


def test_more_of_everything_has_more_parameters():
    def count(**options):
        return sum(p.numel() for p in UNet(32, 3, **options).parameters())

    for options in [
        {"channels": 96},
        {"multipliers": (1, 2, 2)},
        {"blocks": 2},
        {"attention_resolutions": (8,)},
    ]:
        assert count(**options) > count()


def test_dropout_drops_in_training_only():
    model = awake(UNet(8, 1, channels=16, dropout=0.5))
    x, t = torch.randn(1, 1, 8, 8), torch.tensor([5])
    assert_close(model(x, t), model(x, t))
    model.train()
    assert not torch.allclose(model(x, t), model(x, t))


def test_attention_written_out_is_pytorchs():
    q, k, v = torch.randn(3, 2, 4, 49, 32)
    assert_close(attend(q, k, v), F.scaled_dot_product_attention(q, k, v), rtol=1e-4, atol=1e-5)
    q, k, v = torch.randn(3, 1, 2, 300, 8)  # long enough for the fused kernel
    expected = (q @ k.mT / 8**0.5).softmax(-1) @ v
    assert_close(attend(q, k, v), expected, rtol=1e-4, atol=1e-5)


def test_timestep_embedding():
    features = TimestepEmbedding(256)(torch.tensor([0, 1, 999]))
    assert features.shape == (3, 256)
    assert_close(features[0], torch.cat([torch.ones(128), torch.zeros(128)]))
    angle = torch.tensor(999.0)  # the first frequency is 1
    assert_close(features[2, [0, 128]], torch.stack([angle.cos(), angle.sin()]))


def test_build_model_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="unknown model 'x'; choose from unet"):
        build_model({"name": "x"})
    with pytest.raises(ValueError, match="not the arguments of a unet"):
        build_model({"name": "unet", "image_size": 28, "image_channels": 1, "heads": 3})


def test_labels_change_the_output_and_the_null_label_is_the_default():
    torch.manual_seed(0)
    model = UNet(8, 1, channels=8, num_classes=3)
    torch.nn.init.normal_(model.head.weight)
    torch.nn.init.normal_(model.middle[0].conv_2.weight)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 500])
    outs = [model(x, t, torch.full((2,), y)) for y in range(4)]
    for i, out in enumerate(outs):
        for other in outs[:i]:
            assert not torch.allclose(out, other)
    assert_close(model(x, t), outs[3])
    assert model.label.num_embeddings == 4


def test_a_network_without_classes_takes_no_labels():
    with pytest.raises(ValueError, match="made without classes"):
        UNet(8, 1, channels=8)(torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.zeros(1).long())


def test_learned_sigma_doubles_the_output():
    model = UNet(28, 3, channels=8, learn_sigma=True)
    assert model(torch.zeros(2, 3, 28, 28), torch.zeros(2)).shape == (2, 6, 28, 28)
