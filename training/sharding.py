"""Sharding of a network's tensors over the processes of a job (FSDP2)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from distributed import world_size


def shard(network: nn.Module, device: torch.device) -> None:
    """Shard a network's tensors over the processes. Each block gathers its own to compute."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    network.to(memory_format=torch.contiguous_format)  # the only format that FSDP2 accepts
    mesh = init_device_mesh(device.type, (world_size(),))
    for block in network.recomputable():
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


@contextmanager
def alone(network: nn.Module) -> Iterator[None]:
    """While open, gradients of a sharded network are added up and not exchanged."""
    network.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        network.set_requires_gradient_sync(True)


def unsharded(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor (every process must call this); other tensors unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed(tensor: Tensor, pattern: Tensor) -> Tensor:
    """A tensor with the sharding and the memory layout of `pattern`, which has the same shape.

    A tensor of another shape is returned unchanged. The layout matters because optimizers read
    weights and moments in memory order.
    """
    if tensor.shape != pattern.shape:
        return tensor
    if isinstance(pattern, DTensor):
        tensor = distribute_tensor(
            tensor.contiguous().to(pattern.device),
            pattern.device_mesh,
            pattern.placements,
            src_data_rank=None,
        )
    return torch.empty_like(pattern, dtype=tensor.dtype).copy_(tensor)
