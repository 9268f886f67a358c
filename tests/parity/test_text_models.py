"""`kotoe conditioner add --from` the repository of a text model: the states are those of its own text half."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    BertModel,
    CLIPModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
)

import seeds
from kotoe import cli
from kotoe.checkpoints import load
from kotoe.checkpoints.conditioners import add, read, swap
from kotoe.checkpoints.files import Folder
from kotoe.checkpoints.text_models import is_text_model
from kotoe.config import Request
from kotoe.drawing import generate
from kotoe.errors import CheckpointError, UserError
from kotoe.text import Conditioner
from seeds import RobertaSeriesModelWithTransformation
from tiny import edit, saved_tiny

TEXTS = ["파란 배경의 고양이", "a red cat"]
TOLERANCE = 1e-5  # of the largest state


def apart(conditioner: Conditioner, model: torch.nn.Module) -> float:
    """How far the states are from a transformers model's, of the largest. Ids are the tokenizer's."""
    context = conditioner.encode(TEXTS)
    with torch.no_grad():
        stock: Tensor = model(torch.tensor(context.tokens.ids)).last_hidden_state
    ours = context.states.detach()
    return float((ours - stock).abs().max() / stock.abs().max())


def as_repository(checkpoint: Path, folder: Path) -> Path:
    """The text encoder and tokenizer of a checkpoint in one folder, as a text model's own repository has them."""
    shutil.copytree(checkpoint / "text_encoder", folder)
    return Path(shutil.copytree(checkpoint / "tokenizer", folder, dirs_exist_ok=True))


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
def test_clip(pickled: bool, tmp_path: Path) -> None:
    """Bingsu/clip-vit-large-patch14-ko: the text half of a CLIPModel, with tokenizer.json alone."""
    ours, theirs = saved_tiny(tmp_path / "m"), seeds.korean_clip(tmp_path / "clip", pickled=pickled)
    assert {p.name for p in theirs.iterdir()} == {
        "config.json", "tokenizer.json", "pytorch_model.bin" if pickled else "model.safetensors",
    }  # fmt: skip
    notes: list[str] = []
    place = add(ours, "ko", theirs, allow_pickle=pickled, on_note=notes.append)
    (note,) = notes
    assert "logit_scale, text_projection, vision_model, visual_projection" in note
    written = load_file(place / "text_encoder/model.safetensors")
    assert all(name.startswith("text_model.") for name in written)
    conditioner = load(ours, dtype="float32").conditioner("ko")  # no pickle any more

    assert conditioner.tokenizer.max_tokens == 77
    stock_words = CLIPTokenizer.from_pretrained(theirs, model_max_length=77)
    assert conditioner.tokenizer.encode(TEXTS).ids == stock_words(TEXTS, padding="max_length").input_ids
    stock = CLIPModel.from_pretrained(theirs).text_model
    assert apart(conditioner, stock) < TOLERANCE
    # The faults that it would show: another activation, and a layer's weight of the other half's norm.
    edit(place / "text_encoder/config.json", hidden_act="gelu")
    assert apart(load(ours, dtype="float32").conditioner("ko"), stock) > 10 * TOLERANCE
    edit(place / "text_encoder/config.json", hidden_act="quick_gelu")
    with torch.no_grad():
        stock.final_layer_norm.weight.add_(0.01)
    assert apart(conditioner, stock) > 10 * TOLERANCE


def test_other_text_models(tmp_path: Path) -> None:
    """CLIP's text half alone with a projection, BERT, and AltDiffusion's XLM-R: as their checkpoints' own encoders."""
    clip = CLIPModel.from_pretrained(seeds.korean_clip(tmp_path / "whole"))
    half = CLIPTextModelWithProjection(clip.config.text_config)
    half.text_model.load_state_dict(clip.text_model.state_dict())
    half.save_pretrained(tmp_path / "clip")
    shutil.copyfile(tmp_path / "whole/tokenizer.json", tmp_path / "clip/tokenizer.json")
    bert = as_repository(seeds.taiyi(tmp_path / "zh"), tmp_path / "bert")
    xlm = as_repository(seeds.alt_diffusion(tmp_path / "alt", "m18"), tmp_path / "xlm")
    models: dict[Path, tuple[Callable[..., torch.nn.Module], str]] = {
        tmp_path / "clip": (lambda path: clip.text_model, "text_projection"),
        bert: (BertModel.from_pretrained, "pooler"),
    }
    for path, (make, left) in models.items():
        found = read(path, "ko", dtype="float32")
        assert apart(found.conditioner, make(path).eval()) < TOLERANCE, path
        assert left in " ".join(found.notes)
    found = read(xlm, "ko", dtype="float32")
    context = found.conditioner.encode(TEXTS)
    stock = RobertaSeriesModelWithTransformation.from_pretrained(xlm).eval()
    ids = torch.tensor(context.tokens.ids)
    with torch.no_grad():
        context_states = context.states.detach()
        states = stock(ids, attention_mask=(ids != 1).long()).projection_state
    assert float((context_states - states).abs().max() / states.abs().max()) < TOLERANCE
    ours = saved_tiny(tmp_path / "m")
    for language, path in (("ko", tmp_path / "clip"), ("zh", bert), ("ar", xlm)):
        add(ours, language, path)
    bundle = load(ours, dtype="float32")
    assert bundle.languages == ("en", "ko", "zh", "ar")
    for language, path in (("ko", tmp_path / "clip"), ("zh", bert), ("ar", xlm)):
        written = bundle.conditioner(language).encode(TEXTS).states
        assert torch.equal(written, read(path, language, dtype="float32").conditioner.encode(TEXTS).states)


