"""The pipeline of a network of Tiny Diffusion: from noise to images, with classes and guidance."""

import inspect
from collections.abc import Sequence

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from conditions import NULL_LABEL
from schedules import distinct, trailing
from utils import NoisePerImage, sides

SPACED = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")


class TinyDiffusionPipeline(DiffusionPipeline):
    """Draws images with the network `unet`, which predicts v, and any scheduler that takes it.

    Args:
        unet: the network.
        scheduler: the process, and the sampler.
        classes: the names of the classes; none for a network without class labels.
    """

    def __init__(self, unet: ModelMixin, scheduler: SchedulerMixin, classes: list = ()):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(classes=list(classes))

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        class_labels: int | str | Sequence[int | str] | None = None,
        guidance_scale: float = 1.0,
        num_inference_steps: int = 50,
        seed: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Draw images.

        Args:
            batch_size: number of images (default: one, or one for each of the class labels or of
                the latents).
            class_labels: numbers or names of the classes, of each image or of all; -1 stands for
                "any class". By default all images are of any class.
            guidance_scale: w of classifier-free guidance, uncond + w (cond - uncond).
            num_inference_steps: network evaluations.
            seed: image i has its own random numbers, those of `sample.py --seed`.
            generator: random numbers of diffusers, instead of a seed.
            latents: the noise (B, C, H, W) to start from, instead of drawing it.
            output_type: "pil", "np" for arrays (B, H, W, C) in [0, 1], or "pt" for tensors
                (B, C, H, W) in [0, 1].
            return_dict: return an ImagePipelineOutput, not a tuple.

        Raises ValueError for arguments that the network does not take, or that contradict each
        other.
        """
        if seed is not None and generator is not None:
            raise ValueError("give either a seed or a generator")
        count = batch_size if latents is None else len(latents)
        if count is not None and count < 1:
            raise ValueError(f"batch_size must be at least 1, not {count}")
        if batch_size not in (None, count):
            raise ValueError(f"batch_size={batch_size}, but the latents are of {count} images")
        labels = self.labels(class_labels, count)
        if labels is None and guidance_scale != 1:
            raise ValueError(f"guidance_scale={guidance_scale} needs class_labels")
        if count is None:
            count = 1 if labels is None else len(labels)
        device = self._execution_device
        if seed is not None:
            generator = NoisePerImage(seed, range(count)).generators
        x = latents
        if x is None:
            x = randn_tensor((count, *self.shape()), generator=generator, device=device)
        self.scheduler.set_timesteps(**self.steps(num_inference_steps))
        x = x.to(device) * self.scheduler.init_noise_sigma
        extra = inspect.signature(self.scheduler.step).parameters
        extra = {"generator": generator} if "generator" in extra else {}
        for t in self.progress_bar(self.scheduler.timesteps):
            x_t = self.scheduler.scale_model_input(x, t)
            x_0 = self.guided(x_t, t, labels, guidance_scale)
            x_0 = x_0.clamp(-1, 1) if self.unet.config.clip else x_0
            x = self.scheduler.step(self.v(x_0, x_t, t), t, x, **extra, return_dict=False)[0]
        images = (x.float().clamp(-1, 1) + 1) / 2  # (B, C, H, W)
        if output_type != "pt":
            images = images.permute(0, 2, 3, 1).cpu().numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def guided(self, x_t: Tensor, t: Tensor, labels: Tensor | None, scale: float) -> Tensor:
        """The predicted clean images (B, C, H, W), with classifier-free guidance."""
        if scale == 1 or labels is None:
            return self.unet.x_0(x_t, t, labels)
        null = torch.full_like(labels, NULL_LABEL)
        if scale == 0:
            return self.unet.x_0(x_t, t, null)
        both = self.unet.x_0(torch.cat([x_t, x_t]), t, torch.cat([labels, null]))
        cond, uncond = both.chunk(2)
        return uncond + scale * (cond - uncond)

    def v(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """v for clean images x_0 and the noisy ones (B, C, H, W), at the scheduler's own level."""
        alpha_squared = self.scheduler.alphas_cumprod[round(float(t))].to(x_t.device)
        return (alpha_squared.sqrt() * x_t - x_0) / (1 - alpha_squared).sqrt()

    def steps(self, count: int) -> dict:
        """The arguments of the scheduler's `set_timesteps`.

        With trailing spacing, the timesteps are those of sample.py, if the scheduler takes any.
        """
        config, device = self.scheduler.config, self._execution_device
        takes = inspect.signature(self.scheduler.set_timesteps).parameters
        own = config.get("timestep_spacing") == "trailing" and "timesteps" in takes
        if not own or any(config.get(name) for name in SPACED):
            return {"num_inference_steps": count, "device": device}
        total = config.num_train_timesteps
        if not 1 <= count <= total:
            raise ValueError(f"num_inference_steps must lie between 1 and {total}, not {count}")
        return {"timesteps": distinct(trailing(torch.empty(total), count), total), "device": device}

    def shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of an image."""
        arguments = self.unet.config.arguments
        return arguments["image_channels"], *sides(arguments["image_size"])

    def labels(
        self, wanted: int | str | Sequence[int | str] | None, count: int | None
    ) -> Tensor | None:
        """Class labels int64 (B,) of the images, or None. Raises ValueError for unknown classes.

        `count` is the number of images; None for one of each label.
        """
        if wanted is None:
            return None
        classes = list(self.config.classes)
        if not classes:
            raise ValueError("class_labels: this network is not conditioned on classes")
        single = isinstance(wanted, (int, str))
        names = [wanted] if single else list(wanted)
        numbers = [classes.index(n) if n in classes else n for n in names]
        valid = range(NULL_LABEL, len(classes))
        if wrong := [n for n in numbers if isinstance(n, str) or int(n) not in valid]:
            raise ValueError(f"there is no class {wrong[0]!r}; there are {', '.join(classes)}")
        if not numbers:
            raise ValueError("there are no class_labels")
        if single and count is not None:
            numbers = numbers * count
        if count not in (None, len(numbers)):
            raise ValueError(f"{len(numbers)} class_labels for {count} images")
        return torch.tensor([int(n) for n in numbers], device=self._execution_device)
