"""One UNet, many languages: conditioners added, exchanged and taken away, the rest untouched to the bit."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import seeds
from kotoe import cli
from kotoe.checkpoints import Bundle, load, save
from kotoe.checkpoints.bundle import conditioner_hashes
from kotoe.checkpoints.conditioners import add, remove, swap
from kotoe.config import Request
from kotoe.drawing import generate
from kotoe.errors import CheckpointError, UserError
from tiny import apart, edit, latents_decoded, saved_tiny, tiny_bundle, tiny_conditioner

LINES = {"en": "a red cat", "ja": "青い背景に猫", "zh": "绿树左边的两只狗", "ko": "파란 배경의 고양이"}


def contents(folder: Path) -> dict[str, str]:
    """Every file's sha256 by its path in the folder, but kotoe.json's."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "kotoe.json")
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_added_and_removed_the_rest_is_the_same_to_the_bit(tmp_path: Path) -> None:
    ours, theirs = saved_tiny(tmp_path / "m"), saved_tiny(tmp_path / "zh", languages=("zh",), seed=9)
    before, card = contents(ours), json.loads((ours / "kotoe.json").read_text())
    drawn = generate(load(ours), Request(prompt=LINES["en"], seed=3))[0]
    place = add(ours, "zh", theirs)
    assert place == ours.resolve() / "conditioners/zh"
    bundle = load(ours)
    assert bundle.languages == ("en", "zh")
    added = {k: v for k, v in contents(ours).items() if k not in before}
    assert {k: v for k, v in contents(ours).items() if k in before} == before
    assert added["conditioners/zh/text_encoder/model.safetensors"] == contents(theirs)["text_encoder/model.safetensors"]
    assert conditioner_hashes(bundle.conditioner("zh")) == conditioner_hashes(load(theirs).conditioner("zh"))
    again = generate(bundle, Request(prompt=LINES["en"], seed=3, language="en"))[0]
    assert again.image.tobytes() == drawn.image.tobytes()
    remove(ours, "zh")
    assert contents(ours) == before
    assert json.loads((ours / "kotoe.json").read_text()) == card


def test_four_languages_in_one_batch_are_four_pictures_alone() -> None:
    bundle = tiny_bundle(languages=("en",))
    for k, language in enumerate(("ja", "zh", "ko")):
        bundle = swap(bundle, language, tiny_conditioner(language, 32, seed=10 + k))
    assert swap(bundle, "zh", tiny_conditioner("zh", 32)).languages == tuple(LINES)  # keeps its place
    prompts = tuple(LINES[x] for x in bundle.languages)
    assert bundle.languages == tuple(LINES)
    together = generate(bundle, Request(prompt=prompts, seed=3, batch_size=4))
    assert [p.record.conditioner.language for p in together] == list(LINES)
    assert len({p.record.conditioner.text_encoder_sha256 for p in together}) == 4
    for prompt, picture in zip(prompts, together, strict=True):
        (alone,) = generate(bundle, Request(prompt=prompt, language=picture.record.conditioner.language, seed=3))
        assert alone.image.tobytes() == picture.image.tobytes()


