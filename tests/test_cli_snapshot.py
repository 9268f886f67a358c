"""The command line is frozen: a new verb or option changes docs/cli.md, and so a reviewed file."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from kotoe import cli

DOCS = Path(__file__).resolve().parent.parent / "docs"

FROZEN = {
    "generate": "prompt negative_prompt language translate_to width height steps sampler grid ending guidance_scale "
    "guidance_rescale seed n eta init_image mask strength padding_mask_crop long_prompt emphasis full_width padding "
    "punctuation dtype numerics engine decoder "
    "guidance_start guidance_stop cache_interval token_merging_ratio batch_size "
    "model out translator detector replay grid_image device low_memory "
    "fast lora embedding adapter_language lora_text taesd "
    "tokenizer ema prediction_type allow_pickle accept_license "
    "safety safety_checker safety_threshold safety_concepts prompt_check "
    "watermark c2pa c2pa_key c2pa_prompt config dry_run json",
    "verify": "pictures trust config dry_run json",
    "certificate": "folder name days config dry_run json",
    "inspect": "model allow_pickle accept_license config dry_run json",
    "convert": "source out to language dtype overwrite tokenizer ema prediction_type allow_pickle accept_license "
    "config dry_run json",
    "evaluate": "suite model languages tier n controls batch_size dtype steps guidance_scale engine decoder "
    "guidance_start guidance_stop cache_interval token_merging_ratio out "
    "fast lora embedding adapter_language lora_text taesd "
    "tokenizer ema prediction_type allow_pickle accept_license config dry_run json",
    "train": "recipe run size device seed set config dry_run json",
    "localize": "base language run serves plan pairs images caption_column image_column resolution crop resample "
    "latents cache out tokenizer vocab_size start student allow_pickle steps batch_size lr schedule warmup_steps "
    "weight_decay beta2 ema weighting dropout long_prompt seed device dtype overwrite log_every threads checkpointing "
    "shard accept_license config dry_run json",
    "conditioner add": "bundle language from_ serves source_language own_language overwrite allow_pickle "
    "accept_license config dry_run json",
    "conditioner remove": "bundle language config dry_run json",
    "data pairs": "language out count tier seed split overwrite config dry_run json",
    "tokenizer train": "texts out family vocab_size column max_tokens model_type normalization byte_fallback "
    "character_coverage lower_case pad_token overwrite config dry_run json",
    "tokenizer report": "texts tokenizer column limit out config dry_run json",
    "study localization": "out base allow_pickle languages plans starts budgets n count tier seed dtype threads "
    "accept_license config dry_run json",
    "serve": "model host port keys cors store keep_hours max_pixels max_steps max_n max_prompt_chars max_body_mb "
    "max_waiting rate body_seconds together deterministic schedule log_prompts fetch_urls ray ray_address "
    "min_replicas max_replicas replica_cpus device dtype safety safety_checker safety_threshold "
    "safety_concepts prompt_check watermark c2pa c2pa_key c2pa_prompt "
    "fast lora embedding adapter_language lora_text taesd tokenizer ema prediction_type "
    "allow_pickle accept_license config dry_run json",
    "bench": "model rounds engine dtype width height steps batch_size card "
    "tokenizer ema prediction_type allow_pickle accept_license config dry_run json",
    "check": "model tokenizer ema prediction_type allow_pickle accept_license config dry_run json",
}


def test_verbs_and_options_are_these() -> None:
    assert {name: " ".join(cli.options(verb)) for name, verb in cli.VERBS.items()} == FROZEN


def test_the_page_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("make_cli", DOCS / "make_cli.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (DOCS / "cli.md").read_text("utf-8") == module.page(), "run: python docs/make_cli.py"


@pytest.mark.parametrize("verb", list(FROZEN))
def test_every_option_has_help(verb: str) -> None:
    for name, (_, _, text) in cli.options(cli.VERBS[verb]).items():
        assert len(text) > 5, name
    for width in (40, 80, 200):
        text = cli.help_text(verb, width)
        prose = [line for line in text.splitlines() if not line.startswith("    kotoe ")]
        assert max(map(len, prose)) <= max(width, 110), prose


def test_help_is_generated_from_the_parameters() -> None:
    """What help shows is what parsing takes."""
    for name in FROZEN:
        parameters = list(cli._signature(cli.VERBS[name]).parameters)
        assert sorted(parameters) == sorted(cli.options(cli.VERBS[name]))
