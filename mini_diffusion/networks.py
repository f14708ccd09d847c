"""Networks of model files, by name."""

from pathlib import Path

from mini_diffusion.mlp import MLP
from mini_diffusion.model_file import network_of, read_model
from mini_diffusion.unet import UNet

NETWORKS: dict[str, type[UNet] | type[MLP]] = {"unet": UNet, "mlp": MLP}


def load_network(path: str | Path) -> UNet | MLP:
    """Read the network of a model file. Raises the errors of `read_model`."""
    return NETWORKS[network_of(read_model(path).config)].load(path)
