"""Stable Diffusion as KerasCV ships it: four HDF5 files, their tensors by position, channels last.

KerasCV's files name no sizes, so those are read off the tensors, and what they make must then be every tensor of the
files. Two things can't be read off: attention has 8 heads in the first generation's UNet and heads 64 wide in the
second's and in both text encoders; the first generation's text encoder has quick_gelu, the second's GELU.

A table here is a list of (kind of Keras layer, Slots): each layer's tensors in the order Keras stores them in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from kotoe.checkpoints import Bundle
from kotoe.checkpoints.bundle import Defaults
from kotoe.checkpoints.diffusers import check_tokenizer, read_tokenizer, stock_text
from kotoe.checkpoints.files import (
    SHOWN,
    Folder,
    LazyHashes,
    fill,
    replacing,
    shapes_of,
    skeleton,
)
from kotoe.checkpoints.keras_h5 import Layer, layers_of, library, write_layers
from kotoe.checkpoints.keys import make_spec
from kotoe.errors import CheckpointError, UserError
from kotoe.spec import ScheduleSpec, TextSpec, UNetSpec, VAESpec
from kotoe.text import CLIPText, Conditioner, Conditioners
from kotoe.tokens import Tokenizer
from kotoe.unet import UNet
from kotoe.vae import VAE

FILES = {  # family: part: file
    "sd1": {"text_encoder": "kcv_encoder.h5", "unet": "kcv_diffusion_model.h5"},
    "sd2": {"text_encoder": "text_encoder_v2_1.h5", "unet": "diffusion_model_v2_1.h5"},
}
DECODER, ENCODER = "kcv_decoder.h5", "vae_encoder.h5"  # of both families
OLDER = ("text_encoder.h5", "diffusion_model.h5", "decoder.h5")  # the port that came before KerasCV's
HEADS, HEAD_WIDTH, GROUPS = 8, 64, 32
ACTS = {"sd1": "quick_gelu", "sd2": "gelu"}
SCHEDULE = ScheduleSpec(sampler="ddim", set_alpha_to_one=True)
DEFAULTS = Defaults(steps=50, guidance_scale=7.5)
LANGUAGE = "en"
NOTES = ("KerasCV draws other pictures from these weights: numerics kerascv draws its own",)

Net = TypeVar("Net", bound=nn.Module)
Shapes = Mapping[str, tuple[int, ...]]


# --- Tensors ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slot:
    """One tensor: our name for it, Keras's for its role, and how the two layouts differ."""

    name: str
    role: str
    turn: Literal["same", "linear", "conv", "point"] = "same"


def to_keras(t: Tensor, turn: str) -> Tensor:
    """Our tensor as Keras has it: linear (out, in) as (in, out); conv OIHW as HWIO; point, linear to a 1x1 HWIO."""
    if turn == "linear":
        return t.T  # (in, out)
    if turn == "conv":
        return t.permute(2, 3, 1, 0)  # (H, W, I, O)
    return t.T[None, None] if turn == "point" else t  # (1, 1, I, O)


def from_keras(t: Tensor, turn: str) -> Tensor:
    """The inverse of `to_keras`."""
    if turn == "linear":
        return t.T  # (out, in)
    if turn == "conv":
        return t.permute(3, 2, 0, 1)  # (O, I, H, W)
    return t[0, 0].T if turn == "point" else t  # (out, in)


def keras_shape(shape: tuple[int, ...], turn: str) -> tuple[int, ...]:
    """The shape that `to_keras` gives a tensor of this shape."""
    return tuple(to_keras(torch.empty(shape, device="meta"), turn).shape)


# --- Tables: KerasCV's layers in the order Keras keeps them in, and their tensors ---------------------------

Table = list[tuple[str, list[Slot]]]


def _norm(name: str) -> list[Slot]:
    return [Slot(f"{name}.weight", "gamma"), Slot(f"{name}.bias", "beta")]


def _dense(name: str) -> list[Slot]:
    return [Slot(f"{name}.weight", "kernel", "linear"), Slot(f"{name}.bias", "bias")]


