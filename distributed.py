"""The processes of one job, as torchrun starts them; without torchrun, process 0 of 1.

All communication between processes is here.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT = timedelta(hours=2)  # of a process that waits for others; one may be decoding a folder
SINGLE = ContextVar("single", default=False)  # see `as_single_process`


def launched() -> bool:
    """Was this process started by torchrun or a similar launcher?"""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def job() -> str | None:
    """The name of the torchrun job, which a restart keeps."""
    return os.environ.get("TORCHELASTIC_RUN_ID")


def restarts() -> int:
    """How often torchrun has restarted this job after a process died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def restarted() -> bool:
    return restarts() > 0


def own_device(device: torch.device) -> torch.device:
    """The device of this process: each process of a machine uses its own GPU."""
    if device.type == "cuda" and device.index is None and launched():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return device


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """While open, the processes of the job communicate: by NCCL on GPUs, by Gloo elsewhere.

    Raises ConnectionError if one of them has ended.
    """
    if not launched():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    store, number, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":  # several machines do not count restarts alike
        # torchrun keeps the store over restarts, with the addresses of dead processes.
        store = dist.PrefixStore(f"start_{restarts()}", store)
    dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=TIMEOUT)
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo/transport" in str(error):
            raise ConnectionError(
                "another process of this job has ended or cannot be reached; its own message, if "
                "any, is above or below"
            ) from error
        raise
    finally:
        dist.destroy_process_group()


@contextmanager
def as_single_process() -> Iterator[None]:
    """While open, this process counts as the only one, and exchanges nothing with others."""
    token = SINGLE.set(True)
    try:
        yield
    finally:
        SINGLE.reset(token)


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ["RANK"]) if launched() and not SINGLE.get() else 0


def world_size() -> int:
    """The number of processes."""
    return int(os.environ["WORLD_SIZE"]) if launched() and not SINGLE.get() else 1


def is_main() -> bool:
    """Is this the main process, which prints and writes?"""
    return rank() == 0


def say(text: str) -> None:
    """Print, in the main process only."""
    if is_main():
        print(text, flush=True)


def barrier() -> None:
    """Wait until every process has called this."""
    if world_size() > 1:
        dist.barrier()


@contextmanager
def main_first() -> Iterator[None]:
    """Run the body in the main process first, then in the others, which find the files it wrote."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def share(count: int) -> range:
    """This process's part of range(count); sizes differ by at most one."""
    first, last = (count * r // world_size() for r in (rank(), rank() + 1))
    return range(first, last)


def largest(values: list[int], device: torch.device) -> list[int]:
    """The elementwise maximum of all processes' values."""
    if world_size() == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.int64, device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.tolist()


def mean(x: Tensor) -> Tensor:
    """The mean of a tensor over all processes."""
    if world_size() > 1:
        x = x.clone()
        dist.all_reduce(x)
        x /= world_size()
    return x


def gather(x: Tensor) -> Tensor:
    """The tensors (n, ...) of all processes, concatenated; n may differ."""
    if world_size() == 1:
        return x
    counts = [torch.zeros(1, dtype=torch.int64, device=x.device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([len(x)], device=x.device))
    most = max(map(int, counts))
    padded = x.new_zeros(most, *x.shape[1:])
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])
