"""Device, precision, random numbers and whole files: what the scripts share."""

import ctypes
import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import (
    AbstractContextManager,
    ExitStack,
    contextmanager,
    nullcontext,
    suppress,
)
from functools import cache
from pathlib import Path
from threading import Lock, RLock
from types import NoneType, UnionType
from typing import get_args, get_origin

import torch
from torch import Tensor, nn

MARK = "made by Tiny Diffusion"  # in the metadata of every picture that is written
NAME_BYTES = 255  # in the name of a file, on all usual file systems
# Errors of file systems, most of them network ones, that do not support an operation.
NOT_SUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


# --- device and precision ------------------------------------------------------------------------


def choose_device(name: str) -> torch.device:
    """The device of a name: auto, cpu, cuda, cuda:N or mps.

    Raises ValueError if the device is not available.
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
    """Does the hardware support bfloat16?"""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        if hasattr(torch.cpu, "get_capabilities"):  # not in torch 2.10
            capabilities = torch.cpu.get_capabilities()
            return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
        info = Path("/proc/cpuinfo")
        return info.exists() and any(f in info.read_text() for f in ("avx512_bf16", "amx_bf16"))
    return False


@cache
def bf16_is_slow() -> bool:
    """Does the CPU multiply matrices in bfloat16 clearly more slowly than in float32?

    Some CPUs with bfloat16 compute 0.6 times as many operations per second in it.
    """
    matrix = torch.ones(512, 512)  # not random: the state of the generator must not change
    seconds = {"fp32": [], "bf16": []}
    for _ in range(6):
        for name, times in seconds.items():
            factor = matrix.to(DTYPES[name])
            start = time.perf_counter()
            factor @ factor
            times.append(time.perf_counter() - start)
    return min(seconds["bf16"]) > 1.2 * min(seconds["fp32"])


def choose_precision(name: str, device: torch.device) -> str:
    """fp32, bf16 or fp16 for a name that may be auto. Raises ValueError for fp16 without CUDA.

    auto is bf16 where the hardware has it; on a CPU, unless it is slower there than fp32.
    """
    if name == "auto":
        if not has_native_bf16(device) or (device.type == "cpu" and bf16_is_slow()):
            return "fp32"
        return "bf16"
    if name == "fp16" and device.type != "cuda":
        raise ValueError(f"--precision fp16 needs a CUDA GPU, not {device.type}; use bf16 or fp32")
    return name


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """The context in which networks compute in that precision."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, DTYPES[precision])


def describe(device: torch.device, precision: str, *, threads: bool = True) -> str:
    """A line that describes the device: "cpu, 2 threads, bf16", or without its threads."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {precision}"
    if device.type == "cpu" and precision == "bf16" and not has_native_bf16(device):
        precision += " (slow on this processor, where --precision auto is fp32)"
    if device.type == "cpu" and threads:
        return f"cpu, {count_of_threads(torch.get_num_threads())}, {precision}"
    return f"{device.type}, {precision}"


def memory_format(device: torch.device, x: Tensor | None = None) -> torch.memory_format:
    """The fastest memory layout on a device, for convolutions and images, or for x."""
    if device.type == "mps" or (x is not None and x.ndim != 4):  # points are no images
        return torch.contiguous_format
    return torch.channels_last


def keep_freed_memory() -> bool:
    """Let this process keep the memory of freed tensors for the next ones; returns whether it does.

    glibc gives large blocks back to the kernel, which clears each page again when it is next used:
    12,000 pages in each training step of a small network on a CPU, a sixth of its time. With other
    C libraries nothing changes. The peak of the memory is about the same.
    """
    trim_threshold, mmap_threshold = -1, -3  # numbers of the options in malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS; Windows
        return False
    # Blocks of up to 1 GB; before glibc 2.35, 32 MB is the most.
    kept = any(mallopt(mmap_threshold, size) for size in (2**30, 2**25))
    return kept and bool(mallopt(trim_threshold, 2**31 - 1))


def set_deterministic(wanted: bool | None) -> None:
    """Restrict PyTorch to deterministic algorithms, or lift the restriction.

    Call it before a GPU is first used.
    """
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS refuses
    if bool(wanted) != torch.are_deterministic_algorithms_enabled():  # setting it takes 2 seconds
        torch.use_deterministic_algorithms(bool(wanted))
    torch.backends.cudnn.deterministic = bool(wanted)


@contextmanager
def kept_threads() -> Iterator[None]:
    """Restore the number of threads at the end, or after a function that this decorates."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        use_threads(before)


