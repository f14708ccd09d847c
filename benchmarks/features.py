"""The features in which benchmarks compare images: those of a small classifier.

Pixels hardly tell a digit from a stroke that is none; a network that was taught the classes does.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data import Data, epoch_order, to_unit


class Classifier(nn.Module):
    """Convolutions down to 64 features, each of standard deviation 1 over real images."""

    def __init__(self, image_channels: int, num_classes: int):
        super().__init__()
        layers: list[nn.Module] = []
        width = image_channels
        for out in (32, 64, 64):
            layers += [nn.Conv2d(width, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
            layers += [nn.MaxPool2d(2)]
            width = out
        self.trunk = nn.Sequential(*layers[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(width, num_classes)
        self.register_buffer("std", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x))

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """(N, 64) of images (N, C, H, W) in [-1, 1], on the CPU."""
        device = self.std.device
        parts = [self.trunk(part.to(device)) / self.std for part in x.split(500)]
        return torch.cat(parts).cpu()


def train_classifier(data: Data, test: Data, device: torch.device) -> tuple[Classifier, float]:
    """Two epochs with a fixed seed, whatever the seed of what is measured; and test accuracy."""
    torch.manual_seed(0)
    model = Classifier(data.items.shape[1], len(data.classes)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    batch, epochs = 128, 2
    per_epoch = len(data.items) // batch
    for step in range(epochs * per_epoch):
        epoch, i = divmod(step, per_epoch)
        if i == 0:
            order = epoch_order(len(data.items), 0, epoch)
        chosen = order[i * batch : (i + 1) * batch]
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - step / (epochs * per_epoch))
        scores = model(to_unit(data.items[chosen].to(device)))
        F.cross_entropy(scores, data.labels[chosen].to(device)).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    real = to_unit(test.items)
    model.std.copy_(model.features(real).std(dim=0).clamp(min=1e-6))
    with torch.no_grad():
        predicted = torch.cat([model(x.to(device)).argmax(1).cpu() for x in real.split(500)])
    return model, (predicted == test.labels).float().mean().item()
