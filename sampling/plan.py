"""What a sampling request means for one checkpoint: sampler, levels, classes, and the start."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from math import inf, prod
from pathlib import Path
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from cli.sampling import SamplingRequest
from conditions import Condition, augmented
from dataset.image_files import read_image, require_large_enough, require_same_size
from dataset.items import item_shape, kind_of, noise_shape, to_unit
from diffusion import Denoiser, GaussianDiffusion
from models.latents import LatentSpace
from samplers import AUTO, OF_TUNED, SAMPLERS, generate, options_of
from sampling import editing
from sampling.conditioning import COUNT, Wanted
from utils import NoisePerImage, derive_seed, pick, sides, size_of, size_text
from visuals.pictures import pictures_of

# The samplers of tuned networks by --tune, the default first; reflow networks allow all samplers.
TUNED = {
    "consistency": ("consistency",),
    "distill": ("ddim",),
    "meanflow": ("consistency", "meanflow"),
    "reflow": ("euler",),
}
STEPS = {"ddpm": 100, "dpmpp_2m_sde": 50, "ddim": 50, "euler": 50}  # default; other samplers: 20
STEPS |= {"consistency": 2, "meanflow": 2}
STRAIGHT = {"reflow": 4}  # default steps of networks with straight trajectories
# default; others: trailing, with first steps too long for Heun
SPACING = {"heun": "karras", "consistency": "upper"}
MAX_PIXELS = 64 * 64 * 64  # of the images of a batch by default


class SamplingPlan:
    """A request, resolved for a checkpoint.

    Args:
        request: what is asked for.
        diffusion, config: the process and the configuration of the checkpoint.
        device: the device to compute on.
        judges: the configurations of the networks of --classifier and --clip.
        space: the latent space of the network; None if it has learned items, not latents.

    Attributes:
        shape: of the noise: that of an item, or of its latents.
        images: the low-resolution images (N, C, h, w) that a super-resolution model enlarges; grey
            if another model will draw them, and None for other checkpoints.
        item, kind: shape and kind of an item.
        count, columns: samples, and columns of their grid.
        wanted: the classes and prompts that are asked for.
        levels: the noise levels of the trajectory.
        batches: indices of the samples of each batch.

    Raises:
        ValueError: choices that do not fit the checkpoint or each other.
    """

    def __init__(
        self,
        request: SamplingRequest,
        diffusion: GaussianDiffusion,
        config: dict,
        device: torch.device,
        *,
        judges: Mapping[str, dict] = MappingProxyType({}),
        space: LatentSpace | None = None,
    ):
        self.request, self.config, self.device, self.space = request, config, device, space
        self.shape, self.item = noise_shape(config), item_shape(config["data"])
        self.kind = kind_of(self.item)
        self.pictures = pictures_of(self.item, config["data"].get("range"), space and space.decode)
        if self.kind == "points" and request.mode:
            flag = request.mode.replace("_", "-")
            raise ValueError(f"--{flag} is for images, and this checkpoint is of points")
        require_untuned(request, config)
        name, options = choose_sampler(request, diffusion, config)
        self.steps, self.spacing = choose_steps(request, diffusion.timesteps, name, config)
        self.wanted = Wanted(request, config, judges)
        self.columns, self.count = self.wanted.columns, self.wanted.count
        self.levels = diffusion.levels(self.steps, self.spacing)
        self.chosen = {"sampler": name, **options_of(SAMPLERS[name]), **options}
        self.chosen |= {"steps": self.steps, "spacing": self.spacing, "num_images": self.count}
        self.name, self.sampler = name, partial(SAMPLERS[name], **options)
        self.images = self.level = None
        if (size := config["model"].get("super_resolution")) is not None:
            self.images = torch.zeros(self.item[0], *sides(size)).expand(self.count, -1, -1, -1)
            self.level = request.augmentation
            require_enlarging(request)
        elif "augmentation" in request.given:
            raise ValueError(
                "--augmentation: this checkpoint enlarges no images; train.py --super-resolution "
                "trains one that does"
            )
        if request.mode:
            self.start_from_images(request, options)
        fitting = max(1, MAX_PIXELS // prod(self.item[1:]))
        size = request.batch_size or min(COUNT[self.kind], fitting)
        starts = range(0, self.count, size)
        self.batches = [range(first, min(first + size, self.count)) for first in starts]

    def start_from_images(self, request: SamplingRequest, options: dict) -> None:
        """Read the images that a request starts from, and choose what is done with them."""
        if self.images is not None:
            file, size = Path(request.start_from), self.images.shape[2:]
            require_large_enough(file, tuple(size))
            image = to_unit(read_image(file, tuple(size), self.item[0]))
            self.images = image.expand(self.count, -1, -1, -1)
            self.name = f"{request.start_from}, {size_text(size_of(*size))}, enlarged, {self.name}"
        elif request.start_from:
            self.image = self.read(request.start_from)
            self.levels = editing.last_part(self.levels, request.strength)
            self.name = f"{request.start_from} with {self.name}"
        elif request.inpaint:
            require_same_size(Path(request.inpaint), Path(request.mask))
            known, mask = self.read(request.inpaint), self.read_mask(request.mask)
            self.name = f"repaint of {request.inpaint}{without_effect(mask, request.mask)}"
            options = {**options, "known": known, "mask": mask}
            self.sampler = partial(editing.repaint, resamplings=request.resamplings, **options)
        elif request.invert:
            self.image, self.count, self.columns = self.read(request.invert), 1, 2

    def conditions(self, indices: range, images: Tensor | None = None) -> dict[str, object]:
        """The conditions of the samples with these indices, as arguments of the denoiser.

        `images` (B, C, h, w) are those to enlarge, if not `self.images`.
        """
        wanted, rows = self.wanted, slice(indices.start, indices.stop)
        found: dict[str, object] = {"condition": None, "negative": None, "blend": None}
        if wanted.condition is not None:
            found["condition"] = wanted.condition[rows].to(self.device)
        if wanted.negative is not None:
            found["negative"] = wanted.negative[[0] * len(indices)].to(self.device)
        if wanted.blend is not None:
            other, share = wanted.blend
            found["blend"] = other[rows].to(self.device), share[rows].to(self.device)
        if self.images is not None:
            if images is None:
                images = self.images[rows]
            small = self.low_resolution(indices, images)
            found["condition"] = replace(found["condition"] or Condition(), **small)
            if found["negative"] is not None:
                found["negative"] = replace(found["negative"], **small)
            if found["blend"] is not None:
                other, share = found["blend"]
                found["blend"] = replace(other, **small), share
        return found

    def low_resolution(self, indices: range, images: Tensor) -> dict[str, Tensor]:
        """Images to enlarge (B, C, h, w) with noise, and its level, as fields of a condition."""
        stream = NoisePerImage(derive_seed("augmentation", self.request.seed), indices)
        level = torch.full((len(indices),), self.level)
        noisy = augmented(images, level, stream.draw(images.shape[1:]))
        return {"image": noisy.to(self.device), "level": level.to(self.device)}

    def read(self, path: str) -> Tensor:
        """An image file as x_0 (1, C, H, W), cropped and resized for the network, or as latents."""
        x_0 = to_unit(read_image(Path(path), self.item[1:], self.item[0])[None]).to(self.device)
        return x_0 if self.space is None else self.space.encode(x_0)

    def read_mask(self, path: str) -> Tensor:
        """A mask file as (1, 1, H, W) in [0, 1], where 1 is white.

        Transparent pixels are black; in a mask that is white nowhere else, they are white.
        """
        for background in ("black", "white"):
            mask = read_image(Path(path), self.item[1:], 1, background)[None].to(self.device) / 255
            if (mask > 0.5).any():
                break
        if self.space is None:
            return mask
        factor = self.item[1] // self.shape[1]  # latents are kept if all of their pixels are
        return -F.max_pool2d(-(mask > 0.5).float(), factor)

    def noise(self, indices: range, noise_like: NoisePerImage) -> Tensor:
        """The noise (B, ...) that the samples with these indices start from."""
        if not self.request.interpolate:
            return noise_like.draw(self.shape).to(self.device)
        a, b = NoisePerImage(self.request.seed, range(2)).draw(self.shape)
        if self.wanted.blend is not None:  # the words change, and the noise stays
            return a.expand(len(indices), *a.shape).to(self.device)
        positions = [i / max(1, self.count - 1) for i in indices]
        return torch.stack([editing.slerp(a, b, each) for each in positions]).to(self.device)

    def trajectory(
        self, denoise: Denoiser, indices: range, noise_like: NoisePerImage
    ) -> Iterator[Tensor]:
        """x at each level, from noise, or from the given image, to the samples."""
        noise = self.noise(indices, noise_like)
        x_0 = self.image if self.request.start_from and self.images is None else None
        return generate(denoise, noise, self.levels, noise_like, self.sampler, x_0)

    def decisive(self) -> dict[str, object]:
        """Everything in the request that decides the samples, by flag; of files, their contents."""
        values = self.request.chosen(self.request.named(decides="value"))
        paths = self.request.chosen(self.request.named(decides="file"))
        files = {name: path and file_digest(Path(path)) for name, path in paths.items()}
        if self.wanted.class_ids is not None and values["class_id"] != "all":
            values["class_id"] = self.wanted.class_ids  # the same samples, however it is spelled
        found = {**values, **files, **self.chosen, "batch_size": len(self.batches[0])}
        return {f"--{name.replace('_', '-')}": value for name, value in found.items()}


def without_effect(mask: Tensor, name: str) -> str:
    """A note that a mask keeps nothing or everything; "" for any other mask."""
    if not (mask > 0.5).any():
        return f" ({name} is white nowhere: nothing is kept)"
    return f" ({name} is white everywhere: nothing is sampled)" if (mask > 0.5).all() else ""


def require_enlarging(request: SamplingRequest) -> None:
    """Raise ValueError for flags that do not apply to a super-resolution model."""
    if request.mode not in (None, "start_from"):
        flag = request.mode.replace("_", "-")
        raise ValueError(f"--{flag}: this checkpoint enlarges images; it has --start-from")
    if "strength" in request.given:
        raise ValueError("--strength has no effect on a checkpoint that enlarges images")


def require_untuned(request: SamplingRequest, config: dict) -> None:
    """Raise ValueError for options that a tuned network, or an untuned one, does not support."""
    tune = config.get("train", {}).get("tune")
    if not is_few_step(config):
        if request.sampler in OF_TUNED:
            fitting = " and ".join(name for name in TUNED if request.sampler in TUNED[name])
            raise ValueError(
                f"--sampler {request.sampler} is for networks of train.py --tune {fitting}; an "
                "ordinary one predicts the mean of all images that a noisy one may be, which is "
                "blurred"
            )
        return
    if request.sampler not in ("auto", *TUNED[tune]):
        raise ValueError(
            f"--sampler {request.sampler}: this network is tuned to draw in few steps by "
            f"--sampler {' or '.join(TUNED[tune])} alone"
        )
    if request.mode in ("inpaint", "invert"):
        raise ValueError(f"--{request.mode} needs a network that is not tuned")
    if request.guidance_scale != 1 or request.guide or request.classifier or request.clip:
        raise ValueError(
            "a tuned network is not guided when it draws, but learns the guidance of train.py "
            f"--teacher-guidance, here {config['train'].get('teacher_guidance', 1.0):g}"
        )


def is_few_step(config: dict) -> bool:
    """Is this a network that was tuned to sample in few steps, and is no denoiser any more?

    Raises ValueError for a way of tuning that this version does not know.
    """
    tune = config.get("train", {}).get("tune")
    if tune is not None:
        pick(TUNED, tune, "way of tuning")
    return tune is not None and tune not in STRAIGHT


def require_untuned_network(config: dict, what: str) -> None:
    """Raise ValueError if `what`, a flag, is used with a network that is no denoiser any more."""
    if is_few_step(config):
        raise ValueError(
            f"{what} needs a denoiser, and this network was tuned to draw in few steps "
            f"(--tune {config['train']['tune']}): use its teacher"
        )


def default_sampler(config: dict) -> str:
    """The sampler that fits a checkpoint best."""
    return (*own_samplers(config), AUTO)[0]


def own_samplers(config: dict) -> tuple[str, ...]:
    """The samplers of a tuned network, the default first; none for an untuned one.

    Mean flows draw better images, but not points, with the fresh noise of `consistency`.
    """
    names = TUNED.get(config.get("train", {}).get("tune"), ())
    return names[::-1] if kind_of(item_shape(config["data"])) == "points" else names


def default_steps(config: dict, steps: int) -> int:
    """A number of steps for the default sampler: `steps`, or what a tuned network needs."""
    if (tune := config.get("train", {}).get("tune")) is None:
        return steps
    usual = STRAIGHT.get(tune) or STEPS[TUNED[tune][0]]
    return config.get("train", {}).get("student_steps") or usual


def default_spacing(config: dict) -> str:
    """The spacing of the noise levels that fits the default sampler of a checkpoint."""
    return SPACING.get(default_sampler(config), "trailing")


def choose_sampler(
    request: SamplingRequest, diffusion: GaussianDiffusion, config: dict
) -> tuple[str, dict]:
    """The name of the sampler, and its options that were given.

    Raises ValueError for options that contradict each other or the checkpoint.
    """
    name = request.sampler
    if name == "auto":
        smooth = request.interpolate or request.pairs
        name = "ddim" if request.invert else "dpmpp_2m" if smooth else AUTO
        own = own_samplers(config) or (name,)
        name = "meanflow" if smooth and "meanflow" in own else own[0]
    if request.inpaint and request.sampler not in ("auto", "ddpm"):
        raise ValueError(f"--inpaint uses ddpm, not --sampler {request.sampler}")
    name = "ddpm" if request.inpaint else name
    every = {option for sampler in SAMPLERS.values() for option in options_of(sampler)}
    given = {option: value for option in every if (value := getattr(request, option)) is not None}
    if other := given.keys() - options_of(SAMPLERS[name]).keys():
        flag = min(other).replace("_", "-")
        raise ValueError(f"--{flag} is not an option of the sampler {name}")
    if given.get("variance") == "learned" and not diffusion.learn_sigma:
        raise ValueError("--variance learned: the checkpoint was trained without --learn-sigma")
    if name == "ddpm" and diffusion.learn_sigma:
        given.setdefault("variance", "learned")
    if request.interpolate or request.invert or request.pairs:
        modes = ("interpolate", "invert", "pairs")
        mode = next(f"--{each}" for each in modes if getattr(request, each))
        if name == "consistency" and request.steps != 1:
            raise ValueError(f"{mode} needs sampling without fresh noise: add --steps 1")
        if name in ("ddpm", "dpmpp_2m_sde"):
            raise ValueError(f"{mode} needs a sampler without fresh noise, not {name}; use ddim")
        if noisy := [option for option in ("eta", "churn", "mu") if given.get(option)]:
            raise ValueError(f"{mode} needs sampling without fresh noise: omit --{noisy[0]}")
    if request.invert and name != "ddim":
        raise ValueError(f"--invert uses ddim, not --sampler {request.sampler}")
    return name, given


def choose_steps(
    request: SamplingRequest, timesteps: int, sampler: str, config: dict
) -> tuple[int, str]:
    """The number of steps and their spacing. Raises ValueError if the checkpoint forbids them."""
    if request.timesteps not in (None, timesteps):
        raise ValueError(
            f"--timesteps {request.timesteps}: the checkpoint was trained with {timesteps}"
        )
    if request.steps is not None and request.steps > timesteps:
        raise ValueError(f"--steps {request.steps}: the checkpoint has only {timesteps} timesteps")
    if (learned := config.get("train", {}).get("student_steps")) is not None:
        if request.steps not in (None, learned) or request.spacing not in (None, "trailing"):
            raise ValueError(
                f"this network was distilled for --steps {learned} with trailing spacing, and "
                "draws in no other way"
            )
        return learned, "trailing"
    usual = STRAIGHT.get(config.get("train", {}).get("tune")) or STEPS.get(sampler, 20)
    steps = request.steps or min(usual, timesteps)
    return steps, request.spacing or SPACING.get(sampler, "trailing")


def guidance_options(request: SamplingRequest) -> dict[str, object]:
    """The guidance options of the denoiser. Raises ValueError for an empty interval."""
    low, high = request.guidance_interval or (0.0, inf)
    if low > high:
        raise ValueError(f"--guidance-interval: {low} is above {high}")
    return {
        "guidance_scale": request.guidance_scale,
        "guidance_interval": (low, high),
        "guidance_rescale": request.guidance_rescale,
    }


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's content."""
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
