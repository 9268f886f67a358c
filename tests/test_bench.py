"""`kotoe bench` and benchmarks/peers.py: figures that hang together, cards that stand whole, errors that teach."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import kotoe
from commands import Done, Kotoe, running
from kotoe import bench, verbs_bench
from kotoe.config import EngineName
from kotoe.engine import FastText
from kotoe.spec import UNetSpec, VAESpec

ROOT = Path(__file__).resolve().parent.parent
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}  # two wait for each other where tests run in parallel
QUICK = ("--rounds", "1", "--steps", "2", "--batch-size", "2", "--width", "64", "--height", "64")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Done, Path]:
    """One run in a process of its own, which it changes: it keeps its memory from then on."""
    card = tmp_path_factory.mktemp("bench") / "card.md"
    command = [sys.executable, "-m", "kotoe", "bench", *QUICK, "--json", "--card", str(card)]
    told = subprocess.run(command, capture_output=True, text=True, env=ONE_THREAD)
    return Done(code=told.returncode, out=told.stdout, err=told.stderr), card


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Kotoe:
    monkeypatch.chdir(tmp_path)
    return running(capsys)


def test_figures_hang_together(done: tuple[Done, Path]) -> None:
    said, _ = done
    assert said.code == 0, said.err
    assert len(said.out.splitlines()) == 1
    found = said.json
    times = found["seconds"]
    assert times.keys() == {"step", "decode", "text", "picture", "batch", "load", "first_step"}
    for each in times.values():
        assert 0 < each["min"] <= each["median"] <= each["max"]
        assert len(each["values"]) == found["rounds"] == 1
    lower = min(found["machine_tflops"].values())
    for name in ("step", "decode"):
        assert found["tflops"][name] == pytest.approx(found["operations_tflop"][name] / times[name]["median"])
        assert found["share"][name] == pytest.approx(found["tflops"][name] / lower)
    assert found["pictures_per_second"] == {
        "1": pytest.approx(1 / times["picture"]["median"]),
        "2": pytest.approx(2 / times["batch"]["median"]),
    }
    assert times["load"]["median"] < times["first_step"]["median"]
    assert 1e8 < found["peak_bytes"]["picture"] < 1e10
    asked = found["request"]
    assert (asked["width"], asked["height"], asked["steps"], asked["batch_size"]) == (64, 64, 2, 2)
    assert asked["guidance_scale"] == 2.0  # the model's own
    assert found["machine"]["threads"] == 1
    assert found["machine"]["versions"]["kotoe"] == kotoe.__version__


def test_a_small_model_is_measured_with_all_threads_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pictures have a thread each: one at a time would leave the others idle, and tell half of what there is."""
    from tiny import tiny_bundle

    bundle, drawn = tiny_bundle(), []
    generate = bench.generate
    monkeypatch.setattr(bench, "generate", lambda b, r: drawn.append(r.n) or generate(b, r))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    found = bench.measure(bundle, bench.asked(bundle, steps=1, batch_size=2), rounds=1)
    assert found["side_by_side"] == 3
    assert drawn == [1, 3, 6] * 2  # a picture, one for each thread, a batch for each
    took = found["seconds"]
    assert found["pictures_per_second"] == {
        "1": pytest.approx(3 / took["pictures"]["median"]),
        "2": pytest.approx(6 / took["batch"]["median"]),
    }


