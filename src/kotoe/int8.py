"""Convolutions and products of the engine in int8: twice the rate of bfloat16 on processors with VNNI. Approximate.

Weights are rounded to 255 levels for each output channel, once; what a layer reads to 255 levels between its smallest
and largest number, each time (W8A8, dynamic). These are of all pictures computed at once, so that each is drawn by
itself (drawing.resolve): scales of their own would take a call for each. Sums are whole numbers, exact; results are as
without. Taken are the 3 x 3 convolutions and the product into the feed-forward, whose work is worth reading their input
twice; attention, the product out, 1 x 1 convolutions, the first and the last layer stay as they are.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kotoe.engine import Conv, Layers, Linear

oneDNN = torch.ops.onednn
STEPS = 254  # one level is kept for rounding


class Quantized(NamedTuple):
    """values uint8: x is (values - zero) * scale."""

    values: Tensor
    scale: float
    zero: int


def quantized(x: Tensor | Quantized) -> Quantized:
    """A tensor in 255 levels from its smallest number to its largest, 0 being one of them."""
    if isinstance(x, Quantized):
        return x
    low, high = (float(end) for end in torch.aminmax(x))
    scale = max((max(high, 0.0) - min(low, 0.0)) / STEPS, 1e-12) if low == low else low  # of NaN, NaN
    zero = max(1, int(-(min(low, 0.0) / scale) + 1)) if low == low else 1  # never 0: kernels are made for a shift
    return Quantized((x * (1 / scale)).add_(zero).round_().to(torch.uint8), scale, min(zero, 255))


def levels(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight (O, ...) as int8, and its scales (O,)."""
    flat = weight.detach().float().flatten(1)
    scales = flat.abs().amax(1).clamp_min(1e-12) / 127
    return (flat / scales[:, None]).round().to(torch.int8).view(weight.shape), scales


class Conv8(Conv):
    """A convolution of channels_last maps."""

    def __init__(self, weight: Tensor, bias: Tensor, *, padding: int, stride: int = 1, size: int = 64) -> None:
        self.bias, self.dtype = bias.detach().float(), weight.dtype
        self.how = ([stride] * 2, [padding] * 2, [1, 1], 1)
        values, self.scales = levels(weight)
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)
        shape = [1, weight.shape[1], size, size]
        self.weight = oneDNN.qconv_prepack(values, self.scales, 1.0, 1, *self.how, shape)

    def __call__(self, x: Tensor, bias: Tensor | None = None, *, after: str = "none") -> Tensor:
        own = self.bias if bias is None else bias.float()
        return oneDNN.qconv_pointwise(
            *quantized(x), self.weight, self.scales, self.zeros, own, *self.how, 1.0, 0, self.dtype, after, [], ""
        )

    def plus(self, x: Tensor, other: Tensor, *, after: str | None = None) -> Tensor:
        y = self(x).add_(other)
        return y.relu_() if after == "relu" else y

    def onto(self, x: Tensor, other: Tensor) -> Tensor:
        return other.add_(self(x))


class Linear8(Linear):
    """x @ weight.T + bias. `read` is what several products of one x share."""

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int = 4096) -> None:
        self.bias, self.dtype = None if bias is None else bias.detach().float(), weight.dtype
        values, self.scales = levels(weight)
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)
        self.weight = oneDNN.qlinear_prepack(values, [rows, weight.shape[1]])

    def read(self, x: Tensor) -> Quantized:
        return quantized(x)

    def _product(self, x: Tensor | Quantized, after: str, how: str) -> Tensor:
        return oneDNN.qlinear_pointwise(
            *quantized(x), self.weight, self.scales, self.zeros, self.bias, 1.0, 0, self.dtype, after, [], how
        )

    def __call__(self, x: Tensor | Quantized) -> Tensor:
        return self._product(x, "none", "")

    def gelu(self, x: Tensor | Quantized, approximate: str) -> Tensor:
        return self._product(x, "gelu", approximate)

    def plus(self, x: Tensor | Quantized, other: Tensor) -> Tensor:
        return self(x).add_(other)

    def times(self, x: Tensor | Quantized, other: Tensor) -> Tensor:
        return self(x).mul_(other)


INT8 = Layers(conv=Conv8, linear=Linear8)
