"""Licences: recognised from model cards, shown, asked for once on a terminal or by an option, recorded, handed on; and
cards that nobody should trust.
"""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from commands import Kotoe, running
from hub_server import Hub
from kotoe import hub, licences
from kotoe.checkpoints import load, save, terms
from kotoe.errors import CheckpointError, UserError
from kotoe.licences import Card
from tiny import saved_tiny

# The heads of the seeds' cards and others, as published; what they say besides is ours.
CARDS = {
    "rinna": """---
language: ja
license: other
tags: [stable-diffusion, text-to-image, japanese]
extra_gated_prompt: |-
  Access needs that you agree with the CreativeML OpenRAIL-M licence:
  1. Nothing illegal or harmful.
---
# Japanese Stable Diffusion
""",
    "bingsu": "---\nlanguage:\n- ko\nlicense: creativeml-openrail-m\n---\n# Korean\nnon-commercial data\n",
    "stable diffusion 2": "---\nlicense: openrail++\npinned: true\n---\n",
    "cool japan, first": "---\nlicense: CreativeML Open RAIL++-M-NC License\ntags:\n- text-to-image\n---\n# 学習用\n",
    "cool japan, later": "---\nlicense: other\n---\n# 2.1\nCreativeML Open RAIL++-M License に商用利用禁止を追加した\n",
    "with a name": """---
license: other
license_name: some-dev-non-commercial-license
license_link: LICENSE.md
---
It is not the CreativeML OpenRAIL-M licence.
""",
    "cc-by-nc": "---\nlicense: cc-by-nc-4.0\nlanguage: [en, 'no', sw]\n---\n",
    "bigscience": "---\nlicense: bigscience-openrail-m\n---\n",
    "other": "---\nlicense: other\n---\nAsk us, NC Design Inc.\n",
    "gate without a licence": "---\nextra_gated_prompt: Be good.\n---\n",
    "apache": "---\nlicense: apache-2.0\n---\n",
    "two": "---\nlicense: [mit, apache-2.0]\nlanguage: no\n---\n",
    "a family": "---\nlicense: cc\n---\n",
    "unknown": "---\nlicense: unknown\n---\n",
    "nothing": "---\ntags: []\n---\n",
    "empty": "---\n---\n",
    "no head": "# A model\n\n---\nlicense: mit\n---\n",
}
KINDS = {
    "rinna": ("CreativeML OpenRAIL-M", "openrail-m", "CreativeML OpenRAIL-M"),
    "bingsu": ("creativeml-openrail-m", "openrail-m", "CreativeML OpenRAIL-M"),
    "stable diffusion 2": ("openrail++", "openrail++-m", "CreativeML OpenRAIL++-M"),
    "cool japan, first": (
        "CreativeML Open RAIL++-M-NC License",
        "openrail++-m-nc",
        "CreativeML OpenRAIL++-M, non-commercial",
    ),
    "cool japan, later": (
        "CreativeML OpenRAIL++-M, non-commercial",
        "openrail++-m-nc",
        "CreativeML OpenRAIL++-M, non-commercial",
    ),
    "with a name": ("some-dev-non-commercial-license", "non-commercial", "some-dev-non-commercial-license"),
    "cc-by-nc": ("cc-by-nc-4.0", "non-commercial", "cc-by-nc-4.0"),
    "bigscience": ("bigscience-openrail-m", "own", "bigscience-openrail-m"),
    "other": ("other", "own", "other"),
    "gate without a licence": (None, "own", "a licence without a name"),
    "apache": ("apache-2.0", None, None),
    "two": ("mit, apache-2.0", None, None),
    "a family": ("cc", "own", "cc"),
    "unknown": ("unknown", None, None),
    "nothing": (None, None, None),
    "empty": (None, None, None),
    "no head": (None, None, None),
}
SEEDS = ("rinna", "stable diffusion 2", "cool japan, first")  # the three kinds


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder for configuration, empty."""
    folder = tmp_path / "config"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder))
    return folder / "kotoe" / "licences.json"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_tiny(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "model"))


@pytest.fixture
def kotoe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Kotoe:
    monkeypatch.chdir(tmp_path)
    return running(capsys)


def carded(folder: Path, card: str | bytes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "README.md").write_bytes(card if isinstance(card, bytes) else card.encode())
    return folder


def read(folder: Path, card: str | bytes) -> Card:
    found = licences.read(carded(folder, card))
    assert found is not None
    return found


# --- Recognised


@pytest.mark.parametrize("which", list(CARDS))
def test_licences_are_recognised(which: str, tmp_path: Path) -> None:
    card = read(tmp_path / "m", CARDS[which])
    terms = card.terms
    assert (card.licence, terms and terms.kind, terms and terms.title) == KINDS[which]
    assert card.reason == ""
    if terms is not None:
        said = "\n".join(terms.summary)
        assert ("harm minors" in said) is terms.kind.startswith("openrail")
        assert ("Commercial use is not allowed" in said) is (terms.kind.endswith("-nc") or "non-comm" in terms.kind)


def test_languages_are_texts(tmp_path: Path) -> None:
    """YAML's no, which is Norwegian here, is no truth value."""
    assert read(tmp_path / "m", CARDS["cc-by-nc"]).languages == ("en", "no", "sw")
    assert read(tmp_path / "m", CARDS["two"]).languages == ("no",)
    assert read(tmp_path / "m", CARDS["rinna"]).languages == ("ja",)
    assert read(tmp_path / "m", "﻿---\r\nlanguage: ko\r\nlicense: 1\r\n---\r\n").languages == ("ko",)