@pytest.mark.parametrize(("name", "runs"), [("fast", 1), ("plain", 0)])
def test_a_text_is_read_as_a_picture_reads_it(name: EngineName, runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiny import tiny_bundle

    bundle, called = tiny_bundle(), []
    request = bench.asked(bundle, engine_name=name, steps=1, batch_size=1)
    stages = bench.Stages(bundle, request)
    run = FastText.__call__
    monkeypatch.setattr(FastText, "__call__", lambda *given: called.append(1) or run(*given))
    stages.text()
    assert len(called) == runs
    kotoe.generate(bundle, request)
    assert len(called) == 3 * runs  # the prompt, and the empty one


def test_the_card_says_what_the_document_says(done: tuple[Done, Path]) -> None:
    said, path = done
    found, card = said.json, path.read_text("utf-8")
    assert card == bench.card(found)
    assert card.startswith(bench.CARD)
    assert f"`kotoe bench {' '.join(QUICK[:2])} --width 64 --height 64 --steps 2 --batch-size 2`" in card
    assert found["date"] in card
    assert [p.name for p in path.parent.iterdir()] == ["card.md"]  # nothing half-written
    lines = bench.table(found)
    for name, *cells in bench.rows(found):
        assert f"| {name} | {' | '.join(cells)} |" in card
        assert any(line.startswith(name) and line.split()[-3:] == cells for line in lines)


def test_operations_are_those_of_the_networks() -> None:
    """By hand for a UNet of one level: convolutions, products, and both products of each attention."""
    c, d, edge, tokens, half = 32, 24, 8, 5, 16
    spec = UNetSpec(
        block_out_channels=(c,), layers_per_block=1, cross_attention=(True,), num_heads=(4,), cross_attention_dim=d,
        norm_num_groups=8, sample_size=edge,
    )  # fmt: skip
    vae = VAESpec(block_out_channels=(half,), layers_per_block=1, norm_num_groups=8, sample_size=edge)
    n = edge * edge

    def conv(i: int, o: int, k: int = 3) -> int:
        return n * i * o * k * k

    def resnet(i: int, o: int) -> int:
        return conv(i, o) + conv(o, o) + (conv(i, o, 1) if i != o else 0)

    own = 4 * conv(c, c, 1) + 2 * n * n * c
    text = 2 * conv(c, c, 1) + 2 * n * tokens * c  # the text's keys and values are no part of a step
    block = 2 * conv(c, c, 1) + own + text + conv(c, 8 * c, 1) + conv(4 * c, c, 1)
    step = conv(4, c) + resnet(c, c) + block + 2 * resnet(c, c) + block + 2 * (resnet(2 * c, c) + block) + conv(c, 4)
    attention = 4 * conv(half, half, 1) + 2 * n * n * half
    decode = conv(4, 4, 1) + conv(4, half) + 4 * resnet(half, half) + attention + conv(half, 3)
    found = bench.operations(spec, vae, (edge, edge), tokens)
    assert found["step"] * bench.TERA == pytest.approx(2 * 2 * step)
    assert found["decode"] * bench.TERA == pytest.approx(2 * decode)


def test_a_dry_run_resolves_and_measures_nothing(run: Kotoe, tmp_path: Path) -> None:
    said = run("bench", "--dry-run", "--json", "--card", "a.md")
    assert said.code == 0, said.err
    assert said.json["dry_run"]
    assert said.json["request"]["batch_size"] == bench.BATCH  # a small model
    assert (said.json["config"]["width"], said.json["config"]["steps"]) == (128, 10)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rounds", "0"], "rounds 0. Allowed: 1 or more"),
        (["--steps", "0"], "steps 0. Allowed: 1 or more"),
        (["--batch-size", "2000"], "batch_size 2000. Allowed: 1 to 1024"),
        (["--width", "100"], "multiple"),
        (["--engine", "quick"], 'Choose from: "fast", "plain"'),
        (["--dtype", "int8"], 'Choose from: "auto", "float32", "bfloat16", "float16"'),
        (["--card", "card.txt"], "a file that ends in .md"),
        (["--card", "mine.md"], "mine.md is there already and is no card of kotoe bench"),
        (["--model", "kotoe-emojy"], "Did you mean 'kotoe-emoji'?"),
    ],
)
def test_errors_teach(run: Kotoe, tmp_path: Path, options: list[str], words: str) -> None:
    (tmp_path / "mine.md").write_text("# Mine\n", "utf-8")
    said = run("bench", *options)
    assert said.code == 2
    assert words in said.err
    assert (tmp_path / "mine.md").read_text("utf-8") == "# Mine\n"


def test_only_what_draws_from_words_on_a_processor() -> None:
    from tiny import tiny_bundle

    with pytest.raises(kotoe.UserError, match="models that draw from words alone"):
        bench.asked(tiny_bundle(inpaints=True))
    with pytest.raises(kotoe.UserError, match="rounds 0"):
        bench.measure(tiny_bundle(), bench.asked(tiny_bundle()), rounds=0)
    with pytest.raises(kotoe.UserError, match="threads 0"):
        bench.rates(torch.float32, threads=0)