def _conv(name: str) -> list[Slot]:
    return [Slot(f"{name}.weight", "kernel", "conv"), Slot(f"{name}.bias", "bias")]


def _point(name: str) -> list[Slot]:
    return [Slot(f"{name}.weight", "kernel", "point"), Slot(f"{name}.bias", "bias")]


def text_table(spec: TextSpec) -> Table:
    """196 tensors for the text encoder of Stable Diffusion 1.x."""
    base = "text_model"
    parts = (f"{base}.embeddings.token_embedding", f"{base}.embeddings.position_embedding")
    table: Table = [("clip_embedding", [Slot(f"{part}.weight", "embeddings") for part in parts])]
    for i in range(spec.num_layers):
        p = f"{base}.encoder.layers.{i}"
        attention = [s for x in "qkv" for s in _dense(f"{p}.self_attn.{x}_proj")] + _dense(f"{p}.self_attn.out_proj")
        mlp = _dense(f"{p}.mlp.fc1") + _dense(f"{p}.mlp.fc2")
        table.append(("clip_encoder_layer", _norm(f"{p}.layer_norm1") + attention + _norm(f"{p}.layer_norm2") + mlp))
    return [*table, ("layer_normalization", _norm(f"{base}.final_layer_norm"))]


def _unet_block(p: str, shapes: Shapes) -> list[Slot]:
    skip = _conv(f"{p}.conv_shortcut") if f"{p}.conv_shortcut.weight" in shapes else []
    entry = _norm(f"{p}.norm1") + _conv(f"{p}.conv1") + _dense(f"{p}.time_emb_proj")
    return entry + _norm(f"{p}.norm2") + _conv(f"{p}.conv2") + skip


def _transformer(p: str, linear: bool) -> list[Slot]:
    project, b = _dense if linear else _conv, f"{p}.transformer_blocks.0"

    def attention(name: str) -> list[Slot]:
        return [Slot(f"{name}.to_{x}.weight", "kernel", "linear") for x in "qkv"] + _dense(f"{name}.to_out.0")

    block = _norm(f"{b}.norm1") + attention(f"{b}.attn1") + _norm(f"{b}.norm2") + attention(f"{b}.attn2")
    block += _norm(f"{b}.norm3") + _dense(f"{b}.ff.net.0.proj") + _dense(f"{b}.ff.net.2")
    return _norm(f"{p}.norm") + project(f"{p}.proj_in") + block + project(f"{p}.proj_out")


def unet_table(spec: UNetSpec, shapes: Shapes) -> Table:
    """686 tensors for the UNet of Stable Diffusion 1.x. shapes: those of the UNet's tensors.

    Keras orders layers by their distance from the output, not by when they were made: the first convolution stands
    between the two layers of the time embedding.
    """

    def level(p: str, blocks: int, cross: bool) -> Iterator[tuple[str, list[Slot]]]:
        for j in range(blocks):
            yield "res_block", _unet_block(f"{p}.resnets.{j}", shapes)
            if cross:
                yield "spatial_transformer", _transformer(f"{p}.attentions.{j}", spec.use_linear_projection)

    n, last = spec.layers_per_block, len(spec.block_out_channels) - 1
    table: Table = [
        ("dense", _dense("time_embedding.linear_1")),
        ("padded_conv2d", _conv("conv_in")),
        ("dense", _dense("time_embedding.linear_2")),
    ]
    for i, cross in enumerate(spec.cross_attention):
        table += level(f"down_blocks.{i}", n, cross)
        if i < last:
            table.append(("padded_conv2d", _conv(f"down_blocks.{i}.downsamplers.0.conv")))
    first, *rest = level("mid_block", 1, True)
    table += [first, *rest, ("res_block", _unet_block("mid_block.resnets.1", shapes))]
    for i, cross in enumerate(reversed(spec.cross_attention)):
        table += level(f"up_blocks.{i}", n + 1, cross)
        if i < last:
            table.append(("upsample", _conv(f"up_blocks.{i}.upsamplers.0.conv")))
    return [*table, ("group_normalization", _norm("conv_norm_out")), ("padded_conv2d", _conv("conv_out"))]