def test_where_the_text_is(tmp_path: Path) -> None:
    folder = carded(tmp_path / "m", CARDS["with a name"])
    there, here = licences.read(folder, page="https://hub/a/b"), licences.read(folder)
    assert there is not None
    assert here is not None
    assert there.terms is not None
    assert here.terms is not None
    assert (there.terms.text, here.terms.text) == ("https://hub/a/b/blob/main/LICENSE.md", "LICENSE.md")
    rinna = read(tmp_path / "m", CARDS["rinna"]).terms
    assert rinna is not None
    assert rinna.text == "https://huggingface.co/spaces/CompVis/stable-diffusion-license"
    assert here.terms_sha256 == there.terms_sha256


def test_without_a_card(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    assert licences.read(tmp_path / "m") is None
    stated = licences.read(tmp_path / "m", "creativeml-openrail-m")
    assert stated is not None
    assert stated.terms is not None
    assert (stated.terms.kind, stated.sha256) == ("openrail-m", None)


# --- Cards that nobody should trust

BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghijkl", "bcdefghijklm"))
BAD: dict[str, tuple[str | bytes, str]] = {
    "no yaml": ("---\nlicense: [mit\n---\n", "its front matter is no YAML ("),
    "a tab": ("---\nlicense:\n\t- mit\n---\n", "its front matter is no YAML ("),
    "bomb": (f"---\n{BOMB}license: mit\n---\n", "an alias, which stands for another part"),
    "itself": ("---\na: &a [*a]\n---\n", "an alias"),
    "list": ("---\n- license\n---\n", "its front matter is a list, not a table"),
    "text": ("---\nmit\n---\n", "its front matter is a text, not a table"),
    "twice": ("---\nlicense: mit\nlicense: other\n---\n", "key 'license' twice"),
    "table as key": ("---\n? {a: b}\n: c\n---\n", "a key that is no text"),
    "endless": ("---\nlicense: mit\n" + "# x\n" * 20_000, "its front matter doesn't end within 65536 characters"),
    "deep": ("---\na: " + "[" * 25 + "]" * 25 + "\n---\n", "nested too deeply"),
    "deeper": ("---\na: " + "[" * 30_000 + "]" * 30_000 + "\n---\n", "nested too deeply"),
    "huge": (b"---\nlicense: mit\n---\n" + b"x" * 2**21, "has 2097173 bytes"),
    "bytes": (b"---\nlicense: \xff\n---\n", "not UTF-8 at byte 13"),
    "control": ("---\nlicense: a\x07b\n---\n", "its front matter is no YAML ("),
}


@pytest.mark.parametrize("which", list(BAD))
def test_a_bad_card_has_unknown_terms(which: str, tmp_path: Path) -> None:
    card, message = BAD[which]
    began = time.process_time()
    found = read(tmp_path / "m", card)
    assert time.process_time() - began < 5
    assert message in found.reason
    assert found.reason.startswith("README.md: ")
    assert found.terms is not None
    assert (found.licence, found.name, found.terms.kind) == (None, "other", "own")


def test_nothing_in_a_card_is_called(tmp_path: Path) -> None:
    target = tmp_path / "made"
    for tag in ("object/apply:os.mkdir", "object/new:os.mkdir", "name:os.mkdir"):
        found = read(tmp_path / "m", f"---\nlicense: !!python/{tag} [{target}]\n---\n")
        assert found.licence == str(target)  # a list with a text
    assert not target.exists()


def test_cards_that_are_no_files(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("---\nlicense: mit\n---\n")
    for kind in ("folder", "pipe", "link"):
        folder = tmp_path / kind
        folder.mkdir()
        card = folder / "README.md"
        {"folder": card.mkdir, "pipe": lambda c=card: os.mkfifo(c), "link": lambda c=card: c.symlink_to(secret)}[kind]()
        found = licences.read(folder)
        assert found is not None
        assert found.licence is None
        assert "not a regular file" in found.reason or "outside the folder" in found.reason


def test_a_terminal_is_not_written_over(tmp_path: Path) -> None:
    folder = carded(tmp_path / "m", '---\nlicense: other\nlicense_name: "a\\e[2Jb\\r\\n' + "c" * 900 + '"\n---\n')
    card = licences.read(folder)
    assert card is not None
    assert card.terms is not None
    assert card.licence is not None
    assert card.licence.startswith("a [2Jb  ccc")
    assert card.licence.isprintable()
    assert card.terms.title == card.licence
    assert len(card.licence) == 200


@pytest.mark.parametrize("which", ["bomb", "no yaml"])
def test_a_model_with_a_bad_card_asks_and_the_card_is_said(which: str, kotoe: Kotoe, model: Path) -> None:
    carded(model, BAD[which][0])
    for more, code in (((), 2), (("--accept-license",), 0), ((), 0)):
        done = kotoe("generate", "a red cat", "--model", model, *more)
        assert done.code == code
        assert BAD[which][1] in done.err
    done = kotoe("inspect", model, "--json")
    assert any(BAD[which][1] in note for note in done.json["notes"])
    assert (done.json["licence"], done.json["terms"]["kind"]) == ("Apache-2.0", "own")  # kotoe.json's
    assert kotoe("convert", model, "made", "--to", "diffusers", "--accept-license").code == 0
    made = licences.read(Path("made"))
    assert made is not None
    assert made.terms is not None
    assert (made.terms.kind, made.terms.text) == ("own", "LICENSE-base.md")
    assert Path("made/LICENSE-base.md").read_text() == BAD[which][0]


# --- Asked once


@pytest.mark.parametrize("which", SEEDS)
def test_shown_asked_once_recorded(which: str, kotoe: Kotoe, model: Path, config: Path, tmp_path: Path) -> None:
    carded(model, CARDS[which])
    licence, kind, title = KINDS[which]
    done = kotoe("generate", "a red cat", "--model", model)
    assert done.code == 2
    assert f"has a licence that binds what you may do with it: {title}." in done.err
    assert "- to break a law, or to exploit or harm minors;" in done.err
    assert ("Commercial use is not allowed" in done.err) is kind.endswith("-nc")
    assert "The licence's text is what binds: " in done.err
    assert "is not accepted yet, and there is no terminal to ask on" in done.err
    assert "say so once: --accept-license" in done.err
    assert not Path("out").exists()
    assert not config.exists()
    before = kotoe("inspect", model, "--json").json
    assert before["terms"]["accepted"] is None
    done = kotoe("generate", "a red cat", "--model", model, "--accept-license")
    assert done.code == 0, done.err
    assert f"accepted; recorded in {config}" in done.err
    (entry,) = json.loads(config.read_text("utf-8"))["accepted"]
    assert (entry["model"], entry["licence"], entry["kind"]) == (str(model), licence, kind)
    assert entry["summary"] == licences.SUMMARY
    assert entry["revision"] is None
    assert len(entry["card_sha256"]) == 64
    done = kotoe("generate", "a red cat", "--model", model)
    assert done.code == 0
    assert "licence" not in done.err
    found = kotoe("inspect", model, "--json").json
    assert (found["licence"], found["terms"]["kind"], found["terms"]["title"]) == (licence, kind, title)
    assert found["terms"]["accepted"] == entry["date"]
    assert found["terms"]["summary"] == before["terms"]["summary"]
    assert found["card"]["sha256"] == entry["card_sha256"]
    assert found["card"]["license"] == {"rinna": "other", "stable diffusion 2": "openrail++"}.get(which, licence)
    plain = kotoe("inspect", model).out
    assert f"its licence binds what you may do with it: {title} (accepted {entry['date']})" in plain
    assert "- to break a law" in plain


def test_what_asks_again(
    kotoe: Kotoe, model: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asks(folder: Path) -> bool:
        licensed = licences.of(folder)
        assert licensed is not None
        return licences.accepted(licensed) is None

    carded(model, CARDS["bingsu"])
    assert kotoe("convert", model, "a", "--to", "diffusers").code == 2
    assert not Path("a").exists()
    assert kotoe("convert", model, "a", "--to", "diffusers", "--accept-license").code == 0
    assert not asks(model)
    moved = Path(shutil.copytree(model, tmp_path / "moved"))
    assert not asks(moved)  # the same card
    carded(model, CARDS["bingsu"] + "One sentence more.\n")
    assert not asks(model)  # the same licence
    carded(model, CARDS["bingsu"].replace("creativeml-openrail-m", "openrail++"))
    assert asks(model)
    carded(moved, CARDS["bingsu"] + "Another model.\n")
    assert asks(moved)
    carded(model, CARDS["bingsu"])
    assert not asks(model)
    monkeypatch.setattr(licences, "SUMMARY", licences.SUMMARY + 1)
    assert asks(model)


def test_every_verb_that_uses_a_model_asks(kotoe: Kotoe, model: Path, tiny: Path, tmp_path: Path) -> None:
    carded(model, CARDS["bingsu"])
    other = Path(shutil.copytree(tiny, tmp_path / "other"))
    picture = kotoe("generate", "a red cat", "--model", tiny, "--json").json["pictures"][0]["path"]
    verbs = (
        ("generate", "a", "--model", model),
        ("generate", "--replay", picture, "--model", model),
        ("generate", "a", "--model", tiny, "--translator", model),
        ("convert", model, "out2", "--to", "diffusers"),
        ("evaluate", "--model", model),
        ("check", "--model", model),
        ("conditioner add", other, "--language", "ko", "--from", model),
        ("localize", model, "--language", "ko", "--plan", "swap", "--student", tiny, "--run", "r"),
        ("study localization", "--base", model, "--out", "r"),
        ("localize", tiny, "--language", "ko", "--plan", "swap", "--student", model, "--run", "r"),
    )
    for verb, *arguments in verbs:
        done = kotoe(*verb.split(), *arguments)
        assert (done.code, "is not accepted yet" in done.err) == (2, True), (verb, done.err)
    assert load(other).languages == load(tiny).languages
    assert not Path("r").exists()
    done = kotoe("conditioner", "add", other, "--language", "ko", "--from", model, "--accept-license")
    assert done.code == 0, done.err


def test_the_built_in_model_and_others_without_restrictions_never_ask(kotoe: Kotoe, model: Path, config: Path) -> None:
    assert licences.of("kotoe-emoji") is None
    assert kotoe("generate", "a cat", "--steps", "1").code == 0
    for card in (None, *(CARDS[which] for which in ("apache", "two", "unknown", "nothing", "no head"))):
        if card is not None:
            carded(model, card)
        done = kotoe("generate", "a red cat", "--model", model)
        assert done.code == 0, card
        assert "licence" not in done.err
    assert not config.exists()


def test_inspect_says_that_no_licence_is_known(kotoe: Kotoe, model: Path) -> None:
    (model / "kotoe.json").unlink()
    done = kotoe("inspect", model, "--json")
    assert (done.json["licence"], done.json["terms"], done.json["card"]) == (None, None, None)
    assert "no licence is known: there is no README.md that states one" in done.json["notes"]
    plain = kotoe("inspect", model).out
    assert "licence not stated" in plain
    assert "note: no licence is known" in plain
    found = kotoe("inspect", "--json").json
    assert (found["licence"], found["terms"]) == ("apache-2.0", None)
    assert not [note for note in found["notes"] if "licence" in note]


def test_a_record_that_is_not_ours_is_an_error(kotoe: Kotoe, model: Path, config: Path) -> None:
    carded(model, CARDS["bingsu"])
    config.parent.mkdir(parents=True)
    for text in ("", "{", "[]", '{"format": 2, "accepted": []}', '{"format": 1, "accepted": [1]}'):
        config.write_text(text)
        done = kotoe("generate", "a", "--model", model, "--accept-license")
        assert done.code == 2, text
        assert str(config) in done.err
        assert "Mend it, or remove it" in done.err
        assert config.read_text() == text
        notes = kotoe("inspect", model, "--json").json["notes"]
        assert [note for note in notes if str(config) in note]


def test_a_record_that_cannot_be_written_is_said(kotoe: Kotoe, model: Path, config: Path) -> None:
    carded(model, CARDS["bingsu"])
    config.parent.parent.write_text("a file where the folder should be")
    done = kotoe("generate", "a red cat", "--model", model, "--accept-license")
    assert done.code == 0, done.err
    assert "that it is accepted can't be recorded (" in done.err


def test_the_platforms_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("APPDATA", str(tmp_path / "Roaming"))
    found = {}
    for platform in ("linux", "darwin", "win32"):
        monkeypatch.setattr(sys, "platform", platform)
        monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
        found[platform] = licences.accepted_path().relative_to(tmp_path).as_posix()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")  # to be ignored, says its specification
    assert licences.accepted_path().relative_to(tmp_path).as_posix() == found["linux"]
    assert found == {
        "linux": ".config/kotoe/licences.json",
        "darwin": "Library/Application Support/kotoe/licences.json",
        "win32": "Roaming/kotoe/licences.json",
    }


# --- On a terminal


def terminal(answer: bytes, *arguments: object) -> tuple[int, str]:
    """kotoe with a terminal for input and errors: exit code, and what the terminal showed."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "kotoe", *map(str, arguments)], stdin=theirs, stderr=theirs, stdout=subprocess.DEVNULL
    )
    os.close(theirs)
    seen, answered = b"", False
    while True:
        if not select.select([ours], [], [], 250)[0]:
            process.kill()
            raise AssertionError(seen.decode())
        try:
            piece = os.read(ours, 4096)
        except OSError:  # Linux: nobody has the other end any more
            piece = b""
        if not piece:
            break
        seen += piece
        if b"(yes/no)" in seen and not answered:
            answered = True
            os.write(ours, answer)
    os.close(ours)
    return process.wait(), seen.decode().replace("\r\n", "\n")


def test_a_terminal_asks(model: Path, config: Path, tmp_path: Path) -> None:
    carded(model, CARDS["cool japan, first"])
    command = ("convert", model, tmp_path / "out", "--to", "diffusers")
    for answer in (b"no\n", b"\n", b"\x04"):  # the last: end of input
        code, seen = terminal(answer, *command)
        assert code == 2
        assert "Commercial use is not allowed" in seen
        assert "is not accepted, and nothing was done with the model" in seen
        assert not config.exists()
        assert not (tmp_path / "out").exists()
    code, seen = terminal(b"yes\n", *command)
    assert code == 0, seen
    assert "Do you accept it? (yes/no) yes\n" in seen
    assert json.loads(config.read_text("utf-8"))["accepted"][0]["kind"] == "openrail++-m-nc"
    code, seen = terminal(b"", *command, "--overwrite")
    assert code == 0
    assert "yes/no" not in seen


# --- From the hub


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Hub]:
    found = Hub(tmp_path)
    yield found
    found.close()


def test_from_the_hub_the_card_comes_first(server: Hub, model: Path, tmp_path: Path) -> None:
    """Before its licence is accepted nothing else of a model is downloaded."""
    commit = server.put("someone/tiny", carded(model, CARDS["with a name"]))
    (model / "LICENSE.md").write_text("No money.")
    commit = server.put("someone/tiny", model)
    environment = server.environment(tmp_path / "home", PYTHONUTF8="1")

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "kotoe", *arguments]
        done = subprocess.run(command, env={**environment, **more}, capture_output=True, text=True, cwd=tmp_path)
        assert "Traceback" not in done.stderr
        return done

    draw = ("generate", "a red cat", "--model", "someone/tiny", "--json")
    before = {"README.md", "LICENSE.md", "kotoe.json"}
    done = run("inspect", "someone/tiny")
    assert done.returncode == 2
    done = run(*draw)
    assert done.returncode == 2
    assert "Commercial use is not allowed" in done.stderr
    assert f"{server.url}/someone/tiny/blob/main/LICENSE.md" in done.stderr
    assert {each["path"].rpartition("/")[2] for each in server.asked() if "/resolve/" in each["path"]} == before
    done = run(*draw, "--accept-license")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout.splitlines()[-1])["pictures"]) == 1
    record = json.loads((tmp_path / "home" / "config" / "kotoe" / "licences.json").read_text("utf-8"))
    assert [(e["model"], e["revision"]) for e in record["accepted"]] == [("someone/tiny", commit)]
    server.told()
    done = run(*draw, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    done = run("inspect", "someone/tiny", "--json")
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["licence"], found["terms"]["kind"]) == ("some-dev-non-commercial-license", "non-commercial")
    assert found["terms"]["accepted"]
    assert (Path(found["folder"]) / "LICENSE.md").read_text() == "No money."
    assert server.asked() == []


# --- Handed on


@pytest.mark.parametrize("which", ["rinna", "bingsu", "cool japan, first", "with a name", "apache"])
def test_a_converted_model_has_its_bases_licence(which: str, kotoe: Kotoe, model: Path, tmp_path: Path) -> None:
    carded(model, CARDS[which])
    (model / "LICENSE").write_text("The text that binds.")
    (model / "kotoe.json").unlink()
    assert kotoe("convert", model, "out", "--to", "diffusers", "--accept-license").code == 0
    base, made = licences.read(model), licences.read(tmp_path / "out")
    assert base is not None
    assert made is not None
    assert (made.licence, made.languages) == (base.licence, base.languages)
    assert (made.terms and made.terms.kind) == (base.terms and base.terms.kind)
    assert (tmp_path / "out" / "LICENSE").read_text() == "The text that binds."
    assert load(tmp_path / "out").licence == base.licence
    text = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "Made by Kotoe from model, whose licence it has." in text
    assert ("harm minors" in text) is (which not in ("apache", "with a name"))


def test_a_card_that_is_there_stays(model: Path, tmp_path: Path) -> None:
    carded(model, CARDS["bingsu"])
    out = save(load(model), tmp_path / "out")
    written = terms.hand_on(model, out, "someone/base@v1")
    assert written is not None
    assert 'base_model: "someone/base"' in written.read_text("utf-8")
    assert terms.hand_on(model, out, "someone/base") is None
    assert terms.hand_on(model, carded(tmp_path / "other", "# Mine\n"), "x/y") is None
    (model / "README.md").unlink()
    (out / "README.md").unlink()
    assert terms.hand_on(model, out, "someone/base") is None  # kotoe.json says it


def test_a_single_files_licence_binds_too(kotoe: Kotoe, model: Path, tmp_path: Path) -> None:
    for licence, asks in (
        ("creativeml-openrail-m", True),
        ("CreativeML OpenRAIL++-M, non-commercial", True),
        ("MIT", False),
    ):
        file = tmp_path / "m.safetensors"
        save_file({"x": torch.zeros(1)}, file, metadata={"modelspec.license": licence})
        done = kotoe("generate", "a", "--model", file, "--tokenizer", model)
        assert (done.code, "is not accepted yet" in done.err) == (2, asks)  # no model of any kind: code 2 either way
        assert ("Commercial use is not allowed" in done.err) is ("non-commercial" in licence)
    file.write_bytes(b"no safetensors")
    licensed = licences.of(file)
    assert licensed is not None
    assert licensed.card is None


def test_names_that_are_no_models() -> None:
    for name in ("no such model", "absent.safetensors", "/no/such/folder"):
        assert licences.of(name) is None
    with pytest.raises(CheckpointError, match="neither in the hub's cache nor could it be downloaded"):
        licences.of("someone/nothing")
    assert issubclass(CheckpointError, UserError)
    assert hub.CARD == "README.md"