def test_a_cold_start_that_fails_says_why(tmp_path: Path) -> None:
    from tiny import tiny_bundle

    request = bench.asked(tiny_bundle())
    with pytest.raises(kotoe.UserError, match="a cold start of .* failed: .*nowhere"):
        bench.cold_start(str(tmp_path / "nowhere"), request)


def test_small_models_of_a_library_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process, with the plain networks and no batch."""
    from tiny import tiny_bundle

    rates: dict[str, float] = {"products": 2.0, "convolutions": 1.0}
    monkeypatch.setattr(bench, "rates", lambda dtype, rounds: rates)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    bundle, told = tiny_bundle(), []
    request = bench.asked(bundle, engine_name="plain", steps=1, batch_size=1)
    found: dict[str, Any] = bench.measure(
        bundle, request, rounds=2, progress=lambda done, total, what: told.append((done, total, what))
    )
    assert found["seconds"].keys() == {"step", "decode", "text", "picture"}
    assert found["machine_tflops"] == rates
    assert [done for done, _, _ in told] == list(range(16))
    assert told[-1] == (15, 15, "done")
    assert verbs_bench.CARD == bench.CARD
    assert json.loads(json.dumps(found)) == found


# --- Beside its peers


def peers(*options: str) -> subprocess.CompletedProcess[str]:
    """benchmarks/peers.py with the tiny family, on one thread."""
    command = [sys.executable, str(ROOT / "benchmarks" / "peers.py"), "--family", "tiny", "--threads", "1", *options]
    return subprocess.run(command, capture_output=True, text=True, env=ONE_THREAD)


def test_peers_take_turns_and_write_a_card(tmp_path: Path) -> None:
    path, extended = tmp_path / "card.md", '{"steps": 2, "engine": "plain"}'
    given = ("--rounds", "2", "--work", str(tmp_path / "work"), "--card", str(path), "--request", extended)
    said = peers("--only", "kotoe", "diffusers, as", *given)
    assert said.returncode == 0, said.stderr
    found, card = json.loads(said.stdout.splitlines()[-1]), path.read_text("utf-8")
    names = ["Kotoe", "diffusers, as it comes (float32)", f"Kotoe, {json.dumps(json.loads(extended))}"]
    assert list(found["engines"]) == names
    for name, each in found["engines"].items():
        assert [len(each[f"{call}_s"]) for call in ("step", "decode", "text")] == [2, 2, 2]
        assert len(each["picture_1_s"]) == 1
        assert 0 < each["first_s"] < 300
        assert 1e8 < each["peak_bytes"] <= each["peak_after_pictures_bytes"]
        assert each["error"] == 0 if "float32" in name else 0 < each["error"] < 0.05  # the same weights and input
        assert f"| {name} |" in card
    assert "Random weights, 128 x 128 pixels" in card
    assert "| picture, s |" in card
    again = "--family tiny --rounds 2 --threads 1 --only kotoe 'diffusers, as' --request"
    usual = again if os.cpu_count() != 1 else again.replace("--threads 1 ", "")
    asked = json.dumps(json.loads(extended))
    assert f"`python benchmarks/peers.py {usual} '{asked}'`" in card
    assert found["side_by_side"] == 1
    assert "batches at a time" not in card


def test_peers_say_what_kotoe_draws_side_by_side(tmp_path: Path) -> None:
    """Without it, pictures per second would look like those of one batch after another."""
    given = ("--rounds", "1", "--pictures", "1", "--threads", "2", "--work", str(tmp_path / "work"))
    said = peers("--only", "kotoe", *given, "--card", str(tmp_path / "card.md"))
    assert said.returncode == 0, said.stderr
    card = (tmp_path / "card.md").read_text("utf-8")
    assert "it computes 2 batches at a time, where there are so many, one on each core" in card
    assert "--rounds 1 --pictures 1" in card


def test_peers_that_are_not_there_are_told() -> None:
    said = peers("--only", "sdxl")
    assert said.returncode == 1
    assert "no engine 'sdxl' for tiny. There are: Kotoe;" in said.stderr
