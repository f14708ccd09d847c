"""Networks and arrays as people have them: each trains, or is refused in words that help."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from sample import sample
from training.fit import fit

IMAGES = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8)
UNIT = IMAGES / 255
QUICK = {"max_steps": 2, "warmup_steps": 1, "sample_interval": 0, "validation": 2}


class Network(nn.Module):
    """A layer, and something done to its output."""

    def __init__(self, change=lambda out: out, channels: int = 1):
        super().__init__()
        self.change, self.layer = change, nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x, t, condition=None):
        return self.change(self.layer(x))


class Box:
    """As diffusers returns it."""

    def __init__(self, out):
        self.sample = out


def run(tmp_path, model=None, data=IMAGES, labels=None, **options):
    model = Network() if model is None else model
    return fit(model, data, labels, folder=tmp_path / "run", **QUICK, **options)


# --- data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "options"),
    [
        (IMAGES.numpy(), {}),
        (IMAGES.numpy()[:, :, ::-1], {}),
        (list(IMAGES), {}),
        (IMAGES.tolist(), {"value_range": (0, 255)}),
        (IMAGES.numpy().astype(">i4"), {"value_range": (0, 255)}),
        (IMAGES.numpy().astype(">f8"), {"value_range": (0, 255)}),
        (IMAGES > 100, {"value_range": (0, 1)}),
        (UNIT.double(), {"value_range": [0, 1]}),
        (UNIT.requires_grad_(), {"value_range": np.array([0, 1])}),
    ],
)
def test_arrays_and_lists_of_any_number_type(tmp_path, data, options):
    assert run(tmp_path, data=data, **options).exit_code == 0


def test_an_array_trains_as_the_tensor_does(tmp_path):
    torch.manual_seed(0)
    start = Network().state_dict()
    losses = []
    for name, data in [("a", IMAGES), ("b", IMAGES.numpy())]:
        model = Network()
        model.load_state_dict(start)
        losses.append(fit(model, data, folder=tmp_path / name, **QUICK).metrics[0]["loss"])
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    "labels", [[0, 1] * 20, np.array([0, 1] * 20, np.int16), IMAGES[:, 0, 0, 0] > 9]
)
def test_labels_of_any_whole_type(tmp_path, labels):
    assert run(tmp_path, labels=labels).exit_code == 0


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.eye(2)[[0, 1] * 20], "argmax"),
        (torch.tensor([0.0, 1.0] * 20), "whole numbers"),
        (torch.tensor([-1, 1] * 20), "-1 to 1"),
        (
            torch.tensor([1, 10**12] * 20),
            "torch.unique",
        ),  # a list of so many names fills the memory
        (["cat", "dog"] * 20, "labels must be a tensor or an array of numbers"),
    ],
)
def test_labels_that_are_no_class_numbers(tmp_path, labels, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, labels=labels)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (IMAGES[:, 0], r"images\[:, None\]"),
        (IMAGES[:, :, :0], "not of shape"),
        (np.array(["a", "b"]), "array of numbers, not ndarray"),
        (nn.Linear(1, 1), "not Linear"),
        (iter([1]), "array of numbers"),
        (torch.zeros(4, 2, dtype=torch.complex64), "real numbers"),
    ],
)
def test_data_that_are_no_images_or_points(tmp_path, data, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, data=data)


@pytest.mark.parametrize(
    "data", [torch.full((40, 1, 8, 8), 7, dtype=torch.uint8), torch.ones(40, 2)]
)
def test_equal_values_have_no_scale_for_edm(tmp_path, data):
    with pytest.raises(ValueError, match="all values of the data are equal"):
        run(tmp_path, data=data, schedule="edm")


# --- networks -------------------------------------------------------------------------------------


class Lazy(Network):
    def __init__(self):
        super().__init__()
        self.layer = nn.LazyConv2d(1, 3, padding=1)


class OneArgument(Network):
    def forward(self, x):
        return x


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: Network, "not the class Network"),
        (lambda: lambda x, t: x, "must be a torch.nn.Module, not function"),
        (lambda: IMAGES, "not Tensor"),
        (lambda: nn.Identity(), "no parameters"),
        (lambda: Network().requires_grad_(False), "requires_grad_"),
        (Lazy, "lazy layers"),
        (OneArgument, r"called as model\(x_t, t\) .* fails: .*takes 2 positional"),
        (lambda: Network().double(), r"pass model.float\(\)"),
        (lambda: Network(channels=3), "expected input"),
        (lambda: Network(lambda out: (out,)), "return its first element"),
        (lambda: Network(lambda out: {"sample": out}), "not dict"),
        (lambda: Network(Box), "return its .sample"),
        (lambda: Network(lambda out: None), "not NoneType"),
        (lambda: Network(lambda out: out.mean()), r"not \(\)"),
        (lambda: Network(lambda out: out.mean((2, 3), keepdim=True)), r"not \(2, 1, 1, 1\)"),
        (lambda: Network(lambda out: out[:, :, 1:]), r"not \(2, 1, 7, 8\)"),
    ],
)
def test_networks_that_cannot_be_trained(tmp_path, model, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, model())
    assert not (tmp_path / "run").exists()


def test_channels_at_the_end_are_recognized(tmp_path):
    with pytest.raises(ValueError, match=r"permute\(0, 3, 1, 2\)"):
        run(tmp_path, Network(channels=3), torch.zeros(40, 8, 8, 3, dtype=torch.uint8))


@pytest.mark.parametrize("wrap", [partial(torch.compile, backend="eager"), nn.DataParallel])
def test_a_wrapped_network_trains_and_samples_without_its_wrapper(tmp_path, monkeypatch, wrap):
    modes, model = [], Network()
    wrapped, again = wrap(model), wrap(Network())
    monkeypatch.setattr(torch, "compile", lambda network, mode: modes.append(mode) or network)
    checkpoint = run(tmp_path, wrapped).checkpoint
    assert modes == (["default"] if wrap is not nn.DataParallel else [])
    assert list(torch.load(checkpoint)["model"]) == ["layer.weight", "layer.bias"]
    images = sample(checkpoint, model=Network(), num_images=2, steps=1)
    assert (images == sample(checkpoint, model=again, num_images=2, steps=1)).all()


def test_a_trial_call_changes_nothing(tmp_path):
    """Neither the network's statistics nor the random numbers of its own."""

    class Random(Network):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(1)
            self.drawn = []

        def forward(self, x, t):
            self.drawn.append(torch.rand(()).item())
            return self.layer(self.norm(x))

    model = Random()
    run(tmp_path, model)
    assert len(model.drawn) == 2  # the trial was of the average's network
    assert int(model.norm.num_batches_tracked) == 2
