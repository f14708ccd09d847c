"""An exponential moving average of the weights: the network that samples."""

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from checkpoints.averages import power_decay


def ema_decay(step: int, limit: float) -> float:
    """The decay at a step (from 0), at most `limit`: an average over about a tenth of the steps."""
    return min(limit, (1 + step) / (10 + step))


class EMA(AveragedModel):
    """torch's AveragedModel with a decay that warms up; `ema.module` is the averaged network.

    Do not move it to a device: it lives on that of its model, and its step counter stays on the
    CPU, where reading it does not make a GPU wait.
    """

    def __init__(self, model: nn.Module, decay: float):
        # Buffers are averaged too: the averaged weights need BatchNorm statistics of their own.
        super().__init__(model, multi_avg_fn=self._average, use_buffers=True)
        self.decay = decay
        self.module.eval().requires_grad_(False)

    def update(self, model: nn.Module, step: int) -> None:
        """Include the weights after a step (from 0); earlier calls may have skipped steps."""
        if isinstance(self.module, FSDPModule):
            self.module.reshard()  # a forward pass without gradients leaves some weights whole
        self.n_averaged.fill_(step)
        self.update_parameters(model)

    def decay_at(self, step: int) -> float:
        """The decay at a step (from 0); step 0 copies the weights."""
        return ema_decay(step, self.decay)

    def _average(self, averages, weights, _) -> None:
        decay = self.decay_at(int(self.n_averaged))
        get_ema_multi_avg_fn(decay)(local(averages), local(weights), self.n_averaged)


class PowerEMA(EMA):
    """A moving average with a power of the step as its profile; see `checkpoints.averages`."""

    def __init__(self, model: nn.Module, gamma: float):
        super().__init__(model, 1.0)
        self.gamma = gamma

    def decay_at(self, step: int) -> float:
        return power_decay(step, self.gamma)


def local(tensors: list[Tensor]) -> list[Tensor]:
    """This process's shards of tensors; tensors that are not sharded are returned unchanged."""
    return [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
