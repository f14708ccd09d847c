"""The training step: objectives, optimizers, precision, gradient accumulation and checkpointing."""

import copy
import time
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from checkpoints.checkpoint import load_checkpoint
from cli.training import TRAIN
from conditions import NULL_LABEL, Condition
from conftest import TINY
from dataset.items import to_unit
from dataset.registry import load_dataset
from models import MODELS
from objectives import LOSS_WEIGHTS, NOISE_ASSIGNMENTS, PREDICTIONS, TIMESTEP_SAMPLINGS
from runs import assert_same_training, trainer_of
from training.config import make_config, with_defaults
from training.optimizers import OPTIMIZERS, Muon, muon_momentum, orthogonal
from training.trainer import Trainer

IMAGES = load_dataset("digits").items[:16]
FEW = ("--multipliers", 1, "--patch-size", 2)  # fewer weights, at fewer resolutions


def test_overfits_one_batch():
    trainer = trainer_of("--channels", 16, *FEW, "--warmup-steps", 0)
    losses = []
    for _ in range(30):
        trainer.step %= 2  # the same two draws of t and noise, again and again
        losses.append(trainer.train_step(IMAGES, None, lr=1e-2)[0].item())
    assert sum(losses[-2:]) < 0.12 * sum(losses[:2])


@pytest.mark.parametrize("flip", ["--flip", "--no-flip"])
def test_accumulation_takes_the_step_of_one_large_batch(flip):
    images = load_dataset("digits").items
    flags = (flip, "--optimizer", "adamw")  # muon's matrices are in bfloat16: it rounds more
    large = trainer_of("--batch-size", 32, *flags)
    parts = trainer_of("--batch-size", 8, "--grad-accum", 4, *flags)
    for step in range(3):
        batch = images[32 * step : 32 * (step + 1)]
        loss, norm = large.train_step(batch, None, 1e-3)
        assert_close(parts.train_step(batch, None, 1e-3), (loss, norm), rtol=1e-4, atol=1e-5)
    assert_close(parts.model.state_dict(), large.model.state_dict(), rtol=1e-4, atol=1e-5)


# --- gradient checkpointing -----------------------------------------------------------------------


@contextmanager
def saved_bytes():
    """Counts the bytes that are kept for the backward pass: yields a list of that one number."""
    total = [0]

    def pack(tensor):
        total[0] += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total


@pytest.mark.parametrize("name", [name for name in MODELS if name != "cnn"])
def test_recomputed_blocks_train_to_the_same_bits(name):
    dataset = "digits" if MODELS[name].kind == "images" else "moons"
    flags = ["--model", name, "--dataset", dataset, "--precision", "bf16"]
    flags += ["--class-conditional", "--grad-accum", 2]
    flags += [] if name == "naive_unet" else ["--dropout", 0.2]
    flags += ["--blocks", 1] if name == "unet2d" else []
    plain, recomputing = trainer_of(*flags), trainer_of(*flags, "--grad-checkpoint")
    data = load_dataset(dataset)
    condition = Condition(data.labels[:16])
    kept = {}
    for _ in range(3):  # the head starts at zero: blocks learn from the second step on
        for trainer in (plain, recomputing):
            with saved_bytes() as saved:
                trainer.train_step(data.items[:16], condition, 1e-3)
            kept[trainer] = saved[0]
    assert_same_training(plain.state(), recomputing.state())
    assert kept[recomputing] < 0.6 * kept[plain]


def test_batch_norm_is_not_recomputed():
    with pytest.raises(ValueError, match="--grad-checkpoint: CNN has no blocks to recompute"):
        trainer_of("--model", "cnn", "--grad-checkpoint")


# --- precision, compilation, memory layout --------------------------------------------------------


def test_bf16_has_almost_the_loss_of_fp32():
    losses = []
    for precision in ("fp32", "bf16"):
        trainer = trainer_of(*FEW, "--precision", precision)
        losses.append([trainer.train_step(IMAGES, None, 3e-3)[0].item() for _ in range(5)])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]


def test_compiled_networks_take_the_same_steps():
    """The default backend takes a minute to build kernels; this one captures the same graph."""
    expected, recomputing = trainer_of(*FEW), trainer_of(*FEW, "--grad-checkpoint")
    recomputing.network = torch.compile(recomputing.model, backend="aot_eager")
    for _ in range(2):
        loss = expected.train_step(IMAGES, None, 1e-3)
        assert_close(recomputing.train_step(IMAGES, None, 1e-3), loss, rtol=1e-3, atol=1e-3)


