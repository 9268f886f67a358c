"""The names of the original Stable Diffusion ("CompVis", ldm): tables of names, pure functions from one table of
tensors to another, and the Specs that shapes imply.

Source: Rombach et al. 2022 (arXiv 2112.10752), as the published single files of Stable Diffusion 1.x and 2.x name their
tensors. Names here are without the part's prefix: model.diffusion_model. (UNet), first_stage_model. (VAE),
cond_stage_model.transformer. or cond_stage_model.model. (text), model_ema. (the UNet's running average).

What shapes can't say is the same in every published file, and is written down here once: 32 groups, 8 heads (1.x) or
heads 64 wide (2.x), text heads 64 wide, latents scaled by 0.18215.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from kotoe.checkpoints.keys import LARGEST_DEPTH, LARGEST_WIDTH, make_spec
from kotoe.errors import CheckpointError
from kotoe.spec import BertSpec, TextSpec, UNetSpec, VAESpec
from kotoe.tokens import Tokenizer

T = TypeVar("T")
Names = dict[str, str]  # a module of ours (or one tensor) to theirs
Shapes = Mapping[str, tuple[int, ...]]

LARGEST_LEVELS = 16
SD1_HEADS, SD2_HEAD_WIDTH, TEXT_HEAD_WIDTH = 8, 64, 64
OPENCLIP_H = (1024, 24)  # width and blocks of the text tower that SD 2.x runs all but the last block of

# --- Names --------------------------------------------------------------------------------------------------

UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.attentions.0": "middle_block.1",
}
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_ENDS = {"conv_in": "conv_in", "conv_norm_out": "norm_out", "conv_out": "conv_out"}
VAE_RESNET = {
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "conv_shortcut": "nin_shortcut",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPENCLIP_ENDS = {
    "text_model.embeddings.token_embedding": "token_embedding",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm": "ln_final",
}
OPENCLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
OPENCLIP_QKV = ("q_proj", "k_proj", "v_proj")  # stacked in this order in attn.in_proj_weight and attn.in_proj_bias


def _under(ours: str, theirs: str, leaves: Names) -> Names:
    return {f"{ours}.{a}": f"{theirs}.{b}" for a, b in leaves.items()}


def unet_names(spec: UNetSpec) -> Names:
    """Modules of a UNet to ldm's: one numbered list of blocks down, one up."""
    names, last, k = dict(UNET_ENDS), len(spec.block_out_channels) - 1, 0
    for i, cross in enumerate(spec.cross_attention):
        for j in range(spec.layers_per_block):
            k += 1
            names |= _under(f"down_blocks.{i}.resnets.{j}", f"input_blocks.{k}.0", UNET_RESNET)
            if cross:
                names[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{k}.1"
        if i < last:
            k += 1
            names[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{k}.0.op"
    for j in (0, 1):
        names |= _under(f"mid_block.resnets.{j}", f"middle_block.{2 * j}", UNET_RESNET)
    for i, cross in enumerate(reversed(spec.cross_attention)):
        for j in range(spec.layers_per_block + 1):
            k = i * (spec.layers_per_block + 1) + j
            names |= _under(f"up_blocks.{i}.resnets.{j}", f"output_blocks.{k}.0", UNET_RESNET)
            if cross:
                names[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{k}.1"
        if i < last:  # in the list of the level's last block
            names[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{k}.{1 + cross}.conv"
    return names


def vae_names(spec: VAESpec) -> Names:
    """Modules of a VAE to ldm's, which counts the decoder's levels from the finest, as the encoder's."""
    names, last = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}, len(spec.block_out_channels) - 1
    for side in ("encoder", "decoder"):
        names |= _under(side, side, VAE_ENDS)
        names |= _under(f"{side}.mid_block.attentions.0", f"{side}.mid.attn_1", VAE_ATTENTION)
        for j in (0, 1):
            names |= _under(f"{side}.mid_block.resnets.{j}", f"{side}.mid.block_{j + 1}", VAE_RESNET)
    for i in range(last + 1):
        down = (f"encoder.down_blocks.{i}", f"encoder.down.{i}")
        up = (f"decoder.up_blocks.{i}", f"decoder.up.{last - i}")
        for j in range(spec.layers_per_block + 1):
            names |= _under(f"{down[0]}.resnets.{j}", f"{down[1]}.block.{j}", VAE_RESNET)
            names |= _under(f"{up[0]}.resnets.{j}", f"{up[1]}.block.{j}", VAE_RESNET)
        if i < last:
            names[f"{down[0]}.downsamplers.0.conv"] = f"{down[1]}.downsample.conv"
            names[f"{up[0]}.upsamplers.0.conv"] = f"{up[1]}.upsample.conv"
    return names


def openclip_names(layers: int) -> Names:
    """Modules of a text encoder to OpenCLIP's, but for queries, keys and values."""
    names = dict(OPENCLIP_ENDS)
    for i in range(layers):
        names |= _under(f"text_model.encoder.layers.{i}", f"transformer.resblocks.{i}", OPENCLIP_LAYER)
    return names


def ema_names(names: Iterable[str]) -> Names:
    """UNet tensor to the name of its running average after "model_ema.": ldm leaves out the dots."""
    flat = {name: f"diffusion_model.{name}".replace(".", "") for name in names}
    if len(set(flat.values())) != len(flat):
        raise CheckpointError("two tensors of the UNet have the same name without its dots")
    return flat


def renamed(tensors: Mapping[str, T], names: Names) -> dict[str, T]:
    """The same tensors under their names in the other layout. Raises CheckpointError for one that has none."""
    found = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        for n in range(len(parts), 0, -1):
            if (module := ".".join(parts[:n])) in names:
                found[".".join([names[module], *parts[n:]])] = tensor
                break
        else:
            raise CheckpointError(f"tensor {name} has no place in the other layout")
    return found


def _turned(names: Names) -> Names:
    return {theirs: ours for ours, theirs in names.items()}


# --- Tensors ------------------------------------------------------------------------------------------------


def unet_to_compvis(tensors: Mapping[str, Tensor], spec: UNetSpec) -> dict[str, Tensor]:
    """A UNet's tensors under ldm's names."""
    return renamed(tensors, unet_names(spec))


def unet_from_compvis(tensors: Mapping[str, Tensor], spec: UNetSpec) -> dict[str, Tensor]:
    """The inverse of `unet_to_compvis`."""
    return renamed(tensors, _turned(unet_names(spec)))


def _is_projection(name: str) -> bool:
    return ".attentions.0.to_" in name and name.endswith(".weight")


def vae_to_compvis(tensors: Mapping[str, Tensor], spec: VAESpec) -> dict[str, Tensor]:
    """A VAE's tensors under ldm's names; its attention's linear layers (C, C) become 1x1 convolutions (C, C, 1, 1)."""
    conv = {name: t[:, :, None, None] if _is_projection(name) else t for name, t in tensors.items()}
    return renamed(conv, vae_names(spec))


def vae_from_compvis(tensors: Mapping[str, Tensor], spec: VAESpec) -> dict[str, Tensor]:
    """The inverse of `vae_to_compvis`."""
    ours = renamed(tensors, _turned(vae_names(spec)))
    return {name: t.reshape(t.shape[:2]) if _is_projection(name) else t for name, t in ours.items()}


def clip_to_compvis(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A text encoder's tensors in a file of SD 1.x: transformers' names, as ours are."""
    return dict(tensors)


def clip_from_compvis(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `clip_to_compvis`."""
    return dict(tensors)


def openclip_to_compvis(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A text encoder's tensors under OpenCLIP's names; queries, keys and values are stacked, (3 D, D) and (3 D)."""
    layers = _count(tensors, r"text_model\.encoder\.layers\.(\d+)\.")
    stacked, rest = {}, dict(tensors)
    for i in range(layers):
        for leaf in ("weight", "bias"):
            each = [rest.pop(f"text_model.encoder.layers.{i}.self_attn.{part}.{leaf}") for part in OPENCLIP_QKV]
            stacked[f"transformer.resblocks.{i}.attn.in_proj_{leaf}"] = torch.cat(each)  # (3 D, ...)
    return renamed(rest, openclip_names(layers)) | stacked


def openclip_from_compvis(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `openclip_to_compvis`."""
    layers = _count(tensors, r"transformer\.resblocks\.(\d+)\.")
    parts, rest = {}, dict(tensors)
    for i in range(layers):
        for leaf in ("weight", "bias"):
            stacked = rest.pop(f"transformer.resblocks.{i}.attn.in_proj_{leaf}")
            for part, t in zip(OPENCLIP_QKV, stacked.chunk(3), strict=True):
                parts[f"text_model.encoder.layers.{i}.self_attn.{part}.{leaf}"] = t.clone()  # (D, ...)
    return renamed(rest, _turned(openclip_names(layers))) | parts


# --- Text layouts -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TextLayout:
    """How a file names its text encoder.

    prefix: of its tensors. act: the activation of every encoder published so.
    tokens, positions, block, inner: what `text_dims` reads sizes from; a file with `tokens` has this layout.
    unused: shapes of a file's tensors to the names of those that are never run.
    """

    prefix: str
    act: str
    tokens: str
    positions: str
    block: str
    inner: str
    to_compvis: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    from_compvis: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    unused: Callable[[Shapes], frozenset[str]]


def openclip_unused(shapes: Shapes) -> frozenset[str]:
    """What SD 2.x doesn't run of OpenCLIP's text tower: the last block (T14) and the projection after it.

    A file without the projection was converted from an encoder that ends where SD 2.x stops reading, unless it has all
    24 blocks of ViT-H/14 all the same.
    """
    blocks = _count(shapes, r"transformer\.resblocks\.(\d+)\.")
    width = shapes.get("ln_final.weight", (0,))[0]
    if "text_projection" not in shapes and (width, blocks) != OPENCLIP_H:
        return frozenset()
    last = f"transformer.resblocks.{blocks - 1}."
    found = [re.match(r"(transformer\.resblocks\.\d+\.)(.+)", name) for name in shapes]
    block = {last + m[2] for m in found if m and m[1] != last}  # the layers that the other blocks have too
    return frozenset({*block, "text_projection"} & shapes.keys())


def bert_unused(shapes: Shapes) -> frozenset[str]:
    """The pooler, which no UNet reads."""
    return frozenset(name for name in shapes if name.startswith("pooler."))


TEXTS = {
    "clip": TextLayout(
        prefix="cond_stage_model.transformer.",
        act="quick_gelu",
        tokens="text_model.embeddings.token_embedding.weight",
        positions="text_model.embeddings.position_embedding.weight",
        block=r"text_model\.encoder\.layers\.(\d+)\.",
        inner="text_model.encoder.layers.0.mlp.fc1.weight",
        to_compvis=clip_to_compvis,
        from_compvis=clip_from_compvis,
        unused=lambda shapes: frozenset(),
    ),
    "openclip": TextLayout(
        prefix="cond_stage_model.model.",
        act="gelu",
        tokens="token_embedding.weight",
        positions="positional_embedding",
        block=r"transformer\.resblocks\.(\d+)\.",
        inner="transformer.resblocks.0.mlp.c_fc.weight",
        to_compvis=openclip_to_compvis,
        from_compvis=openclip_from_compvis,
        unused=openclip_unused,
    ),
    "bert": TextLayout(
        prefix="cond_stage_model.transformer.",
        act="gelu",
        tokens="embeddings.word_embeddings.weight",
        positions="embeddings.position_embeddings.weight",
        block=r"encoder\.layer\.(\d+)\.",
        inner="encoder.layer.0.intermediate.dense.weight",
        to_compvis=clip_to_compvis,
        from_compvis=clip_from_compvis,
        unused=bert_unused,
    ),
}
BERT_TYPES = "embeddings.token_type_embeddings.weight"


# --- Specs from shapes --------------------------------------------------------------------------------------


def _count(names: Iterable[str], pattern: str) -> int:
    """One more than the largest number in the names that begin with the pattern; a hole in between shows later."""
    found = [int(m[1]) for name in names if (m := re.match(pattern, name)) and len(m[1]) < 6]
    return max(found, default=-1) + 1


def _size(shapes: Shapes, name: str, axis: int, what: str) -> int:
    shape = shapes.get(name)
    if shape is None:
        raise CheckpointError(f"{what}: tensor {name} is missing")
    if len(shape) <= axis or not 1 <= shape[axis] <= 2**24:
        raise CheckpointError(f"{what}: tensor {name} has shape {list(shape)}")
    return shape[axis]


def _alike(values: list[T], what: str, of: str) -> T:
    if len(set(values)) != 1:
        raise CheckpointError(f"{what}: {of} {values}", allowed="the same for each, as in SD 1.x and 2.x")
    return values[0]


def is_linear(shapes: Shapes) -> bool:
    """Whether a UNet in ldm's names has linear layers round its transformers (SD 2.x), not 1x1 convolutions (1.x)."""
    name = "middle_block.1.proj_in.weight"
    _size(shapes, name, 1, "UNet")  # there at all?
    return len(shapes[name]) == 2


def unet_spec(shapes: Shapes, sample_size: int, what: str = "UNet") -> UNetSpec:
    """The UNetSpec that the shapes of a UNet in ldm's names imply. sample_size isn't among them."""
    blocks = _count(shapes, r"input_blocks\.(\d+)\.")
    modules = {".".join(name.split(".")[:3]) for name in shapes}
    if blocks > LARGEST_DEPTH:
        raise CheckpointError(f"{what}: {blocks} input blocks", allowed=f"at most {LARGEST_DEPTH}")
    widths: list[list[int]] = [[]]
    cross: list[list[bool]] = [[]]
    for k in range(1, blocks):
        at = f"input_blocks.{k}"
        if f"{at}.0.op.weight" in shapes:
            widths.append([])
            cross.append([])
        else:
            widths[-1].append(_size(shapes, f"{at}.0.in_layers.2.weight", 0, what))
            cross[-1].append(f"{at}.1" in modules)
    c = tuple(_alike(level, what, f"widths at level {i}") for i, level in enumerate(widths))
    attends = tuple(_alike(level, what, f"attentions at level {i}") for i, level in enumerate(cross))
    linear = is_linear(shapes)
    if linear and any(width % SD2_HEAD_WIDTH for width in c):
        raise CheckpointError(f"{what}: widths {c} in the layout of SD 2.x", allowed=f"multiples of {SD2_HEAD_WIDTH}")
    spec: UNetSpec = make_spec(
        lambda: UNetSpec(
            in_channels=_size(shapes, "input_blocks.0.0.weight", 1, what),
            out_channels=_size(shapes, "out.2.weight", 0, what),
            block_out_channels=c,
            layers_per_block=_alike([len(level) for level in widths], what, "blocks per level"),
            cross_attention=attends,
            num_heads=tuple(width // SD2_HEAD_WIDTH if linear else SD1_HEADS for width in c),
            cross_attention_dim=_size(shapes, "middle_block.1.transformer_blocks.0.attn2.to_k.weight", 1, what),
            use_linear_projection=linear,
            sample_size=sample_size,
        ),
        what,
    )
    return spec


def vae_spec(shapes: Shapes, sample_size: int, what: str = "VAE") -> VAESpec:
    """The VAESpec that the shapes of a VAE in ldm's names imply. sample_size isn't among them."""
    levels = _count(shapes, r"encoder\.down\.(\d+)\.")
    counts = [_count(shapes, rf"encoder\.down\.{i}\.block\.(\d+)\.") for i in range(min(levels, LARGEST_LEVELS))]
    if not 1 <= levels <= LARGEST_LEVELS or not all(counts):
        raise CheckpointError(
            f"{what}: levels of the encoder with {counts} blocks", allowed="1 or more in each of 1 to 16"
        )
    spec: VAESpec = make_spec(
        lambda: VAESpec(
            in_channels=_size(shapes, "encoder.conv_in.weight", 1, what),
            out_channels=_size(shapes, "decoder.conv_out.weight", 0, what),
            latent_channels=_size(shapes, "post_quant_conv.weight", 0, what),
            block_out_channels=tuple(
                _size(shapes, f"encoder.down.{i}.block.0.conv1.weight", 0, what) for i in range(levels)
            ),
            layers_per_block=_alike(counts, what, "blocks per level"),
            sample_size=sample_size,
        ),
        what,
    )
    return spec


def text_dims(shapes: Shapes, layout: TextLayout, what: str = "text encoder") -> dict[str, Any]:
    """What the shapes of a text encoder in a file's names imply: a spec but for the tokenizer's ids (`text_spec`)."""
    unused = layout.unused(shapes)
    width = _size(shapes, layout.tokens, 1, what)
    layers = _count((name for name in shapes if name not in unused), layout.block)
    if width % TEXT_HEAD_WIDTH or width > LARGEST_WIDTH or not 1 <= layers <= LARGEST_DEPTH:
        raise CheckpointError(
            f"{what}: {layers} layers {width} wide", allowed=f"1 or more, a multiple of {TEXT_HEAD_WIDTH} wide"
        )
    return {
        "vocab_size": _size(shapes, layout.tokens, 0, what),
        "hidden_size": width,
        "intermediate_size": _size(shapes, layout.inner, 0, what),
        "num_layers": layers,
        "num_heads": width // TEXT_HEAD_WIDTH,
        "max_tokens": _size(shapes, layout.positions, 0, what),
        **(
            {"token_types": _size(shapes, BERT_TYPES, 0, what)}
            if layout is TEXTS["bert"]
            else {"hidden_act": layout.act}
        ),
    }


def text_spec(dims: Mapping[str, Any], layout: TextLayout, tokenizer: Tokenizer) -> TextSpec | BertSpec:
    """The spec of a text encoder of these dims. A BERT is Taiyi's: no mask, no projection."""
    ids: dict[str, Any] = {"bos": tokenizer.bos, "eos": tokenizer.eos, "pad": tokenizer.pad}
    if layout is not TEXTS["bert"]:
        return TextSpec(**dims, **ids)
    sizes = {key: value for key, value in dims.items() if key != "max_tokens"}
    return BertSpec(**sizes, positions=dims["max_tokens"], **ids)