def test_four_systems_texts_read_by_one_unet(tmp_path: Path) -> None:
    """Stable Diffusion with rinna's, Taiyi's and Bingsu's text sides beside its own: four prompts in one go are the
    pictures of four runs, to the bit by default, and to rounding where they share a batch."""
    ours = seeds.stable_diffusion(tmp_path / "en")
    sources = {"ja": seeds.rinna, "zh": seeds.taiyi, "ko": seeds.bingsu}
    for language, make in sources.items():
        before = contents(ours)
        add(ours, language, make(tmp_path / language))
        assert {k: v for k, v in contents(ours).items() if k in before} == before, language
    bundle = load(ours, dtype="float32")
    assert [bundle.conditioner(x).tokenizer.kind for x in bundle.languages] == [
        "clip-bpe", "sentencepiece", "wordpiece", "clip-bpe",
    ]  # fmt: skip
    prompts, options = tuple(LINES.values()), {"steps": 3, "seed": 3}

    def drawn(bundle: Bundle, prompt: str | tuple[str, ...], **changes: Any) -> list[Tensor]:
        with latents_decoded() as ends:
            pictures = generate(bundle, Request(prompt=prompt, **options, **changes))
        said = [p.record.conditioner.language for p in pictures]
        assert said == [changes.get("language", language) for language, line in LINES.items() if line in prompt]
        return ends

    together, batched = drawn(bundle, prompts), drawn(bundle, prompts, batch_size=4)
    for k, (language, prompt) in enumerate(LINES.items()):
        (alone,) = drawn(bundle, prompt)
        assert torch.equal(together[k], alone), language
        assert apart(batched[k], alone) < 1e-5, language
        others = {"zh": "ja", "ja": "ko"}.get(language, "zh")  # the fault: read by another of the four
        assert apart(drawn(bundle, prompt, language=others)[0], alone) > 1e-3, language
    remove(ours, "zh")  # the one in the middle
    kept = load(ours, dtype="float32")
    assert kept.languages == ("en", "ja", "ko")
    assert torch.equal(drawn(kept, LINES["ko"])[0], together[3])
    networks = [(bundle.unet, kept.unet), (bundle.vae, kept.vae)]
    networks += [(bundle.conditioner(x).encoder, kept.conditioner(x).encoder) for x in kept.languages]
    for one, other in networks:
        assert all(torch.equal(t, other.state_dict()[name]) for name, t in one.state_dict().items())


def test_texts_of_512_and_77_tokens_are_drawn_side_by_side(tmp_path: Path) -> None:
    """Taiyi's BERT beside CLIP: contexts of other lengths, the same pictures as alone."""
    ours = seeds.bingsu(tmp_path / "ko")
    add(ours, "zh", seeds.taiyi(tmp_path / "zh"))
    bundle = load(ours, dtype="float32")
    assert [bundle.conditioner(x).tokenizer.max_tokens for x in bundle.languages] == [77, 512]
    prompts = (LINES["en"], LINES["zh"], "a dog")
    options = {"steps": 2, "seed": 3}
    together = generate(bundle, Request(prompt=prompts, batch_size=3, **options))
    assert [p.record.conditioner.language for p in together] == ["und", "zh", "und"]
    for prompt, picture in zip(prompts, together, strict=True):
        (alone,) = generate(bundle, Request(prompt=prompt, **options))
        assert alone.image.tobytes() == picture.image.tobytes()


def test_bingsus_encoder_on_another_sd1_model(tmp_path: Path) -> None:
    """`swap`: same width, own vocabulary; drawn as a folder that had it from the start, by the same UNet."""
    korean = load(seeds.bingsu(tmp_path / "ko"), dtype="float32").conditioner()
    bundle = tiny_bundle()
    swapped = swap(bundle, "en", korean)
    assert swapped.languages == ("en",)
    assert swapped.unet is bundle.unet
    assert bundle.conditioner() is not korean  # the bundle it was made from is as it was
    ours = generate(swapped, Request(prompt=LINES["ko"], language="en", seed=3))[0]
    folder = save(replace(bundle, conditioners={"en": korean}), tmp_path / "m")
    theirs = generate(load(folder, dtype="float32"), Request(prompt=LINES["ko"], language="en", seed=3))[0]
    assert ours.image.tobytes() == theirs.image.tobytes()


def test_replay_refuses_another_encoder_or_tokenizer(tmp_path: Path) -> None:
    ours = saved_tiny(tmp_path / "m")
    add(ours, "ja", saved_tiny(tmp_path / "a", languages=("ja",), seed=5))
    assert cli.run(["generate", LINES["ja"], "--model", str(ours), "--out", str(tmp_path / "out")]) == 0
    (picture,) = (tmp_path / "out").glob("*.png")
    replay = ["generate", "--replay", str(picture), "--model", str(ours), "--out", str(tmp_path / "again")]
    assert cli.run(replay) == 0
    add(ours, "ja", saved_tiny(tmp_path / "b", languages=("ja",), seed=6), overwrite=True)
    assert cli.run(replay) == 2


