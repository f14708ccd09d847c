"""Networks of model files, by name."""

from pathlib import Path

from mini_diffusion.mlp import MLP
from mini_diffusion.model_file import ModelFile, network_of, read_model
from mini_diffusion.unet import UNet

NETWORKS: dict[str, type[UNet] | type[MLP]] = {"unet": UNet, "mlp": MLP}


def load_network(path: str | Path | ModelFile) -> UNet | MLP:
    """The network of a model file, or of its contents. Raises the errors of `read_model`."""
    file = read_model(path)
    return NETWORKS[network_of(file.config)].load(file)
