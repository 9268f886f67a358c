"""Small checkpoints of the systems that Kotoe grew from, as they were published: the same classes, configuration keys,
files and quirks, random weights, written by the real transformers and diffusers.

folder = taiyi(tmp_path)          # and rinna, cool_japan, bingsu, stable_diffusion, alt_diffusion(tmp_path, "m18")
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.pipelines.deprecated.alt_diffusion.modeling_roberta_series import (
    RobertaSeriesConfig,
    RobertaSeriesModelWithTransformation,
)
from sentencepiece import SentencePieceTrainer
from tokenizers import Tokenizer as Backend
from torch import nn
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from kotoe.localize.vocabulary import train_clip_bpe
from tiny import LINES, seeded

WIDTH = 32  # of the context, here of every system
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
LMS = {"_class_name": "LMSDiscreteScheduler", "_diffusers_version": "0.6.0", **BETAS, "trained_betas": None}
PNDM = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.7.0.dev0",
    **BETAS,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
# of a Stable Diffusion 1.x text encoder as published: bos, eos and pad are not what its tokenizer says
OLD_CLIP = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "projection_dim": 768, "torch_dtype": "float32"}


def _write(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _drawing_part(folder: Path, seed: int, *, linear: bool = False, inpaints: bool = False) -> None:
    """unet/ and vae/ in the layout of SD 1.x, or of 2.x."""
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=9 if inpaints else 4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=(4, 8) if linear else 4,
        use_linear_projection=linear,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        sample_size=16,
    )
    seeded(unet, seed).save_pretrained(folder / "unet")
    seeded(vae, seed + 1).save_pretrained(folder / "vae")


def _index(folder: Path, scheduler: dict[str, Any], text: list[str], tokenizer: str, pipeline: str = "") -> Path:
    _write(folder / "scheduler" / "scheduler_config.json", scheduler)
    index = {
        "_class_name": pipeline or "StableDiffusionPipeline",
        "_diffusers_version": "0.6.0",
        "feature_extractor": [None, None],
        "safety_checker": [None, None],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "text_encoder": text,
        "tokenizer": ["transformers", tokenizer],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    _write(folder / "model_index.json", index)
    return folder


def _sharp(module: nn.Module, seed: int) -> nn.Module:
    """Seeded, with attention as sharp as a trained one's, so that what is read shows."""
    seeded(module, seed)
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(2.0 if p.ndim > 1 else 1.0)
    return module


def _clip(folder: Path, vocab: int, layers: int, act: str, positions: int = 77) -> None:
    config = CLIPTextConfig(
        vocab_size=vocab,
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=positions,
        hidden_act=act,
    )
    _sharp(CLIPTextModel(config), 5).save_pretrained(folder / "text_encoder")
    file = folder / "text_encoder" / "config.json"
    _write(file, {**json.loads(file.read_text()), **OLD_CLIP})


def train_spm(file: Path, lines: list[str], size: int, **options: Any) -> None:
    """A SentencePiece unigram model whose first pieces are <unk>, <s> and </s>, with no pad of its own."""
    with file.open("wb") as written:
        SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=written,
            vocab_size=size,
            model_type="unigram",
            character_coverage=1.0,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            minloglevel=2,
            **options,
        )