def _vae_block(p: str, shapes: Shapes) -> tuple[str, list[Slot]]:
    skip = _conv(f"{p}.conv_shortcut") if f"{p}.conv_shortcut.weight" in shapes else []
    return "resnet_block", _norm(f"{p}.norm1") + _conv(f"{p}.conv1") + _norm(f"{p}.norm2") + _conv(f"{p}.conv2") + skip


def _vae_middle(p: str, shapes: Shapes) -> Table:
    a = f"{p}.attentions.0"
    points = [s for name in ("to_q", "to_k", "to_v", "to_out.0") for s in _point(f"{a}.{name}")]
    attention = ("attention_block", _norm(f"{a}.group_norm") + points)
    return [_vae_block(f"{p}.resnets.0", shapes), attention, _vae_block(f"{p}.resnets.1", shapes)]


def decoder_table(spec: VAESpec, shapes: Shapes) -> Table:
    """140 tensors for Stable Diffusion's decoder; post_quant_conv comes first. shapes: those of the VAE's tensors."""
    last = len(spec.block_out_channels) - 1
    table: Table = [("padded_conv2d", _conv("post_quant_conv")), ("padded_conv2d", _conv("decoder.conv_in"))]
    table += _vae_middle("decoder.mid_block", shapes)
    for i in range(last + 1):
        p = f"decoder.up_blocks.{i}"
        table += [_vae_block(f"{p}.resnets.{j}", shapes) for j in range(spec.layers_per_block + 1)]
        if i < last:
            table.append(("padded_conv2d", _conv(f"{p}.upsamplers.0.conv")))
    end = [("group_normalization", _norm("decoder.conv_norm_out")), ("padded_conv2d", _conv("decoder.conv_out"))]
    return [*table, *end]


def encoder_table(spec: VAESpec, shapes: Shapes) -> Table:
    """108 tensors for Stable Diffusion's encoder; quant_conv comes last. shapes: those of the VAE's tensors."""
    last = len(spec.block_out_channels) - 1
    table: Table = [("padded_conv2d", _conv("encoder.conv_in"))]
    for i in range(last + 1):
        p = f"encoder.down_blocks.{i}"
        table += [_vae_block(f"{p}.resnets.{j}", shapes) for j in range(spec.layers_per_block)]
        if i < last:
            table.append(("padded_conv2d", _conv(f"{p}.downsamplers.0.conv")))
    table += [*_vae_middle("encoder.mid_block", shapes), ("group_normalization", _norm("encoder.conv_norm_out"))]
    return [*table, ("padded_conv2d", _conv("encoder.conv_out")), ("padded_conv2d", _conv("quant_conv"))]


# --- Sizes, read off the tensors ----------------------------------------------------------------------------

UNET_KINDS = {2: ".", 10: "r", 12: "r", 26: "t"}  # tensors in a layer: a single one, residual block, transformer
VAE_KINDS = {2: ".", 8: "r", 10: "r"}  # and 10 in "a", attention, whose kernels are 1x1


def _edge(layers: Sequence[Layer], i: int, weight: int, axis: int, where: str) -> int:
    """One edge of one tensor, counted from either end; a CheckpointError where there is none."""
    try:
        return layers[i].weights[weight].shape[axis]
    except IndexError:
        raise CheckpointError(f"{where}: too few layers, or tensors of too few dimensions, for KerasCV's") from None


def _kinds(layers: Sequence[Layer], known: Mapping[int, str], where: str) -> str:
    """A letter per layer: "." a convolution, dense layer or norm, "r" a residual block, "t" and "a" attention."""
    found = ""
    for layer in layers:
        kind = known.get(len(layer.weights))
        if kind is None:
            raise CheckpointError(
                f"{where}: layer {layer.name!r} has {len(layer.weights)} tensors",
                allowed=", ".join(map(str, known)),
            )
        found += "a" if kind == "r" and known is VAE_KINDS and layer.weights[2].shape[0] == 1 else kind
    return found


