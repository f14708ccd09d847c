"""Sampling from a checkpoint, batch by batch.

The processes of a job share the batches. The batches are the same for any number of processes,
because the rounding of a network's output may depend on the batch size.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from checkpoints.checkpoint import config_differences, load_checkpoint, restore
from checkpoints.consistency import SHAPE_TYPES
from checkpoints.runs import find_checkpoint
from cli.activity import Bar
from cli.declare import option
from cli.sampling import SamplingRequest
from dataset.items import to_unit
from diffusion import Denoiser, GaussianDiffusion
from distributed import gather, is_main, own_device, rank, world_size
from guidance import classifier_guidance, clip_guidance, together
from models import AUTOENCODERS, GUIDES
from models.latents import space_of
from sampling import editing
from sampling.plan import SamplingPlan, guidance_options, require_untuned_network
from sampling.stages import first_request, last_request, per_stage
from utils import NoisePerImage, choose_device, choose_precision, keep_freed_memory

SNAPSHOTS = 10  # pictures that --show-intermediate writes
FRAMES = 60  # of an animation, at most


class SamplingJob:
    """A checkpoint that is ready to sample from, and the plan of what to sample.

    Args:
        request: what is asked for. With --then, `previous` is the job of the stages before the
            last, and everything else is of the last stage.
        images_follow: for a super-resolution model: the caller will set `plan.images`.

    Raises:
        ValueError: choices that do not fit the checkpoint.
        OSError: the checkpoint cannot be read.
    """

    def __init__(self, request: SamplingRequest, *, images_follow: bool = False):
        self.previous = None
        if request.then:
            self.previous = SamplingJob(first_request(request))
            request = last_request(request, self.previous.plan.count)
        self.request = request
        self.device = own_device(choose_device(request.device))
        self.precision = choose_precision(request.precision, self.device)
        keep_freed_memory()
        request.checkpoint = str(find_checkpoint(request.checkpoint))  # a file, for `decisive`
        checkpoint = load_checkpoint(request.checkpoint)
        self.config, self.step = checkpoint["config"], checkpoint["step"]
        alone = request.clip is None and self.previous is None
        if alone or self.config["model"].get("text_width"):
            use_text_encoder(self.config, request.text_encoder)
        own = copy.deepcopy(request.model)  # the caller's stays trainable
        network, diffusion = restore(checkpoint, self.device, raw=request.raw, model=own)
        require_denoiser(self.config, request.checkpoint)
        self.judges: dict[str, nn.Module] = {}  # the networks that guide, by the flag
        configs = {}
        for name in GUIDES:
            if getattr(request, name) is not None:
                setattr(request, name, str(find_checkpoint(getattr(request, name))))
                loaded = load_judge(name, getattr(request, name), self.config, self.device)
                self.judges[name], configs[name] = loaded
                if configs[name]["model"].get("text_width"):
                    use_text_encoder(configs[name], request.text_encoder)
        self.space = space_of(network)
        if configs and self.space is not None:
            raise ValueError(
                f"--{next(iter(configs))} judges images, and this checkpoint is of latents"
            )
        options = {"judges": configs, "space": self.space}
        with explained_stage(self.previous is not None, request):
            self.plan = SamplingPlan(request, diffusion, self.config, self.device, **options)
        if self.previous is not None:
            follow(self.plan, self.previous.plan, request.checkpoint)
        elif self.plan.images is not None and not (images_follow or request.start_from):
            raise ValueError(
                f"{request.checkpoint} enlarges images: give it one with --start-from, or a model "
                "that draws them: --checkpoint MODEL --then " + request.checkpoint
            )
        scaled = {name: GaussianDiffusion(**each["diffusion"]) for name, each in configs.items()}
        self.scaled = {name: each.to(self.device).scaled for name, each in scaled.items()}
        options = guidance_options(request) | {"precision": self.precision}
        if request.guide is not None:
            request.guide = str(find_checkpoint(request.guide))
            options["guide"] = load_guide(request.guide, self.config, self.device)
        self.make_denoiser = partial(diffusion.denoiser, network, **options)
        self.to_items = self.plan.pictures.to_items
        steps = len(self.plan.levels) - 1
        self.kept = evenly_spread(steps, SNAPSHOTS if request.show_intermediate else 0)
        self.kept |= evenly_spread(steps, FRAMES if request.animate else 0)

    def denoiser(self, indices: range, images: Tensor | None = None) -> Denoiser:
        """The denoiser of the samples with these indices; `images` (B, C, h, w) are to enlarge."""
        rows, wanted, parts = slice(indices.start, indices.stop), self.plan.wanted, []
        if network := self.judges.get("classifier"):
            labels, scale = wanted.labels[rows].to(self.device), self.request.classifier_scale
            parts.append(classifier_guidance(network, self.scaled["classifier"], labels, scale))
        if network := self.judges.get("clip"):
            captions, scale = wanted.captions[rows].to(self.device), self.request.clip_scale
            parts.append(clip_guidance(network, self.scaled["clip"], captions, scale))
        return self.make_denoiser(**self.plan.conditions(indices, images), steering=together(parts))

    def decisive(self) -> dict[str, object]:
        """Everything that decides the bits of the samples, by name."""
        machine = {"--device": self.device.type, "--precision": self.precision}
        found = {**self.plan.decisive(), **machine, "PyTorch": torch.__version__}
        if self.previous is not None:
            for name, value in self.previous.decisive().items():
                stage = "" if name.startswith("stage") else f"stage {self.previous.stage}: "
                found[f"{stage}{name}"] = value
        return found

    @property
    def stage(self) -> int:
        """The number of the stage in a cascade, from 1."""
        return 1 if self.previous is None else self.previous.stage + 1

    @property
    def steps(self) -> int:
        """Sampling steps of all stages."""
        return len(self.plan.levels) - 1 + (0 if self.previous is None else self.previous.steps)

    def no_items(self) -> Tensor:
        """No samples (0, ...), of the type and shape that samples have."""
        return self.to_items(torch.empty(0, *self.plan.shape))


@contextmanager
def explained_stage(is_later: bool, request: SamplingRequest) -> Iterator[None]:
    """Name the file and the flag in errors of a cascade's later stages."""
    try:
        yield
    except ValueError as error:
        if not is_later:
            raise
        text, _, _ = str(error).partition("; give a weaker model")  # later stages have none
        for name in per_stage(request):
            text = text.replace(option(name.removeprefix("then_")), option(name))
        raise ValueError(f"--then {request.checkpoint}: {text}") from None


