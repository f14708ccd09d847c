"""The training step."""

import time
from contextlib import contextmanager

import pytest
import torch
from torch.testing import assert_close

import train
from conftest import TINY
from dataset.items import to_unit
from dataset.registry import load_dataset
from models import MODELS
from objectives import LOSS_WEIGHTS, NOISE_ASSIGNMENTS, PREDICTIONS, TIMESTEP_SAMPLINGS
from training.config import make_config
from training.optimizers import Muon, orthogonal
from training.trainer import Trainer


def trainer_of(*arguments) -> Trainer:
    args = train.parse_args([*TINY, *map(str, arguments)])
    config = make_config(args, load_dataset(args.dataset))
    return Trainer(config, torch.device("cpu"), args.precision, args.compile)


def test_overfits_one_batch():
    trainer = trainer_of("--channels", 16, "--warmup-steps", 0)
    images = load_dataset("digits").items[:16]
    losses = []
    for _ in range(250):
        trainer.step %= 10  # ten draws of t and noise, again and again
        losses.append(trainer.update(images, None, lr=3e-3)[0].item())
    assert sum(losses[-10:]) < 0.12 * sum(losses[:10])


@pytest.mark.parametrize("flip", ["--flip", "--no-flip"])
def test_accumulation_makes_the_update_of_one_large_batch(flip):
    images = load_dataset("digits").items
    flags = (flip, "--optimizer", "adamw")  # muon's matrices are in bfloat16: it rounds more
    large = trainer_of("--batch-size", 32, *flags)
    parts = trainer_of("--batch-size", 8, "--grad-accum", 4, *flags)
    for step in range(3):
        batch = images[32 * step : 32 * (step + 1)]
        loss, norm = large.update(batch, None, 1e-3)
        assert_close(parts.update(batch, None, 1e-3), (loss, norm), rtol=1e-4, atol=1e-5)
    assert_close(parts.model.state_dict(), large.model.state_dict(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "cnn"])
@pytest.mark.parametrize(
    "flags", [(), ("--precision", "bf16"), ("--class-conditional", "--grad-accum", 2)]
)
def test_blocks_computed_twice_train_to_the_same_bits(name, flags):
    dataset = "digits" if MODELS[name].kind == "images" else "moons"
    flags = [*flags, "--model", name, "--dataset", dataset]
    flags += [] if name == "naive_unet" else ["--dropout", 0.2]
    plain, twice = trainer_of(*flags), trainer_of(*flags, "--grad-checkpoint")
    data = load_dataset(dataset)
    y = data.labels[:16] if "--class-conditional" in flags else None
    kept = {}
    for _ in range(3):  # the head begins with zeros: blocks learn from the second update on
        for trainer in (plain, twice):
            with counted() as saved:
                trainer.update(data.items[:16], y, 1e-3)
            kept[trainer] = saved[0]
    weights = twice.model.state_dict()
    for key, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, weights[key]), key
    assert kept[twice] < 0.6 * kept[plain]


def test_batch_norm_is_not_computed_twice():
    with pytest.raises(ValueError, match="the CNN has no blocks that may be computed twice"):
        trainer_of("--model", "cnn", "--grad-checkpoint")


@contextmanager
def counted():
    """Counts the bytes that the backward pass is given: yields a list of that one number."""
    total = [0]

    def pack(tensor):
        total[0] += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_checkpoint_may_be_laid_out_in_another_way(optimizer):
    """As one of a machine where another layout is fastest."""
    images = load_dataset("digits").items[:16]
    first, second = (trainer_of("--optimizer", optimizer) for _ in range(2))
    for _ in range(3):
        first.update(images, None, 1e-3)

    def contiguous(state):
        if isinstance(state, torch.Tensor):
            return state.clone(memory_format=torch.contiguous_format)
        if isinstance(state, dict):
            return {key: contiguous(value) for key, value in state.items()}
        return [contiguous(value) for value in state] if isinstance(state, list) else state

    assert not first.model.head.weight.is_contiguous()
    second.load(contiguous(first.state()))
    for _ in range(2):
        first.update(images, None, 1e-3)
        second.update(images, None, 1e-3)
    found, wanted = second.model.state_dict(), first.model.state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_the_gradient_is_clipped():
    trainer = trainer_of("--grad-clip", 1e-6, "--optimizer", "adamw")
    images = load_dataset("digits").items[:16]
    _, norm = trainer.update(images, None, 1e-3)
    assert norm > 1e-3  # reported as it was
    state = trainer.optimizers["adamw"].state_dict()[
        "state"
    ]  # after one step exp_avg is 0.1 * gradient
    clipped = torch.cat([10 * s["exp_avg"].flatten() for s in state.values()]).norm()
    assert clipped.item() == pytest.approx(1e-6, rel=1e-3)
    trainer = trainer_of("--grad-clip", 0, "--optimizer", "adamw")
    _, norm = trainer.update(images, None, 1e-3)
    state = trainer.optimizers["adamw"].state_dict()["state"]
    full = torch.cat([10 * s["exp_avg"].flatten() for s in state.values()]).norm()
    assert_close(full, norm, rtol=1e-3, atol=0)


def test_the_seed_decides_everything():
    images = load_dataset("digits").items[:32]

    def after_two_updates(seed):
        torch.manual_seed(time.time_ns())
        trainer = trainer_of("--seed", seed, "--dropout", 0.2)
        for _ in range(2):
            trainer.update(images, None, 1e-3)
        return trainer.model.state_dict()

    first, again, other = after_two_updates(1), after_two_updates(1), after_two_updates(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["stem.weight"], other["stem.weight"])


