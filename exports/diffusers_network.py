"""A network of Tiny Diffusion as a model of diffusers."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor

from conditions import Condition
from models.unet import UNet as Network
from objectives import PREDICTIONS
from schedules import SCHEDULES, from_betas, zero_terminal_snr


class TinyDiffusionNetwork(ModelMixin, ConfigMixin):
    """A network that predicts v in a variance-preserving process, whatever its own prediction.

    Every process x_t = alpha x_0 + sigma noise is variance-preserving once it is divided by
    sqrt(alpha^2 + sigma^2), and a network's output implies x_0, from which v follows:
    v = alpha noise - sigma x_0 = (alpha x_t - x_0) / sigma (Salimans & Ho 2022, appendix D).
    Both steps are exact.

    Args:
        arguments: of the network.
        schedule, timesteps, zero_terminal_snr, betas: the process; betas replace the schedule.
        prediction: what the network outputs.
        sigma_data: the standard deviation of the data, the unit of the prediction's formulas.
        clip: the data lie in [-1, 1].
        clip_loss: predictions beyond [-1, 1] mean the bound itself.
        learn_sigma: the network has a second half of channels, which is not used.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        arguments: dict,
        schedule: str,
        timesteps: int,
        prediction: str,
        zero_terminal_snr: bool = False,
        betas: list[float] | None = None,
        sigma_data: float = 1.0,
        clip: bool = True,
        clip_loss: bool = False,
        learn_sigma: bool = False,
    ):
        super().__init__()
        self.network = Network(**arguments)
        alpha, sigma = tables(schedule, timesteps, zero_terminal_snr, betas)
        scale = (alpha**2 + sigma**2).sqrt()
        self.tables = torch.stack([alpha / scale, sigma / scale])  # float64, whatever the weights

    def level(self, timestep: Tensor | float, sample: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """t (B,), and alpha and sigma (B, 1, 1, 1) at it, for a batch of images."""
        t = torch.as_tensor(timestep).cpu().round().long().expand(len(sample))
        alpha, sigma = self.tables[:, t].view(2, -1, 1, 1, 1).float().to(sample.device)
        return t.to(sample.device), alpha, sigma

    def x_0(
        self, sample: Tensor, timestep: Tensor | float, class_labels: Tensor | None = None
    ) -> Tensor:
        """The clean images (B, C, H, W) that the network predicts from noisy ones."""
        t, alpha, sigma = self.level(timestep, sample)
        x_t, s = sample.float(), self.config.sigma_data
        x_in = x_t * ((alpha * s) ** 2 + sigma**2) ** -0.5
        condition = None if class_labels is None else Condition(label=class_labels)
        out = self.network(x_in.to(self.dtype), t, condition).float()
        if self.config.learn_sigma:
            out, _ = out.chunk(2, dim=1)
        x_0 = s * PREDICTIONS[self.config.prediction].x_0(out, x_t, s * alpha, sigma)
        return x_0.clamp(-1, 1) if self.config.clip_loss else x_0

    def v(self, x_0: Tensor, sample: Tensor, timestep: Tensor | float) -> Tensor:
        """v (B, C, H, W) for clean images x_0 in the noisy images `sample`."""
        _, alpha, sigma = self.level(timestep, sample)
        return (alpha * sample.float() - x_0) / sigma

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """Predict v from noisy images (B, C, H, W) of unit variance at timesteps (B,), or at one.

        `class_labels` are int64 (B,); -1 stands for "any class".
        """
        v = self.v(self.x_0(sample, timestep, class_labels), sample, timestep).to(sample.dtype)
        return UNet2DOutput(sample=v) if return_dict else (v,)


def tables(
    schedule: str, timesteps: int, rescaled: bool, betas: list[float] | None
) -> tuple[Tensor, Tensor]:
    """alpha and sigma (T,) of a process."""
    if betas is not None:
        found = from_betas(torch.tensor(betas, dtype=torch.float64))
    else:
        found = SCHEDULES[schedule](timesteps)
    return zero_terminal_snr(*found) if rescaled else found
