"""Networks whose tensors are sharded over the processes of a job (FSDP2)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from distributed import world_size


def shard(network: nn.Module, device: torch.device) -> None:
    """Spread a network's tensors over the processes: each block's, gathered while it computes, and
    the rest."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    network.to(memory_format=torch.contiguous_format)  # the only one that it takes
    mesh = init_device_mesh(device.type, (world_size(),))
    for block in network.recomputable():
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


@contextmanager
def alone(network: nn.Module) -> Iterator[None]:
    """Within it, a sharded network's gradients are summed up and not exchanged."""
    network.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        network.set_requires_gradient_sync(True)


def unsharded(tensor: Tensor) -> Tensor:
    """All of a sharded tensor, which every process must ask for; another tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed(tensor: Tensor, pattern: Tensor) -> Tensor:
    """A whole tensor sharded, and laid out in memory, as a pattern of its shape is.

    One of another shape as it is. (Optimizers go through weights and moments side by side in
    memory, whatever the order of their dimensions.)
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
