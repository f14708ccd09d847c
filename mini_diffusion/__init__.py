"""Diffusion models in NumPy alone: small enough to read in an evening, and for inference only.

    tensor.py      Tensor: float32 images and weights, and their activations
    layers.py      Linear, Conv2d, GroupNorm, Attention, ...
    unet.py        UNet: the network
    scheduler.py   NoiseScheduler: the process, and the equations of DDPM and DDIM
    sampler.py     Sampler: the walk from noise to data
    model_file.py  trained networks, which the project's export.py writes
    picture.py     a grid of images as a PNG

There are no gradients: networks are trained with PyTorch, and run here.
"""

from mini_diffusion.layers import Attention, Conv2d, GroupNorm, Linear
from mini_diffusion.model_file import ModelFileError, read_model
from mini_diffusion.sampler import Sampler
from mini_diffusion.scheduler import NoiseScheduler, ScheduleType
from mini_diffusion.tensor import Tensor
from mini_diffusion.unet import UNet

__all__ = [
    "Attention",
    "Conv2d",
    "GroupNorm",
    "Linear",
    "ModelFileError",
    "NoiseScheduler",
    "Sampler",
    "ScheduleType",
    "Tensor",
    "UNet",
    "read_model",
]
