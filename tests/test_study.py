"""A study: what is done is kept, what a cell costs is counted, and the table says what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from recipes import study as recipe

from kotoe import study as studies
from kotoe.checkpoints import conditioners
from kotoe.config import read_json
from kotoe.data.captions import LANGUAGES
from kotoe.errors import UserError
from kotoe.localize.settings import PLANS, Studying


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of the built-in model in Finnish, and its start."""
    folder = tmp_path_factory.mktemp("study")
    asked = Studying(out=str(folder), languages=("fi",), budgets=(2, 0), n=2, count=200)
    studies.study(asked)
    return folder


def test_the_cells_of_a_study_are_named_by_what_they_are() -> None:
    asked = Studying(out="x", languages=("fi", "sw"), plans=("distil-behind", "stage1"), budgets=(400, 0))
    names = [cell.name for cell in studies.cells(asked)]
    assert names[:2] == ["distil-behind-aligned-fi-0", "distil-behind-aligned-sw-0"]
    assert names[-1] == "stage1-scratch-sw-400"
    assert len(names) == len(set(names)) == 8
    every = Studying(out="x", languages=("fi",), plans=("distil-behind",), starts=("aligned", "warm"))
    assert [cell.start for cell in studies.cells(every)] == ["aligned", "warm"]


def test_a_study_measures_and_reports(out: Path) -> None:
    document = read_json(out / "results.json")
    start, trained = sorted(document["cells"], key=lambda cell: cell["steps"])
    assert (start["texts"], trained["texts"]) == (0, 64)
    assert start["flop"] == 0 == start["seconds"]
    assert trained["flop"] > 1e10
    assert trained["seconds"] > 0
    assert set(trained["figures"]) == set(studies.FIGURES)
    assert document["english"]["figures"]["r1"]["value"] > 0.4
    (control,) = document["controls"]  # Finnish read by the English encoder
    assert (control["language"], control["figures"]["r1"]["value"]) == ("fi", 0)
    cell = out / "cells" / "distil-behind-aligned-fi-2"
    assert conditioners.read(cell / "conditioner", "fi").conditioner.tokenizer.vocab_size == trained["vocab_size"]
    left = document["agreement"]["distil-behind-aligned-fi-2"]
    assert 0 < left["read"] < document["agreement"]["distil-behind-aligned-fi-0"]["read"] * 1.2
    assert left["pooled"] > 0
    table = (out / "report.md").read_text()
    assert table.count("| fi | distil-behind | aligned |") == 3  # both cells, and the better one
    assert "| 64 |" in table
    for name in ("cost.png", "pictures.png"):
        with Image.open(out / name) as drawn:
            assert min(drawn.size) > 200
    with Image.open(out / "r1.png") as drawn:
        assert drawn.size[1] == 2 * 32 + 3 * 34


def test_what_is_done_is_not_done_again(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(studies, "_measured", never)
    asked = Studying(out=str(out), languages=("fi",), budgets=(0, 2), n=2, count=200)
    assert len(studies.study(asked)["cells"]) == 2


def test_a_steps_operations_are_those_of_its_matrix_products() -> None:
    """A linear layer's step is three products of 2 x rows x in x out, but for the input's gradient of the first."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    layer = torch.nn.Linear(8, 4)
    with FlopCounterMode(display=False) as counter:
        layer(torch.ones(5, 8)).sum().backward()
    assert counter.get_total_flops() == 2 * (2 * 5 * 8 * 4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"plans": ("kv",)}, "plan kv needs a student"),
        ({"plans": ("distil",)}, "unknown plan"),
        ({"starts": ("cold",)}, "unknown start"),
        ({"budgets": (-1,)}, "budgets"),
        ({"n": 1}, "n 1. Allowed: 2 to 400"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(changed: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Studying(out="x", **changed)


def test_the_recipe_is_all_of_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = recipe.stages(tmp_path, "cpu")
    asked = [cell for wanted in stages for cell in studies.cells(wanted)]
    plans = {name for name, way in PLANS.items() if way.starts[0] != "given"}
    assert {cell.plan for cell in asked} == plans
    for plan in plans:
        for language in ("ja", "zh", "ko"):
            assert len({c.steps for c in asked if (c.plan, c.language) == (plan, language) and c.steps}) >= 3
    further = {cell.language for cell in asked} - {"ja", "zh", "ko"}
    assert len(further) >= 30
    assert further <= set(LANGUAGES)
    few = {"languages": ("fi",), "budgets": (1,), "n": 2, "count": 100}
    monkeypatch.setitem(recipe.SIZES, "cpu", (("one", few), ("one", {**few, "plans": ("distil-pooled",)})))
    languages = recipe.emoji_languages
    monkeypatch.setattr(languages, "ENCODERS", {"mul": ("fi", "sw")})
    monkeypatch.setitem(languages.SIZES, "cpu", {"mul": {"steps": 1, "batch_size": 4, "vocab_size": 400}, "pairs": 400})
    monkeypatch.setattr(languages, "JUDGED", 2)
    recipe.main(tmp_path)
    reached = read_json(tmp_path / "together/mul-reached.json")["languages"]
    assert list(reached) == ["en", "fi", "sw"]
    assert reached["en"]["r1"]["value"] > reached["fi"]["r1"]["value"] == 0
    assert len(read_json(tmp_path / "one/results.json")["cells"]) == 2
    assert "## Is a pooled vector enough?" in (tmp_path / "one/report.md").read_text()