def text_spec(layers: Sequence[Layer], family: str, tokenizer: Tokenizer, where: str) -> TextSpec:
    """The TextSpec that a text encoder's tensors and family say."""
    width = _edge(layers, 0, 0, 1, where)
    if width % HEAD_WIDTH:
        raise CheckpointError(f"{where}: states {width} wide", allowed=f"a multiple of {HEAD_WIDTH}, the heads' width")
    spec: TextSpec = make_spec(
        lambda: TextSpec(
            vocab_size=_edge(layers, 0, 0, 0, where),
            hidden_size=width,
            intermediate_size=_edge(layers, 1, 12, 1, where),
            num_layers=len(layers) - 2,
            num_heads=width // HEAD_WIDTH,
            max_tokens=positions(layers, where),
            hidden_act=ACTS[family],
            bos=tokenizer.bos,
            eos=tokenizer.eos,
            pad=tokenizer.pad,
        ),
        where,
    )
    return spec


def positions(layers: Sequence[Layer], where: str) -> int:
    """How many tokens a text encoder's tensors have positions for."""
    return _edge(layers, 0, 1, 0, where)


def unet_spec(layers: Sequence[Layer], family: str, where: str) -> UNetSpec:
    """The UNetSpec that a UNet's tensors and family say."""
    body = list(layers[3:-2])
    parts = _split(body, _kinds(body, UNET_KINDS, where))
    kinds = [_kinds(part, UNET_KINDS, where) for part in parts]
    levels, blocks = len(parts) // 2 + 1, kinds[len(parts) // 2].count("r")
    if len(parts) % 2 == 0 or blocks < 5 or blocks % 2 == 0 or not all(kind.startswith("r") for kind in kinds):
        raise CheckpointError(f"{where}: layers in the order {' | '.join(kinds)} are no UNet of KerasCV's")
    middle = kinds[levels - 1]
    first = next((layer for part in parts for layer in part if len(layer.weights) == 26), None)
    if first is None:
        raise CheckpointError(f"{where}: a UNet without transformers", allowed="KerasCV's, with one in the middle")
    linear = len(first.weights[2].shape) == 2
    if linear != (family == "sd2"):
        raise CheckpointError(
            f"{where} has {'dense layers' if linear else '1x1 convolutions'} round its transformers",
            allowed="convolutions in " + FILES["sd1"]["unet"] + ", dense layers in " + FILES["sd2"]["unet"],
        )
    widths = tuple(_edge(part, 0, 2, -1, where) for part in parts[:levels])
    spec: UNetSpec = make_spec(
        lambda: UNetSpec(
            in_channels=_edge(layers, 1, 0, -2, where),
            out_channels=_edge(layers, -1, 0, -1, where),
            block_out_channels=widths,
            layers_per_block=(blocks - 3) // 2,
            cross_attention=(*("t" in kind for kind in kinds[: levels - 1]), middle.count("t") > 1),
            num_heads=heads(widths, linear, where),
            cross_attention_dim=_edge([first], 0, 14, 0, where),
            use_linear_projection=linear,
            norm_num_groups=GROUPS,
        ),
        where,
    )
    return spec


