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
        vocabulary_size: number of different tokens, or None with `text_width`.
        length: tokens of a caption; shorter ones are filled up with padding.
        text_width: width of the states of a pretrained text encoder, which take the place of
            embedded tokens; None without one.
        width: of a state.
        blocks: transformer blocks.

    Raises:
        ValueError: neither or both of `vocabulary_size` and `text_width`.
    """

    def __init__(
        self,
        vocabulary_size: int | None,
        length: int,
        text_width: int | None = None,
        width: int = WIDTH,
        blocks: int = BLOCKS,
    ):
        super().__init__()
        if bool(vocabulary_size) == bool(text_width):
            raise ValueError("a text encoder needs either a vocabulary_size or a text_width")
        self.length, self.text_width = length, text_width
        if vocabulary_size:
            self.token = embedding(vocabulary_size, width)
            with torch.no_grad():  # bytes that do not occur in training must have no effect
                self.token.weight[:FIRST_WORD] = 0
        else:
            self.state = nn.Sequential(nn.LayerNorm(text_width), nn.Linear(text_width, width))
        self.position = embedding(length + 1, width)
        self.blocks = nn.ModuleList(TextBlock(width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, states: Tensor | None = None) -> Text:
        """Encode tokens (B, l); l is at most the length of a caption.

        With `text_width`, the tokens' states (B, l, text_width) by a pretrained encoder are encoded
        instead. They may be None if all tokens are padding.
        """
        missing = self.length - tokens.shape[1]
        tokens = F.pad(tokens, (0, missing), value=PADDING)  # (B, L)
        mask = F.pad(tokens != PADDING, (1, 0), value=True)  # (B, L + 1)
        if self.text_width is None:
            h = self.token(tokens)  # (B, L, D)
        elif states is None:
            h = self.state(self.position.weight.new_zeros(*tokens.shape, self.text_width))
        else:
            h = self.state(F.pad(states, (0, 0, 0, missing)).to(self.position.weight.dtype))
        h = F.pad(h, (0, 0, 1, 0)) + self.position.weight  # (B, L + 1, D)
        for block in self.blocks:
            h = block(h, mask)
        return Text(self.norm(h), mask)


def embedding(count: int, width: int) -> nn.Embedding:
    """An embedding with a standard deviation of 0.5."""
    table = nn.Embedding(count, width)
    nn.init.normal_(table.weight, std=0.5)
    return table


class TextBlock(nn.Module):
    """Self-attention and an MLP: (B, N, D) -> (B, N, D)."""

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
    """Attention from positions x (B, N, C) to the states of a text; returns what to add to x.

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
        """Attention weights (B, N, L + 1) of positions for tokens: the mean over the heads."""
        q, k, _ = self.queries_keys_values(x, text)
        scores = (q * q.shape[-1] ** -0.5 @ k.mT).float()
        return scores.masked_fill(~text.mask[:, None, None], -torch.inf).softmax(-1).mean(1)


def encode(encoder: TextEncoder | None, t: Tensor, condition: Condition | None) -> Text | None:
    """The encoded captions of a condition; null captions, one for each t (B,), if it has none.

    Returns None for a network without a text encoder, which ignores captions.
    """
    if encoder is None:
        return None
    if condition is None or condition.tokens is None:
        return encoder(t.new_full((len(t), 1), PADDING))
    return encoder(condition.tokens, condition.states)