def use_threads(count: int) -> None:
    """Set the number of threads that PyTorch computes with."""
    if count != torch.get_num_threads():
        torch.set_num_threads(count)


def count_of_threads(count: int) -> str:
    """A number of threads in words."""
    return f"{count} thread{'' if count == 1 else 's'}"


@contextmanager
def torch_defaults() -> Iterator[None]:
    """While open, or in a function that this decorates, PyTorch's global settings are the defaults.

    The defaults are: float32 and the CPU for new tensors, gradients, no autocast. At the end, the
    caller's settings, random state and choice of algorithms are restored.
    """
    with shared_defaults(), ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(kept_threads())
        yield


SHARED: list[ExitStack] = []  # restore the settings; one for each open context in any thread
COUNTING = Lock()


@contextmanager
def shared_defaults() -> Iterator[None]:
    """The settings of `torch_defaults` that all threads share: the last to leave restores them."""
    with COUNTING:
        stack = ExitStack()
        if not SHARED:
            dtype, cudnn = torch.get_default_dtype(), torch.backends.cudnn
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
            stack.callback(set_deterministic, torch.are_deterministic_algorithms_enabled())
            stack.callback(setattr, cudnn, "deterministic", cudnn.deterministic)
            devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
            stack.enter_context(torch.random.fork_rng(devices))
        SHARED.append(stack)
    try:
        yield
    finally:
        with COUNTING:
            first_is_last = len(SHARED) == 1
            SHARED.pop(0 if first_is_last else -1).close()  # the first restores, and goes last


def unwrapped(model: nn.Module) -> nn.Module:
    """The network in torch.compile's, DataParallel's or DistributedDataParallel's wrapper."""
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return unwrapped(model.module)
    return unwrapped(model._orig_mod) if hasattr(model, "_orig_mod") else model


def out_of_memory(error: Exception) -> bool:
    """Does an exception mean that memory ran out, on a GPU or on the CPU?"""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


# --- random numbers ------------------------------------------------------------------------------

# Threads share PyTorch's random state: code that seeds it holds this lock until it has drawn.
RANDOM_STATE = RLock()


