"""The canonical checkpoint, a diffusers folder: its config.json files to Specs and back, its tensors to modules.

A key whose value Kotoe doesn't implement is an error that names key and value; so is a key nobody has heard of. Where a
file leaves a key out, the default is that of the diffusers or transformers class the file is for, since that is what
the file means.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from kotoe import hub
from kotoe.bert import BertText
from kotoe.checkpoints import bert
from kotoe.checkpoints.files import (
    LARGEST_TOKENIZER_BYTES,
    Folder,
    LazyHashes,
    fill,
    read_tensors,
    shapes_of,
    skeleton,
)
from kotoe.checkpoints.keys import DIFFUSERS_VERSION, LARGEST_DEPTH, LARGEST_WIDTH, Config, Keys, make_spec
from kotoe.errors import CheckpointError
from kotoe.spec import BertSpec, TextSpec, UNetSpec, VAESpec
from kotoe.text import CLIPText, Conditioner
from kotoe.tokenizers import FILES as TOKENIZER_FILES
from kotoe.tokenizers import tokenizer_from_files
from kotoe.tokens import Tokenizer
from kotoe.unet import UNet
from kotoe.vae import VAE

# --- UNet ---------------------------------------------------------------------------------------------------

UNET_DEFAULTS: Config = {
    "sample_size": None,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "cross_attention_dim": 1280,
    "attention_head_dim": 8,
    "use_linear_projection": False,
}
UNET_FIXED: Config = {
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "only_cross_attention": False,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "dropout": 0.0,
    "act_fn": "silu",
    "norm_eps": 1e-5,
    "transformer_layers_per_block": 1,
    "reverse_transformer_layers_per_block": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "num_attention_heads": None,
    "dual_cross_attention": False,
    "class_embed_type": None,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "num_class_embeds": None,
    "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "projection_class_embeddings_input_dim": None,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "mid_block_only_cross_attention": None,
    "cross_attention_norm": None,
}
# Precision of the softmax, which ours keeps in float32 anyway; a width without the embedding it is for.
UNET_IGNORED = ("upcast_attention", "addition_embed_type_num_heads")


def unet_spec(config: Config, where: str = "unet/config.json") -> UNetSpec:
    """The UNetSpec of a UNet2DConditionModel's config.json."""
    keys = Keys(config, {**UNET_DEFAULTS, **UNET_FIXED}, where, UNET_IGNORED)
    keys.fixed(**UNET_FIXED)
    widths = keys.widths("block_out_channels")
    down = keys["down_block_types"]
    kinds = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
    if not isinstance(down, list | tuple) or len(down) != len(widths) or not set(down) <= kinds.keys():
        raise keys.refuse("down_block_types", f"{', '.join(kinds)}, one for each of {len(widths)} levels")
    cross = tuple(kinds[d] for d in down)
    mirrored = ["CrossAttnUpBlock2D" if c else "UpBlock2D" for c in reversed(cross)]
    if list(keys["up_block_types"]) != mirrored:
        raise keys.refuse("up_block_types", f"{mirrored}, the mirror of down_block_types")
    heads = keys["attention_head_dim"]
    if not isinstance(heads, list | tuple):
        keys.whole("attention_head_dim", LARGEST_WIDTH)
        heads = [heads] * len(widths)
    elif len(keys.widths("attention_head_dim")) != len(widths):
        raise keys.refuse("attention_head_dim", f"one number of heads for each of {len(widths)} levels")
    for level, (c, n) in enumerate(zip(widths, heads, strict=True)):
        if c % n and (cross[level] or level == len(widths) - 1):
            raise keys.refuse("attention_head_dim", f"numbers of heads that divide block_out_channels {widths}")
    return make_spec(
        lambda: UNetSpec(
            in_channels=keys.whole("in_channels", LARGEST_WIDTH),
            out_channels=keys.whole("out_channels", LARGEST_WIDTH),
            block_out_channels=widths,
            layers_per_block=keys.whole("layers_per_block", LARGEST_DEPTH),
            cross_attention=cross,
            num_heads=tuple(heads),
            cross_attention_dim=keys.whole("cross_attention_dim", LARGEST_WIDTH),
            use_linear_projection=keys.flag("use_linear_projection"),
            norm_num_groups=keys.whole("norm_num_groups", LARGEST_WIDTH),
            sample_size=keys.edge("sample_size"),
        ),
        where,
    )


