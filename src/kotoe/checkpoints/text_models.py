"""A text model's own repository, as transformers writes it: config.json, weights and tokenizer in one folder.

Read are CLIPModel (its text half), CLIPTextModel with or without projection, BertModel, and AltDiffusion's XLM-R with
its projection. A UNet reads the states of the last layer after its norm, so of CLIP what is behind them (the projection
that makes one vector of a text) and beside them (the picture's half) is left out, by name and with a note.
"""

from __future__ import annotations

from typing import Any

import torch

from kotoe.checkpoints import bert, diffusers
from kotoe.checkpoints.files import Folder, LazyHashes, fill, read_tensors, shapes_of, skeleton
from kotoe.checkpoints.keys import Config, Keys
from kotoe.errors import CheckpointError
from kotoe.text import Conditioner

CLIP, CLIP_TEXT = "clip", "clip_text_model"  # model_type
ARCHITECTURES = {
    "CLIPModel": CLIP,
    "CLIPTextModel": CLIP_TEXT,
    "CLIPTextModelWithProjection": CLIP_TEXT,
    "BertModel": bert.BERT,
    "RobertaSeriesModelWithTransformation": bert.XLM,
}
BESIDE = ("vision_model.", "visual_projection.", "text_projection.", "logit_scale")  # of CLIP; no UNet reads them
CLIP_IGNORED = tuple(
    "architectures dtype initializer_factor logit_scale_init_value model_type projection_dim torch_dtype "
    "transformers_version vision_config vision_config_dict".split()
)
PLAIN: Config = {"is_decoder": False, "add_cross_attention": False, "pruned_heads": {}}  # else another network
# What transformers 4 wrote into the text_config of every CLIP: of writing texts, of training, of bookkeeping.
GENERATION = frozenset(
    "bad_words_ids begin_suppress_tokens cross_attention_hidden_size decoder_start_token_id diversity_penalty "
    "do_sample early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty finetuning_task "
    "forced_bos_token_id forced_eos_token_id length_penalty max_length min_length no_repeat_ngram_size "
    "num_beam_groups num_beams num_return_sequences output_scores prefix remove_invalid_values repetition_penalty "
    "return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss "
    "tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p torchscript typical_p use_bfloat16".split()
)


def is_text_model(folder: Folder) -> bool:
    """Whether the folder is a model's own repository, and no checkpoint nor part of one."""
    return folder.has("config.json") and not folder.has("model_index.json") and not folder.has("text_encoder")


def read(
    folder: Folder, language: str, dtype: torch.dtype | None, device: torch.device, allow_pickle: bool = False
) -> tuple[Conditioner, str, tuple[str, ...]]:
    """The Conditioner, its name for messages, and notes on what was left out.

    Raises CheckpointError for a model without a text encoder, or with one that no UNet here reads.
    """
    name, where = folder.name, f"{folder.name}/config.json"
    config = folder.json("config.json")
    kind = _kind(config, where)
    if kind in (CLIP, CLIP_TEXT):
        config = _plain(_text_config(config, where) if kind == CLIP else config, where)
    positions = config.get("max_position_embeddings", diffusers.TEXT_DEFAULTS["max_position_embeddings"])
    tokenizer = diffusers.read_tokenizer(folder, "", positions)
    spec = diffusers.encoder_spec(config, tokenizer, where)
    net = skeleton(lambda: diffusers.encoder_of(spec))
    left: list[str] = []

    def rename(theirs: str) -> str | None:
        if kind in (CLIP, CLIP_TEXT):
            beside = theirs.startswith(BESIDE)
            ours = None if beside else theirs if kind == CLIP else diffusers.text_name(theirs)
        else:
            ours = bert.name_of(theirs)
        if ours is None:
            left.append(theirs)
        return ours

    paths = diffusers.weight_files(folder, "", allow_pickle)
    tensors = read_tensors(
        paths, shapes_of(net), what=name, dtype=dtype, device=device, rename=rename, allow_pickle=allow_pickle
    )
    hashes = LazyHashes({"text_encoder": paths}, {"tokenizer": tokenizer.sha256})
    kinds = sorted({theirs.split(".")[0] for theirs in left})
    notes = (f"{name}: {len(left)} tensors that no UNet reads are left out ({', '.join(kinds)})",) if left else ()
    said = f"{name} (text_model, before its projection)" if kind in (CLIP, CLIP_TEXT) else name
    return Conditioner(language, tokenizer, fill(net, tensors), hashes), said, notes


def _kind(config: Config, where: str) -> str:
    """The model_type, of those that are read."""
    kind, named = config.get("model_type"), config.get("architectures")
    classes = named if isinstance(named, list) and named else [c for c, k in ARCHITECTURES.items() if k == kind][:1]
    for found in classes:
        if found in ARCHITECTURES and ARCHITECTURES[found] == kind:
            return str(kind)
    raise CheckpointError(
        f"{where}: model_type {kind!r}, architectures {named!r}, which is no text encoder that a UNet here reads",
        allowed=", ".join(ARCHITECTURES),
        hint="A model of pictures alone has no text encoder" if "vision" in str(kind) else "",
    )


def _text_config(config: Config, where: str) -> Config:
    """The configuration of the text half of a CLIPModel."""
    keys = Keys(config, {"text_config": None, "text_config_dict": None}, where, CLIP_IGNORED)
    text: Any = keys["text_config"]
    again: Any = keys["text_config_dict"]  # of transformers before 4.27, which lets it win over text_config
    if not isinstance(text, dict):
        raise keys.refuse("text_config", "a table")
    if again is not None and (not isinstance(again, dict) or text != text | again):
        raise keys.refuse("text_config_dict", "null, or what text_config says")
    return text


def _plain(config: Config, where: str) -> Config:
    """A CLIP's text configuration without the keys that every model of transformers has."""
    for key, value in PLAIN.items():
        if config.get(key, value) != value:
            raise CheckpointError(f"{where}: {key} is {config[key]!r}", allowed=repr(value))
    return {key: value for key, value in config.items() if key not in GENERATION and key not in PLAIN}