def derive_seed(stream: str, *words: int) -> int:
    """A 64-bit seed derived from a name (`stream`, what the seed is for) and numbers (`words`)."""
    # Not NumPy's SeedSequence: to it, (1,) and (1, 0) are the same.
    digest = hashlib.blake2b(repr((stream, *words)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def set_seed(seed: int, device: torch.device) -> None:
    """`torch.manual_seed` for the CPU and a device.

    On the CPU, other devices are skipped: for each kind of GPU that is not in use,
    `torch.manual_seed` formats the call stack. That takes 0.15 ms, which is long for a step of a
    small network.
    """
    generator = torch.default_generator if device.type == "cpu" else torch
    generator.manual_seed(seed)


class NoisePerImage:
    """Standard normal noise for a batch, where image i has its own random stream (seed, i).

    An image therefore does not depend on its batch. The CPU generates the numbers, which are the
    same for every device.
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


# --- files ----------------------------------------------------------------------------------------


class DataError(OSError):
    """Data that is missing, damaged or unusable; the message says what to do."""


class WriteError(OSError):
    """A file that cannot be written, because the disk is full, for example."""

    def __str__(self) -> str:
        return f"cannot write {self.filename}: {self.strerror}"


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Raise an OSError as a WriteError that names `path`; the OSError may name another file."""
    try:
        yield
    except OSError as error:
        if error.errno is None or isinstance(error, WriteError):
            raise
        raise WriteError(error.errno, error.strerror, str(path)) from error


def existing_path(path: str | Path) -> Path:
    """A path to read from; `~` is the home folder, unless a file of that very name exists."""
    path = Path(path)
    return path if os.path.exists(path) else Path(os.path.expanduser(path))


def check_writable(folder: Path) -> None:
    """Raise a ValueError if files cannot be written to a folder, which may not exist yet."""
    existing = next(p for p in [folder, *folder.absolute().parents] if os.path.lexists(p))
    if not existing.exists():
        raise ValueError(
            f"cannot write to {folder}: {existing} is a link to {os.readlink(existing)}, which "
            "does not exist"
        )
    if not existing.is_dir():
        raise ValueError(f"cannot write to {folder}: {existing} is a file")
    if not os.access(existing, os.W_OK):
        raise ValueError(f"cannot write to {folder}: no permission")


def check_output(path: Path, *read: str | Path | None) -> None:
    """Raise a ValueError if a file cannot be written, or is one of the files that are `read`.

    Call this before the work: otherwise its result would be lost, or would replace its own source.
    """
    check_writable(path.parent)
    if path.is_dir():
        raise ValueError(f"cannot write to {path}: it is a folder; add the name of a file")
    if len(os.fsencode(partial_of(path).name)) > NAME_BYTES:
        raise ValueError(f"cannot write to {path}: the name of the file is too long")
    if path.exists() and any(f and os.path.exists(f) and path.samefile(f) for f in read):
        raise ValueError(f"cannot write to {path}: it is also read; choose another file")


def partial_of(path: Path) -> Path:
    """The name under which this process writes a file before it is complete."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def save_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all: `write(partial)` writes it under another name first.

    The partial file is renamed to `path` once it is on the disk. At any time, even after a power
    cut, `path` is the old file or the new one. A link stays, and its target is replaced. A device
    or a pipe is written to directly: replacing /dev/null by a file would damage the system.

    Raises WriteError if the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        with write_errors(path):
            write(path)
        return
    real = Path(os.path.realpath(path))
    partial = partial_of(real)
    try:
        with write_errors(path):
            write(partial)
            with open(partial, "rb+") as file:
                sync(file.fileno())
            os.replace(partial, real)
    finally:
        with suppress(OSError):  # the first error is the one to report
            partial.unlink(missing_ok=True)
    sync_folder(real.parent)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk; a rename does not wait for that."""
    if os.name == "posix":
        folder = os.open(path, os.O_RDONLY)
        try:
            sync(folder)
        finally:
            os.close(folder)


def sync(descriptor: int) -> None:
    """Wait until a file or a folder is on the disk, if the file system supports that."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise


MAX_INT = 2**63 - 1


def matches_type(value: object, kind) -> bool:
    """Does a value have the type of an annotation? Here neither booleans nor NaN are numbers.

    Supported are bool, int, float (integers match too), str, dict, None, lists (list[str],
    Sequence[int]) and unions of these.
    """
    if isinstance(kind, UnionType):
        return any(matches_type(value, one) for one in get_args(kind))
    if get_origin(kind) in (list, Sequence):
        (one,) = get_args(kind)
        return isinstance(value, list) and all(matches_type(item, one) for item in value)
    if kind in (int, float):
        number = isinstance(value, (int, kind)) and not isinstance(value, bool)
        return number and -MAX_INT <= value <= MAX_INT
    return value is None if kind in (None, NoneType) else isinstance(value, kind)


def sides(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width of an image size: N for squares, or (height, width).

    Raises ValueError for another number of sides.
    """
    if isinstance(size, int):
        return size, size
    if len(size) != 2:
        raise ValueError(f"an image size is N or (height, width), not {tuple(size)}")
    return tuple(size)


def size_of(height: int, width: int) -> int | list[int]:
    """An image size as configurations store it: N for squares, else [height, width]."""
    return height if height == width else [height, width]


def size_text(size: int | Sequence[int]) -> str:
    """An image size in words, as --image-size takes it: "28", or "64x48"."""
    return str(size) if isinstance(size, int) else "x".join(map(str, size))


class UnknownName(ValueError):
    """A name that is not in a table; another version of this project may know it."""


def pick(table: dict, name: str, what: str):
    """`table[name]`. Raises UnknownName, which lists the known names, if there is none."""
    if name not in table:
        raise UnknownName(f"unknown {what} {name!r}; choose from {', '.join(table)}")
    return table[name]
