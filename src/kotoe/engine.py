"""The networks as a processor computes them fastest. Numerically equal to unet.py, vae.py, tiny_vae.py and text.py.

What is otherwise than there, and nothing else is:
- weights are laid out once as oneDNN's kernels want them, instead of at every call;
- bias, residual sum, GELU and the gate's product belong to the convolution or product before them;
- query, key and value are one product; time projections are added to the bias of the convolution that they follow;
- self-attention over many positions goes block by block of queries, so that scores stay in the cache;
- what guidance computes of the same latents twice, until the text comes in, is computed once;
- a convolution after an upsampling reads the small picture: each of the four pixels that come of one needs 2 x 2
  sums of the 3 x 3 weights, 4/9 of the products.

Rounding differs, so a picture's last bits do. In bfloat16 the distance to float32 is that of the plain networks
(tests/test_engine.py). The operations are torch's own for oneDNN, those that its compiler emits.

Legend: B pictures, C channels, h w rows and columns, N positions (h * w), M keys, H heads, d width of a head.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, TypeVar, cast, overload
from weakref import WeakKeyDictionary, ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kotoe import tiny_vae as tiny
from kotoe import unet as networks
from kotoe import vae as autoencoder
from kotoe.errors import UserError
from kotoe.shortcuts import Shortcuts, merged
from kotoe.text import CLIPText
from kotoe.tiny_vae import TinyVAE
from kotoe.unet import KV, Attention, SpatialTransformer, UNet
from kotoe.vae import VAE

oneDNN = torch.ops.mkldnn
QUERIES = 512  # of a block of self-attention: its scores over 4,096 positions in bfloat16 are 4 MiB
WHOLE = 2**20  # scores of a head that are computed at once
LARGE_TEXT = 2**25  # parameters
FEW, SMALL = 1024, 2**14  # positions of a map, and numbers in it, where torch's GroupNorm is not the quickest
READ = ("time_emb_proj", "attn2.to_k", "attn2.to_v")  # layers of the plain networks, used once for each picture
DTYPES = (torch.float32, torch.bfloat16)

State = list[tuple["ref[Tensor]", int, int]]  # of each weight: which, its address and its version
# By network, and by whether it is in int8: its state, and the engine, which doesn't refer to it.
_made: WeakKeyDictionary[nn.Module, dict[bool, tuple[State, Any]]] = WeakKeyDictionary()
_owners: WeakKeyDictionary[nn.Module, tuple[Any, ...]] = WeakKeyDictionary()  # what its modules hold, see _weights
_lock = threading.Lock()
T = TypeVar("T")


def worth_it(encoder: nn.Module) -> TypeGuard[CLIPText]:
    """Whether to lay a text encoder out anew: a small one, whose calls cost more than its products, is read for every
    prompt; a large one is used once for a picture, and its weights would be in memory twice."""
    return (
        isinstance(encoder, CLIPText) and usable(encoder) and sum(p.numel() for p in encoder.parameters()) < LARGE_TEXT
    )


def usable(net: nn.Module) -> bool:
    """Whether a network can be computed here: on a processor, in a dtype that oneDNN has kernels for."""
    weight = next(net.parameters())
    if weight.device.type != "cpu" or weight.dtype not in DTYPES or not torch.backends.mkldnn.is_available():
        return False
    return weight.dtype == torch.float32 or bool(oneDNN._is_mkldnn_bf16_supported())


@overload
def of(net: UNet, *, release: bool = False, int8: bool = False) -> FastUNet: ...
@overload
def of(net: VAE | TinyVAE | CLIPText, *, release: bool = False) -> Callable[[Tensor], Tensor]: ...
def of(net: nn.Module, *, release: bool = False, int8: bool = False) -> Any:
    """The engine of a network: made when first asked for, and again when the weights have changed since.
    What is written through a weight's `.data`, or into one that was made in inference mode, isn't seen.

    release: let go of the weights that are laid out anew, one after the other, so that none is there twice. From then
             on the network draws by this engine alone: nothing else can be done with it.
    int8:    of a UNet's layers those in int8 that take to it (see int8.py). Approximate.
    """
    from kotoe.int8 import INT8  # which is made of the layers here

    with _lock, torch.inference_mode():
        kinds = _made.setdefault(net, {})
        known = kinds.get(int8)
        if known is None or not _unchanged(net, known[0]):
            if isinstance(net, UNet):
                made: Any = FastUNet(net, release, INT8 if int8 else EXACT)
            elif isinstance(net, VAE):
                made = FastDecoder(net, release)
            else:
                made = FastTinyDecoder(net) if isinstance(net, TinyVAE) else FastText(cast("CLIPText", net))
            known = kinds[int8] = ([(ref(p), *_version(p)) for p in _weights(net)], made)
        return known[1]


def _weights(net: nn.Module) -> list[Tensor]:
    known = _owners.get(net)
    if known is None or any(tuple(inner.values()) != then for inner, then, _ in known):
        # by torch's own walk it would take longer than a small network's step, each time
        known = _owners[net] = tuple((m._modules, tuple(m._modules.values()), m._parameters) for m in net.modules())
    return [p for _, _, parameters in known for p in parameters.values() if p is not None]


def _version(p: Tensor) -> tuple[int, int]:
    return p.data_ptr(), 0 if p.is_inference() else p._version


def _unchanged(net: nn.Module, then: State) -> bool:
    now = _weights(net)  # the very objects: another weight may come to lie where one was, in the same version
    return len(now) == len(then) and all(k[0]() is p and k[1:] == _version(p) for p, k in zip(now, then, strict=True))


def _let_go(block: nn.Module) -> None:
    """Of the weights of a block but those that an engine still reads."""
    for name, layer in block.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and not name.endswith(READ):
            layer.weight = nn.Parameter(layer.weight.new_empty(0), requires_grad=False)


# --- Layers ---------------------------------------------------------------------------------------


class Linear:
    """x @ weight.T + bias, and what is fused with it."""

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int = 4096) -> None:
        self.weight = oneDNN._reorder_linear_weight(weight.detach().contiguous(), rows)
        self.bias = None if bias is None else bias.detach().clone()

    def read(self, x: Tensor) -> Any:
        """What the products of one x have in common, made once."""
        return x

    def __call__(self, x: Any) -> Tensor:
        return oneDNN._linear_pointwise(x, self.weight, self.bias, "none", [], "")

    def gelu(self, x: Any, approximate: str) -> Tensor:
        """GELU of the product."""
        return oneDNN._linear_pointwise(x, self.weight, self.bias, "gelu", [], approximate)

    def plus(self, x: Any, other: Tensor) -> Tensor:
        """The product and another tensor of its shape."""
        return oneDNN._linear_pointwise.binary(x, other, self.weight, self.bias, "add")

    def times(self, x: Any, other: Tensor) -> Tensor:
        """The product, element by element times another tensor of its shape."""
        return oneDNN._linear_pointwise.binary(x, other, self.weight, self.bias, "mul")


class Conv:
    """A convolution of channels_last maps. size: rows and columns to lay the weights out for; others do, too."""

    def __init__(self, weight: Tensor, bias: Tensor, *, padding: int, stride: int = 1, size: int = 64) -> None:
        self.bias = bias.detach().clone()
        self.how = ([padding] * 2, [stride] * 2, [1, 1], 1)
        laid = weight.detach().contiguous(memory_format=torch.channels_last)
        self.weight = oneDNN._reorder_convolution_weight(laid, *self.how, [1, weight.shape[1], size, size])

    @classmethod
    def of(cls, conv: nn.Module, size: int = 64) -> Conv:
        """The same as a module of torch's."""
        assert isinstance(conv, nn.Conv2d)
        assert not isinstance(conv.padding, str)
        return cls(conv.weight, _bias(conv), padding=conv.padding[0], stride=conv.stride[0], size=size)

    def __call__(self, x: Tensor, bias: Tensor | None = None, *, after: str = "none") -> Tensor:
        """after: "none", or "relu" of the result."""
        return oneDNN._convolution_pointwise(
            x, self.weight, self.bias if bias is None else bias, *self.how, after, [], ""
        )

    def plus(self, x: Tensor, other: Tensor, *, after: str | None = None) -> Tensor:
        """The convolution and another map of its shape. after: None, or "relu" of their sum."""
        return oneDNN._convolution_pointwise.binary(
            x, other, self.weight, self.bias, *self.how, "add", 1.0, after, [], None
        )

    def onto(self, x: Tensor, other: Tensor) -> Tensor:
        """The same, in the memory of the other map."""
        return oneDNN._convolution_pointwise_.binary(
            other, x, self.weight, self.bias, *self.how, "add", 1.0, None, [], None
        )