def test_bf16_and_compile_train_too():
    args = ("--channels", 8, "--multipliers", 1)
    images = load_dataset("digits").items[:16]
    expected, _ = trainer_of(*args).update(images, None, 1e-3)
    bf16, _ = trainer_of(*args, "--precision", "bf16").update(images, None, 1e-3)
    assert_close(bf16, expected, rtol=0.02, atol=0)
    compiled = trainer_of(*args)
    # The default backend takes a minute to build kernels; this one captures the same graph.
    compiled.network = torch.compile(compiled.model, backend="aot_eager")
    loss, _ = compiled.update(images, None, 1e-3)
    assert_close(loss, expected, rtol=1e-4, atol=0)
    twice = trainer_of(*args, "--grad-checkpoint")
    twice.network = torch.compile(twice.model, backend="aot_eager")
    twice.update(images, None, 1e-3)
    assert_close(twice.update(images, None, 1e-3), compiled.update(images, None, 1e-3))


def test_compile_takes_torch_s_modes(monkeypatch):
    modes = []
    monkeypatch.setattr(torch, "compile", lambda model, mode: modes.append(mode) or model)
    for flags in ([], ["--compile"], ["--compile", "reduce-overhead"]):
        trainer_of(*flags)
    assert modes == ["default", "reduce-overhead"]


def test_muon_s_updates_are_nearly_orthogonal():
    torch.manual_seed(0)
    for shape in [(16, 144), (64, 32), (8, 8)]:
        matrix = torch.randn(shape) @ torch.diag(torch.logspace(0, -2, shape[1]))
        singular = torch.linalg.svdvals(orthogonal(matrix).float())
        assert singular.max() < 1.3
        assert singular.median() > 0.6
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        exact = u @ v
        cosine = (orthogonal(matrix).float() * exact).sum() / exact.norm()
        assert cosine / orthogonal(matrix).float().norm() > 0.9


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest():
    trainer = trainer_of("--class-conditional")
    muon, adamw = trainer.optimizers["muon"], trainer.optimizers["adamw"]
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    hidden = {names[id(p)] for p in muon.param_groups[0]["params"]}
    rest = {names[id(p)] for p in adamw.param_groups[0]["params"]}
    assert hidden | rest == set(names.values())
    assert not hidden & rest
    assert {"down.0.conv_1.weight", "middle.0.attention.qkv.weight", "time.1.weight"} <= hidden
    assert {"stem.weight", "head.weight", "label.weight", "down.0.conv_1.bias"} <= rest


def test_muon_s_update_has_the_size_of_adamw_s():
    """Liu et al. 2025: a root mean square of 0.2 times the learning rate, whatever the shape."""
    torch.manual_seed(0)
    for shape in [(32, 16, 3, 3), (64, 32), (24, 96)]:
        p = torch.nn.Parameter(torch.zeros(shape))
        p.grad = torch.randn(shape)
        Muon([p], lr=0.1).step()
        assert p.pow(2).mean().sqrt().item() == pytest.approx(0.02, rel=0.25)


def test_label_dropout():
    trainer = trainer_of("--class-conditional", "--label-dropout", 0.3)
    y, seen = torch.arange(10).repeat(1000), []

    def loss(network, x_0, labels, **_):
        seen.append(labels)
        return next(network.parameters()).sum()

    trainer.diffusion.loss = loss
    trainer.update(torch.zeros(len(y), 1, 8, 8, dtype=torch.uint8), y, 1e-3)
    dropped = seen[0]
    gone = dropped == 10
    assert gone.float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert (dropped[~gone] == y[~gone]).all()


@pytest.mark.parametrize("schedule", ["cosine", "flow", "edm"])  # each kind of process
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_schedule_and_prediction_learns(schedule, prediction):
    """Ten images: the network's x_0 comes nearer to them."""
    flags = ["--channels", 16, "--schedule", schedule, "--prediction", prediction]
    if (schedule, prediction) == ("flow", "eps"):
        with pytest.raises(ValueError, match="ends in pure noise"):
            trainer_of(*flags)
        return
    trainer = trainer_of(*flags, "--timestep-sampling", "stratified", "--loss-weight", "edm")
    images = load_dataset("digits").items[:16]

    def error():
        torch.manual_seed(1)
        denoise = trainer.diffusion.denoiser(trainer.model)
        x_0, level = to_unit(images), trainer.diffusion.nearest(1.0)
        x_t = level.alpha * x_0 + level.sigma * torch.randn_like(x_0)
        return (denoise(x_t, level)[0] - x_0).square().mean().item()

    before = error()
    for _ in range(40):
        trainer.update(images, None, lr=2e-3)
    assert error() < 0.95 * before


@pytest.mark.parametrize(
    ("weight", "sampling", "assignment"),
    [
        *((weight, "uniform", "independent") for weight in LOSS_WEIGHTS),
        *(("uniform", sampling, "independent") for sampling in TIMESTEP_SAMPLINGS),
        *(("uniform", "uniform", assignment) for assignment in NOISE_ASSIGNMENTS),
    ],
)
def test_every_objective_takes_a_step(weight, sampling, assignment):
    flags = ["--loss-weight", weight, "--timestep-sampling", sampling]
    trainer = trainer_of(*flags, "--noise-assignment", assignment, "--learn-sigma")
    loss, norm = trainer.update(load_dataset("digits").items[:16], None, 1e-3)
    assert loss.isfinite()
    assert norm > 0
