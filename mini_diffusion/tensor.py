"""Images and weights: float32 numbers in NumPy arrays."""

from collections.abc import Sequence

import numpy as np

Number = float | int
Shape = int | Sequence[int]  # numbers, or one tuple of them
Rng = np.random.Generator | None  # None: other numbers each time
Operand = "Tensor | np.ndarray | Number"


class Tensor:
    """Float32 numbers of shape (N, C, H, W), or of any other shape, without gradients.

    The four axes are laid out with the channels last in memory, whatever the order of the array
    that is given (which is copied only if it has another): the channels of a pixel are neighbours,
    so that a convolution is one matrix product. Weights of a convolution, (out, in, k, k), too.

    Arithmetic takes tensors, arrays and numbers, and makes new tensors.
    """

    __array_ufunc__ = None  # array * tensor is ours, too

    def __init__(self, data: np.ndarray | Sequence | Number):
        self.data = np.asarray(data, dtype=np.float32)
        if self.data.ndim == 4:
            self.data = np.ascontiguousarray(self.data.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)

    # --- making them: the shape is given as numbers or as one tuple ------------------------------

    @classmethod
    def zeros(cls, *shape: Shape) -> "Tensor":
        return cls(np.zeros(dims(shape), np.float32))

    @classmethod
    def ones(cls, *shape: Shape) -> "Tensor":
        return cls(np.ones(dims(shape), np.float32))

    @classmethod
    def randn(cls, *shape: Shape, rng: Rng = None) -> "Tensor":
        """From N(0, 1)."""
        return cls(generator(rng).standard_normal(dims(shape), dtype=np.float32))

    @classmethod
    def xavier(cls, *shape: Shape, rng: Rng = None) -> "Tensor":
        """Weights (out, in, ...) that keep the size of a linear layer's numbers both ways.

        Uniform within sqrt(6 / (fan_in + fan_out)) (Glorot & Bengio 2010, eq. 16).
        """
        fan_in, fan_out = fans(dims(shape))
        bound = (6 / (fan_in + fan_out)) ** 0.5
        return cls(generator(rng).uniform(-bound, bound, dims(shape)))

    @classmethod
    def kaiming(cls, *shape: Shape, rng: Rng = None) -> "Tensor":
        """Weights (out, in, ...) that keep the size of numbers that pass a ReLU.

        From N(0, 2 / fan_in) (He et al. 2015, arXiv:1502.01852, eq. 10).
        """
        fan_in, _ = fans(dims(shape))
        return cls.randn(*shape, rng=rng) * (2 / fan_in) ** 0.5

    @classmethod
    def from_nhwc(cls, data: np.ndarray) -> "Tensor":
        """An array (N, H, W, C) as a tensor (N, C, H, W) on the same memory."""
        return cls(data.transpose(0, 3, 1, 2))

    # --- looking at them -------------------------------------------------------------------------

    @property
    def nhwc(self) -> np.ndarray:
        """The same memory as a contiguous array (N, H, W, C)."""
        return self.data.transpose(0, 2, 3, 1)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def mean(self) -> float:
        return float(self.data.mean(dtype=np.float64))

    def std(self) -> float:
        return float(self.data.std(dtype=np.float64))

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index) -> "Tensor":
        return Tensor(self.data[index])

    def __repr__(self) -> str:
        return f"Tensor{self.shape}: mean {self.mean():.3f}, std {self.std():.3f}"

    # --- arithmetic ------------------------------------------------------------------------------

    def __add__(self, other: Operand) -> "Tensor":
        return Tensor(self.data + array(other))

    def __sub__(self, other: Operand) -> "Tensor":
        return Tensor(self.data - array(other))

    def __mul__(self, other: Operand) -> "Tensor":
        return Tensor(self.data * array(other))

    def __truediv__(self, other: Operand) -> "Tensor":
        return Tensor(self.data / array(other))

    def __rsub__(self, other: Operand) -> "Tensor":
        return Tensor(array(other) - self.data)

    def __rtruediv__(self, other: Operand) -> "Tensor":
        return Tensor(array(other) / self.data)

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> "Tensor":
        return Tensor(-self.data)

    def __matmul__(self, other: "Tensor") -> "Tensor":
        return Tensor(self.data @ array(other))

    def clip(self, low: Number, high: Number) -> "Tensor":
        return Tensor(self.data.clip(low, high))

    def reshape(self, *shape: Shape) -> "Tensor":
        return Tensor(self.data.reshape(dims(shape)))

    # --- activations -----------------------------------------------------------------------------

    def relu(self) -> "Tensor":
        return Tensor(np.maximum(self.data, 0))

    def sigmoid(self) -> "Tensor":
        """1 / (1 + exp(-x)), by tanh, which does not overflow."""
        return Tensor(sigmoid(self.data))

    def silu(self) -> "Tensor":
        """x sigmoid(x) (Hendrycks & Gimpel 2016, arXiv:1606.08415, section 2)."""
        y = sigmoid(self.data)
        y *= self.data
        return Tensor(y)

    def gelu(self) -> "Tensor":
        """x P(X <= x) for X from N(0, 1), by tanh (ibid.): NumPy has no erf."""
        x = self.data
        return Tensor(0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x * x * x))))


def sigmoid(x: np.ndarray) -> np.ndarray:
    y = np.multiply(x, 0.5)
    np.tanh(y, out=y)  # in place, as new memory costs more than the arithmetic
    y *= 0.5
    y += 0.5
    return y


def array(x: Tensor | np.ndarray | Number) -> np.ndarray | Number:
    return x.data if isinstance(x, Tensor) else x


def dims(shape: tuple) -> tuple[int, ...]:
    """(2, 3) of both `zeros(2, 3)` and `zeros((2, 3))`."""
    return tuple(shape[0]) if shape and isinstance(shape[0], Sequence) else shape


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """Inputs that one output sums over, and outputs that one input goes to."""
    taps = int(np.prod(shape[2:]))
    return shape[1] * taps, shape[0] * taps


def generator(rng: Rng) -> np.random.Generator:
    return np.random.default_rng() if rng is None else rng
