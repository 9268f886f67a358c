"""Traps of the text side (docs/numerics.md): where respected implementations silently disagree, ours is stated here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from kotoe import drawing as g
from kotoe.checkpoints import load
from kotoe.checkpoints.diffusers import stock_text
from kotoe.config import Request
from kotoe.errors import CheckpointError
from kotoe.reading import read_prompts
from kotoe.text import CLIPText, Conditioner
from tiny import POSITIONS, saved_tiny, seeded, tiny_bundle, tiny_conditioner

TOLERANCE = 1e-5


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_T1_pad_token_and_length(family: str, tmp_path: Path) -> None:
    """T1: the pad id is the checkpoint's own, and every text is exactly L tokens, however short."""
    folder = saved_tiny(tmp_path / "m", family)
    conditioner = load(folder, dtype="float32").conditioner()
    stock = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    text = "a red cat"
    row = conditioner.tokenizer.encode([text]).ids[0]
    assert len(row) == POSITIONS == conditioner.encoder.spec.max_tokens
    assert conditioner.tokenizer.pad == conditioner.encoder.spec.pad == (0 if family == "sd2" else 559)
    assert row == stock(text, padding="max_length", max_length=POSITIONS).input_ids
    assert conditioner.encode([text, ""]).states.shape == (2, POSITIONS, 32)

    # the fault: EOS as the pad of SD 2.x (as KerasCV), or no padding at all (as mlx), draws from other states
    states = conditioner.encode([text]).states
    end = row.index(conditioner.tokenizer.eos) + 1
    if family == "sd2":
        wrong = [*row[:end], *[conditioner.tokenizer.eos] * (POSITIONS - end)]
        assert (conditioner.encoder(torch.tensor([wrong])) - states).abs().max() > 0.1
    assert conditioner.encoder(torch.tensor([row[:end]])).shape != states.shape


@pytest.mark.parametrize(("family", "act"), [("sd1", "quick_gelu"), ("sd2", "gelu")])
def test_T14_which_text_layer(family: str, act: str, tmp_path: Path) -> None:
    """T14: SD 1.x reads the last layer, SD 2.x the last but one, both after the final norm.

    A penultimate-layer encoder is written as the encoder one layer shorter that stock CLIPTextModel can be, and gives
    the same states there and here.
    """
    bundle = tiny_bundle(family)
    base = tiny_conditioner("en", 32, family)
    assert base.encoder.spec.hidden_act == act
    spec = replace(base.encoder.spec, num_layers=3, layer=-2 if family == "sd2" else -1)
    encoder = seeded(CLIPText(spec), 5)
    bundle = bundle.changed(conditioners={"en": Conditioner("en", base.tokenizer, encoder)})
    from kotoe.checkpoints import save

    folder = save(bundle, tmp_path / "m")
    ids = torch.tensor(base.tokenizer.encode(["a red cat on a dog", ""]).ids)
    with torch.no_grad():
        states = encoder(ids)
        stock = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()(ids).last_hidden_state
        again = load(folder, dtype="float32").conditioner().encoder
        assert again.spec.num_layers == (2 if family == "sd2" else 3)
        assert (stock - states).abs().max() < TOLERANCE * states.abs().max()
        assert torch.equal(again(ids), states)
        # the faults: the other layer, and no final norm
        other = seeded(CLIPText(replace(spec, layer=-1 if family == "sd2" else -2)), 5)
        bare = seeded(CLIPText(replace(spec, final_norm=False)), 5)
        assert (other(ids) - states).abs().max() > 0.1
        assert (bare(ids) - states).abs().max() > 0.1
    with pytest.raises(CheckpointError, match="without its final norm"):
        stock_text(bare)


def test_T13_no_negative_prompt_is_the_empty_text_read(tmp_path: Path) -> None:
    """T13: guidance leaves from the states of "", as stock's do, not from zeros (as some trainers have it)."""
    folder = saved_tiny(tmp_path / "m")
    bundle = load(folder, dtype="float32")
    request = g.resolve(bundle, Request(prompt="a red cat", language="en"))
    negative = read_prompts(bundle, request, g.plan(bundle, request))["en", "a red cat"].negative
    assert negative is not None
    stock = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    ids = stock([""], padding="max_length", max_length=POSITIONS, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()(ids).last_hidden_state
    assert (negative - expected).abs().max() < TOLERANCE * expected.abs().max()
    assert (torch.zeros_like(negative) - expected).abs().max() > 0.1


def test_T14_layers_are_asserted_against_the_tensors(tmp_path: Path) -> None:
    """A config that says 23 layers over the tensors of 24 is refused, not half-loaded; and the other way round."""
    folder = saved_tiny(tmp_path / "m")
    path = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    extra = {k.replace("layers.1.", "layers.2."): v.clone() for k, v in tensors.items() if "layers.1." in k}
    save_file({**tensors, **extra}, path)
    with pytest.raises(CheckpointError, match=r"layers\.2\.[\w.]+ \[.*\] is extra"):
        load(folder).conditioner()
    save_file({k: v for k, v in tensors.items() if "layers.1." not in k}, path)
    with pytest.raises(CheckpointError, match=r"layers\.1\.[\w.]+ \[.*\] is missing"):
        load(folder).conditioner()
    save_file({**tensors, "text_projection.weight": torch.zeros(8, 32)}, path)
    with pytest.raises(CheckpointError, match=r"text_projection\.weight .* is extra"):
        load(folder).conditioner()
