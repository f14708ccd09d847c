"""Tensor: float32 images and weights, and activation functions."""

from collections.abc import Sequence

import numpy as np

Number = float | int
Rng = np.random.Generator | None  # None: a new generator with a random seed
Shape = int | Sequence[int]  # one axis, or all axes as one tuple
ShapeOrRng = Shape | Rng
Operand = "Tensor | np.ndarray | Number"


class Tensor:
    """Float32 array without gradients. Operators broadcast like NumPy and return new tensors.

    Four axes mean images (N, C, H, W) or convolution weights (out, in, k, k). Their channels are
    stored last, so that a convolution becomes one matrix product. The constructor copies an array
    only if its layout or its dtype differs.
    """

    __array_ufunc__ = None  # array * tensor calls Tensor.__rmul__

    def __init__(self, data: np.ndarray | Sequence | Number):
        self.data = np.asarray(data, dtype=np.float32)
        if self.data.ndim == 4:
            self.data = np.ascontiguousarray(self.data.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)

    # --- creation --------------------------------------------------------------------------------
    # The shape is numbers or a tuple, the generator the last argument or `rng`: randn(2, 3, rng).

    @classmethod
    def zeros(cls, *shape: Shape) -> "Tensor":
        return cls(np.zeros(dims(shape), np.float32))

    @classmethod
    def ones(cls, *shape: Shape) -> "Tensor":
        return cls(np.ones(dims(shape), np.float32))

    @classmethod
    def randn(cls, *shape: ShapeOrRng, rng: Rng = None) -> "Tensor":
        """Samples from the standard normal distribution N(0, 1)."""
        shape, rng = split_rng(shape, rng)
        return cls(generator(rng).standard_normal(shape, dtype=np.float32))

    @classmethod
    def xavier(cls, *shape: ShapeOrRng, rng: Rng = None) -> "Tensor":
        """Xavier uniform weights (out, in, ...) (Glorot & Bengio 2010, eq. 16)."""
        shape, rng = split_rng(shape, rng)
        fan_in, fan_out = fans(shape)
        bound = (6 / (fan_in + fan_out)) ** 0.5
        return cls(generator(rng).uniform(-bound, bound, shape))

    @classmethod
    def kaiming(cls, *shape: ShapeOrRng, rng: Rng = None) -> "Tensor":
        """Kaiming normal weights (out, in, ...) (He et al. 2015, arXiv:1502.01852, eq. 10)."""
        shape, rng = split_rng(shape, rng)
        fan_in, _ = fans(shape)
        return cls.randn(shape, rng=rng) * (2 / fan_in) ** 0.5

    @classmethod
    def from_nhwc(cls, data: np.ndarray) -> "Tensor":
        """Tensor (N, C, H, W) that shares the memory of a contiguous float32 array (N, H, W, C)."""
        return cls(data.transpose(0, 3, 1, 2))

    # --- inspection ------------------------------------------------------------------------------

    @property
    def nhwc(self) -> np.ndarray:
        """Contiguous array (N, H, W, C) that shares the memory of a tensor (N, C, H, W)."""
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

    # --- activation functions, elementwise -------------------------------------------------------

    def relu(self) -> "Tensor":
        return Tensor(np.maximum(self.data, 0))

    def sigmoid(self) -> "Tensor":
        """1 / (1 + exp(-x)), computed with tanh, which does not overflow."""
        return Tensor(sigmoid(self.data))

    def silu(self) -> "Tensor":
        """x sigmoid(x) (Hendrycks & Gimpel 2016, arXiv:1606.08415, section 2)."""
        y = sigmoid(self.data)
        y *= self.data
        return Tensor(y)

    def gelu(self) -> "Tensor":
        """x P(X <= x) with X from N(0, 1) (Hendrycks & Gimpel 2016, section 2)."""
        x = self.data  # by tanh: NumPy has no erf
        return Tensor(0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x * x * x))))


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) = (1 + tanh(x / 2)) / 2."""
    y = np.multiply(x, 0.5)
    np.tanh(y, out=y)  # in place: allocating memory takes longer than the arithmetic
    y *= 0.5
    y += 0.5
    return y


def array(x: Tensor | np.ndarray | Number) -> np.ndarray | Number:
    """Array of a tensor. Arrays and numbers are returned unchanged."""
    return x.data if isinstance(x, Tensor) else x


def dims(shape: tuple) -> tuple[int, ...]:
    """Shape (2, 3) from the arguments of `zeros(2, 3)` or `zeros((2, 3))`."""
    return tuple(shape[0]) if shape and isinstance(shape[0], Sequence) else shape


def split_rng(arguments: tuple, rng: Rng) -> tuple[tuple[int, ...], Rng]:
    """Shape and generator from the arguments of `randn(2, 3, rng)` or `randn(2, 3, rng=rng)`."""
    if arguments and isinstance(arguments[-1], Rng):
        *arguments, last = arguments
        if last is not None and rng is not None:
            raise TypeError("the generator is given twice: by position and by keyword")
        rng = rng if last is None else last
    return dims(tuple(arguments)), rng


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """fan_in and fan_out of weights (out, in, ...): inputs per output and outputs per input."""
    taps = int(np.prod(shape[2:]))
    return shape[1] * taps, shape[0] * taps


def generator(rng: Rng) -> np.random.Generator:
    """The given generator, or a new one with a random seed."""
    return np.random.default_rng() if rng is None else rng
