"""A plain convolutional network without time conditioning: the baseline."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from conditions import Condition


class CNN(nn.Module):
    """A stack of 7 x 7 convolutions with BatchNorm and LeakyReLU, without skips or downsampling.

    It ignores t, as the first network of many tutorials does, and has to infer the noise level from
    the image.

    Args:
        image_size: side in pixels, or (height, width); any.
        image_channels: channels of the data, 1 for grey and 3 for colour.
        channels: width of the first layer; the stack is 1, 2, 4, 8, 4, 2, 1 times that wide.
        learn_sigma: output twice the channels, the second half for the variance.
    """

    kind = "images"
    WIDTHS = (1, 2, 4, 8, 4, 2, 1)

    def __init__(
        self,
        image_size: int | Sequence[int],
        image_channels: int,
        channels: int = 64,
        learn_sigma: bool = False,
    ):
        super().__init__()
        if channels < 1:
            raise ValueError("the CNN needs at least 1 channel")
        widths = [image_channels, *(channels * m for m in self.WIDTHS)]
        layers = [
            nn.Sequential(nn.Conv2d(a, b, 7, padding=3), nn.BatchNorm2d(b), nn.LeakyReLU())
            for a, b in pairwise(widths)
        ]
        outputs = image_channels * (2 if learn_sigma else 1)
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], outputs, 7, padding=3))

    def ends(self) -> list[nn.Module]:
        """The layers that read the image and write the prediction."""
        return [self.layers[0], self.layers[-1]]

    def recomputable(self) -> list[nn.Module]:
        """No blocks: recomputed BatchNorm would count a batch twice."""
        return []

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Predict (B, C, H, W), or (B, 2C, H, W) with `learn_sigma`. Only x_t is used."""
        return self.layers(x_t)
