"""The processes of one job, as torchrun starts them; without it, process 0 of 1.

What a process is asked about the others is asked here: elsewhere nobody looks at ranks.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT = timedelta(hours=2)  # of a process that waits for others; one may be decoding a folder


def launched() -> bool:
    """Was this process started as one of several, by torchrun or something like it?"""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def job() -> str | None:
    """The name of torchrun's job, which it keeps when it starts the processes again."""
    return os.environ.get("TORCHELASTIC_RUN_ID")


def restarts() -> int:
    """How often torchrun has started this job again, after one of its processes died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def restarted() -> bool:
    return restarts() > 0


def own_device(device: torch.device) -> torch.device:
    """The device of this process: of several GPUs in a machine each process takes its own."""
    if device.type == "cuda" and device.index is None and launched():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return device


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """While open, the processes of the job can talk: by NCCL on GPUs, by Gloo elsewhere.

    Raises ConnectionError where one of them has gone.
    """
    if not launched():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    store, number, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":  # several machines do not count restarts alike
        # torchrun keeps the store over restarts: addresses of dead processes must not be found.
        store = dist.PrefixStore(f"start_{restarts()}", store)
    dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=TIMEOUT)
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo/transport" in str(error):
            raise ConnectionError(
                "another process of this job has ended or cannot be reached; if it said why, that "
                "stands above or below"
            ) from error
        raise
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ["RANK"]) if launched() else 0


def world_size() -> int:
    """How many processes there are."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def is_main() -> bool:
    """Is this the process that prints and writes?"""
    return rank() == 0


def say(text: str) -> None:
    """Print, in the main process alone."""
    if is_main():
        print(text, flush=True)


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        dist.barrier()


@contextmanager
def main_first() -> Iterator[None]:
    """The main process goes through the body first, the others after it: what it has fetched or
    decoded into a file is there for them."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def share(count: int) -> range:
    """The part of range(count) that is this process's: parts differ by one at most."""
    first, last = (count * r // world_size() for r in (rank(), rank() + 1))
    return range(first, last)


def largest(values: list[int], device: torch.device) -> list[int]:
    """The largest of all processes' values, one by one: how they come to agree."""
    if world_size() == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.int64, device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.tolist()


def mean(x: Tensor) -> Tensor:
    """The mean over all processes of a tensor of the same shape."""
    if world_size() > 1:
        x = x.clone()
        dist.all_reduce(x)
        x /= world_size()
    return x


def gather(x: Tensor) -> Tensor:
    """The tensors (n, ...) of all processes, one after the other, on each of them; n may differ."""
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