def wrong_width(path: Path) -> Path:
    return save(tiny_bundle().changed(
        conditioners={"ja": tiny_conditioner("ja", 48)}, default_language="ja",
    ), path)  # fmt: skip


def fewer_rows(path: Path) -> Path:
    """A tokenizer whose ids the embedding table has no rows for."""
    folder = saved_tiny(path, languages=("ja",))
    shutil.rmtree(folder / "tokenizer")
    tiny_bundle().conditioner().tokenizer.save(_made(folder / "tokenizer"))
    return folder


def _made(path: Path) -> Path:
    path.mkdir()
    return path


def without_layer(path: Path) -> Path:
    folder = saved_tiny(path, languages=("ja",))
    edit(folder / "text_encoder/config.json", num_hidden_layers=3)
    return folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (wrong_width, "states 48 wide for a UNet that reads 32"),
        (fewer_rows, "300 embeddings for a tokenizer of 560 ids"),
        (without_layer, r"text_model\.encoder\.layers\.2"),
        (lambda path: seeds.alt_diffusion(path.with_name("x"))  and _alt_with_width(path), "states 24 wide"),
    ],
    ids=["width", "vocabulary", "layer", "projection"],
)  # fmt: skip
def test_what_does_not_fit_is_one_error_and_nothing_is_written(make: object, message: str, tmp_path: Path) -> None:
    ours = saved_tiny(tmp_path / "m")
    before = contents(ours), (ours / "kotoe.json").read_bytes()
    theirs = make(tmp_path / "theirs")  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=message):
        add(ours, "ja", theirs)
    assert (contents(ours), (ours / "kotoe.json").read_bytes()) == before
    assert not (ours / "conditioners").exists() or not list((ours / "conditioners").iterdir())


def _alt_with_width(path: Path) -> Path:
    """An AltDiffusion whose projection is narrower than the UNet reads."""
    from kotoe.bert import BertText
    from kotoe.text import Conditioner

    folder = path.with_name("x")
    given = load(folder, dtype="float32").conditioner()
    narrow = Conditioner("und", given.tokenizer, BertText(replace(given.encoder.spec, projection_dim=24)))
    return save(replace(load(folder, dtype="float32"), conditioners={"und": narrow}), path)


def test_bad_requests_are_explained(tmp_path: Path) -> None:
    ours = saved_tiny(tmp_path / "m", languages=("en", "ja"))
    other = saved_tiny(tmp_path / "o", languages=("zh", "ko"))
    for arguments, message in (
        ((ours, "en", other), "own text encoder"),
        ((ours, "ja", other), "has a conditioner for ja"),
        ((ours, "../x", other), "BCP 47"),
        ((ours, "JA", other), "has a conditioner for ja"),
        ((tmp_path / "nowhere", "zh", other), "no checkpoint folder"),
        (("kotoe-emoji", "zh", other), "Save a copy"),
    ):
        with pytest.raises(UserError, match=message):
            add(*arguments)
    with pytest.raises(UserError, match="unknown source language 'fr'"):
        add(ours, "fr", other, source_language="fr")
    with pytest.raises(UserError, match="own text encoder, which stays"):
        remove(ours, "en")
    with pytest.raises(UserError, match="unknown language 'zh'"):
        remove(ours, "zh")


def test_a_folder_that_diffusers_wrote_gets_a_card_and_a_language(tmp_path: Path) -> None:
    ours = seeds.cool_japan(tmp_path / "m")
    add(ours, "ja", seeds.rinna(tmp_path / "r"))
    bundle = load(ours, dtype="float32")
    assert bundle.languages == ("en", "ja")
    assert bundle.family == "sd2"
    assert bundle.conditioner("ja").encode([LINES["ja"]]).states.shape == (1, 77, seeds.WIDTH)