def _plain(what: str, **values: tuple[object, object]) -> None:
    """Refuse to write a spec with a value (given, allowed) that diffusers' and transformers' classes don't have."""
    for field, (given, allowed) in values.items():
        if given != allowed:
            raise CheckpointError(f"{what}: {field} {given!r} can't be said in its config.json", allowed=repr(allowed))


def unet_config(spec: UNetSpec) -> Config:
    """The config.json of a UNetSpec, every key written out."""
    _plain("UNetSpec", gelu=(spec.gelu, "exact"), transformer_norm_eps=(spec.transformer_norm_eps, 1e-6))
    return {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": DIFFUSERS_VERSION,
        **UNET_FIXED,
        "sample_size": spec.sample_size,
        "in_channels": spec.in_channels,
        "out_channels": spec.out_channels,
        "down_block_types": ["CrossAttnDownBlock2D" if c else "DownBlock2D" for c in spec.cross_attention],
        "up_block_types": ["CrossAttnUpBlock2D" if c else "UpBlock2D" for c in reversed(spec.cross_attention)],
        "block_out_channels": list(spec.block_out_channels),
        "layers_per_block": spec.layers_per_block,
        "norm_num_groups": spec.norm_num_groups,
        "cross_attention_dim": spec.cross_attention_dim,
        "attention_head_dim": list(spec.num_heads),
        "use_linear_projection": spec.use_linear_projection,
    }


# --- VAE ----------------------------------------------------------------------------------------------------