def _bias(conv: nn.Conv2d) -> Tensor:
    return conv.weight.new_zeros(len(conv.weight)) if conv.bias is None else conv.bias


@dataclass(frozen=True)
class Layers:
    """Which classes compute what may be computed more coarsely (see int8.py)."""

    conv: type[Conv]
    linear: type[Linear]


EXACT = Layers(conv=Conv, linear=Linear)


class Upsample:
    """A 3 x 3 convolution of a map made twice as large by its nearest pixels, without making it.

    Of output row 2i + a the kernel's rows read input rows i - 1 + a and i + a: the first of them by its first row
    (a = 0) or by the sum of its first two (a = 1), the second by the others. Columns likewise. All four phases are one
    convolution of 2 x 2 to four times the channels.
    """

    def __init__(self, conv: nn.Module, size: int = 64, layers: Layers = EXACT) -> None:
        assert isinstance(conv, nn.Conv2d)
        weight = conv.weight.detach().float()  # (O, C, 3, 3)
        halves = ((slice(0, 1), slice(1, 3)), (slice(0, 2), slice(2, 3)))  # of a = 0 and 1: what reads which row
        phases = [
            torch.stack(
                [torch.stack([weight[:, :, r, c].sum((2, 3)) for c in columns], 2) for r in rows], 2
            )  # (O, C, 2, 2)
            for rows in halves
            for columns in halves
        ]
        self.channels = len(weight)
        bias = _bias(conv).repeat(4)
        self.conv = layers.conv(torch.cat(phases).to(conv.weight.dtype), bias, padding=1, size=size)

    def __call__(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        y = self.conv(x).permute(0, 2, 3, 1)  # (B, h + 1, w + 1, 4 O)
        made = x.new_empty(b, h, 2, w, 2, self.channels)
        for k, phase in enumerate(y.split(self.channels, dim=3)):
            i, j = divmod(k, 2)
            made[:, :, i, :, j] = phase[:, i : i + h, j : j + w]
        return made.view(b, 2 * h, 2 * w, self.channels).permute(0, 3, 1, 2)  # (B, O, 2h, 2w)


def normed(norm: nn.Module, x: Tensor, *, silu: bool = True) -> Tensor:
    """GroupNorm of a map in channels_last, and SiLU of it.

    torch's own is slow for channels_last maps of few positions, whose groups it reads a few numbers at a time. Of small
    maps a copy in the other layout is cheap; otherwise moments come from whole rows of channels, in float32.
    """
    assert isinstance(norm, nn.GroupNorm)
    (b, c, h, w), groups = x.shape, norm.num_groups
    if h * w >= FEW or c * h * w <= SMALL:
        of = x if h * w >= FEW else x.contiguous()
        y = F.group_norm(of, groups, norm.weight, norm.bias, norm.eps)
        y = F.silu(y, inplace=True) if silu else y
        return y.contiguous(memory_format=torch.channels_last)
    y = flat(x).float()  # (B, N, C)
    each = (b, groups, c // groups)
    mean = y.mean(1).view(each).mean(2, keepdim=True)  # (B, G, 1)
    y = y - mean.expand(each).reshape(b, 1, c)
    variance = torch.linalg.vecdot(y, y, dim=1).view(each).mean(2, keepdim=True) / (h * w)
    scale = torch.rsqrt(variance + norm.eps) * norm.weight.float().view(groups, -1)  # (B, G, C / G)
    y = torch.addcmul(norm.bias.float(), y, scale.view(b, 1, c))
    return mapped((F.silu(y, inplace=True) if silu else y).to(x.dtype), h, w)


def twice(x: Tensor) -> Tensor:
    """A batch after itself."""
    return torch.cat([x, x])


def paired(x: Tensor) -> Tensor:
    """Each of a batch after itself."""
    like = torch.channels_last if x.ndim == 4 else torch.contiguous_format
    return x.repeat_interleave(2, 0).contiguous(memory_format=like)


def _once(x: Tensor, row: Tensor) -> tuple[slice | None, Callable[[Tensor], Tensor]]:
    """Which latents x (B, C, h, w) and time projections row (B or 1, C0) to compute, and how all come of them; None:
    they are all different."""
    half = len(x) // 2
    halves, neighbours = (slice(half), slice(half, None)), (slice(0, None, 2), slice(1, None, 2))
    for (one, other), both in ((halves, twice), (neighbours, paired)) if len(x) % 2 == 0 else ():
        if torch.equal(x[one], x[other]) and (len(row) == 1 or torch.equal(row[one], row[other])):
            return one, both
    return None, twice


def flat(x: Tensor) -> Tensor:
    """(B, C, h, w) in channels_last as (B, N, C), without a copy."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def mapped(x: Tensor, h: int, w: int) -> Tensor:
    """(B, N, C) as (B, C, h, w) in channels_last, without a copy."""
    return x.unflatten(1, (h, w)).permute(0, 3, 1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k) v. q (B, H, N, d), k (B, H, d, M) already scaled, v (B, H, M, d); gives (B, N, H * d)."""
    b, heads, n, d = q.shape
    if n * k.shape[-1] <= WHOLE:
        return (torch.matmul(q, k).softmax(-1) @ v).transpose(1, 2).flatten(2)
    made = q.new_empty(b, n, heads, d)
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    for i in range(b):
        for j in range(heads):
            for first in range(0, n, QUERIES):
                rows = slice(first, first + QUERIES)
                made[i, rows, j] = (q[i, j, rows] @ k[i, j]).softmax(-1) @ v[i, j]
    return made.flatten(2)


# --- The UNet -------------------------------------------------------------------------------------


class ResnetBlock:
    """Of the UNet, and without `time` of the autoencoder."""

    def __init__(
        self, block: networks.ResnetBlock | autoencoder.ResnetBlock, size: int, layers: Layers = EXACT
    ) -> None:
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.conv1, self.conv2 = layers.conv.of(block.conv1, size), layers.conv.of(block.conv2, size)
        self.shortcut = Conv.of(block.conv_shortcut, size) if hasattr(block, "conv_shortcut") else None

    def __call__(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        y = normed(self.norm1, x)
        if time is None:
            y = self.conv1(y)
        elif len(time) == 1:
            y = self.conv1(y, self.conv1.bias + time[0])
        else:  # pictures at different steps
            y = self.conv1(y) + time[:, :, None, None]
        y = normed(self.norm2, y)  # what it is made of goes: a decoder's largest maps are a peak of memory
        return self.conv2.plus(y, x) if self.shortcut is None else self.conv2.onto(y, self.shortcut(x))


class Transformer:
    """A SpatialTransformer."""

    def __init__(self, module: SpatialTransformer, layers: Layers = EXACT) -> None:
        block: Any = module.transformer_blocks[0]
        c = block.norm1.weight.numel()
        self.norm, self.norms = module.norm, (block.norm1, block.norm2, block.norm3)
        self.proj_in = Linear(module.proj_in.weight.reshape(c, c), module.proj_in.bias)
        self.proj_out = Linear(module.proj_out.weight.reshape(c, c), module.proj_out.bias)
        own, text = block.attn1, block.attn2
        self.heads, self.scale = own.heads, (c // own.heads) ** -0.5
        self.qkv = Linear(torch.cat([own.to_q.weight * self.scale, own.to_k.weight, own.to_v.weight]), None)
        self.out1 = Linear(own.to_out[0].weight, own.to_out[0].bias)
        self.q2, self.out2 = Linear(text.to_q.weight, None), Linear(text.to_out[0].weight, text.to_out[0].bias)
        proj, self.approximate = block.ff.net[0].proj, block.ff.net[0].approximate
        (value, gate), (value_bias, gate_bias) = proj.weight.chunk(2), proj.bias.chunk(2)
        self.value, self.gate = layers.linear(value, value_bias), layers.linear(gate, gate_bias)
        self.ff = Linear(block.ff.net[2].weight, block.ff.net[2].bias)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, N, d)

    def __call__(self, x: Tensor, kv: tuple[Tensor, Tensor], merge: float = 0.0) -> Tensor:
        return self.with_text(x, self.alone(x, merge), kv)

    def alone(self, x: Tensor, merge: float = 0.0) -> Tensor:
        """What comes before the text (B, N, C), of a map x (B, C, h, w). merge: share of the positions (shortcuts)."""
        y = self.proj_in(flat(normed(self.norm, x, silu=False)))  # (B, N, C)
        if not merge:
            return self.out1.plus(self.over_itself(self.norms[0](y)), y)
        together, back = merged(y, x.shape[2], x.shape[3], merge)
        return y + back(self.out1(self.over_itself(together(self.norms[0](y)))))

    def over_itself(self, y: Tensor) -> Tensor:
        q, k, v = (self.split(each) for each in self.qkv(y).chunk(3, dim=-1))
        return attend(q, k.transpose(2, 3), v)  # (B, N, C)

    def with_text(self, x: Tensor, y: Tensor, kv: tuple[Tensor, Tensor]) -> Tensor:
        """The rest: the block's map (B, C, h, w) of x and y = alone(x)."""
        _, _, h, w = x.shape
        y = self.out2.plus(attend(self.split(self.q2(self.norms[1](y))), *kv), y)
        z = self.value.read(self.norms[2](y))
        y = self.ff.plus(self.value.times(z, self.gate.gelu(z, self.approximate)), y)
        return mapped(self.proj_out.plus(y, flat(x)), h, w)


def _each(make: Callable[[Any], T], blocks: Iterable[Any], release: bool) -> list[T]:
    made = []
    for block in blocks:
        made.append(make(block))
        if release:
            _let_go(block)
    return made


class Level:
    """One resolution of either network, and its resampler."""

    def __init__(self, level: Any, size: int, release: bool, layers: Layers = EXACT) -> None:
        self.resnets = _each(lambda block: ResnetBlock(block, size, layers), level.resnets, release)
        self.transformers = _each(lambda t: Transformer(t, layers), getattr(level, "attentions", ()), release)
        self.down = _each(lambda d: layers.conv.of(d.conv, size), getattr(level, "downsamplers", ()), release)
        self.up = _each(lambda u: Upsample(u.conv, size, layers), getattr(level, "upsamplers", ()), release)

    def block(
        self, j: int, x: Tensor, time: Iterator[Tensor], kv: Iterator[tuple[Tensor, Tensor]], merge: float = 0.0
    ) -> Tensor:
        x = self.resnets[j](x, next(time))
        return self.transformers[j](x, next(kv), merge) if self.transformers else x


class FastUNet:
    """A UNet as above. Called with a step's time projections and with `text_kv` of the texts."""

    def __init__(self, net: UNet, release: bool = False, layers: Layers = EXACT) -> None:
        size = net.spec.sample_size
        self.cross, self.norm_out = net.cross_attentions(), net.conv_norm_out
        self.conv_in, self.conv_out = Conv.of(net.conv_in, size), Conv.of(net.conv_out, size)
        last = len(net.down_blocks) - 1
        sizes = [max(size >> i, 1) for i in range(last + 1)]
        self.down = [Level(level, sizes[i], release, layers) for i, level in enumerate(net.down_blocks)]
        mid: Any = net.mid_block
        self.mid = _each(lambda block: ResnetBlock(block, sizes[last], layers), mid.resnets, release)
        (self.mid_transformer,) = _each(lambda t: Transformer(t, layers), mid.attentions, release)
        self.up = [Level(level, sizes[last - i], release, layers) for i, level in enumerate(net.up_blocks)]

    def text_kv(self, context: Tensor) -> KV:
        """Keys (B, H, d, M), already scaled, and values (B, H, M, d) of context (B, M, D) for every cross-attention."""
        return [self._kv(attention, context) for attention in self.cross]

    def _kv(self, attention: Attention, context: Tensor) -> tuple[Tensor, Tensor]:
        k, v = attention.kv(context)  # (B, H, M, d)
        return (k * k.shape[-1] ** -0.5).transpose(2, 3).contiguous(), v.contiguous()

    def __call__(self, x: Tensor, time: Sequence[Tensor], kv: KV, shortcuts: Shortcuts | None = None) -> Tensor:
        """Prediction (B, C, h, w) for noised latents x (B, C, h, w).

        time:      projections from the UNet's `time_table(...).at(step)`.
        shortcuts: what may be left out, as in UNet.forward.
        """
        rows, texts, shortcuts = iter(time), iter(kv), shortcuts or Shortcuts()
        x = x.contiguous(memory_format=torch.channels_last)
        finest, last = self.down[0], self.up[-1]
        deep = shortcuts.deep(len(x))
        if deep is not None:
            skips, x, rows, texts = [self.conv_in(x)], deep, iter(time[-1:]), iter(kv[-1:])
        else:
            skips = list(self._begin(x, rows, texts, shortcuts.ratio))
            x = skips[-1]
            for level in self.down:
                merge = shortcuts.ratio if level is finest else 0.0
                for j in range(int(level is finest), len(level.resnets)):  # the first one has begun
                    x = level.block(j, x, rows, texts, merge)
                    skips.append(x)
                for down in level.down:
                    x = down(x)
                    skips.append(x)
            x = self.mid[1](self.mid_transformer(self.mid[0](x, next(rows)), next(texts)), next(rows))
            for level in self.up:
                merge = shortcuts.ratio if level is last else 0.0
                for j in range(len(level.resnets) - (level is last)):
                    x = level.block(j, torch.cat([x, skips.pop()], dim=1), rows, texts, merge)
                for up in level.up:
                    x = up(x)
            shortcuts.keep(x)
        x = last.block(len(last.resnets) - 1, torch.cat([x, skips.pop()], dim=1), rows, texts, shortcuts.ratio)
        return self.conv_out(normed(self.norm_out, x))  # (B, C, h, w)

    def _begin(
        self, x: Tensor, time: Iterator[Tensor], texts: Iterator[tuple[Tensor, Tensor]], merge: float
    ) -> tuple[Tensor, Tensor]:
        """The first two skips, (B, C0, h, w) each. With guidance the same latents are there twice, as halves of a batch
        or as neighbours: until the text comes in, one is computed."""
        first, row = self.down[0], next(time)
        once, both = _once(x, row)
        if once is None:
            x = self.conv_in(x)
            y = first.resnets[0](x, row)
            return x, first.transformers[0](y, next(texts), merge) if first.transformers else y
        x = self.conv_in(x[once])
        y = first.resnets[0](x, row[once] if len(row) > 1 else row)
        if not first.transformers:
            return both(x), both(y)
        transformer = first.transformers[0]
        return both(x), transformer.with_text(both(y), both(transformer.alone(y, merge)), next(texts))


# --- The autoencoder's decoder --------------------------------------------------------------------


class FastDecoder:
    """Pictures (B, 3, H, W) of unit-scaled latents (B, C, h, w)."""

    def __init__(self, net: VAE, release: bool = False) -> None:
        decoder = net.decoder
        self.post_quant, self.scaling, self.norm_out = (
            net.post_quant_conv,
            net.spec.scaling_factor,
            decoder.conv_norm_out,
        )
        size = max(net.spec.sample_size // net.spec.downscale, 1)
        mid: Any = decoder.mid_block
        self.mid = _each(lambda block: ResnetBlock(block, size), mid.resnets, release)
        self.attention: Any = mid.attentions[0]
        self.levels = [Level(level, size << i, release) for i, level in enumerate(decoder.up_blocks)]
        self.conv_in, self.conv_out = Conv.of(decoder.conv_in, size), Conv.of(decoder.conv_out, net.spec.sample_size)

    def __call__(self, z: Tensor) -> Tensor:
        z = self.post_quant(z / self.scaling)
        x = self.conv_in(z.contiguous(memory_format=torch.channels_last))  # (B, C, h, w)
        x = self.mid[1](self._attend(self.mid[0](x)))
        for level in self.levels:
            for block in level.resnets:
                x = block(x)
            for up in level.up:
                x = up(x)
        return self.conv_out(normed(self.norm_out, x))  # (B, 3, H, W)

    def _attend(self, x: Tensor) -> Tensor:
        a, (_, c, h, w) = self.attention, x.shape
        y = flat(normed(a.group_norm, x, silu=False))  # (B, N, C)
        q, k, v = (f(y).unsqueeze(1) for f in (a.to_q, a.to_k, a.to_v))  # (B, 1, N, C)
        y = attend(q, (k * c**-0.5).transpose(2, 3), v)
        return x + mapped(a.to_out[0](y), h, w)


# --- The small decoder ----------------------------------------------------------------------------


class FastTinyDecoder:
    """Pictures (B, 3, H, W) of unit-scaled latents (B, C, h, w), by an AutoencoderTiny's decoder."""

    def __init__(self, net: TinyVAE) -> None:
        self.scaling, self.relu = net.spec.scaling_factor, net.spec.act_fn == "relu"
        self.layers: list[Callable[[Tensor], Tensor]] = []
        before: nn.Module | None = None
        for layer in net.decoder.layers:
            if isinstance(layer, tiny.Block):
                self.layers.append(self._block(layer))
            elif isinstance(layer, nn.Conv2d) and isinstance(before, nn.Upsample) and before.scale_factor == 2:
                self.layers.append(Upsample(layer))
            elif isinstance(layer, nn.Conv2d):
                self.layers.append(Conv.of(layer))
            elif not isinstance(layer, nn.Upsample) or layer.scale_factor != 2:
                self.layers.append(layer)
            before = layer

    def _block(self, block: tiny.Block) -> Callable[[Tensor], Tensor]:
        one, two, three = (Conv.of(block.conv[i]) for i in (0, 2, 4))
        act = block.conv[1]

        def run(x: Tensor) -> Tensor:
            if self.relu:
                return three.plus(two(one(x, after="relu"), after="relu"), x, after="relu")
            return three.plus(act(two(act(one(x)))), x, after="relu")

        return run

    def __call__(self, z: Tensor) -> Tensor:
        x = torch.tanh(z / self.scaling / tiny.CLAMP) * tiny.CLAMP
        x = x.contiguous(memory_format=torch.channels_last)
        for layer in self.layers:
            x = layer(x)
        return x * 2 - 1  # (B, 3, H, W)


# --- CLIP's text transformer ----------------------------------------------------------------------


class TextLayer:
    """A layer of CLIPText."""

    def __init__(self, layer: Any) -> None:
        own, self.norms = layer.self_attn, (layer.layer_norm1, layer.layer_norm2)
        parts = [own.q_proj, own.k_proj, own.v_proj]
        self.heads, self.activation = own.heads, layer.mlp.activation
        self.qkv = Linear(torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts]))
        self.out = Linear(own.out_proj.weight, own.out_proj.bias)
        self.fc1, self.fc2 = (Linear(fc.weight, fc.bias) for fc in (layer.mlp.fc1, layer.mlp.fc2))

    def __call__(self, x: Tensor) -> Tensor:
        each = self.qkv(self.norms[0](x)).chunk(3, dim=-1)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in each)  # (B, H, L, d)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = self.out.plus(y.transpose(1, 2).flatten(2), x)  # (B, L, D)
        return self.fc2.plus(self.activation(self.fc1(self.norms[1](x))), x)


class FastText:
    """States (B, L, D) of token ids (B, L), as CLIPText gives them."""

    def __init__(self, net: CLIPText) -> None:
        spec, model = net.spec, net.text_model
        self.most, self.embeddings = spec.max_tokens, model.embeddings
        self.layers = [TextLayer(layer) for layer in model.encoder.layers[: spec.num_layers + 1 + spec.layer]]
        self.finished: Callable[[Tensor], Tensor] = model.final_layer_norm if spec.final_norm else lambda x: x

    def __call__(self, ids: Tensor) -> Tensor:
        if ids.shape[1] > self.most:
            raise UserError(f"{ids.shape[1]} tokens for an encoder of {self.most} positions")
        x = self.embeddings(ids)
        for layer in self.layers:
            x = layer(x)
        return self.finished(x)
