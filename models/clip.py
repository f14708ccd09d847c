"""A contrastive model of noisy images and captions, which guides sampling to a prompt.

Radford et al. 2021 (arXiv:2103.00020) train it on clean images. To guide sampling, it must be
trained on noisy ones (Nichol et al. 2021, GLIDE, arXiv:2112.10741).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conditions import Condition
from models.classifier import NoisyClassifier
from models.text import WIDTH, TextEncoder, encode

DIM = 128  # of an embedding
FIRST_SCALE = 1 / 0.07  # of the similarities, before training; at most MAX_SCALE
MAX_SCALE = 100.0


class CLIP(nn.Module):
    """Embeds noisy images and captions so that those that belong together are similar.

    Args:
        image_size, image_channels, channels, multipliers, blocks, dropout, patch_size: of the
            network for images, as in `models.classifier.NoisyClassifier`.
        vocabulary_size, caption_length, text_width: as in `models.unet.UNet`.

    Raises:
        ValueError: a value out of range, or no captions.
    """

    kind = "images"

    def __init__(
        self,
        image_size: int | Sequence[int],
        image_channels: int,
        channels: int = 32,
        multipliers: Sequence[int] = (1, 2, 4),
        blocks: int = 1,
        dropout: float = 0.1,
        patch_size: int | None = None,
        vocabulary_size: int | None = None,
        caption_length: int | None = None,
        text_width: int | None = None,
    ):
        super().__init__()
        if not caption_length:
            raise ValueError("a clip model needs captions")
        self.image = NoisyClassifier(
            image_size, image_channels, channels, multipliers, blocks, dropout, patch_size, DIM
        )
        self.encoder = TextEncoder(vocabulary_size, caption_length, text_width)
        self.caption = nn.Linear(WIDTH, DIM)
        self.log_scale = nn.Parameter(torch.tensor(FIRST_SCALE).log())

    def ends(self) -> list[nn.Module]:
        """The first layer, and the last of both parts."""
        return [*self.image.ends(), self.caption]

    def recomputable(self) -> list[nn.Module]:
        """The blocks, which gradient checkpointing computes twice."""
        return self.image.recomputable()

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Embeddings (B, 2, D): of noisy images x_t at the timesteps t (B,), and of captions.

        Their inner product is the similarity. Embeddings of captions have unit length; those of
        images have the inverse of the temperature as their length.
        """
        caption = self.caption(encode(self.encoder, t, condition).states[:, 0]).float()
        image = F.normalize(self.image(x_t, t).float(), dim=1)  # (B, D)
        image = self.log_scale.exp().clamp(max=MAX_SCALE) * image
        return torch.stack([image, F.normalize(caption, dim=1)], dim=1)