def test_compile_has_the_modes_of_pytorch(monkeypatch):
    modes = []
    monkeypatch.setattr(torch, "compile", lambda model, mode: modes.append(mode) or model)
    for flags in ([], ["--compile"], ["--compile", "reduce-overhead"]):
        trainer_of(*flags)
    assert modes == ["default", "reduce-overhead"]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_checkpoint_may_have_another_memory_layout(optimizer):
    """Such as one of a machine where another layout is fastest."""
    first, second = (trainer_of("--optimizer", optimizer) for _ in range(2))
    for _ in range(3):
        first.train_step(IMAGES, None, 1e-3)

    def contiguous(state):
        if isinstance(state, torch.Tensor):
            return state.clone(memory_format=torch.contiguous_format)
        if isinstance(state, dict):
            return {key: contiguous(value) for key, value in state.items()}
        return [contiguous(value) for value in state] if isinstance(state, list) else state

    assert not first.model.head.weight.is_contiguous()
    second.load(contiguous(first.state()))
    for _ in range(2):
        first.train_step(IMAGES, None, 1e-3)
        second.train_step(IMAGES, None, 1e-3)
    assert_same_training(first.state(), second.state())


# --- optimizers -----------------------------------------------------------------------------------


def test_the_gradient_is_clipped():
    def gradient_norm(trainer) -> Tensor:  # after one step exp_avg is 0.1 * gradient
        state = trainer.optimizers["adamw"].state_dict()["state"]
        return torch.cat([10 * s["exp_avg"].flatten() for s in state.values()]).norm()

    trainer = trainer_of("--grad-clip", 1e-6, "--optimizer", "adamw")
    _, norm = trainer.train_step(IMAGES, None, 1e-3)
    assert norm > 1e-3  # that from before clipping is reported
    assert gradient_norm(trainer).item() == pytest.approx(1e-6, rel=1e-3)
    trainer = trainer_of("--grad-clip", 0, "--optimizer", "adamw")
    _, norm = trainer.train_step(IMAGES, None, 1e-3)
    assert_close(gradient_norm(trainer), norm, rtol=1e-3, atol=0)