def test_swapped_in_memory_it_draws_what_the_added_one_draws(tmp_path: Path) -> None:
    theirs = seeds.korean_clip(tmp_path / "clip")
    ours = saved_tiny(tmp_path / "m")
    swapped = swap(load(ours, dtype="float32"), "ko", read(theirs, "ko", dtype="float32").conditioner)
    add(ours, "ko", theirs)
    request = Request(prompt=TEXTS[0], language="ko", seed=3, steps=2)
    one, two = (generate(bundle, request)[0] for bundle in (swapped, load(ours, dtype="float32")))
    assert one.image.tobytes() == two.image.tobytes()


def test_pickled_weights_of_a_checkpoint(tmp_path: Path) -> None:
    """Not its own repository: the .bin of a text_encoder/, written as safetensors, the same tensors."""
    theirs = seeds.bingsu(tmp_path / "ko")
    tensors = load_file(theirs / "text_encoder/model.safetensors")
    torch.save(tensors, theirs / "text_encoder/pytorch_model.bin")
    (theirs / "text_encoder/model.safetensors").unlink()
    ours = saved_tiny(tmp_path / "m")
    with pytest.raises(CheckpointError, match="is a pickle.*--allow-pickle"):
        add(ours, "ko", theirs)
    place = add(ours, "ko", theirs, allow_pickle=True)
    assert files(place / "text_encoder") == ["config.json", "model.safetensors"]
    written = load_file(place / "text_encoder/model.safetensors")
    prefix = "" if all(name.startswith("text_model.") for name in tensors) else "text_model."
    assert written.keys() == {prefix + name for name in tensors}
    assert all(torch.equal(written[prefix + name], t) for name, t in tensors.items())


def vision_only(folder: Path) -> Path:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=32, patch_size=16)).save_pretrained(folder)
    return folder


def changed(**keys: object) -> Callable[[Path], Path]:
    """A CLIPModel with other values in its text_config."""

    def make(folder: Path) -> Path:
        file = seeds.korean_clip(folder) / "config.json"
        config = json.loads(file.read_text())
        edit(file, text_config={**config["text_config"], **keys})
        return folder

    return make


def narrow(folder: Path) -> Path:
    """A CLIPModel whose projection is as wide as the UNet reads, and whose states, which it would read, are not."""
    return seeds.korean_clip(folder, hidden=24)


def no_tokenizer(folder: Path) -> Path:
    (seeds.korean_clip(folder) / "tokenizer.json").unlink()
    return folder


def of_pictures(folder: Path) -> Path:
    """A CLIPModel's repository whose weights lost the text half."""
    file = seeds.korean_clip(folder) / "model.safetensors"
    kept = {name: t for name, t in load_file(file).items() if not name.startswith("text_model.")}
    save_file(kept, file, metadata={"format": "pt"})
    return folder


def masked_heads(folder: Path) -> Path:
    edit(as_repository(seeds.taiyi(folder.with_name("zh")), folder) / "config.json", architectures=["BertForMaskedLM"])
    return folder


def other_table(folder: Path) -> Path:
    edit(seeds.korean_clip(folder) / "config.json", text_config_dict={"hidden_act": "gelu"})
    return folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (vision_only, "no text encoder that a UNet here reads.*A model of pictures alone"),
        (of_pictures, r"text_model\.\S+ \[.*is missing"),
        (
            narrow,
            r"its projection\): states 24 wide for a UNet that reads 32",
        ),
        (lambda p: seeds.korean_clip(p, pickled=True), r"pytorch_model.bin is a pickle.*--allow-pickle"),
        (changed(num_hidden_layers=4), r"text_model\.encoder\.layers\.3"),
        (changed(vocab_size=560), "560 embeddings for a tokenizer of 600 ids"),
        (changed(is_decoder=True), "is_decoder is True"),
        (changed(rope_theta=1.0), "unknown key 'rope_theta'"),
        (other_table, "text_config_dict is .*Allowed: null, or what text_config says"),
        (no_tokenizer, "no tokenizer that Kotoe reads"),
        (masked_heads, r"architectures \['BertForMaskedLM'\].*Allowed: CLIPModel, .*BertModel"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_can_not_be_read_is_one_error_and_nothing_is_written(
    make: Callable[[Path], Path], message: str, tmp_path: Path
) -> None:
    ours = saved_tiny(tmp_path / "m")
    before, card = files(ours), (ours / "kotoe.json").read_bytes()
    theirs = make(tmp_path / "theirs")
    assert is_text_model(Folder(theirs))
    with pytest.raises(CheckpointError, match=message):
        add(ours, "ko", theirs)
    assert (files(ours), (ours / "kotoe.json").read_bytes()) == (before, card)


def test_the_verb_says_what_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = saved_tiny(tmp_path / "m"), seeds.korean_clip(tmp_path / "clip", pickled=True)
    arguments = ["conditioner", "add", str(ours), "--language", "ko", "--from", str(theirs)]
    assert cli.run(arguments) == 2
    assert "--allow-pickle" in capsys.readouterr().err
    assert cli.run([*arguments, "--allow-pickle", "--dry-run"]) == 0
    assert load(ours).languages == ("en",)
    assert "note: clip: " in capsys.readouterr().err
    assert cli.run([*arguments, "--allow-pickle", "--json"]) == 0
    done = capsys.readouterr()
    assert "vision_model" in done.err
    assert json.loads(done.out.splitlines()[-1])["languages"] == ["en", "ko"]
    with pytest.raises(UserError, match="source language ko of a repository of one text model"):
        read(theirs, "ko", source_language="ko", allow_pickle=True)
