"""Exercise 6: attention.

Chapter: docs/guide/05_network.md
Check:   python learn/check.py 6
"""

import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762, eq. 1).

        softmax(q k^T / sqrt(d)) v

    For each query, the weights of all keys sum to 1.

    Args:
        q, k, v: queries, keys and values (B, heads, N, d): N tokens of d features.

    Returns:
        (B, heads, N, d).

    Hint: @ multiplies the last two axes, for each image and head. Write it out; do not call
    F.scaled_dot_product_attention.
    """
    raise NotImplementedError
