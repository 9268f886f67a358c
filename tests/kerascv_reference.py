"""KerasCV's Stable Diffusion a second time, for tests: its files' layout by h5py, its model in NumPy, channels last.

Written from what KerasCV computes, not from Kotoe's networks and tables: layers are taken from the files in the order
in which they stand there, and each takes its tensors in the order in which it holds them. float64 throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

Array = np.ndarray
Entry = tuple[str, list[tuple[str, tuple[int, ...]]]]  # kind of layer, (role, shape) of its tensors
NAMES = {
    "sd1": ("kcv_encoder.h5", "kcv_diffusion_model.h5"),
    "sd2": ("text_encoder_v2_1.h5", "diffusion_model_v2_1.h5"),
}


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """Sizes of a tiny model of one of KerasCV's two generations."""

    two: bool
    widths: tuple[int, ...]
    cross: tuple[bool, ...]
    blocks: int = 1
    text: int = 64
    text_layers: int = 2
    vocabulary: int = 560
    positions: int = 16
    vae: tuple[int, ...] = (32, 64)

    def heads(self, c: int) -> int:
        return c // 64 if self.two else 8


SIZES = {
    "sd1": Tiny(two=False, widths=(32, 64), cross=(True, False)),
    "sd2": Tiny(two=True, widths=(64, 128), cross=(True, True)),
}


# --- The files ----------------------------------------------------------------------------------------------


def _norm(c: int) -> list[tuple[str, tuple[int, ...]]]:
    return [("gamma", (c,)), ("beta", (c,))]


def _dense(i: int, o: int, bias: bool = True) -> list[tuple[str, tuple[int, ...]]]:
    return [("kernel", (i, o)), *([("bias", (o,))] if bias else [])]


def _conv(i: int, o: int, k: int = 3) -> list[tuple[str, tuple[int, ...]]]:
    return [("kernel", (k, k, i, o)), ("bias", (o,))]


def text_layers(m: Tiny) -> list[Entry]:
    d = m.text
    layer = _norm(d) + 4 * _dense(d, d) + _norm(d) + _dense(d, 4 * d) + _dense(4 * d, d)
    embeddings = [("embeddings", (m.vocabulary, d)), ("embeddings", (m.positions, d))]
    layers: list[Entry] = [("tokens", []), ("positions", []), ("clip_embedding", embeddings)]
    return [*layers, *[("clip_encoder_layer", layer)] * m.text_layers, ("layer_normalization", _norm(d))]


def unet_layers(m: Tiny) -> list[Entry]:
    time = 4 * m.widths[0]

    def residual(i: int, o: int) -> Entry:
        skip = _conv(i, o, 1) if i != o else []
        return "res_block", _norm(i) + _conv(i, o) + _dense(time, o) + _norm(o) + _conv(o, o) + skip

    def transformer(c: int) -> Entry:
        project = _dense(c, c) if m.two else _conv(c, c, 1)
        attention = [_dense(c, c, False) + 2 * _dense(d, c, False) + _dense(c, c) for d in (c, m.text)]
        feed = _dense(c, 8 * c) + _dense(4 * c, c)
        block = _norm(c) + attention[0] + _norm(c) + attention[1] + _norm(c) + feed
        return "spatial_transformer", _norm(c) + project + block + project

    c = m.widths[0]
    layers: list[Entry] = [("timestep_embedding", []), ("dense", _dense(c, time)), ("activation", []), ("latent", [])]
    layers += [("padded_conv2d", _conv(4, c)), ("dense", _dense(time, time)), ("context", [])]
    skips = [c]
    for level, width in enumerate(m.widths):
        for _ in range(m.blocks):
            layers += [residual(c, width), *([transformer(width)] if m.cross[level] else [])]
            c = width
            skips.append(c)
        if level < len(m.widths) - 1:
            layers.append(("padded_conv2d", _conv(c, c)))
            skips.append(c)
    layers += [residual(c, c), transformer(c), residual(c, c)]
    for level in reversed(range(len(m.widths))):
        for _ in range(m.blocks + 1):
            width = m.widths[level]
            layers += [("concatenate", []), residual(c + skips.pop(), width)]
            layers += [transformer(width)] if m.cross[level] else []
            c = width
        if level:
            layers.append(("upsample", _conv(c, c)))
    return [*layers, ("group_normalization", _norm(c)), ("activation", []), ("padded_conv2d", _conv(c, 4))]


