"""Exercise 6: attention."""

from learn.exercise import Case, Exercise, Mistake, Task, random


def attended(q, k, v, *, scale=None, axis=-1):
    """The solution, with another scale or axis of the softmax."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return (q @ k.transpose(-2, -1) * scale).softmax(dim=axis) @ v


def no_softmax(q, k, v):
    return q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 @ v


def over_heads(q, k, v):
    return attended(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def features_for_tokens(q, k, v):
    weights = (q.transpose(-2, -1) @ k * q.shape[-1] ** -0.5).softmax(dim=-1)
    return v @ weights.transpose(-2, -1)


def weights_transposed(q, k, v):
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
    return weights.transpose(-2, -1) @ v


def keys_not_transposed(q, k, v):
    return (q @ k * q.shape[-1] ** -0.5).softmax(dim=-1) @ v


def in_place(q, k, v):
    q *= q.shape[-1] ** -0.5
    return attended(q, k, v, scale=1.0)


def normalised_by_sum(q, k, v):
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    return scores / scores.sum(dim=-1, keepdim=True) @ v


def arguments(*shape):
    return lambda: tuple(2 * random(*shape, seed=seed) for seed in range(3))


ATTENTION = Task(
    "attention",
    hint="k.transpose(-2, -1) is (B, heads, d, N), and q @ that is (B, heads, N, N): row i has the "
    "scores of query i. Softmax over the last axis, then @ v.",
    cases=[
        Case("one head, 2 tokens of 2 features", arguments(1, 1, 2, 2)),
        Case("2 heads, 4 tokens of 4 features", arguments(3, 2, 4, 4)),
        Case("2 heads, 5 tokens of 3 features", arguments(1, 2, 5, 3)),
    ],
    mistakes=[
        Mistake(
            "no scaling by 1 / sqrt(d)",
            "You do not divide the scores by sqrt(d). The standard deviation of a sum of d "
            "products grows with sqrt(d), and the softmax would soon choose a single key.",
            lambda q, k, v: attended(q, k, v, scale=1.0),
        ),
        Mistake(
            "divided by d instead of sqrt(d)",
            "You divide the scores by d. Their standard deviation grows with sqrt(d): divide by "
            "that.",
            lambda q, k, v: attended(q, k, v, scale=1 / q.shape[-1]),
        ),
        Mistake(
            "multiplied by sqrt(d)",
            "You multiply the scores by sqrt(d) instead of dividing.",
            lambda q, k, v: attended(q, k, v, scale=q.shape[-1] ** 0.5),
        ),
        Mistake(
            "scaled by the number of tokens",
            "You divide by sqrt(N), the number of tokens. d is the last axis of q, the features of "
            "a head.",
            lambda q, k, v: attended(q, k, v, scale=q.shape[-2] ** -0.5),
        ),
        Mistake(
            "softmax over the wrong axis",
            "Your softmax runs over the queries (dim=-2). The weights of each query must sum to 1 "
            "over the keys, the last axis.",
            lambda q, k, v: attended(q, k, v, axis=-2),
        ),
        Mistake(
            "softmax over the heads",
            "Your softmax runs over dim=1, the heads. Each head has weights of its own: use "
            "dim=-1.",
            lambda q, k, v: attended(q, k, v, axis=1),
        ),
        Mistake(
            "softmax over the batch",
            "Your softmax runs over dim=0, the batch, so that images influence each other. Use "
            "dim=-1, the keys.",
            lambda q, k, v: attended(q, k, v, axis=0),
        ),
        Mistake(
            "no softmax",
            "You multiply the values by the scores themselves. A softmax over the keys makes "
            "weights of them.",
            no_softmax,
        ),
        Mistake(
            "scores divided by their sum",
            "You divide the scores by their sum, which may be 0, and weights become negative. "
            "Take the softmax.",
            normalised_by_sum,
        ),
        Mistake(
            "keys not transposed",
            "You multiply q by k without the transpose, which only works for N = d. Use "
            "k.transpose(-2, -1), or k.mT.",
            keys_not_transposed,
        ),
        Mistake(
            "queries and keys exchanged",
            "You let the keys ask: your scores are k q^T. Row i must have the scores of query i, q "
            "k^T.",
            lambda q, k, v: attended(k, q, v),
        ),
        Mistake(
            "weights transposed",
            "You transpose the weights before they multiply the values, so each query gets the "
            "weights that others give to it. Write weights @ v.",
            weights_transposed,
        ),
        Mistake(
            "attention between features",
            "Your weights are (d, d), between features. Attention is between tokens: q @ "
            "k.transpose(-2, -1) is (N, N).",
            features_for_tokens,
        ),
        Mistake(
            "attention between heads",
            "You exchange the axes of heads and tokens, and the heads attend to each other. Axis "
            "1 has the heads already.",
            over_heads,
        ),
        Mistake(
            "the input is changed in place",
            "Your result is right, but q has changed, because *= writes into the tensor itself. "
            "Write q = q * scale instead.",
            in_place,
        ),
    ],
)

EXERCISE = Exercise(
    file="06_attention",
    title="attention",
    chapter="05_network.md",
    tasks=[ATTENTION],
    done="Each pixel can look at all others, which convolutions cannot.",
)
