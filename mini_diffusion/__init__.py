"""Diffusion models with NumPy alone, for inference. Networks are trained with PyTorch and exported.

tensor.py      Tensor: float32 images and weights, activation functions
layers.py      Linear, Conv2d, GroupNorm, Attention and the other layers
unet.py        UNet: the network for images
mlp.py         MLP: the network for points
networks.py    load_network: either of them, from a model file
scheduler.py   NoiseScheduler: noise schedules, the equations of DDPM and DDIM
sampler.py     Sampler: the sampling loop, from noise to images
model_file.py  model files, written by the project's export.py
picture.py     image grids, pictures of points, and PNG files
sample.py      the command `python -m mini_diffusion.sample model.npz`
demo.py        the command `mini-diffusion-demo`
"""

from mini_diffusion.layers import Attention, Conv2d, GroupNorm, LayerNorm, Linear
from mini_diffusion.mlp import MLP
from mini_diffusion.model_file import ModelFileError, read_model
from mini_diffusion.networks import load_network
from mini_diffusion.sampler import Sampler
from mini_diffusion.scheduler import NoiseScheduler, ScheduleType
from mini_diffusion.tensor import Tensor
from mini_diffusion.unet import UNet

__all__ = [
    "MLP",
    "Attention",
    "Conv2d",
    "GroupNorm",
    "LayerNorm",
    "Linear",
    "ModelFileError",
    "NoiseScheduler",
    "Sampler",
    "ScheduleType",
    "Tensor",
    "UNet",
    "load_network",
    "read_model",
]