def _vae_residual(i: int, o: int) -> Entry:
    return "resnet_block", _norm(i) + _conv(i, o) + _norm(o) + _conv(o, o) + (_conv(i, o, 1) if i != o else [])


def decoder_layers(m: Tiny) -> list[Entry]:
    c = m.vae[-1]
    layers: list[Entry] = [("rescaling", []), ("padded_conv2d", _conv(4, 4, 1)), ("padded_conv2d", _conv(4, c))]
    layers += [_vae_residual(c, c), ("attention_block", _norm(c) + 4 * _conv(c, c, 1)), _vae_residual(c, c)]
    for level in reversed(range(len(m.vae))):
        for _ in range(m.blocks + 1):
            layers.append(_vae_residual(c, m.vae[level]))
            c = m.vae[level]
        if level:
            layers += [("up_sampling2d", []), ("padded_conv2d", _conv(c, c))]
    return [*layers, ("group_normalization", _norm(c)), ("activation", []), ("padded_conv2d", _conv(c, 3))]


def encoder_layers(m: Tiny) -> list[Entry]:
    c = m.vae[0]
    layers: list[Entry] = [("padded_conv2d", _conv(3, c))]
    for level, width in enumerate(m.vae):
        for _ in range(m.blocks):
            layers.append(_vae_residual(c, width))
            c = width
        if level < len(m.vae) - 1:
            layers.append(("padded_conv2d", _conv(c, c)))
    layers += [_vae_residual(c, c), ("attention_block", _norm(c) + 4 * _conv(c, c, 1)), _vae_residual(c, c)]
    layers += [("group_normalization", _norm(c)), ("activation", []), ("padded_conv2d", _conv(c, 8))]
    return [*layers, ("padded_conv2d", _conv(8, 8, 1)), ("lambda", [])]


def write(path: Path, layers: Sequence[Entry], seed: int, *, version: str = "2.10.0") -> None:
    """An h5 file as Keras 2's save_weights writes it, its tensors drawn from one generator."""
    rng, counts, named = np.random.default_rng(seed), dict[str, int](), []
    for kind, tensors in layers:
        counts[kind] = counts.get(kind, -1) + 1
        named.append((f"{kind}_{counts[kind]}" if counts[kind] else kind, kind, tensors))
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = np.array([name.encode() for name, _, _ in named])
        file.attrs["backend"] = b"tensorflow"
        file.attrs["keras_version"] = version.encode()
        groups = {name: file.create_group(name) for name in sorted(name for name, _, _ in named)}
        for name, kind, tensors in named:
            weights = [f"{name}/part_{k // 2}/{role}_{k}:0" for k, (role, _) in enumerate(tensors)]
            groups[name].attrs["weight_names"] = np.array([w.encode() for w in weights]) if weights else []
            for weight, (role, shape) in zip(weights, tensors, strict=True):
                noise = rng.standard_normal(shape)
                if len(shape) > 1:  # larger than keeps activations of order 1: GELUs are told apart away from 0
                    value = 1.3 * noise / math.sqrt(math.prod(shape[:-1])) if role == "kernel" else noise
                else:
                    value = 0.1 * noise + (role == "gamma")
                if len(shape) == 4 and (kind == "res_block" or shape[2] == 4):
                    value *= 0.15  # small where transformers begin: the eps of their norms counts
                groups[name].create_dataset(weight, data=value.astype(np.float32))
        file.create_group("top_level_model_weights").attrs["weight_names"] = []


def write_folder(folder: Path, family: str) -> Path:
    """The four files of a tiny model."""
    folder.mkdir(parents=True, exist_ok=True)
    m = SIZES[family]
    text, unet = NAMES[family]
    parts = {text: text_layers, unet: unet_layers, "kcv_decoder.h5": decoder_layers, "vae_encoder.h5": encoder_layers}
    for seed, (name, layers) in enumerate(parts.items()):
        write(folder / name, layers(m), seed)
    return folder


def read(path: Path) -> list[list[Array]]:
    """The tensors of each layer that has any, by position."""
    with h5py.File(path) as file:
        found = []
        for name in file.attrs["layer_names"]:
            group = file[name]
            found.append([np.asarray(group[w], np.float64) for w in group.attrs["weight_names"]])
    return [tensors for tensors in found if tensors]


# --- The model ----------------------------------------------------------------------------------------------

EPS = 1e-5


