"""`kotoe localize --images`: a language learned from captioned pictures, by the command line."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from captioned import PICTURES, TEXTS, jsonl_folder, picture, saved
from commands import Kotoe, running
from kotoe.checkpoints import conditioners, load
from kotoe.errors import UserError
from kotoe.localize import pictures
from kotoe.localize.localize import localize
from kotoe.localize.plans import Captions, Reading, task
from kotoe.localize.settings import Localizing
from kotoe.runs import Run
from tiny import saved_tiny, tiny_bundle, tiny_conditioner


@pytest.fixture
def kotoe(capsys: pytest.CaptureFixture[str]) -> Kotoe:
    """Run the command in this process."""
    return running(capsys)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_tiny(tmp_path_factory.mktemp("model") / "tiny", "sd2")


def folder(place: Path) -> Path:
    """Seven captioned pictures, one that doesn't open, and two that have no caption."""
    jsonl_folder(place)
    (place / "007.jpg").write_bytes(saved(picture(7, 300, 200), "JPEG")[:-500])
    (place / "008.png").write_bytes(PICTURES[0])
    with (place / "metadata.jsonl").open("a", encoding="utf-8") as file:
        file.write(
            '{"file_name": "007.jpg", "text": "집", "license": "CC0-1.0"}\n{"file_name": "008.png", "text": ""}\n'
        )
        file.write('{"file_name": "000.png", "text": "a red cat", "language": "en"}\n')
    return place


LEFT_OUT = {
    "008.png": "its caption is empty",
    "000.png": "its caption is in en, not ko",
    "007.jpg": "it is damaged",
}
STAGE1 = ("--language", "ko", "--plan", "stage1", "--steps", "6", "--batch-size", "4",
          "--log-every", "1", "--lr", "3e-3", "--long-prompt", "cut", "--json")  # fmt: skip


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_stage1_from_a_folder_of_pictures(model: Path, tmp_path: Path, kotoe: Kotoe) -> None:
    data, run = folder(tmp_path / "data"), tmp_path / "run"
    command = ("localize", model, *STAGE1, "--images", data)
    done = kotoe(*command, "--run", run)
    assert done.code == 0, done.err
    assert re.search(r"3 of 10 captioned pictures are left out \(008.png: .*skipped.jsonl", done.err)
    listed = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    assert {one["name"]: one["reason"][: len(LEFT_OUT[one["name"]])] for one in listed} == LEFT_OUT
    told = done.json["pictures"]
    assert (told["kept"], told["skipped"], told["size_px"]) == (7, 3, 16)
    assert told["licences"] == {"not stated": 7}
    found = load(done.json["out"], dtype="float32")
    assert found.languages == ("en", "ko")
    assert found.conditioner("ko").tokenizer.vocab_size == done.json["vocab_size"]
    assert len(losses(run)) == 6
    # The same command resumes: nothing is left to do, and neither pictures nor steps are gone through again.
    before = {p: p.stat().st_mtime_ns for p in run.rglob("latents.npy")}
    again = kotoe(*command, "--run", run, "--overwrite")
    assert again.code == 0, again.err
    assert before == {p: p.stat().st_mtime_ns for p in run.rglob("latents.npy")}
    assert len(losses(run)) == 6
    # Pictures are known by what they are: other captions are another run.
    text = (data / "metadata.jsonl").read_text().replace("부엉이", "올빼미")
    (data / "metadata.jsonl").write_text(text)
    changed = kotoe(*command, "--run", run, "--overwrite")
    assert changed.code == 2
    assert "has begun with other pictures or captions: 7 there, 7 now" in changed.err


def test_a_dry_run_lists_what_would_be_left_out_and_writes_nothing(model: Path, tmp_path: Path, kotoe: Kotoe) -> None:
    data = folder(tmp_path / "data")
    command = ("localize", model, *STAGE1, "--run", tmp_path / "run", "--images", data, "--dry-run")
    done = kotoe(*command)
    assert done.code == 0, done.err
    told = done.json["forecast"]["pictures"]
    assert (told["kept"], told["size_px"], told["cache_bytes"]) == (7, 16, 7 * 4 * 8 * 8 * 2)
    assert {one["name"]: one["reason"][: len(LEFT_OUT[one["name"]])] for one in told["skipped"]} == LEFT_OUT
    assert done.json["forecast"]["steps"] == 6
    assert told["encode_s"] > 0
    assert not (tmp_path / "run").exists()
    plain = kotoe(*(a for a in command if a != "--json"))
    assert "left out: 008.png: its caption is empty\n" in plain.out
    assert "pictures kept: 7\n" in plain.out


