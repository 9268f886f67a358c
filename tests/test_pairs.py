"""Parallel text of the emoji world: both sides say the same scene, of combinations that the split allows."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kotoe import cli
from kotoe.data.captions import LANGUAGES
from kotoe.data.cldr import load_objects
from kotoe.data.emoji import Scene, held_out_colour, held_out_pair
from kotoe.data.pairs import pairs
from kotoe.errors import UserError

pytestmark = [pytest.mark.needs("cldr"), pytest.mark.needs("unicode-data")]

GLYPHS = load_objects("everyday")


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Scene]:
    """The scenes that captions are asked for, one after the other: two captions each."""
    from kotoe.data import pairs as module

    scenes: list[Scene] = []
    real = module.caption

    def watched(scene: Scene, *arguments: object, **more: object) -> str:
        scenes.append(scene)
        return real(scene, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "caption", watched)
    return scenes


@pytest.mark.parametrize(("split", "held_out"), [("train", False), ("held-out", True)])
def test_only_combinations_of_the_split(shown: list[Scene], split: str, held_out: bool) -> None:
    rows = list(pairs("sw", 1000, split=split))
    assert shown[::2] == shown[1::2], "both sides say the same scene"
    assert len(shown) == 2 * len(rows) == 2000
    codes = [g.codepoints for g in GLYPHS]
    two = [s for s in shown if len(s.objects) == 2]
    assert 0.2 < len(two) / len(shown) < 0.3
    for scene in shown:
        if len(scene.objects) == 2:
            assert held_out_pair(*(codes[k] for k in scene.objects)) == held_out
        else:
            assert held_out_colour(codes[scene.objects[0]], scene.background) == held_out
    assert all(source and target for source, target in rows), "no empty captions"


def test_rows_are_a_function_of_seed_and_number() -> None:
    few, many = list(pairs("fi", 20, seed=3)), list(pairs("fi", 60, seed=3))
    assert few == many[:20]
    assert len(set(many) & set(pairs("fi", 60, seed=4))) < 5
    assert [source for source, _ in pairs("th", 60, seed=3)] == [source for source, _ in many]
    assert [target for _, target in pairs("th", 60, seed=3)] != [target for _, target in many]


def test_wording_varies_on_both_sides() -> None:
    """Template and words of one side don't tell those of the other: one scene's rows differ in both."""
    begun = [(s.split()[0], t.split(",")[0] in said("fi")) for s, t in pairs("fi", 600)]
    assert {(english == "a", ground_first) for english, ground_first in begun} == {
        (True, True), (True, False), (False, True), (False, False),
    }  # fmt: skip


def said(tag: str) -> set[str]:
    return {wording for wordings in LANGUAGES[tag].colours.values() for wording in wordings}


def test_forty_thousand_take_seconds() -> None:
    began = time.process_time()
    assert sum(1 for _ in pairs("hi", 4000)) == 4000
    assert time.process_time() - began < 5, "a tenth of what the verb writes by default"  # 0.4 s on a 2026 server


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"language": "swa"}, "unknown caption language 'swa'.*Did you mean 'sw'"),
        ({"language": "en"}, "parallel text of English and English"),
        ({"count": 0}, "0 pairs. Allowed: 1 or more"),
        ({"split": "test"}, "unknown split 'test'. Allowed: held-out, train"),
        ({"tier": "faces"}, "unknown tier 'faces'"),
    ],
)
def test_bad_input_is_refused_before_the_first_row(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pairs(**{"language": "sw", "count": 5, **change})  # type: ignore[arg-type]


# ---- the verb -------------------------------------------------------------------------------------------------------

Kotoe = Callable[..., tuple[int, str, str]]


@pytest.fixture
def kotoe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Kotoe:
    """Exit code, output and messages of `kotoe data pairs` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.run(("data", "pairs", *arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_a_table_is_written(kotoe: Kotoe, tmp_path: Path) -> None:
    code, out, err = kotoe("--language", "ur", "--out", "made/ur.tsv", "--count", "300", "--seed", "7")
    assert (code, out) == (0, "made/ur.tsv\n"), err
    data = (tmp_path / "made/ur.tsv").read_bytes()
    assert b"\r" not in data
    head, *rows = data.decode().removesuffix("\n").split("\n")
    assert head == "source\ttarget"
    assert [tuple(row.split("\t")) for row in rows] == list(pairs("ur", 300, seed=7))
    assert [p.name for p in (tmp_path / "made").iterdir()] == ["ur.tsv"], "nothing half-written beside it"


def test_json_lines_of_a_tier_and_split(kotoe: Kotoe, tmp_path: Path) -> None:
    arguments = ("--language", "id", "--out", "id.jsonl", "--count", "50", "--tier", "all", "--split", "held-out")
    code, out, err = kotoe(*arguments, "--json")
    assert code == 0, err
    document = json.loads(out.splitlines()[-1])
    assert document["out"] == "id.jsonl"
    assert document["config"]["split"] == "held-out"
    rows = [json.loads(line) for line in (tmp_path / "id.jsonl").read_text("utf-8").splitlines()]
    wanted = list(pairs("id", 50, tier="all", split="held-out"))
    assert [(row["source"], row["target"]) for row in rows] == wanted
    assert {key for row in rows for key in row} == {"source", "target"}


def test_nothing_is_replaced_unasked(kotoe: Kotoe, tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("mine")
    (tmp_path / "b.tsv").mkdir()
    for name in ("a.tsv", "b.tsv"):
        code, _, err = kotoe("--language", "fi", "--out", name, "--count", "2")
        assert (code, f"{name} is there already" in err) == (2, True)
    assert (tmp_path / "a.tsv").read_text() == "mine"
    assert kotoe("--language", "fi", "--out", "a.tsv", "--count", "2", "--overwrite")[0] == 0
    assert (tmp_path / "a.tsv").read_text("utf-8").count("\n") == 3
    assert kotoe("--language", "fi", "--out", "b.tsv", "--count", "2", "--overwrite")[0] == 2


def test_dry_run_and_bad_names_write_nothing(kotoe: Kotoe, tmp_path: Path) -> None:
    assert kotoe("--language", "fi", "--out", "a.tsv", "--dry-run")[0] == 0
    for wrong, message in {
        ("--out", "a.csv"): "ends in .tsv or .jsonl",
        ("--out", "a.tsv", "--count", "0"): "0 pairs",
        ("--out", "a.tsv", "--language", "en"): "English and English",
    }.items():
        code, _, err = kotoe(*(() if "--language" in wrong else ("--language", "fi")), *wrong)
        assert (code, message in err) == (2, True), err
    assert list(tmp_path.iterdir()) == []