def test_the_verbs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours, other = saved_tiny(tmp_path / "m"), saved_tiny(tmp_path / "o", languages=("zh", "ko"))
    arguments = ["conditioner", "add", str(ours), "--language", "ko", "--from", str(other)]
    assert cli.run([*arguments, "--dry-run"]) == 0
    assert load(ours).languages == ("en",)
    capsys.readouterr()
    assert cli.run([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["languages"] == ["en", "ko"]
    added = load(ours).conditioner("ko").encoder.state_dict()
    assert all(torch.equal(t, added[k]) for k, t in load(other).conditioner("ko").encoder.state_dict().items())
    assert cli.run(arguments) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert cli.run([*arguments, "--overwrite"]) == 0
    assert cli.run(["conditioner", "remove", str(ours), "--language", "ko"]) == 0
    assert load(ours).languages == ("en",)


def test_the_folders_own_language_can_be_named(tmp_path: Path) -> None:
    """Bingsu's files don't say that they are Korean."""
    ours, theirs = seeds.bingsu(tmp_path / "ours"), seeds.rinna(tmp_path / "theirs")
    add(ours, "ja", theirs, own_language="ko")
    bundle = load(ours)
    assert bundle.languages == ("ko", "ja")
    with pytest.raises(UserError, match="own language en for ours, whose own is ko"):
        add(ours, "zh", theirs, source_language=None, own_language="en")
    with pytest.raises(UserError, match="own language '1'"):
        add(seeds.bingsu(tmp_path / "again"), "ja", theirs, own_language="1")


def test_several_languages_have_one_conditioner(tmp_path: Path) -> None:
    ours, theirs = saved_tiny(tmp_path / "m"), saved_tiny(tmp_path / "many", languages=("zh",), seed=9)
    before, card = contents(ours), json.loads((ours / "kotoe.json").read_text())
    assert add(ours, "mul", theirs, serves=("zh", "yue")) == ours.resolve() / "conditioners/mul"
    bundle = load(ours)
    assert bundle.languages == ("en", "zh", "yue")
    assert bundle.conditioner("yue").encoder is bundle.conditioner("zh").encoder
    assert [bundle.conditioner(tag).language for tag in ("zh", "yue")] == ["zh", "yue"]
    added = {k for k in contents(ours) if k not in before}
    assert added
    assert {name.split("/")[1] for name in added} == {"mul"}

    again = save(bundle, tmp_path / "again")  # once on disk, too
    assert contents(again).keys() == contents(ours).keys()
    assert json.loads((again / "kotoe.json").read_text())["read_by"] == {"zh": "mul", "yue": "mul"}
    assert load(again).conditioner("zh").encoder is not load(again).conditioner("en").encoder
    own = swap(bundle, "fr", bundle.conditioner("en"))  # what the folder's own reads too
    with_own = save(own, tmp_path / "own")
    assert load(with_own).conditioner("fr").tokenizer.sha256 == load(with_own).conditioner("en").tokenizer.sha256
    assert not (with_own / "conditioners/fr").exists()
    assert added_from(saved_tiny(tmp_path / "to"), "fr", with_own) == bundle.conditioner("en").tokenizer.sha256

    with pytest.raises(UserError, match="mul is the name of the conditioner of yue, zh"):
        add(ours, "mul", theirs)
    with pytest.raises(UserError, match="has a conditioner for zh.*Take it out first"):
        add(ours, "mul-x-1", theirs, serves=("zh", "ja"))
    add(ours, "zh", theirs, overwrite=True)  # one of its own
    assert load(ours).conditioner("yue").encoder is not load(ours).conditioner("zh").encoder
    remove(ours, "zh")
    assert {name for name in contents(ours) if name not in before} == added
    remove(ours, "yue")  # the last: now the files go too
    assert contents(ours) == before
    assert json.loads((ours / "kotoe.json").read_text()) == card


def added_from(folder: Path, language: str, source: Path) -> str:
    add(folder, language, source)
    return load(folder).conditioner(language).tokenizer.sha256


@pytest.mark.parametrize(
    "read_by", [["zh"], {"zh": 1}, {"en": "mul"}, {"de": "mul"}, {"zh": "../../elsewhere"}, {"zh": ""}]
)
def test_a_card_that_says_nonsense_of_who_reads_what_is_refused(read_by: Any, tmp_path: Path) -> None:
    ours = saved_tiny(tmp_path / "m", languages=("en", "zh"))
    edit(ours / "kotoe.json", read_by=read_by)
    with pytest.raises(CheckpointError, match="read_by"):
        load(ours)
