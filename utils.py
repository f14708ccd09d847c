"""Device, precision, random numbers and pictures: what the scripts share."""

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


# --- device and precision ------------------------------------------------------------------------


def choose_device(name: str) -> torch.device:
    """The device of a name: auto, cpu, cuda, cuda:N or mps.

    Raises ValueError if it is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch finds no CUDA GPU here; use --device auto or cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ValueError(f"--device {name}: there are {count} GPUs, cuda:0 to cuda:{count - 1}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("--device mps: PyTorch finds no Apple GPU here; use --device auto or cpu")
    return device


def has_native_bf16(device: torch.device) -> bool:
    """Does the hardware multiply bfloat16 itself? Emulated, it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        if hasattr(torch.cpu, "get_capabilities"):  # not in torch 2.10
            capabilities = torch.cpu.get_capabilities()
            return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
        info = Path("/proc/cpuinfo")
        return info.exists() and any(f in info.read_text() for f in ("avx512_bf16", "amx_bf16"))
    return False


def choose_precision(name: str, device: torch.device) -> str:
    """fp32, bf16 or fp16 for a name that may be auto. Raises ValueError for fp16 without CUDA."""
    if name == "auto":
        return "bf16" if has_native_bf16(device) else "fp32"
    if name == "fp16" and device.type != "cuda":
        raise ValueError(f"--precision fp16 needs a CUDA GPU, not {device.type}; use bf16 or fp32")
    return name


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """The context in which networks compute in that precision."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, DTYPES[precision])


def describe(device: torch.device, precision: str) -> str:
    """One line on what computes: "cpu, 2 threads, bf16"."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {precision}"
    if device.type == "cpu":
        return f"cpu, {torch.get_num_threads()} threads, {precision}"
    return f"{device.type}, {precision}"


def memory_format(device: torch.device) -> torch.memory_format:
    """The layout of images and convolutions that is fastest on a device."""
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


# --- random numbers ------------------------------------------------------------------------------


def derive_seed(stream: str, *words: int) -> int:
    """A 64-bit seed for one use (the stream) of some numbers: others for another use or number."""
    # Not NumPy's SeedSequence: to it, (1,) and (1, 0) are the same.
    digest = hashlib.blake2b(repr((stream, *words)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


class NoisePerImage:
    """Standard normal noise for a batch, where image i draws from its own stream (seed, i).

    So an image does not depend on the batch that it is computed in. The numbers come from the CPU's
    generator, and are the same for every device.
    """

    def __init__(self, seed: int, indices: Iterable[int]):
        self.generators = [
            torch.Generator().manual_seed(derive_seed("image", seed, i)) for i in indices
        ]

    def draw(self, shape: Sequence[int]) -> Tensor:
        """Noise (B, *shape) on the CPU."""
        return torch.stack([torch.randn(*shape, generator=g) for g in self.generators])

    def __call__(self, x: Tensor) -> Tensor:
        """Noise of the shape, type, device and memory layout of x (B, ...)."""
        return torch.empty_like(x).copy_(self.draw(x.shape[1:]))


# --- pictures ------------------------------------------------------------------------------------


def enlarged(images: Tensor, to: int = 56) -> Tensor:
    """uint8 images with each pixel repeated, so that small ones can be read on a screen."""
    return F.interpolate(images, scale_factor=max(1, round(to / images.shape[-1])), mode="nearest")


def image_grid(images: Tensor, columns: int, real: Tensor | None = None) -> np.ndarray:
    """uint8 images (N, C, H, W) as a picture (H', W', 3); real ones below a thin line, if given."""
    from torchvision.utils import make_grid

    def grid(part: Tensor) -> Tensor:
        if len(part) == 1:  # make_grid would leave out the padding
            return F.pad(enlarged(part)[0].expand(3, -1, -1), (2, 2, 2, 2), value=40)
        return make_grid(enlarged(part), nrow=columns, padding=2, pad_value=40)  # (3, H', W')

    picture = grid(images)
    if real is not None:
        line = torch.full_like(picture[:, :2], 255)
        row = torch.full_like(real[:1], 40).repeat(columns, 1, 1, 1)
        row[: len(real)] = real[:columns]  # blank where there are too few
        picture = torch.cat([picture, line, grid(row)], dim=1)
    return picture.permute(1, 2, 0).numpy()


def square(count: int) -> int:
    """The number of columns that makes a grid of so many images about square."""
    return math.ceil(math.sqrt(count))


def save_picture(path: str | Path, picture: np.ndarray) -> None:
    """Write a picture (H, W, 3) uint8 in the format of the path's ending."""
    from PIL import Image

    path = Path(path)
    save_whole(
        path, lambda partial: Image.fromarray(picture).save(partial, format=image_format(path))
    )


def save_animation(path: Path, pictures: Sequence[np.ndarray], milliseconds: int = 60) -> None:
    """Write pictures (H, W, 3) uint8 as a GIF that repeats and rests on its last picture."""
    from PIL import Image

    first, *rest = [Image.fromarray(picture).quantize(64) for picture in pictures]
    times = [milliseconds] * len(rest) + [1500]

    def write(partial: Path) -> None:
        first.save(partial, format="GIF", save_all=True, append_images=rest, duration=times, loop=0)

    save_whole(path, write)


def image_format(path: Path) -> str:
    """The image format that a path's ending names.

    Raises ValueError for one that is not an image's.
    """
    formats = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
    if path.suffix.lower() not in formats:
        raise ValueError(f"{path}: cannot write a picture of that ending; use {', '.join(formats)}")
    return formats[path.suffix.lower()]


def check_writable(folder: Path) -> None:
    """Raise a ValueError if files cannot be written to a folder, which may not exist yet."""
    existing = next(p for p in [folder, *folder.absolute().parents] if p.exists())
    if not existing.is_dir():
        raise ValueError(f"cannot write to {folder}: {existing} is a file")
    if not os.access(existing, os.W_OK):
        raise ValueError(f"cannot write to {folder}: no permission")


def save_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write(partial)` write a file beside `path`, and rename it to `path` once it is on the
    disk.

    Whoever opens `path` finds the old file or the new one, never a part, even after a power cut.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    if os.name == "posix":  # the rename itself is on the disk once the folder is
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