def follow(plan: SamplingPlan, before: SamplingPlan, path: str) -> None:
    """Let a stage enlarge what the one before draws. Raises ValueError if it cannot."""
    if plan.images is None:
        raise ValueError(
            f"--then {path} enlarges no images; train.py --super-resolution trains a model that "
            "does"
        )
    expected, drawn = tuple(plan.images.shape[1:]), before.item
    if expected != drawn:
        sizes = [" x ".join(map(str, shape)) for shape in (expected, drawn)]
        raise ValueError(
            f"--then {path} enlarges images of {sizes[0]}, and the stage before draws {sizes[1]}"
        )
    with explained_stage(True, plan.request):
        plan.wanted.follow(before.wanted)
    plan.columns = plan.wanted.columns


def use_text_encoder(config: dict, path: str | None) -> None:
    """Set the folder of the pretrained text encoder in the configuration of a checkpoint.

    Raises ValueError if the network encodes its captions itself.
    """
    if path is None or config["model"].get("caption_length") is None:
        return
    if config["model"].get("text_width") is None:
        raise ValueError("--text-encoder: this checkpoint encodes its captions itself")
    config["data"]["text_encoder"] = path


def load_guide(path: str, config: dict, device: torch.device) -> nn.Module:
    """The network that guides a checkpoint with this configuration.

    Raises ValueError if it cannot (`require_guide`).
    """
    checkpoint = load_checkpoint(path)
    require_guide(checkpoint["config"], config, f"--guide {path}")
    return restore(checkpoint, device)[0]


def require_guide(guide: dict, config: dict, named: str) -> None:
    """Raise ValueError if a network cannot guide a checkpoint, or draws nothing.

    Both must have the same process and data. `guide` is the configuration of the network, `config`
    that of the checkpoint, and `named` the flag and file of the network, for messages.
    """
    require_denoiser(guide, named)
    require_untuned_network(guide, named)
    of_data = ("dataset", "avatar_style", "classes", "words", "text_encoder_sha256")
    own = {
        "data": dict.fromkeys((*of_data, *SHAPE_TYPES)),
        "diffusion": dict.fromkeys(set(config["diffusion"]) - {"loss_weight", "clip_loss"}),
        "model": dict.fromkeys(
            ("num_classes", "caption_length", "autoencoder", "super_resolution")
        ),
    }
    wanted = {name: {key: config[name].get(key) for key in keys} for name, keys in own.items()}
    if found := config_differences(guide, wanted):
        raise ValueError(f"{named} does not fit the checkpoint: {'; '.join(found)}")


def load_judge(name: str, path: str, config: dict, device: torch.device) -> tuple[nn.Module, dict]:
    """The network of --classifier or --clip for a checkpoint, and the network's configuration.

    Raises ValueError if it is another network, or of another process or other data.
    """
    checkpoint = load_checkpoint(path)
    if (found := checkpoint["config"]["model"]["name"]) != name:
        raise ValueError(f"--{name} {path} is a {found}; train.py --model {name} trains one")
    own = {
        "data": ["dataset", "avatar_style", "image_size", "image_channels"],
        "diffusion": ["schedule", "timesteps", "zero_terminal_snr", "betas"],
    }
    own["data"] += ["classes"] * (name == "classifier")
    found = [each["data"] for each in (config, checkpoint["config"])]
    captioned = any(each.get("captions") or each.get("caption_from_path") for each in found)
    own["data"] += ["digest"] * (not captioned)  # of a folder of images, and of captions
    wanted = {section: {k: config[section].get(k) for k in keys} for section, keys in own.items()}
    if differences := config_differences(checkpoint["config"], wanted):
        raise ValueError(f"--{name} {path} does not fit the checkpoint: {'; '.join(differences)}")
    return restore(checkpoint, device)[0], checkpoint["config"]