def swish(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(0.7978845608 * x * (1 + 0.044715 * x**2)))


def conv(x: Array, w: Array, b: Array, pad: Any = None, stride: int = 1) -> Array:
    k = w.shape[0]
    pad = ((k // 2, k // 2), (k // 2, k // 2)) if pad is None else pad
    x = np.pad(x, ((0, 0), *pad, (0, 0)))
    h, v = ((edge - k) // stride + 1 for edge in x.shape[1:3])  # rows and columns of the answer
    shifted = (
        x[:, i : i + stride * h : stride, j : j + stride * v : stride][:, :h, :v] @ w[i, j] for i, j in np.ndindex(k, k)
    )
    return sum(shifted) + b


def group_norm(x: Array, gamma: Array, beta: Array) -> Array:
    y = x.reshape(len(x), -1, 32, x.shape[-1] // 32)
    y = (y - y.mean((1, 3), keepdims=True)) / np.sqrt(y.var((1, 3), keepdims=True) + EPS)
    return y.reshape(x.shape) * gamma + beta


def layer_norm(x: Array, gamma: Array, beta: Array) -> Array:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + EPS) * gamma + beta


def attention(q: Array, k: Array, v: Array, heads: int, mask: Array | float = 0.0) -> Array:
    q, k, v = (a.reshape(*a.shape[:2], heads, -1).transpose(0, 2, 1, 3) for a in (q, k, v))
    y = softmax(q @ k.transpose(0, 1, 3, 2) * q.shape[-1] ** -0.5 + mask) @ v
    return y.transpose(0, 2, 1, 3).reshape(len(y), y.shape[2], -1)


def upsampled(x: Array) -> Array:
    return x.repeat(2, 1).repeat(2, 2)


def text(m: Tiny, layers: list[list[Array]], ids: Array) -> Array:
    """States (B, L, D). The second generation's GELU is the tanh one since KerasCV runs on Keras Core."""
    tokens, positions = layers[0]
    x = tokens[ids] + positions[: ids.shape[1]]
    mask = np.triu(np.full((ids.shape[1],) * 2, -np.inf), 1)
    for g1, b1, wq, bq, wk, bk, wv, bv, wo, bo, g2, b2, w1, c1, w2, c2 in layers[1:-1]:
        y = layer_norm(x, g1, b1)
        x = x + attention(y @ wq + bq, y @ wk + bk, y @ wv + bv, m.text // 64, mask) @ wo + bo
        y = layer_norm(x, g2, b2) @ w1 + c1
        x = x + (gelu_tanh(y) if m.two else y / (1 + np.exp(-1.702 * y))) @ w2 + c2
    return layer_norm(x, *layers[-1])


def unet(m: Tiny, layers: list[list[Array]], latent: Array, t: Array, context: Array) -> Array:
    """Noise (B, h, w, 4) in latents of unit variance; t: the timestep's embedding (B, C)."""
    rest = iter(layers)
    w, b = next(rest)
    t = swish(t @ w + b)
    x = conv(latent, *next(rest))
    w, b = next(rest)
    t = t @ w + b

    def residual(x: Array) -> Array:
        g1, b1, w1, c1, wt, ct, g2, b2, w2, c2, *skip = next(rest)
        y = conv(swish(group_norm(x, g1, b1)), w1, c1) + (swish(t) @ wt + ct)[:, None, None]
        return conv(swish(group_norm(y, g2, b2)), w2, c2) + (conv(x, *skip) if skip else x)

    def transformer(x: Array) -> Array:
        g, e, wi, bi, *block, wo, bo = next(rest)
        project = (lambda a, w, b: a @ w + b) if m.two else conv
        y = project(group_norm(x, g, e), wi, bi)
        return project(_block(m, y.reshape(len(y), -1, y.shape[-1]), context, block).reshape(y.shape), wo, bo) + x

    outputs = [x]
    for level, cross in enumerate(m.cross):
        for _ in range(m.blocks):
            x = residual(x)
            x = transformer(x) if cross else x
            outputs.append(x)
        if level < len(m.cross) - 1:
            x = conv(x, *next(rest), stride=2)
            outputs.append(x)
    x = residual(transformer(residual(x)))
    for level in reversed(range(len(m.cross))):
        for _ in range(m.blocks + 1):
            x = residual(np.concatenate([x, outputs.pop()], -1))
            x = transformer(x) if m.cross[level] else x
        if level:
            x = conv(upsampled(x), *next(rest))
    return conv(swish(group_norm(x, *next(rest))), *next(rest))


def _block(m: Tiny, x: Array, context: Array, w: list[Array]) -> Array:
    heads = m.heads(x.shape[-1])
    y = layer_norm(x, *w[:2])
    x = x + attention(y @ w[2], y @ w[3], y @ w[4], heads) @ w[5] + w[6]
    y = layer_norm(x, *w[7:9])
    x = x + attention(y @ w[9], context @ w[10], context @ w[11], heads) @ w[12] + w[13]
    y, gate = np.split(layer_norm(x, *w[14:16]) @ w[16] + w[17], 2, -1)
    return x + (y * gelu_tanh(gate)) @ w[18] + w[19]


def _vae_layer(x: Array, w: list[Array]) -> Array:
    if len(w) == 10 and w[2].shape[0] == 1:
        g, e, *points, wo, bo = w
        y = group_norm(x, g, e)
        q, k, v = (conv(y, *points[i : i + 2]).reshape(len(x), -1, x.shape[-1]) for i in (0, 2, 4))
        return conv(attention(q, k, v, 1).reshape(x.shape), wo, bo) + x
    y = conv(swish(group_norm(x, *w[:2])), *w[2:4])
    return conv(swish(group_norm(y, *w[4:6])), *w[6:8]) + (conv(x, *w[8:]) if len(w) == 10 else x)


def decode(layers: list[list[Array]], latent: Array) -> Array:
    """Pictures (B, H, W, 3) in about [-1, 1] of unit-scaled latents."""
    x = conv(conv(latent / 0.18215, *layers[0]), *layers[1])
    for w in layers[2:-2]:
        x = conv(upsampled(x), *w) if len(w) == 2 else _vae_layer(x, w)
    return conv(swish(group_norm(x, *layers[-2])), *layers[-1])


def encode(layers: list[list[Array]], x: Array) -> Array:
    """Unit-scaled means (B, h, w, 4) of pictures in [-1, 1]."""
    x = conv(x, *layers[0])
    for w in layers[1:-3]:
        x = conv(x, *w, pad=((0, 1), (0, 1)), stride=2) if len(w) == 2 else _vae_layer(x, w)
    x = conv(conv(swish(group_norm(x, *layers[-3])), *layers[-2]), *layers[-1])
    return x[..., :4] * 0.18215


# --- A whole run --------------------------------------------------------------------------------------------


def timesteps(steps: int, *, old: bool = False) -> Iterator[int]:
    """Falling; old: as up to KerasCV 0.8.1."""
    if old:
        return reversed(range(1, 1000, 1000 // steps))
    return reversed((np.arange(steps) * (999 / (steps - 1))).round().astype(int).tolist())


def run(
    folder: Path,
    family: str,
    ids: Array,
    empty: Array,
    noise: Array,
    steps: int,
    scale: float = 7.5,
    *,
    answer: Callable[[Array, Array, Array], Array] | None = None,
    **grid: bool,
) -> tuple[Array, Array]:
    """Latents (1, h, w, 4) and pixels (1, H, W, 3) of DDIM in KerasCV's loop. ids, empty: (1, L).

    answer: another UNet than the reference's, of latent, the timestep's embedding and context.
    """
    m, (words, net) = SIZES[family], NAMES[family]
    encoder, model = read(folder / words), read(folder / net)
    answer = answer or (lambda x, embedding, words: unet(m, model, x, embedding, words))
    context, nothing = text(m, encoder, ids), text(m, encoder, empty)
    abar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    half, x = m.widths[0] // 2, noise
    frequencies = np.exp(-math.log(10000) * np.arange(half) / half)
    order = [*timesteps(steps, **grid)]
    for t, before in zip(order, [*order[1:], None], strict=True):
        angle = t * frequencies
        embedding = np.concatenate([np.cos(angle), np.sin(angle)])[None]
        negative, positive = (answer(x, embedding, words) for words in (nothing, context))
        eps = negative + scale * (positive - negative)
        now, then = abar[t], 1.0 if before is None else abar[before]
        x = math.sqrt(then) * (x - math.sqrt(1 - now) * eps) / math.sqrt(now) + math.sqrt(1 - then) * eps
    pixels = (decode(read(folder / "kcv_decoder.h5"), x) + 1) / 2 * 255
    return x, np.clip(pixels, 0, 255).astype("uint8")
