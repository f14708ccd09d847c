"""The text encoder, and the cross-attention from images to its states."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conditions import PADDING, Condition
from models.layers import attend, heads_for, zero
from models.tokenizer import FIRST_WORD

WIDTH = 128  # of a token
BLOCKS = 2


class Text(NamedTuple):
    """Encoded captions."""

    states: Tensor  # (B, L + 1, D); the first is that of the whole caption
    mask: Tensor  # bool (B, L + 1), False for padding


class TextEncoder(nn.Module):
    """A small transformer (Vaswani et al. 2017) from tokens to a state for each of them.

    A learned start token comes first, so that there is always something to attend to: its state
    stands for the whole caption, and for "any caption" if all other tokens are padding.

    Args:
        vocabulary_size: number of different tokens.
        length: tokens of a caption; shorter ones are filled up with padding.
        width: of a state.
        blocks: transformer blocks.
    """

    def __init__(self, vocabulary_size: int, length: int, width: int = WIDTH, blocks: int = BLOCKS):
        super().__init__()
        self.length = length
        self.token = nn.Embedding(vocabulary_size, width)
        self.position = nn.Embedding(length + 1, width)
        nn.init.normal_(self.token.weight, std=0.5)
        nn.init.normal_(self.position.weight, std=0.5)
        with torch.no_grad():  # bytes that training never sees must say nothing
            self.token.weight[:FIRST_WORD] = 0
        self.blocks = nn.ModuleList(TextBlock(width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Text:
        """Encode tokens (B, l), where l is at most the length of a caption."""
        tokens = F.pad(tokens, (0, self.length - tokens.shape[1]), value=PADDING)  # (B, L)
        mask = F.pad(tokens != PADDING, (1, 0), value=True)  # (B, L + 1)
        h = F.pad(self.token(tokens), (0, 0, 1, 0)) + self.position.weight  # (B, L + 1, D)
        for block in self.blocks:
            h = block(h, mask)
        return Text(self.norm(h), mask)


class TextBlock(nn.Module):
    """Self-attention and a network of two layers: (B, N, D) -> (B, N, D)."""

    def __init__(self, width: int):
        super().__init__()
        self.heads = heads_for(width)
        self.norm_1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        qkv = self.qkv(self.norm_1(x)).unflatten(2, (3, self.heads, -1))  # (B, N, 3, heads, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, N, d)
        x = x + self.out(attend(q, k, v, mask).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm_2(x))


class CrossAttention(nn.Module):
    """Attention from positions x (B, N, C) to the states of a text: the change of x (B, N, C).

    The last layer begins at zero, so that the text has no effect at first.
    """

    def __init__(self, channels: int, width: int = WIDTH):
        super().__init__()
        self.heads = heads_for(channels)
        self.norm = nn.LayerNorm(channels)
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(width, 2 * channels)
        self.out = zero(nn.Linear(channels, channels))

    def forward(self, x: Tensor, text: Text) -> Tensor:
        a = attend(*self.queries_keys_values(x, text), text.mask)  # (B, heads, N, d)
        return self.out(a.transpose(1, 2).flatten(2))

    def queries_keys_values(self, x: Tensor, text: Text) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, heads, N, d), keys and values (B, heads, L + 1, d)."""
        q = self.q(self.norm(x)).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(text.states).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def weights(self, x: Tensor, text: Text) -> Tensor:
        """How much each position attends to each token (B, N, L + 1), the mean over the heads."""
        q, k, _ = self.queries_keys_values(x, text)
        scores = (q * q.shape[-1] ** -0.5 @ k.mT).float()
        return scores.masked_fill(~text.mask[:, None, None], -torch.inf).softmax(-1).mean(1)


def encode(encoder: TextEncoder | None, t: Tensor, condition: Condition | None) -> Text | None:
    """The text of a condition for timesteps t (B,); the null caption where it has none.

    None for a network without a text encoder, which ignores captions.
    """
    if encoder is None:
        return None
    if condition is None or condition.tokens is None:
        return encoder(t.new_full((len(t), 1), PADDING))
    return encoder(condition.tokens)
