"""Exercise 7: the residual block."""

import torch
import torch.nn.functional as F
from torch import nn

from learn.exercise import Case, Exercise, Mistake, Task, random
from learn.solved import solution

# --- make_layers ----------------------------------------------------------------------------------


def described(layer):
    """A layer's type and sizes; padding="same" as the number of pixels that it stands for."""
    text = str(layer)
    if getattr(layer, "padding", None) == "same":
        sides = tuple((size - 1) // 2 for size in layer.kernel_size)
        text = text.replace(", padding=same", f", padding={sides}" if any(sides) else "")
    return text


def facts_of_layers(function, *sizes):
    """What is compared of layers: their names, shapes, and which parameters are 0."""
    layers = function(*sizes)
    facts = {"is an nn.ModuleDict": isinstance(layers, nn.ModuleDict)}
    if not isinstance(layers, nn.ModuleDict):
        return facts
    facts["names"] = sorted(layers)
    for name in ("norm_1", "conv_1", "time", "norm_2", "conv_2", "skip"):
        if name in layers:
            layer = layers[name]
            facts[name] = described(layer)
            for kind, parameter in layer.named_parameters():
                facts[f"{name}'s {kind} is 0"] = not bool(parameter.any())
    return facts


def make_layers(channels_in, channels_out, dim, *, zero=("conv_2",), **replaced):
    """The solution, with other layers or another initialisation."""
    layers = solution("make_layers")(channels_in, channels_out, dim)
    nn.init.normal_(layers["conv_2"].weight)
    nn.init.normal_(layers["conv_2"].bias)
    for name, layer in replaced.items():
        layers[name] = layer
    for name in zero:
        for parameter in layers[name].parameters():
            nn.init.zeros_(parameter)
    return layers


def weight_only(channels_in, channels_out, dim):
    layers = make_layers(channels_in, channels_out, dim, zero=())
    nn.init.zeros_(layers["conv_2"].weight)
    return layers


MAKE_LAYERS = Task(
    "make_layers",
    hint="nn.ModuleDict({'norm_1': nn.GroupNorm(8, channels_in), ...}), then "
    "nn.init.zeros_(layers['conv_2'].weight), and the same for its bias.",
    cases=[
        Case("8 channels to 8, dim = 4", lambda: (8, 8, 4), facts_of_layers),
        Case("8 channels to 16, dim = 4", lambda: (8, 16, 4), facts_of_layers),
    ],
    mistakes=[
        Mistake(
            "no zero-initialisation",
            "conv_2 begins with random weights. Set its weight and bias to 0, so that the block "
            "begins as its skip connection and a deep network can be trained.",
            lambda i, o, d: make_layers(i, o, d, zero=()),
        ),
        Mistake(
            "only the weight is zero",
            "conv_2's weight is 0, but its bias is random. Set both to 0.",
            weight_only,
        ),
        Mistake(
            "the wrong layer is zero",
            "You set conv_1 to 0. The last convolution must be 0: with conv_1 = 0 nothing of the "
            "image would reach conv_2.",
            lambda i, o, d: make_layers(i, o, d, zero=("conv_1",)),
        ),
        Mistake(
            "both convolutions are zero",
            "conv_1 and conv_2 are both 0, so both gradients are 0, and the block never learns. "
            "Only conv_2 begins as 0.",
            lambda i, o, d: make_layers(i, o, d, zero=("conv_1", "conv_2")),
        ),
        Mistake(
            "no padding",
            "Your convolutions have no padding, so that each makes the image smaller by 2. Use "
            "padding=1.",
            lambda i, o, d: make_layers(
                i, o, d, conv_1=nn.Conv2d(i, o, 3), conv_2=nn.Conv2d(o, o, 3)
            ),
        ),
        Mistake(
            "the skip connection is always the identity",
            "skip is nn.Identity() even where the number of channels changes. There it must be "
            "a convolution of 1 x 1.",
            lambda i, o, d: make_layers(i, o, d, skip=nn.Identity()),
        ),
        Mistake(
            "the skip connection is always a convolution",
            "skip is a convolution even where the channels stay the same. There it must be "
            "nn.Identity(), so that the block begins as the identity.",
            lambda i, o, d: make_layers(i, o, d, skip=nn.Conv2d(i, o, 1)),
        ),
        Mistake(
            "skip convolves 3 x 3",
            "skip has kernels of 3 x 3. It only has to change the number of channels: 1 x 1.",
            lambda i, o, d: make_layers(
                i, o, d, skip=nn.Identity() if i == o else nn.Conv2d(i, o, 3, padding=1)
            ),
        ),
        Mistake(
            "the time has the channels of the input",
            "time maps to channels_in. It is added after conv_1, to channels_out channels.",
            lambda i, o, d: make_layers(i, o, d, time=nn.Linear(d, i)),
        ),
        Mistake(
            "norm_2 has the channels of the input",
            "norm_2 is for channels_in channels. It follows conv_1: channels_out.",
            lambda i, o, d: make_layers(i, o, d, norm_2=nn.GroupNorm(8, i)),
        ),
        Mistake(
            "batch norm for group norm",
            "The statistics of BatchNorm depend on the other images and their noise levels. Use "
            "GroupNorm with 8 groups.",
            lambda i, o, d: make_layers(
                i, o, d, norm_1=nn.BatchNorm2d(i), norm_2=nn.BatchNorm2d(o)
            ),
        ),
    ],
)


# --- residual_block -------------------------------------------------------------------------------


def inputs(channels_in, channels_out, height, width):
    """Layers with random weights, images and features of the time."""

    def make():
        torch.manual_seed(1)
        layers = solution("make_layers")(channels_in, channels_out, 4)
        for parameter in layers.parameters():
            nn.init.normal_(parameter, std=0.3)
        return layers, random(3, channels_in, height, width), random(3, 4, seed=1)

    return make


def block(layers, x, emb, *, act_1=F.silu, act_2=F.silu, time=None, skip=None):
    """The solution, with other parts."""
    h = layers["conv_1"](act_1(layers["norm_1"](x)))
    h = h + (layers["time"](emb)[:, :, None, None] if time is None else time)
    h = layers["conv_2"](act_2(layers["norm_2"](h)))
    return h + (layers["skip"](x) if skip is None else skip)


def norm_after(layers, x, emb):
    h = layers["norm_2"](F.silu(layers["conv_1"](F.silu(layers["norm_1"](x)))))
    h = h + layers["time"](emb)[:, :, None, None]
    return layers["skip"](x) + layers["conv_2"](h)


def activation_first(layers, x, emb):
    h = layers["conv_1"](layers["norm_1"](F.silu(x)))
    h = h + layers["time"](emb)[:, :, None, None]
    return layers["skip"](x) + layers["conv_2"](layers["norm_2"](F.silu(h)))


def time_last(layers, x, emb):
    time = layers["time"](emb)[:, :, None, None]
    return block(layers, x, emb, time=0 * time) + time


def time_after_norm(layers, x, emb):
    h = layers["conv_1"](F.silu(layers["norm_1"](x)))
    h = layers["norm_2"](h) + layers["time"](emb)[:, :, None, None]
    return layers["skip"](x) + layers["conv_2"](F.silu(h))


def without_conv_2(layers, x, emb):
    h = layers["conv_1"](F.silu(layers["norm_1"](x)))
    h = h + layers["time"](emb)[:, :, None, None]
    return layers["skip"](x) + F.silu(layers["norm_2"](h))


def time_multiplied(layers, x, emb):
    h = layers["conv_1"](F.silu(layers["norm_1"](x)))
    h = h * layers["time"](emb)[:, :, None, None]
    return layers["skip"](x) + layers["conv_2"](F.silu(layers["norm_2"](h)))


RESIDUAL_BLOCK = Task(
    "residual_block",
    hint="Twice: norm, F.silu, conv. Between the two add layers['time'](emb)[:, :, None, None]. At "
    "the end add layers['skip'](x).",
    cases=[
        Case("3 images of 16 channels, 3 x 3 pixels", inputs(16, 16, 3, 3)),
        Case("3 images of 8 channels to 16, 4 x 3 pixels", inputs(8, 16, 4, 3)),
        Case("3 images of 8 channels to 16, 4 x 16 pixels", inputs(8, 16, 4, 16)),
    ],
    mistakes=[
        Mistake(
            "conv_2 is not used",
            "Your result does not go through conv_2. The second half is norm_2, F.silu, conv_2, as "
            "the first one is.",
            without_conv_2,
        ),
        Mistake(
            "no skip connection",
            "You return the convolutions' result alone. Add layers['skip'](x): the block learns a "
            "correction of its input.",
            lambda layers, x, emb: block(layers, x, emb, skip=0),
        ),
        Mistake(
            "x added without the skip layer",
            "You add x itself. Where the number of channels changes, shapes do not fit: add "
            "layers['skip'](x).",
            lambda layers, x, emb: block(layers, x, emb, skip=x),
        ),
        Mistake(
            "the time is not used",
            "Your result does not depend on the time embedding. Add layers['time'](emb) between "
            "the two convolutions.",
            lambda layers, x, emb: block(layers, x, emb, time=0),
        ),
        Mistake(
            "the time added at the end",
            "You add the time after the second convolution. It is added before norm_2, so that "
            "conv_2 can use it.",
            time_last,
        ),
        Mistake(
            "the time added after norm_2",
            "You add the time after norm_2. The order is conv_1, time, norm_2.",
            time_after_norm,
        ),
        Mistake(
            "multiplied by the time",
            "You multiply by the features of the time. In this block they are added.",
            time_multiplied,
        ),
        Mistake(
            "no activations",
            "There is no F.silu, so both convolutions together are nearly one. Put it between norm "
            "and convolution, twice.",
            lambda layers, x, emb: block(layers, x, emb, act_1=lambda h: h, act_2=lambda h: h),
        ),
        Mistake(
            "the first activation is missing",
            "There is no F.silu between norm_1 and conv_1. The order is norm, F.silu, conv, both "
            "times.",
            lambda layers, x, emb: block(layers, x, emb, act_1=lambda h: h),
        ),
        Mistake(
            "the second activation is missing",
            "There is no F.silu between norm_2 and conv_2. The order is norm, F.silu, conv, both "
            "times.",
            lambda layers, x, emb: block(layers, x, emb, act_2=lambda h: h),
        ),
        Mistake(
            "ReLU for SiLU",
            "You use F.relu. DDPM uses the smooth F.silu (swish), x * sigmoid(x).",
            lambda layers, x, emb: block(layers, x, emb, act_1=F.relu, act_2=F.relu),
        ),
        Mistake(
            "activation before the norm",
            "You apply F.silu before each norm. The order is norm, F.silu, conv.",
            activation_first,
        ),
        Mistake(
            "norm_2 after the activation",
            "You apply norm_2 after F.silu. The order is norm, F.silu, conv, both times.",
            norm_after,
        ),
        Mistake(
            "the features of the time are not shaped to (B, C, 1, 1)",
            "layers['time'](emb) is (B, C), which PyTorch matches with height and width. Write "
            "layers['time'](emb)[:, :, None, None].",
            lambda layers, x, emb: block(layers, x, emb, time=layers["time"](emb)),
        ),
    ],
)

EXERCISE = Exercise(
    file="07_residual_block",
    title="residual block",
    chapter="05_network.md",
    tasks=[MAKE_LAYERS, RESIDUAL_BLOCK],
    done="You have every part of DDPM's network: blocks, attention, and the time.",
)