def require_denoiser(config: dict, path: str) -> None:
    """Raise ValueError for a checkpoint that draws nothing."""
    if (name := config["model"]["name"]) in AUTOENCODERS:
        raise ValueError(
            f"{path} is an {name}, which draws nothing; evaluate.py measures its reconstructions"
        )
    if name in GUIDES:
        raise ValueError(
            f"{path} is a {name}, which draws nothing; give it to sample.py as --{name}, with the "
            "--checkpoint of a model to guide"
        )


class Samples(NamedTuple):
    """Samples, and what was recorded while they were drawn."""

    items: Tensor  # uint8 images (N, C, H, W) or points (N, 2)
    frames: dict[int, tuple[Tensor, Tensor]]  # of the first batch: x_t, x_0 by steps done
    calls: int  # of the network


def draw(job: SamplingJob) -> Samples:
    """Draw all samples: each process draws its share, and receives the items of the others.

    Only the main process has the frames; it draws the first batch.
    """
    numbers = own_batches(range(len(job.plan.batches)))
    drawn = [batch for _, batch in draw_batches(job, numbers)]
    items = torch.cat([job.no_items(), *(batch.items for batch in drawn)]).to(job.device)
    indices = [i for number in numbers for i in job.plan.batches[number]]
    order = gather(torch.tensor(indices, dtype=torch.int64, device=job.device)).argsort()
    calls = sum_of_all(sum(batch.calls for batch in drawn), job.device)
    return Samples(gather(items)[order].cpu(), drawn[0].frames if drawn else {}, calls)


def draw_batches(job: SamplingJob, numbers: Sequence[int]) -> Iterator[tuple[int, Samples]]:
    """Draw one batch after the other; yields each with its number."""
    batches = job.plan.batches
    total = sum(len(batches[number]) for number in numbers) * job.steps
    process = f"the first of {world_size()} processes" if world_size() > 1 else "sampling"
    with Bar(total=total, unit="step", desc=process, shown=is_main()) as bar:
        for number in numbers:
            yield number, draw_batch(job, batches[number], bar)


def draw_batch(job: SamplingJob, indices: range, bar: Bar) -> Samples:
    """Draw the samples with these indices."""
    plan, to_items, frames, calls, images = job.plan, job.to_items, {}, 0, None
    if job.previous is not None:
        small = draw_batch(job.previous, indices, bar)
        images, calls = to_unit(small.items.cpu()), small.calls
    noise_like = NoisePerImage(job.request.seed, indices)
    denoise = job.denoiser(indices, images)
    kept = job.kept if indices.start == 0 else set()
    before = None
    for done, x_t in enumerate(plan.trajectory(denoise, indices, noise_like)):
        if before is not None:  # by now, the network has predicted its x_0
            if done - 1 in kept:
                shown = before / plan.levels[done - 1].scale  # edm's would be far too bright
                frames[done - 1] = to_items(shown), to_items(denoise.seen)
            bar.update(len(indices))
        before = x_t
    if kept:
        frames[len(plan.levels) - 1] = to_items(x_t), to_items(x_t)
    return Samples(to_items(x_t), frames, calls + denoise.calls)


def reconstruct(job: SamplingJob) -> tuple[Tensor, str]:
    """An image and its reconstruction from its noise, uint8 (2, C, H, W), and how close it is."""
    plan = job.plan
    denoise = job.denoiser(range(1))
    *_, noise = editing.invert(denoise, plan.image, plan.levels)
    *_, x = plan.sampler(denoise, noise, plan.levels, NoisePerImage(0, range(1)))
    images = job.to_items(torch.cat([plan.image, x]))
    error = (images[1].float() - images[0].float()).square().mean().sqrt().item()
    how_close = (
        f"image -> noise -> image in {denoise.calls} network calls: root-mean-square error "
        f"{error:.1f} of 255 grey levels; the noise's standard deviation is "
        f"{noise.std() / plan.levels[0].scale:.2f}"
    )
    return images, how_close


def own_batches(numbers: Sequence[int]) -> Sequence[int]:
    """The batches among `numbers` that this process draws; each process draws about as many.

    The main process draws the first. The last, which may be smaller, goes to a process with the
    most batches.
    """
    return numbers[rank() :: world_size()]


def sum_of_all(number: int, device: torch.device) -> int:
    """The sum of the numbers of all processes."""
    return int(gather(torch.tensor([number], device=device)).sum())


def evenly_spread(steps: int, count: int) -> set[int]:
    """At most `count` evenly spread numbers of steps done, from 0 to `steps`."""
    return {round(i * steps / (count - 1)) for i in range(count)}