def test_resolution_and_a_cache_that_runs_share(model: Path, tmp_path: Path, kotoe: Kotoe) -> None:
    data, cache = jsonl_folder(tmp_path / "data"), tmp_path / "cache"
    command = ("localize", model, *STAGE1, "--images", data, "--resolution", "24", "--latents", "sample")
    first = kotoe(*command, "--cache", cache, "--run", tmp_path / "a")
    assert first.code == 0, first.err
    assert first.json["pictures"]["size_px"] == 24
    (made,) = cache.rglob("latents.npy")
    stamp = made.stat().st_mtime_ns
    second = kotoe(*command, "--cache", cache, "--run", tmp_path / "b")
    assert second.code == 0, second.err
    assert [p.stat().st_mtime_ns for p in cache.rglob("latents.npy")] == [stamp]
    assert not (tmp_path / "b" / "cache").exists()
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    shutil.rmtree(cache)  # a run goes on from another cache too
    third = kotoe(*command, "--run", tmp_path / "b", "--overwrite")
    assert third.code == 0, third.err
    wrong = kotoe(*command[:-3], "25", "--run", tmp_path / "c")
    assert wrong.code == 2
    assert "resolution 25 for" in wrong.err
    assert "The nearest are 24 and 28" in wrong.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--plan", "stage1"), "plan stage1 without captioned pictures. Allowed: --images SOURCE"),
        (
            ("--images", "x", "--pairs", "y"),
            "plan distil-behind with captioned pictures. Allowed: --images with stage1",
        ),
        (("--plan", "stage1", "--cache", "x"), "--cache without pictures"),
        (("--plan", "stage1", "--images", "nowhere"), "there is nothing at nowhere"),
        (("--plan", "stage1", "--images", "x", "--crop", "centre"), "crop"),
    ],
)
def test_what_makes_no_sense_is_refused(
    options: tuple[str, ...], message: str, model: Path, tmp_path: Path, kotoe: Kotoe
) -> None:
    done = kotoe("localize", model, "--language", "ko", "--run", tmp_path / "run", *options)
    assert done.code == 2
    assert message in done.err


def asked(place: Path, **changed: Any) -> Localizing:
    values: dict[str, Any] = {
        "base": "tiny", "language": "ko", "run": str(place / "run"), "plan": "stage1", "images": str(place / "data"),
        "steps": 3, "batch_size": 4, "long_prompt": "cut", **changed,
    }  # fmt: skip
    return Localizing(**values)


def test_captions_of_another_language_alone_are_an_error(tmp_path: Path) -> None:
    place = tmp_path / "data"
    place.mkdir()
    (place / "a.png").write_bytes(PICTURES[0])
    (place / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x", "language": "en-GB"}\n')
    with pytest.raises(UserError, match="none of 1 captions is in ko .*its caption is in en-GB, not ko"):
        pictures.listed(asked(tmp_path))
    assert len(pictures.listed(asked(tmp_path, language="en-US")).rows) == 1


def test_captions_are_looked_at_before_a_picture_is_encoded(model: Path, tmp_path: Path, kotoe: Kotoe) -> None:
    data = jsonl_folder(tmp_path / "data", [f"a red cat, {i} of them" for i in range(len(TEXTS))])
    done = kotoe("localize", model, *STAGE1, "--images", data, "--run", tmp_path / "run")
    assert done.code == 2
    assert "100.0% of the texts are not in ko by their script: 'a red cat, 0 of them'" in done.err
    assert not list(tmp_path.rglob("latents.npy"))


@pytest.mark.parametrize("plan", ["kv", "stage2"])
def test_the_other_plans_read_pictures_too(plan: str, tmp_path: Path) -> None:
    jsonl_folder(tmp_path / "data")
    student = str(conditioners.write(tiny_conditioner("ko", 32, seed=9), tmp_path / "korean"))
    wanted = asked(tmp_path, plan=plan, student=student)
    bundle = tiny_bundle("sd2")
    shown = pictures.Pictures(source=pictures.listed(wanted), wanted=wanted, bundle=bundle)
    found = localize(bundle, wanted, captions=shown, progress=False)
    assert found.report["pictures"]["kept"] == len(TEXTS)
    assert found.report["changed"] > 0


def test_the_captions_are_those_of_the_latents(tmp_path: Path) -> None:
    """Rows that don't open leave no gap: caption i is still what latents i show."""
    contents = [b"nothing" if i in (0, 3) else content for i, content in enumerate(PICTURES)]
    jsonl_folder(tmp_path / "data", TEXTS, contents)
    wanted = asked(tmp_path)
    bundle = tiny_bundle("sd2")
    with Run(wanted.run, {}) as run:
        found = pictures.Pictures(source=pictures.listed(wanted), wanted=wanted, bundle=bundle).encoded(run)
    assert list(found.texts) == [TEXTS[i] for i in (1, 2, 4, 5, 6)]
    how = pictures.preparing(bundle, wanted)
    for k, i in enumerate((1, 2, 4, 5, 6)):
        with torch.inference_mode():
            alone = bundle.vae.encode(pictures_pixels(i, how))
        assert torch.allclose(found.latents[k].float(), alone[0], atol=1e-3)


def pictures_pixels(i: int, how: Any) -> torch.Tensor:
    from kotoe.data.shards import prepare

    return prepare(picture(i), how, "x")


def test_samples_are_new_at_each_look_and_the_same_again(tmp_path: Path) -> None:
    latents = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0)).half()
    spread = torch.full_like(latents, 0.5)
    bundle = tiny_bundle("sd2")
    student = tiny_conditioner("ko", 32)
    reading = Reading(seed=3, batch=8, dropout=0.0, long_prompt="cut", device=torch.device("cpu"))

    def steps(captions: Captions) -> list[torch.Tensor]:
        batches = task("stage1", bundle, student, reading, pairs=None, captions=captions).batches
        return [batches(step).latents for step in range(40)]

    texts = (*TEXTS, "달")
    still = steps(Captions(texts=texts, latents=latents))
    moving = steps(Captions(texts=texts, latents=latents, spread=spread))
    noise = torch.stack([a - b for a, b in zip(moving, still, strict=True)])
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)
    assert float(noise.std()) == pytest.approx(0.5, abs=0.01)
    assert len({float(n[0, 0, 0, 0]) for n in noise}) == 40
    again = steps(Captions(texts=texts, latents=latents, spread=spread))
    assert all(torch.equal(a, b) for a, b in zip(moving, again, strict=True))