def heads(widths: tuple[int, ...], linear: bool, where: str) -> tuple[int, ...]:
    """Heads at each level, which KerasCV fixes: 8, or in the second generation as many as 64 wide ones fit."""
    multiple = HEAD_WIDTH if linear else HEADS
    if any(c % multiple for c in widths):
        raise CheckpointError(f"{where}: levels {widths} channels wide", allowed=f"multiples of {multiple}, for heads")
    return tuple(c // HEAD_WIDTH if linear else HEADS for c in widths)


def vae_spec(decoder: Sequence[Layer], encoder: Sequence[Layer], where: str) -> VAESpec:
    """The VAESpec that the tensors of the two halves say."""
    body = list(encoder[1:-3])
    parts = _split(body, _kinds(body, VAE_KINDS, where))
    blocks = _kinds(parts[-1], VAE_KINDS, where).count("r") - 2
    if blocks < 1:
        raise CheckpointError(f"{where}: too few residual blocks for an encoder of KerasCV's")
    return make_spec(
        lambda: VAESpec(
            in_channels=_edge(encoder, 0, 0, -2, where),
            out_channels=_edge(decoder, -1, 0, -1, where),
            latent_channels=_edge(decoder, 0, 0, -1, where),
            block_out_channels=tuple(_edge(part, 0, 2, -1, where) for part in parts),
            layers_per_block=blocks,
            norm_num_groups=GROUPS,
            sample_size=UNetSpec().sample_size * 2 ** (len(parts) - 1),  # of the UNet's default picture
        ),
        where,
    )


def _split(layers: Sequence[Layer], kinds: str) -> list[list[Layer]]:
    """The layers between single convolutions, which separate the levels."""
    parts: list[list[Layer]] = [[]]
    for layer, kind in zip(layers, kinds, strict=True):
        if kind == ".":
            parts.append([])
        else:
            parts[-1].append(layer)
    return parts


# --- Reading ------------------------------------------------------------------------------------------------


def is_kerascv(folder: Folder) -> bool:
    """Whether a folder is one of KerasCV's, or of the port before it, and none of diffusers'."""
    names = [DECODER, ENCODER, *OLDER, *(name for parts in FILES.values() for name in parts.values())]
    return not folder.has("model_index.json") and any(folder.has(name) for name in names)


def load_kerascv(
    folder: Folder,
    tokenizer: str | Path | None,
    dtypes: Mapping[str, torch.dtype | None],
    device: torch.device,
) -> Bundle:
    """The Bundle of a KerasCV folder.

    tokenizer: a folder with CLIP's vocab.json and merges.txt (or tokenizer.json), since KerasCV's files hold no
               vocabulary; None: the subfolder tokenizer/, which `save_kerascv` writes.
    """
    family, files = weight_files(folder)
    words = words_of(folder, tokenizer)
    unet, vae = _read_unet(files, family, dtypes, device), _read_vae(files, dtypes, device)

    def conditioner() -> Conditioner:
        found = _read_conditioner(files, family, words, dtypes["text_encoder"], device)
        width, needed = found.encoder.spec.hidden_size, unet.spec.cross_attention_dim
        if width != needed:
            raise CheckpointError(f"{files['text_encoder'].name}: states {width} wide for a UNet that reads {needed}")
        return found

    return Bundle(
        name=folder.name,
        unet=unet,
        vae=vae,
        schedule=SCHEDULE,
        conditioners=Conditioners({LANGUAGE: conditioner}),
        default_language=LANGUAGE,
        family=family,
        folder=folder.root,
        hashes=LazyHashes({"unet": (files["unet"],), "vae": (files["decoder"], files["encoder"])}),
        defaults=DEFAULTS,
        notes=NOTES,
    )


def weight_files(folder: Folder) -> tuple[str, dict[str, Path]]:
    """Family, and part to file. Raises CheckpointError naming what is missing or belongs to another model."""
    name = folder.name
    found = [family for family, parts in FILES.items() if any(folder.has(file) for file in parts.values())]
    for older in OLDER:
        if folder.has(older) and not found:
            raise CheckpointError(
                f"{name}/{older} belongs to the port before KerasCV's, whose layers have another order",
                allowed=f"{', '.join(FILES['sd1'].values())}, {DECODER}, {ENCODER}",
            )
    if len(found) > 1:
        raise CheckpointError(f"{name}: files of both of KerasCV's models", allowed="those of one in a folder")
    family = found[0] if found else "sd1"
    wanted = {**FILES[family], "decoder": DECODER, "encoder": ENCODER}
    missing = [file for file in wanted.values() if not folder.has(file)]
    if missing:
        raise CheckpointError(f"{name}: {', '.join(missing)} missing", allowed=", ".join(wanted.values()))
    return family, {part: folder.path(file) for part, file in wanted.items()}


def words_of(folder: Folder, tokenizer: str | Path | None = None) -> Callable[[int], Tokenizer]:
    """What reads the tokenizer, given the encoder's positions: from the folder given, or the subfolder tokenizer/."""
    if tokenizer is not None:
        given = Folder(tokenizer).root
        return partial(read_tokenizer, Folder(given.parent), given.name)
    if not folder.has("tokenizer"):
        raise UserError(
            f"{folder.name}: KerasCV's files hold no vocabulary",
            allowed="tokenizer=FOLDER (--tokenizer FOLDER) with CLIP's vocab.json and merges.txt, or a subfolder "
            "tokenizer/",
            hint="Any folder of Stable Diffusion 1.x or 2.x in diffusers' layout has one",
        )
    return partial(read_tokenizer, folder, "tokenizer")


def _read_unet(
    files: Mapping[str, Path], family: str, dtypes: Mapping[str, torch.dtype | None], device: torch.device
) -> UNet:
    with layers_of(files["unet"]) as layers:
        spec = unet_spec(layers, family, files["unet"].name)
        net = skeleton(lambda: UNet(spec))
        shapes = shapes_of(net)
        table = unet_table(spec, shapes)
        return fill(net, _tensors(layers, table, shapes, files["unet"].name, dtypes["unet"], device))


def _read_vae(files: Mapping[str, Path], dtypes: Mapping[str, torch.dtype | None], device: torch.device) -> VAE:
    with layers_of(files["decoder"]) as decoder, layers_of(files["encoder"]) as encoder:
        spec = vae_spec(decoder, encoder, files["encoder"].name)
        net = skeleton(lambda: VAE(spec))
        shapes = shapes_of(net)
        halves = (
            (decoder, decoder_table(spec, shapes), files["decoder"].name),
            (encoder, encoder_table(spec, shapes), files["encoder"].name),
        )
        read = [_tensors(layers, table, shapes, where, dtypes["vae"], device) for layers, table, where in halves]
        return fill(net, read[0] | read[1])


def _read_conditioner(
    files: Mapping[str, Path],
    family: str,
    words: Callable[[int], Tokenizer],
    dtype: torch.dtype | None,
    device: torch.device,
) -> Conditioner:
    path = files["text_encoder"]
    with layers_of(path) as layers:
        tokenizer = words(positions(layers, path.name))
        spec = text_spec(layers, family, tokenizer, path.name)
        check_tokenizer(tokenizer, spec, path.name)
        net = skeleton(lambda: CLIPText(spec))
        fill(net, _tensors(layers, text_table(spec), shapes_of(net), path.name, dtype, device))
    return Conditioner(LANGUAGE, tokenizer, net, LazyHashes({"text_encoder": (path,)}, {"tokenizer": tokenizer.sha256}))


def _tensors(
    layers: Sequence[Layer], table: Table, shapes: Shapes, where: str, dtype: torch.dtype | None, device: torch.device
) -> dict[str, Tensor]:
    """Exactly the table's tensors, by position, in our layout; a CheckpointError names all that don't fit."""
    if len(layers) != len(table):
        raise CheckpointError(f"{where}: {len(layers)} layers with weights", allowed=f"{len(table)}, as its sizes say")
    problems, found = [], {}
    for layer, (kind, slots) in zip(layers, table, strict=True):
        if len(layer.weights) != len(slots):
            problems.append(f"layer {layer.name} has {len(layer.weights)} tensors where a {kind} has {len(slots)}")
            continue
        for weight, slot in zip(layer.weights, slots, strict=True):
            wanted = keras_shape(shapes[slot.name], slot.turn)
            if weight.shape != wanted:
                turned = "transposed " if sorted(weight.shape) == sorted(wanted) else ""
                problems.append(f"{weight.name} ({slot.name}) is {turned}{list(weight.shape)}, not {list(wanted)}")
            found[slot.name] = (weight, slot)
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise CheckpointError(f"{where}: {len(problems)} misfits: {'; '.join(problems[:SHOWN])}{more}")
    return {
        name: from_keras(weight.read(), slot.turn).contiguous().to(device=device, dtype=dtype)
        for name, (weight, slot) in found.items()
    }


# --- Writing ------------------------------------------------------------------------------------------------


def save_kerascv(bundle: Bundle, folder: str | Path, *, language: str | None = None, overwrite: bool = False) -> Path:
    """Write the bundle as KerasCV's four files, in float32, and its tokenizer beside them; all of it or nothing.

    language: whose text encoder, where the bundle has several: KerasCV has one.
    Not kept, because KerasCV has no place for them: name, licence, defaults, and the default picture's size.
    Raises CheckpointError for a bundle that KerasCV would draw otherwise: other heads, groups, schedule or scaling.
    """
    library()
    folder = Path(folder)
    if language is None and len(bundle.languages) > 1:
        raise UserError(
            f"{bundle.name} has the languages {', '.join(bundle.languages)}, KerasCV's layout one",
            allowed="language=TAG, one of them",
        )
    conditioner = bundle.conditioner(language)
    encoder = stock_text(conditioner.encoder)
    _representable(bundle, conditioner, encoder)
    unet, vae = bundle.unet, bundle.vae
    files: list[tuple[str, nn.Module, Callable[[Shapes], Table]]] = [
        (FILES[bundle.family]["text_encoder"], encoder, lambda _: text_table(encoder.spec)),
        (FILES[bundle.family]["unet"], unet, partial(unet_table, unet.spec)),
        (DECODER, vae, partial(decoder_table, vae.spec)),
        (ENCODER, vae, partial(encoder_table, vae.spec)),
    ]
    with replacing(folder, overwrite=overwrite, marker=ENCODER) as new:
        for name, net, table in files:
            write_layers(new / name, _keras_layers(table(shapes_of(net)), net))
        (new / "tokenizer").mkdir()
        conditioner.tokenizer.save(new / "tokenizer")
    return folder


def _representable(bundle: Bundle, conditioner: Conditioner, encoder: CLIPText) -> None:
    u, v, t, s = bundle.unet.spec, bundle.vae.spec, encoder.spec, bundle.schedule
    family = "sd2" if u.use_linear_projection else "sd1"  # KerasCV has no inpainting UNets
    plain = replace(s, sampler=SCHEDULE.sampler, timestep_spacing=SCHEDULE.timestep_spacing)
    plain = replace(plain, steps_offset=SCHEDULE.steps_offset, set_alpha_to_one=SCHEDULE.set_alpha_to_one)
    by_rule = heads(u.block_out_channels, u.use_linear_projection, bundle.name)
    for what, given, allowed in (
        ("the family", bundle.family, family),
        ("the UNet's number of heads", u.num_heads, by_rule),
        ("the UNet's groups", u.norm_num_groups, GROUPS),
        ("the UNet's gelu", u.gelu, "exact"),
        ("the UNet's transformer_norm_eps", u.transformer_norm_eps, 1e-6),
        ("the VAE's groups", v.norm_num_groups, GROUPS),
        ("the VAE's norm_eps", v.norm_eps, 1e-6),
        ("the VAE's scaling factor", v.scaling_factor, VAESpec().scaling_factor),
        ("the text encoder's number of heads", t.num_heads * HEAD_WIDTH, t.hidden_size),
        ("the text encoder's activation", t.hidden_act, ACTS[family]),
        ("the text encoder's norm eps", t.layer_norm_eps, TextSpec().layer_norm_eps),
        ("the kind of tokenizer", conditioner.tokenizer.kind, "clip-bpe"),
        ("the noise schedule", plain, SCHEDULE),
    ):
        if given != allowed:
            raise CheckpointError(f"{bundle.name}: {what} is {given}; KerasCV has another", allowed=str(allowed))


def _keras_layers(table: Table, net: nn.Module) -> list[tuple[str, list[tuple[str, Callable[[], Tensor]]]]]:
    """Keras's names for a table's tensors, and what makes each in Keras's layout, float32."""
    state, counts = net.state_dict(), dict[str, int]()
    layers: list[tuple[str, list[tuple[str, Callable[[], Tensor]]]]] = []
    for kind, slots in table:
        k = counts[kind] = counts.get(kind, -1) + 1
        layer = f"{kind}_{k}" if k else kind
        weights: list[tuple[str, Callable[[], Tensor]]] = [
            (f"{layer}/{slot.name.rpartition('.')[0]}/{slot.role}:0", partial(_turned, state[slot.name], slot.turn))
            for slot in slots
        ]
        layers.append((layer, weights))
    return layers


def _turned(t: Tensor, turn: str) -> Tensor:
    return to_keras(t.detach().to("cpu", torch.float32), turn)