def test_the_seed_decides_everything():
    def weights_after_two_steps(seed: int) -> dict:
        torch.manual_seed(time.time_ns())
        trainer = trainer_of("--seed", seed, "--dropout", 0.2)
        for _ in range(2):
            trainer.train_step(IMAGES, None, 1e-3)
        return trainer.model.state_dict()

    first, again, other = (weights_after_two_steps(seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["stem.weight"], other["stem.weight"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_updates_of_muon_are_nearly_orthogonal(dtype):
    torch.manual_seed(0)
    for shape in [(16, 144), (64, 32), (8, 8)]:
        matrix = torch.randn(shape) @ torch.diag(torch.logspace(0, -2, shape[1]))
        update = orthogonal(matrix[None], dtype)[0].float()
        singular = torch.linalg.svdvals(update)
        assert singular.max() < 1.3
        assert singular.median() > 0.6
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        exact = u @ v
        cosine = (update * exact).sum() / exact.norm() / update.norm()
        assert cosine > 0.9


def test_the_updates_of_muon_are_as_large_as_those_of_adamw():
    """Liu et al. 2025: a root mean square of 0.2 times the learning rate, whatever the shape."""
    torch.manual_seed(0)
    for shape in [(32, 16, 3, 3), (64, 32), (24, 96)]:
        both = [nn.Parameter(torch.zeros(shape)) for _ in range(2)]
        for p in both:
            p.grad = torch.randn(shape)
        Muon(both, lr=0.1).step()
        for p in both:
            assert p.pow(2).mean().sqrt().item() == pytest.approx(0.02, rel=0.25)
            matrix = p.grad.flatten(1)
            alone = orthogonal(matrix[None]).view(shape).float()
            assert_close(p, -0.02 * max(matrix.shape) ** 0.5 * alone, rtol=0.02, atol=1e-3)


def test_muon_computes_in_bfloat16_only_where_the_run_does():
    """CPUs without instructions for bfloat16 need many times as long for it."""
    model = trainer_of().model
    chosen = {p: OPTIMIZERS["muon"](model, 1e-3, p)["muon"].dtype for p in ("fp32", "bf16", "fp16")}
    assert chosen == {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float32}
    assert trainer_of().optimizers["muon"].dtype == torch.float32  # --precision fp32 in tests
    copied = copy.deepcopy(OPTIMIZERS["muon"](model, 1e-3, "bf16")["muon"])
    assert copied.dtype == torch.bfloat16


def test_the_momentum_of_muon_rises_in_the_first_steps_of_new_runs(trained):
    found = [muon_momentum(step, 300) for step in (0, 150, 300, 9000)]
    assert found == pytest.approx([0.85, 0.9, 0.95, 0.95])
    assert muon_momentum(0, 0) == 0.95
    trainer = trainer_of("--momentum-warmup", 2, "--warmup-steps", 0)
    seen = []
    for _ in range(4):
        trainer.train_step(IMAGES, None, 1e-3)
        seen.append(trainer.optimizers["muon"].param_groups[0]["momentum"])
    assert seen == [0.85, pytest.approx(0.9), 0.95, 0.95]
    assert "momentum" not in trainer.optimizers["adamw"].param_groups[0]
    old = load_checkpoint(trained / "model_final.pt")
    del old["config"]["train"]["momentum_warmup"]  # as in runs from before there was a choice
    assert Trainer(old["config"], torch.device("cpu"), "fp32").momentum_warmup == 0


def test_muon_trains_the_hidden_matrices_and_adamw_the_rest():
    trainer = trainer_of("--class-conditional")
    muon, adamw = trainer.optimizers["muon"], trainer.optimizers["adamw"]
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    hidden = {names[id(p)] for p in muon.param_groups[0]["params"]}
    rest = {names[id(p)] for p in adamw.param_groups[0]["params"]}
    assert hidden | rest == set(names.values())
    assert not hidden & rest
    assert {"down.1.conv_1.weight", "middle.0.attention.qkv.weight", "time.1.weight"} <= hidden
    assert {"stem.weight", "head.weight", "label.weight", "down.1.conv_1.bias"} <= rest


# --- objectives -----------------------------------------------------------------------------------


def test_a_share_of_the_labels_is_dropped():
    trainer = trainer_of("--class-conditional", "--label-dropout", 0.3)
    labels = torch.arange(10).repeat(1000)
    images = torch.zeros(len(labels), 1, 8, 8, dtype=torch.uint8)
    found = trainer.objective.batch(images, Condition(labels), step=0).condition.label
    dropped = found == NULL_LABEL
    assert dropped.float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert (found[~dropped] == labels[~dropped]).all()


@pytest.mark.parametrize("schedule", ["cosine", "flow", "edm"])  # each kind of process
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_schedule_and_prediction_learns(schedule, prediction):
    """Sixteen images: the predicted x_0 moves towards them."""
    flags = ["--channels", 16, "--schedule", schedule, "--prediction", prediction]
    if (schedule, prediction) == ("flow", "eps"):
        with pytest.raises(ValueError, match="ends in pure noise"):
            trainer_of(*flags)
        return
    trainer = trainer_of(*flags, *FEW, "--timestep-sampling", "stratified", "--loss-weight", "edm")

    def error() -> float:
        torch.manual_seed(1)
        denoise = trainer.diffusion.denoiser(trainer.model)
        x_0, level = to_unit(IMAGES), trainer.diffusion.nearest(1.0)
        x_t = level.alpha * x_0 + level.sigma * torch.randn_like(x_0)
        return (denoise(x_t, level)[0] - x_0).square().mean().item()

    before = error()
    for _ in range(8):
        trainer.train_step(IMAGES, None, lr=1e-2)
    assert error() < 0.95 * before


@pytest.mark.parametrize(
    ("weight", "sampling", "assignment"),
    [
        *((weight, "uniform", "independent") for weight in LOSS_WEIGHTS),
        *(("uniform", sampling, "independent") for sampling in TIMESTEP_SAMPLINGS),
        *(("uniform", "uniform", assignment) for assignment in NOISE_ASSIGNMENTS),
    ],
)
def test_every_choice_of_the_diffusion_loss_takes_a_step(weight, sampling, assignment):
    flags = ["--loss-weight", weight, "--timestep-sampling", sampling, "--learn-sigma"]
    trainer = trainer_of(*FEW, *flags, "--noise-assignment", assignment)
    loss, norm = trainer.train_step(IMAGES, None, 1e-3)
    assert loss.isfinite()
    assert norm > 0


class Pairs(NamedTuple):
    """A batch of the objective below."""

    x: Tensor  # (B, 2)

    def rows(self, chosen: slice) -> "Pairs":
        return Pairs(self.x[chosen])


class Doubling:
    """An objective that is not a diffusion loss: the network learns to double its input."""

    def batch(self, items: Tensor, condition: Condition | None, step: int) -> Pairs:
        return Pairs(items)

    def __call__(self, model: nn.Module, batch: Pairs) -> Tensor:
        return F.mse_loss(model(batch.x), 2 * batch.x)

    def held_out_loss(
        self,
        model: nn.Module,
        items: Tensor,
        condition: Condition | None,
        size: int,
        precision: str,
    ) -> float:
        with torch.no_grad():
            return self(model, self.batch(items, condition, 0)).item()


def test_any_objective_and_any_network_can_be_trained():
    data = load_dataset("moons")
    flags = TRAIN.parse([*TINY, "--dataset", "moons", "--grad-accum", "2"])
    config = make_config(with_defaults(flags, data), data)

    def trainer() -> Trainer:
        torch.manual_seed(0)
        network = nn.Linear(2, 2)
        return Trainer(config, torch.device("cpu"), "fp32", model=network, objective=Doubling())

    first, points = trainer(), data.items[:64]
    before = first.held_out_loss(points, None)
    for _ in range(150):
        first.train_step(points, None, 0.05)
    assert first.held_out_loss(points, None) < 0.01 * before
    again = trainer()
    again.load(copy.deepcopy(first.state()))
    for one in (first, again):
        one.train_step(points, None, 0.05)
    assert_same_training(first.state(), again.state())