def rinna(folder: Path, vocabulary: Path | None = None) -> Path:
    """rinna/japanese-stable-diffusion: a SentencePiece model by itself, CLIP's text encoder with as many words.

    vocabulary: rinna's public model where it is at hand; else one of 80 pieces with the same first seven.
    """
    words = folder / "tokenizer"
    words.mkdir(parents=True)
    if vocabulary is None:
        symbols = ["[PAD]", "[CLS]", "[SEP]", "[MASK]"]
        train_spm(words / "spiece.model", [*LINES["ja"], *LINES["en"]], 80, control_symbols=symbols)
        count = 80
    else:
        (words / "spiece.model").write_bytes(vocabulary.read_bytes())
        count = 32_000
    specials = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "[PAD]"}
    specials |= {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    _write(words / "special_tokens_map.json", specials)
    _write(
        words / "tokenizer_config.json",
        {
            **specials,
            "additional_special_tokens": [],
            "do_lower_case": True,
            "extra_ids": 0,
            "name_or_path": "japanese-stable-diffusion/tokenizer",
            "special_tokens_map_file": "special_tokens_map.json",
            "tokenizer_class": "T5Tokenizer",
        },
    )
    _clip(folder, count, 3, "quick_gelu")
    _drawing_part(folder, 20)
    return _index(folder, {**LMS, "_diffusers_version": "0.8.1"}, ["transformers", "CLIPTextModel"], "T5Tokenizer")


TAIYI_PIECES = ["[PAD]", *(f"[unused{i}]" for i in range(1, 10)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TAIYI_PIECES += sorted(set("".join(LINES["zh"]))) + list("，。！,.!abcdefg") + ["##a", "##b", "cat", "red"]


def taiyi(folder: Path) -> Path:
    """svjack/Stable-Diffusion-FineTuned-zh-v0, whose text side is Taiyi-Stable-Diffusion-1B-Chinese-v0.1's: BertModel,
    texts of 512 tokens, no mask."""
    words = folder / "tokenizer"
    words.mkdir(parents=True)
    (words / "vocab.txt").write_text("\n".join([*TAIYI_PIECES, ""]), encoding="utf-8")
    names = ("cls", "mask", "pad", "sep", "unk")
    specials = {f"{name}_token": f"[{name.upper()}]" for name in names}
    _write(words / "special_tokens_map.json", specials)
    _write(
        words / "tokenizer_config.json",
        {
            **specials,
            "do_basic_tokenize": True,
            "do_lower_case": True,
            "model_max_length": 512,
            "never_split": None,
            "strip_accents": None,
            "tokenize_chinese_chars": True,
            "tokenizer_class": "BertTokenizer",
        },
    )
    config = BertConfig(
        vocab_size=len(TAIYI_PIECES),
        hidden_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=512,
    )
    _sharp(BertModel(config), 6).save_pretrained(folder / "text_encoder")
    file = folder / "text_encoder" / "config.json"
    legacy = {"pooler_fc_size": 768, "pooler_num_attention_heads": 12, "pooler_num_fc_layers": 3}
    legacy |= {"pooler_size_per_head": 128, "pooler_type": "first_token_transform", "output_past": True}
    legacy |= {"bos_token_id": 0, "eos_token_id": 2, "directionality": "bidi", "position_embedding_type": "absolute"}
    _write(file, {**json.loads(file.read_text()), **legacy})
    _drawing_part(folder, 30)
    return _index(folder, LMS, ["transformers", "BertModel"], "BertTokenizer")


def stable_diffusion(
    folder: Path, version: str = "1", *, prediction_type: str = "epsilon", inpaints: bool = False
) -> Path:
    """Stable Diffusion itself. "1": v1-4 and v1-5, PNDM. "2": padding with "!", an odd number of text layers, exact
    GELU, linear layers round the transformers, DDIM. inpaints: the UNet of 9 channels."""
    two = version == "2"
    words = folder / "tokenizer"
    words.mkdir(parents=True)
    train_clip_bpe(LINES["en"], words, 560, max_tokens=77, pad_token="!" if two else "<|endoftext|>")
    _clip(folder, 560, 3, "gelu" if two else "quick_gelu")
    _drawing_part(folder, 40 if two else 70, linear=two, inpaints=inpaints)
    ddim = {**PNDM, "_class_name": "DDIMScheduler", "_diffusers_version": "0.8.0", "prediction_type": prediction_type}
    pipeline = "StableDiffusionInpaintPipeline" if inpaints else ""
    return _index(folder, ddim if two else PNDM, ["transformers", "CLIPTextModel"], "CLIPTokenizer", pipeline)


def cool_japan(folder: Path, prediction_type: str = "epsilon") -> Path:
    """alfredplpl/cool-japan-diffusion-for-learning-2-0, and its siblings that predict v."""
    return stable_diffusion(folder, "2", prediction_type=prediction_type)


def bingsu(folder: Path) -> Path:
    """Bingsu/my-korean-stable-diffusion-v1-5 as first uploaded: CLIP's BPE retrained, no merges.txt,
    EOS at the highest id."""
    words = folder / "tokenizer"
    words.mkdir(parents=True)
    train_clip_bpe([*LINES["ko"], *LINES["en"]], words, 600, max_tokens=77)
    CLIPTokenizer.from_pretrained(words).save_pretrained(words)
    for name in ("vocab.json", "merges.txt"):
        (words / name).unlink()
    assert Backend.from_file(str(words / "tokenizer.json")).get_vocab_size() == 600
    _clip(folder, 600, 3, "quick_gelu")
    _drawing_part(folder, 50)
    return _index(folder, {**PNDM, "_diffusers_version": "0.6.0"}, ["transformers", "CLIPTextModel"], "CLIPTokenizer")


# What transformers 4 wrote into every text_config beside what differs from the defaults (a part of it).
OLD_TEXT_CONFIG: dict[str, Any] = dict.fromkeys(
    ("add_cross_attention", "is_decoder", "do_sample", "torchscript"), False
)
OLD_TEXT_CONFIG |= {"pruned_heads": {}, "bad_words_ids": None, "max_length": 20, "min_length": 0, "num_beams": 1}
OLD_TEXT_CONFIG |= {
    "temperature": 1.0,
    "top_k": 50,
    "tie_word_embeddings": True,
    "use_bfloat16": False,
    "_name_or_path": "",
}


def korean_clip(folder: Path, *, pickled: bool = False, hidden: int = WIDTH) -> Path:
    """Bingsu/clip-vit-large-patch14-ko: a CLIPModel of both halves, tokenizer.json alone beside it."""
    text = {"vocab_size": 600, "hidden_size": hidden, "intermediate_size": 64, "num_hidden_layers": 3}
    picture = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1, "image_size": 32, "patch_size": 16}
    heads = {"num_attention_heads": 4, "hidden_act": "quick_gelu"}
    model = CLIPModel(CLIPConfig(text_config=text | heads, vision_config=picture | heads, projection_dim=WIDTH))
    _sharp(model, 5).save_pretrained(folder)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["text_config"] |= OLD_TEXT_CONFIG
    _write(file, {**config, "text_config_dict": None, "vision_config_dict": None})
    if pickled:
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with TemporaryDirectory() as words:
        train_clip_bpe([*LINES["ko"], *LINES["en"]], words, 600, max_tokens=77)
        CLIPTokenizer.from_pretrained(words).save_pretrained(words)
        shutil.copyfile(f"{words}/tokenizer.json", folder / "tokenizer.json")
    return folder


def alt_diffusion(folder: Path, generation: str = "m9", *, masked: bool = True) -> Path:
    """BAAI/AltDiffusion (m2), -m9 and -m18: XLM-RoBERTa with a projection; m18's is of the last but one layer."""
    words = folder / "tokenizer"
    words.mkdir(parents=True)
    train_spm(words / "sentencepiece.bpe.model", [line for lines in LINES.values() for line in lines], 120)
    specials = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    _write(
        words / "tokenizer_config.json",
        {**specials, "model_max_length": 77, "tokenizer_class": "XLMRobertaTokenizer"},
    )
    config = RobertaSeriesConfig(
        vocab_size=122,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        project_dim=WIDTH,
        has_pre_transformation=generation == "m18",
        use_attention_mask=masked,
    )
    _sharp(RobertaSeriesModelWithTransformation(config), 7).save_pretrained(folder / "text_encoder")
    if generation == "m2":  # was published before the others' key was thought of
        file = folder / "text_encoder" / "config.json"
        said = json.loads(file.read_text())
        del said["has_pre_transformation"]
        _write(file, said)
    _drawing_part(folder, 60, linear=generation == "m18")
    ddim = {**PNDM, "_class_name": "DDIMScheduler"}
    text = ["alt_diffusion", "RobertaSeriesModelWithTransformation"]
    return _index(folder, ddim, text, "XLMRobertaTokenizer", "AltDiffusionPipeline")
