"""The objective of a run, chosen by its configuration."""

import torch

from diffusion import GaussianDiffusion
from training.objective import OBJECTIVES, DiffusionObjective, SuperResolutionObjective
from training.tuning import TUNINGS


def objective_of(
    diffusion: GaussianDiffusion, config: dict, device: torch.device
) -> DiffusionObjective:
    """The objective for the network, and for --tune and super-resolution, of a configuration."""
    usual = DiffusionObjective
    if config["model"].get("super_resolution"):
        usual = SuperResolutionObjective
    if (tune := config["train"].get("tune")) is not None:
        usual = TUNINGS[tune]
    objective = OBJECTIVES.get(config["model"]["name"], usual)
    return objective(diffusion, config, device)