VAE_DEFAULTS: Config = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "block_out_channels": [64],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 32,
    "scaling_factor": 0.18215,
}
VAE_FIXED: Config = {
    "act_fn": "silu",
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
VAE_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def vae_spec(config: Config, where: str = "vae/config.json") -> VAESpec:
    """The VAESpec of an AutoencoderKL's config.json."""
    keys = Keys(config, {**VAE_DEFAULTS, **VAE_FIXED}, where, ("force_upcast",))
    keys.fixed(**VAE_FIXED)
    widths = keys.widths("block_out_channels")
    keys.fixed(
        down_block_types=["DownEncoderBlock2D"] * len(widths),
        up_block_types=["UpDecoderBlock2D"] * len(widths),
    )
    return make_spec(
        lambda: VAESpec(
            in_channels=keys.whole("in_channels", LARGEST_WIDTH),
            out_channels=keys.whole("out_channels", LARGEST_WIDTH),
            latent_channels=keys.whole("latent_channels", LARGEST_WIDTH),
            block_out_channels=widths,
            layers_per_block=keys.whole("layers_per_block", LARGEST_DEPTH),
            norm_num_groups=keys.whole("norm_num_groups", LARGEST_WIDTH),
            scaling_factor=keys.number("scaling_factor"),
            sample_size=keys.edge("sample_size"),
        ),
        where,
    )


def vae_config(spec: VAESpec) -> Config:
    """The config.json of a VAESpec, every key written out."""
    _plain("VAESpec", norm_eps=(spec.norm_eps, 1e-6))
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": DIFFUSERS_VERSION,
        **VAE_FIXED,
        "in_channels": spec.in_channels,
        "out_channels": spec.out_channels,
        "down_block_types": ["DownEncoderBlock2D"] * len(spec.block_out_channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(spec.block_out_channels),
        "block_out_channels": list(spec.block_out_channels),
        "layers_per_block": spec.layers_per_block,
        "latent_channels": spec.latent_channels,
        "norm_num_groups": spec.norm_num_groups,
        "sample_size": spec.sample_size,
        "scaling_factor": spec.scaling_factor,
        "force_upcast": False,
    }


def vae_name(name: str) -> str:
    """Files of before diffusers 0.15 name the attention's layers otherwise."""
    head, _, rest = name.rpartition(".attentions.0.")
    layer, _, leaf = rest.partition(".")
    return f"{head}.attentions.0.{VAE_OLD_ATTENTION[layer]}.{leaf}" if layer in VAE_OLD_ATTENTION else name


# --- Text encoder -------------------------------------------------------------------------------------------

TEXT_DEFAULTS: Config = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
TEXT_FIXED: Config = {"model_type": "clip_text_model", "is_encoder_decoder": False, "use_attention_mask": False}
# Of training (we have no dropout), of transformers' own bookkeeping, or (the ids) wrong in published files: SD 1.x says
# bos 0, eos 2, pad 1; the tokenizer beside it knows.
TEXT_IGNORED = tuple(
    "architectures attention_dropout bos_token_id chunk_size_feed_forward dropout dtype eos_token_id id2label "
    "initializer_factor initializer_range label2id output_attentions output_hidden_states pad_token_id problem_type "
    "projection_dim return_dict torch_dtype transformers_version".split()
)


def text_spec(config: Config, tokenizer: Tokenizer, where: str = "text_encoder/config.json") -> TextSpec:
    """The TextSpec of a CLIPTextModel's config.json, with the ids of the tokenizer beside it."""
    keys = Keys(config, {**TEXT_DEFAULTS, **TEXT_FIXED}, where, TEXT_IGNORED)
    keys.fixed(**TEXT_FIXED)
    if keys["num_attention_heads"] == 0 or keys.whole("hidden_size", LARGEST_WIDTH) % keys.whole(
        "num_attention_heads", LARGEST_WIDTH
    ):
        raise keys.refuse("num_attention_heads", f"a divisor of hidden_size {keys['hidden_size']}")
    return TextSpec(
        vocab_size=keys.whole("vocab_size", 2**24),
        hidden_size=keys["hidden_size"],
        intermediate_size=keys.whole("intermediate_size", LARGEST_WIDTH),
        num_layers=keys.whole("num_hidden_layers", LARGEST_DEPTH),
        num_heads=keys["num_attention_heads"],
        max_tokens=keys.whole("max_position_embeddings", LARGEST_WIDTH),
        hidden_act=keys.choice("hidden_act", "quick_gelu", "gelu"),
        layer_norm_eps=keys.number("layer_norm_eps"),
        bos=tokenizer.bos,
        eos=tokenizer.eos,
        pad=tokenizer.pad,
    )


def encoder_spec(config: Config, tokenizer: Tokenizer, where: str = "text_encoder/config.json") -> TextSpec | BertSpec:
    """The spec of a text encoder's config.json, by its model_type, after checking that the tokenizer fits it."""
    kind = config.get("model_type", TEXT_FIXED["model_type"])
    if kind not in (TEXT_FIXED["model_type"], *bert.DEFAULTS):
        raise CheckpointError(
            f"{where}: model_type is {kind!r}", allowed=", ".join((TEXT_FIXED["model_type"], *bert.DEFAULTS))
        )
    spec = (bert.bert_spec if kind in bert.DEFAULTS else text_spec)(config, tokenizer, where)
    check_tokenizer(tokenizer, spec, where)
    return spec


def check_tokenizer(tokenizer: Tokenizer, spec: TextSpec | BertSpec, where: str) -> None:
    """Refuse a tokenizer whose ids or length the encoder has no rows for, or whose special ids the spec contradicts."""
    if tokenizer.vocab_size > spec.vocab_size:
        raise CheckpointError(f"{where}: {spec.vocab_size} embeddings for a tokenizer of {tokenizer.vocab_size} ids")
    if tokenizer.max_tokens > spec.max_tokens:
        raise CheckpointError(f"{where}: {spec.max_tokens} positions for texts of {tokenizer.max_tokens} tokens")
    ids = {"bos": tokenizer.bos, "eos": tokenizer.eos, "pad": tokenizer.pad}
    wrong = {name: getattr(spec, name) for name, i in ids.items() if getattr(spec, name) != i}
    if wrong:
        raise CheckpointError(f"{where}: the encoder's {wrong} aren't the tokenizer's {ids}")


def check_fits(conditioner: Conditioner, width: int, where: str) -> None:
    """Refuse a conditioner whose states a UNet that reads `width` numbers can't read, or whose tokenizer its encoder
    has no rows for."""
    spec = conditioner.encoder.spec
    check_tokenizer(conditioner.tokenizer, spec, where)
    if spec.context_dim != width:
        raise CheckpointError(f"{where}: states {spec.context_dim} wide for a UNet that reads {width}")


def text_config(spec: TextSpec) -> Config:
    """The config.json of a TextSpec that ends at its last layer (see `stock_text`)."""
    if spec.hidden_act == "gelu_tanh":
        _plain("TextSpec", hidden_act=(spec.hidden_act, "gelu"))
    return {
        "architectures": ["CLIPTextModel"],
        **TEXT_FIXED,
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "max_position_embeddings": spec.max_tokens,
        "hidden_act": spec.hidden_act,
        "layer_norm_eps": spec.layer_norm_eps,
        "bos_token_id": spec.bos,
        "eos_token_id": spec.eos,
        "pad_token_id": spec.pad,
    }


def stock_text(encoder: CLIPText | BertText) -> CLIPText:
    """The same states from an encoder that stock CLIPTextModel can be: layers after the one that is read are dropped.

    So does Stable Diffusion 2.x: the last-but-one of OpenCLIP's 24 layers is shipped as the last of 23.
    """
    if isinstance(encoder, BertText):
        raise CheckpointError(
            "a BERT text encoder, which this format has no place for",
            allowed="CLIP's; or a folder in diffusers' layout",
        )
    spec = encoder.spec
    if not spec.final_norm:
        raise CheckpointError(
            "a text encoder without its final norm", allowed="final_norm true; CLIPTextModel always applies it"
        )
    if spec.layer == -1:
        return encoder
    kept = replace(spec, num_layers=spec.num_layers + 1 + spec.layer, layer=-1)
    shorter = skeleton(lambda: CLIPText(kept))
    state = encoder.state_dict()
    return fill(shorter, {name: state[name] for name in shapes_of(shorter)})


def encoder_of(spec: TextSpec | BertSpec) -> CLIPText | BertText:
    """A text encoder of a spec."""
    return BertText(spec) if isinstance(spec, BertSpec) else CLIPText(spec)


def text_name(name: str) -> str:
    """transformers 5 may leave out the prefix that every earlier file has."""
    return name if name.startswith("text_model.") else f"text_model.{name}"


# --- Parts of a folder --------------------------------------------------------------------------------------

WEIGHTS = ("diffusion_pytorch_model", "model")
PICKLES = (".bin", ".ckpt", ".pt", ".pth")


def weight_files(folder: Folder, part: str, allow_pickle: bool = False) -> tuple[Path, ...]:
    """The files that hold a part's tensors ("": of the folder itself): one safetensors file (any precision), its
    shards, or an allowed pickle."""
    return tuple(folder.path(name) for name in weight_names(folder, part, allow_pickle))


def weight_names(folder: Folder, part: str, allow_pickle: bool = False) -> tuple[str, ...]:
    """The names in the folder of `weight_files`."""
    base = f"{part}/" if part else ""
    stems = [f"{base}{stem}{variant}" for stem in WEIGHTS for variant in ("", ".fp16", ".bf16")]
    for stem in stems:
        if folder.has(f"{stem}.safetensors"):
            return (f"{stem}.safetensors",)
        if folder.has(f"{stem}.safetensors.index.json"):
            table = folder.json(f"{stem}.safetensors.index.json").get("weight_map")
            if not isinstance(table, dict) or not all(isinstance(v, str) and "/" not in v for v in table.values()):
                raise CheckpointError(f"{stem}.safetensors.index.json: weight_map isn't a table of tensor to file name")
            return tuple(base + name for name in sorted(set(table.values())))
    names = [f"pytorch_model{s}" for s in PICKLES] + [f"{stem}{s}" for stem in WEIGHTS for s in PICKLES]
    pickles = [base + name for name in names if folder.has(base + name)]
    if pickles and allow_pickle:
        return (pickles[0],)
    if pickles:
        raise CheckpointError(
            f"{pickles[0]} is a pickle, which can run any program when it is opened",
            allowed="safetensors",
            hint="Convert it where it can do no harm, or pass allow_pickle=True (--allow-pickle), which reads tensors "
            "only",
        )
    allowed = f"{base}{WEIGHTS[0] if part else WEIGHTS[1]}.safetensors"
    raise CheckpointError(f"{folder.name}/{part} holds no weights", allowed=allowed)


def half_notes(folder: Folder, allow_pickle: bool = False) -> list[str]:
    """What to say of parts whose weights are there in half precision alone."""
    parts = [
        part
        for part in ("unet", "vae", "text_encoder")
        if all(hub.HALF.search(name) for name in weight_names(folder, part, allow_pickle))
    ]
    return [f"{', '.join(parts)}: half precision, the only weights there but pickles"] if parts else []


def read_unet(folder: Folder, dtype: torch.dtype | None, device: torch.device, allow_pickle: bool = False) -> UNet:
    """The UNet of a folder."""
    spec = unet_spec(folder.json("unet/config.json"))
    paths = weight_files(folder, "unet", allow_pickle)
    net = skeleton(lambda: UNet(spec))
    return fill(
        net, read_tensors(paths, shapes_of(net), what="unet", dtype=dtype, device=device, allow_pickle=allow_pickle)
    )


def read_vae(folder: Folder, dtype: torch.dtype | None, device: torch.device, allow_pickle: bool = False) -> VAE:
    """The autoencoder of a folder."""
    spec = vae_spec(folder.json("vae/config.json"))
    paths = weight_files(folder, "vae", allow_pickle)
    net = skeleton(lambda: VAE(spec))
    tensors = read_tensors(
        paths, shapes_of(net), what="vae", dtype=dtype, device=device, rename=vae_name, allow_pickle=allow_pickle
    )
    return fill(net, tensors)


def read_conditioner(
    folder: Folder,
    base: str,
    language: str,
    dtype: torch.dtype | None,
    device: torch.device,
    allow_pickle: bool = False,
    *,
    tokenizer: Tokenizer | None = None,
) -> Conditioner:
    """The Conditioner under `base` ("" for the folder itself, else "conditioners/<language>/").

    tokenizer: the one that `tokenizer_of` read there, if it has.
    """
    part = f"{base}text_encoder"
    config = folder.json(f"{part}/config.json")
    tokenizer = tokenizer or tokenizer_of(folder, base)
    spec = encoder_spec(config, tokenizer, f"{part}/config.json")
    paths = weight_files(folder, part, allow_pickle)
    net = skeleton(lambda: encoder_of(spec))
    rename: Callable[[str], str | None] = bert.name_of if isinstance(spec, BertSpec) else text_name
    tensors = read_tensors(
        paths, shapes_of(net), what=part, dtype=dtype, device=device, rename=rename, allow_pickle=allow_pickle
    )
    hashes = LazyHashes({"text_encoder": paths}, {"tokenizer": tokenizer.sha256})
    return Conditioner(language, tokenizer, fill(net, tensors), hashes)


def tokenizer_of(folder: Folder, base: str) -> Tokenizer:
    """The tokenizer of the conditioner under `base`. No weights are read."""
    config = folder.json(f"{base}text_encoder/config.json")
    positions = config.get("max_position_embeddings", TEXT_DEFAULTS["max_position_embeddings"])
    return read_tokenizer(folder, f"{base}tokenizer", positions)


def read_tokenizer(folder: Folder, part: str, positions: int | None = None) -> Tokenizer:
    """The tokenizer in a subfolder ("" for the folder itself), its files read with the folder's precautions."""
    base = f"{part}/" if part else ""
    files = {
        name: folder.read(base + name, LARGEST_TOKENIZER_BYTES) for name in TOKENIZER_FILES if folder.has(base + name)
    }
    return tokenizer_from_files(files, positions=positions, where=part or folder.name)
