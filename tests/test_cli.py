"""The command line: its JSON keys, exit codes, messages, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from commands import Kotoe, running
from kotoe import console, images
from tiny import saved_tiny

PROGRAM = [sys.executable, "-m", "kotoe"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(saved_tiny(tmp_path_factory.mktemp("model") / "tiny", "sd2", languages=("en", "ja", "zh", "ko")))


@pytest.fixture
def kotoe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Kotoe:
    """Run the command in an empty folder, in this process."""
    monkeypatch.chdir(tmp_path)
    return running(capsys)


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


# --- generate


def test_generate_keys_and_files(kotoe: Kotoe, model: str, tmp_path: Path) -> None:
    done = kotoe(
        "generate", "a red cat", "青い背景に猫", "--n", "2", "--seed", "7", "--model", model, "--out", "o", "--json"
    )
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) == 1
    assert [p["seed"] for p in done.json["pictures"]] == [7, 8, 7, 8]
    for entry in done.json["pictures"]:
        assert entry.keys() == {"path", "seed", "record"}
        with Image.open(entry["path"]) as picture:
            assert picture.size == (16, 16)
        assert json.loads(images.read_record(entry["path"])) == entry["record"]
        texts = images.texts(Path(entry["path"]).read_bytes())
        assert texts["parameters"].startswith(entry["record"]["prompt"] + "\nSteps: ")
    assert done.json["pictures"][2]["record"]["conditioner"]["language"] == "ja"
    assert done.json["pictures"][2]["record"]["prompt"] == "青い背景に猫"
    assert done.json["grid"] == "o/grid.png"
    names = files(tmp_path / "o")
    assert len([n for n in names if n.endswith(".png")]) == 5
    (saved,) = [n for n in names if n.endswith(".json")]
    config = json.loads((tmp_path / "o" / saved).read_text("utf-8"))
    assert config["steps"] == 4  # the model's default, resolved
    assert json.dumps(config["prompt"], ensure_ascii=False) in done.err


def test_plain_output_is_the_paths(kotoe: Kotoe, model: str) -> None:
    done = kotoe("generate", "a red cat", "--model", model)
    assert [Path(line).is_file() for line in done.out.splitlines()] == [True]
    assert not Path("out/grid.png").exists()


def test_saved_configuration_draws_the_same(kotoe: Kotoe, model: str) -> None:
    first = kotoe("generate", "青い背景に猫", "--seed", "3", "--guidance-scale", "2.5", "--model", model, "--json")
    (saved,) = Path("out").glob("generate-*.json")
    second = kotoe("generate", "--config", str(saved), "--out", "again", "--json")
    (a,), (b,) = first.json["pictures"], second.json["pictures"]
    assert images.open_picture(a["path"]).tobytes() == images.open_picture(b["path"]).tobytes()
    assert Path(a["path"]).name == Path(b["path"]).name
    other = kotoe("generate", "--config", str(saved), "--seed", "4", "--json")
    assert other.json["pictures"][0]["seed"] == 4  # the command line wins


def test_dry_run_draws_nothing(kotoe: Kotoe, model: str, tmp_path: Path) -> None:
    done = kotoe("generate", "a red cat", "--model", model, "--dry-run", "--json")
    assert done.code == 0
    assert done.json["dry_run"] is True
    assert done.json["config"]["steps"] == 4
    assert files(tmp_path) == []


def test_unsure_language_is_said(kotoe: Kotoe, model: str) -> None:
    done = kotoe("generate", "猫", "--model", model, "--json")
    assert "the language of '猫' is unsure, it is read as zh; --language TAG settles it" in done.err
    assert done.json["pictures"][0]["record"]["language_source"] == "unsure"
    done = kotoe("generate", "猫", "--language", "ja", "--model", model, "--json")
    assert "unsure" not in done.err
    assert done.json["pictures"][0]["record"]["conditioner"]["language"] == "ja"


def test_grid_is_asked_for_or_refused(kotoe: Kotoe, model: str) -> None:
    kotoe("generate", "a", "b", "--model", model, "--out", "without", "--no-grid-image")
    kotoe("generate", "a", "--model", model, "--out", "with", "--grid-image")
    assert not Path("without/grid.png").exists()
    assert Path("with/grid.png").exists()
    done = kotoe("generate", "a \U0003fffd", "b", "--model", model, "--out", "x", "--grid-image")
    assert done.code == 2
    assert "no font here has" in done.err
    assert not Path("x").exists()
    done = kotoe("generate", "a \U0003fffd", "b", "--model", model, "--out", "x", "--json")
    assert done.code == 0
    assert "no grid.png: no font here has" in done.err
    assert done.json["grid"] is None


# --- Bad input

BAD = {
    "sampler": (["--sampler", "eulr"], "unknown sampler 'eulr'. Allowed: ddim, ", "Did you mean 'euler'?"),
    "grid": (["--grid", "trailling"], "unknown grid 'trailling'", "Did you mean 'trailing'?"),
    "language": (["--language", "jp"], "language 'jp' is not in this model. Allowed: en, ja, ko", "mean 'ja'?"),
    "model": (["--model", "kotoe-emojy"], "unknown model 'kotoe-emojy'", "Did you mean 'kotoe-emoji'?"),
    "option": (["--stepz", "3"], "Unknown option", "Did you mean --steps?"),
    "size": (["--width", "18"], "width 18 is not a multiple of 4", "16 or 20"),
    "no steps": (["--steps", "0"], "steps 0", "1 or more"),
    "negative steps": (["--steps", "-3"], "steps -3", "1 or more"),
    "no number": (["--steps", "many"], "--steps", "many"),
    "mask alone": (["--mask", "m.png"], "mask without init_image", "--init-image"),
    "strength alone": (["--strength", "0.5"], "strength without init_image", "--init-image"),
    "unreadable": (["--init-image", "broken.png"], "init_image broken.png is not a picture", "PNG, JPEG"),
    "absent": (["--init-image", "absent.png"], "can't read init_image absent.png", "No such file"),
    "too long": (["word " * 40], "these would be dropped", "--long-prompt chunk"),
    "config key": (["--config", "typo.json"], "unknown key 'promt'", "Did you mean 'prompt'?"),
    "config type": (["--config", "type.json"], "seed is 'x'", "a whole number"),
    "config broken": (["--config", "half.json"], "no JSON document", "line 1"),
    "config absent": (["--config", "absent.json"], "can't read absent.json", "JSON file"),
    "script": (["--language", "ja", "--long-prompt", "drop"], "drop", "chunk"),
    "out is a file": (["--out", "broken.png"], "--out broken.png is a file", "a folder"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input(kotoe: Kotoe, model: str, tmp_path: Path, case: str) -> None:
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    (tmp_path / "typo.json").write_text('{"promt": "a"}')
    (tmp_path / "type.json").write_text('{"seed": "x"}')
    (tmp_path / "half.json").write_text('{"seed": ')
    before = files(tmp_path)
    arguments, *messages = BAD[case]
    named = [] if "--model" in arguments else ["--model", model]
    done = kotoe("generate", "a red cat", *arguments, *named)
    assert done.code == 2
    assert done.out == ""
    for message in messages:
        assert message in done.err
    assert files(tmp_path) == before, "something was half-written"


def test_no_prompt(kotoe: Kotoe, model: str) -> None:
    done = kotoe("generate", "--model", model)
    assert done.code == 2
    assert "no prompt" in done.err


def test_unknown_verb(kotoe: Kotoe) -> None:
    done = kotoe("genrate", "a")
    assert done.code == 2
    assert (
        "unknown verb 'genrate'. Allowed: bench, certificate, check, conditioner add, conditioner remove, convert, "
        "data pairs, evaluate, generate, inspect, localize, serve, study localization, tokenizer report, "
        "tokenizer train, train, verify. Did you mean 'generate'?" in done.err
    )


def test_prompts_that_look_like_options(kotoe: Kotoe, model: str) -> None:
    done = kotoe("generate", "--model", model, "--json", "--", "--help")
    assert done.code == 0, done.err
    assert done.json["pictures"][0]["record"]["prompt"] == "--help"


def test_broken_models(kotoe: Kotoe, model: str, tmp_path: Path) -> None:
    import shutil

    weights = "unet/diffusion_pytorch_model.safetensors"
    shutil.copytree(model, tmp_path / "cut")
    data = (tmp_path / "cut" / weights).read_bytes()
    (tmp_path / "cut" / weights).write_bytes(data[: len(data) // 2])
    shutil.copytree(model, tmp_path / "pickle")
    (tmp_path / "pickle" / weights).unlink()
    (tmp_path / "pickle/unet/diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")
    for folder, words in (("cut", "truncated"), ("pickle", "is a pickle")):
        for verb in (["generate", "a"], ["inspect"], ["check"]):
            done = kotoe(*verb, *([] if verb == ["inspect"] else ["--model"]), folder)
            assert done.code == 2, (verb, folder)
            assert words in done.err
    assert not (tmp_path / "out").exists()


def test_out_that_cannot_be_written(kotoe: Kotoe, model: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = kotoe("generate", "a", "--model", model, "--out", "file/inside")
    assert done.code == 2
    assert "can't write in file/inside" in done.err


# --- Replay


def test_replay(kotoe: Kotoe, model: str) -> None:
    drawn = kotoe("generate", "a red cat", "青い背景に猫", "--seed", "7", "--model", model, "--json").json["pictures"]
    for entry in drawn:
        done = kotoe("generate", "--replay", entry["path"], "--model", model, "--out", "again", "--json")
        assert done.code == 0, done.err
        assert done.json["identical"] is True
        assert "identical pixels" in done.err
        (again,) = done.json["pictures"]
        assert again.keys() == {"path", "seed", "record"}
        assert images.open_picture(again["path"]).tobytes() == images.open_picture(entry["path"]).tobytes()
        assert again["record"] | {"seconds": 0} == entry["record"] | {"seconds": 0}


def test_replay_tells_when_it_differs(kotoe: Kotoe, model: str) -> None:
    (entry,) = kotoe("generate", "a red cat", "--model", model, "--json").json["pictures"]
    record = images.read_record(entry["path"])
    images.save_png(Image.new("RGB", (16, 16)), Path("other.png"), record)
    done = kotoe("generate", "--replay", "other.png", "--model", model, "--json")
    assert done.json["identical"] is False
    assert "pixels differ" in done.err


def test_replay_refuses(kotoe: Kotoe, model: str, tmp_path: Path) -> None:
    (entry,) = kotoe("generate", "a red cat", "--model", model, "--json").json["pictures"]
    path = entry["path"]
    other = str(saved_tiny(tmp_path / "other", "sd2", languages=("en", "ja", "zh", "ko"), seed=5))
    forged = json.dumps({**entry["record"], "steps": 0})
    images.save_png(Image.new("RGB", (16, 16)), tmp_path / "forged.png", forged)
    images.save_png(Image.new("RGB", (16, 16)), tmp_path / "deep.png", "[" * 100_000)
    Image.new("RGB", (16, 16)).save(tmp_path / "bare.png")
    for arguments, message in (
        (["--replay", path, "--model", other], "the UNet of tiny-sd2 is another one"),
        (["--replay", path], "was drawn by 'tiny-sd2'. Say where that model is: --model FOLDER"),
        (["--replay", path, "--model", model, "--steps", "5"], "--replay together with steps"),
        (["a cat", "--replay", path, "--model", model], "--replay together with prompt"),
        (["--replay", "bare.png"], "carries no record"),
        (["--replay", "forged.png", "--model", model], "steps 0"),
        (["--replay", "deep.png", "--model", model], "no JSON document"),
        (["--replay", "absent.png"], "can't read picture absent.png"),
    ):
        done = kotoe("generate", *arguments)
        assert done.code == 2, arguments
        assert message in done.err


HOSTILE = {
    "threads 0": ({"threads": 0}, "threads 0. Allowed: 1 to 1024"),
    "many threads": ({"threads": 10**6}, "threads 1000000. Allowed"),
    "a large batch": ({"batch": [0, 10**9]}, "size up to 1024"),
    "a device as its picture": ({"init_image": "/dev/zero", "strength": 0.5}, "/dev/zero is no file"),
}


@pytest.mark.parametrize("fault", HOSTILE)
def test_replay_of_a_hostile_record(kotoe: Kotoe, model: str, fault: str) -> None:
    change, message = HOSTILE[fault]
    (entry,) = kotoe("generate", "a red cat", "--model", model, "--json").json["pictures"]
    if "init_image" in change:
        change |= {"init_image_sha256": "0" * 64}
    images.save_png(Image.new("RGB", (16, 16)), Path("forged.png"), json.dumps({**entry["record"], **change}))
    done = kotoe("generate", "--replay", "forged.png", "--model", model)
    assert done.code == 2
    assert message in done.err


def test_replay_of_a_damaged_picture(kotoe: Kotoe, model: str) -> None:
    (entry,) = kotoe("generate", "a red cat", "--model", model, "--json").json["pictures"]
    data = Path(entry["path"]).read_bytes()
    Path("half.png").write_bytes(data[: data.index(b"IDAT") + 100])
    done = kotoe("generate", "--replay", "half.png", "--model", model)
    assert done.code == 2
    assert "half.png is damaged" in done.err or "carries no record" in done.err


def test_replay_checks_the_prompt_anew(kotoe: Kotoe, model: str) -> None:
    """A record is anybody's: that it says nothing of its prompt, or allows it, means nothing."""
    (entry,) = kotoe("generate", "a red cat", "--model", model, "--json").json["pictures"]
    images.save_png(
        Image.new("RGB", (16, 16)), Path("forged.png"), json.dumps({**entry["record"], "prompt": "a nude child"})
    )
    done = kotoe("generate", "--replay", "forged.png", "--model", model, "--out", "again", "--json")
    assert done.code == 3
    assert [one["prompt"] for one in done.json["blocked"]] == ["a nude child"]
    assert not Path("again").exists()


def test_replay_says_what_is_otherwise_here(kotoe: Kotoe, model: str) -> None:
    (entry,) = kotoe("generate", "a red cat", "--model", model, "--json").json["pictures"]
    other = {**entry["record"], "device": "cuda", "torch": "2.0\x1b]0;x\a"}
    images.save_png(Image.new("RGB", (24, 24)), Path("other.png"), json.dumps(other))
    done = kotoe("generate", "--replay", "other.png", "--model", model)
    assert done.code == 0, done.err
    assert "drawn with device cuda, here is cpu" in done.err
    assert "\x1b" not in done.err
    assert "the file's picture is 24x24" in done.err
    assert "with engine" not in done.err
    done = kotoe("generate", "--replay", entry["path"], "--model", model, "--low-memory")
    assert "drawn with engine fast, here is plain: the last bits may differ" in done.err


# --- Notes


def test_what_has_no_effect_is_said(kotoe: Kotoe, model: str) -> None:
    done = kotoe("generate", "a red cat", "--negative-prompt", "猫", "--language", "en", "--model", model)
    assert done.code == 0, done.err
    assert "note: the negative prompt '猫' is read as en" in done.err
    done = kotoe("generate", "a red cat", "--guidance-scale", "0", "--model", model)
    assert "the prompt has no effect" in done.err
    done = kotoe("generate", "a red cat", "--negative-prompt", "a dog", "--model", model)
    assert "note:" not in done.err


# --- The other verbs


def test_inspect_a_picture(kotoe: Kotoe, model: str) -> None:
    (entry,) = kotoe("generate", "a (red:1.2) cat", "--seed", "5", "--model", model, "--json").json["pictures"]
    done = kotoe("inspect", entry["path"], "--json")
    assert done.code == 0, done.err
    assert done.json == {"picture": entry["path"], "record": entry["record"]}
    plain = kotoe("inspect", entry["path"]).out
    assert 'prompt: "a (red:1.2) cat"' in plain
    assert "seed: 5" in plain
    Image.new("RGB", (16, 16)).save("bare.png")
    done = kotoe("inspect", "bare.png")
    assert (done.code, "carries no record" in done.err) == (2, True)


def test_inspect_keys(kotoe: Kotoe, model: str) -> None:
    done = kotoe("inspect", model, "--json")
    assert done.code == 0
    found = done.json
    assert found.keys() >= {
        "source", "folder", "family", "languages", "components", "sizes", "licence", "hashes",
    }  # fmt: skip
    assert found["languages"] == ["en", "ja", "zh", "ko"]
    assert found["family"] == "sd2"
    assert found["licence"] == "Apache-2.0"
    assert found["components"]["unet"]["block_out_channels"] == [32, 64]
    assert found["sizes"]["unet"]["bytes"] == os.path.getsize(f"{model}/unet/diffusion_pytorch_model.safetensors")
    from kotoe.checkpoints import load

    bundle = load(model)
    assert found["sizes"]["unet"]["parameters"] == sum(p.numel() for p in bundle.unet.parameters())
    assert found["hashes"]["unet"] == bundle.hashes["unet"]
    assert found["hashes"]["conditioners/ja/tokenizer"] == bundle.conditioner("ja").tokenizer.sha256
    plain = kotoe("inspect", model)
    assert "licence Apache-2.0" in plain.out


def test_check(kotoe: Kotoe, model: str) -> None:
    done = kotoe("check", "--model", model, "--json")
    assert done.code == (0 if done.json["ok"] else 1)
    assert done.json["pictures"].keys() == {"en", "ja", "zh", "ko"}
    assert all(p["repeatable"] for p in done.json["pictures"].values())
    assert done.json["versions"]["torch"]
    assert done.json["ok"], done.json["problems"]


RECIPE = '''"""Says hello.

Nothing more.
"""
SIZES = {"cpu": {"steps": 2}, "gpu": {"steps": 9}}


def main(run_dir, *, size="cpu", seed=0):
    print("on standard output")
    if seed == 130:
        raise KeyboardInterrupt
    (__import__("pathlib").Path(run_dir)).mkdir()
    (__import__("pathlib").Path(run_dir) / "made").write_text(f"{size} {seed}")
'''


def test_train(kotoe: Kotoe, tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text(RECIPE)
    done = kotoe("train", "r.py", "--run", "a", "--size", "gpu", "--seed", "3", "--json")
    assert done.code == 0, done.err
    assert done.json["run"] == "a"
    assert "on standard output" in done.err
    assert (tmp_path / "a/made").read_text() == "gpu 3"
    dry = kotoe("train", "r.py", "--run", "b", "--dry-run", "--json")
    assert "Says hello" in dry.err
    assert not (tmp_path / "b").exists()
    interrupted = kotoe("train", "r.py", "--run", "c", "--seed", "130")
    assert interrupted.code == console.INTERRUPTED
    assert "the same command goes on" in interrupted.err


def test_train_sets_what_a_recipe_takes(kotoe: Kotoe, tmp_path: Path) -> None:
    """And its own size where none is asked for; a recipe of a package sees its neighbours."""
    (tmp_path / "lessons").mkdir()
    (tmp_path / "lessons/__init__.py").write_text("")
    (tmp_path / "lessons/words.py").write_text("HELLO = 'hello'\n")
    (tmp_path / "lessons/set.py").write_text(
        "from pathlib import Path\nfrom lessons.words import HELLO\nSIZES = {'small': 1}\n"
        "def main(run, *, size='small', base='none', images=None):\n"
        "    Path(run).write_text(f'{HELLO} {size} {base} {images}')\n"
    )
    done = kotoe("train", "lessons/set.py", "--run", "a", "--set", "images=b=c", "--set", "base=x/y")
    assert done.code == 0, done.err
    assert (tmp_path / "a").read_text() == "hello small x/y b=c"
    for arguments, message in (
        (
            ["--set", "bass=x"],
            "takes no bass by --set. Allowed: --set base=BASE, --set images=IMAGES. Did you mean base?",
        ),
        (["--set", "seed=1"], "takes no seed by --set"),
        (["--set", "base"], "--set base. Allowed: NAME=VALUE"),
        (["--set", "base=x", "--set", "base=y"], "--set base twice"),
    ):
        done = kotoe("train", "lessons/set.py", "--run", "b", *arguments)
        assert done.code == 2, arguments
        assert message in done.err
    assert not (tmp_path / "b").exists()


def test_train_refuses(kotoe: Kotoe, tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/emoji_base.py").write_text(RECIPE)
    (tmp_path / "bad.py").write_text("def main(:")
    (tmp_path / "empty.py").write_text("")
    for arguments, message in (
        (["recipes/emoji_bass.py", "--run", "a"], "Did you mean recipes/emoji_base.py?"),
        (["recipes/emoji_base.py", "--run", "a", "--size", "cpuu"], "Did you mean 'cpu'?"),
        (["recipes/emoji_base.py", "--run", "a", "--device", "cpu"], "takes no device"),
        (["recipes/emoji_base.py"], "run is missing"),
        ([], "recipe is missing"),
        (["bad.py", "--run", "a"], "is no Python file (line 1"),
        (["empty.py", "--run", "a"], "has no main"),
    ):
        done = kotoe("train", *arguments)
        assert done.code == 2, arguments
        assert message in done.err


# --- As a program


def test_help_of_every_verb_loads_no_torch() -> None:
    code = (
        "import sys; from kotoe.cli import main\n"
        "for verb in ('generate', 'inspect', 'evaluate', 'train', 'check'):\n    main([verb, '--help'])\n"
        "main([]); main(['--version'])\n"
        "heavy = {'torch', 'numpy', 'PIL', 'rich', 'cyclopts'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage: kotoe generate" in done.stdout


def test_bad_options_are_refused_without_torch() -> None:
    code = (
        "import sys; from kotoe.cli import main\n"
        "try:\n    main(['generate', 'a', '--sampler', 'eulr'])\n"
        "except SystemExit as end:\n    assert end.code == 2\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_drawing_imports_no_compiler_and_no_rich(model: str, tmp_path: Path) -> None:
    """Cold start: what a picture doesn't need is not imported."""
    code = (
        "import sys; from kotoe.cli import main\n"
        f"main(['generate', '青い背景に猫', '--model', {model!r}, '--json'])\n"
        "heavy = {'torch._dynamo', 'torch._inductor', 'sympy', 'rich', 'diffusers', 'transformers', 'scipy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_ctrl_c_keeps_what_is_done(model: str, tmp_path: Path) -> None:
    command = [
        *PROGRAM,
        "generate",
        "a red cat",
        "--n",
        "400",
        "--steps",
        "40",
        "--batch-size",
        "1",
        "--model",
        model,
        "--json",
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        # a shell starts background jobs with Ctrl-C ignored, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    limit = time.monotonic() + 120
    while len(list(tmp_path.glob("out/[!.]*.png"))) < 2 and time.monotonic() < limit:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "pictures are done and kept" in err
    document = json.loads(out.splitlines()[-1])
    assert document["interrupted"] is True
    paths = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.glob("out/*.png"))
    assert 2 <= len(paths) < 400
    assert sorted(p["path"] for p in document["pictures"]) == paths
    for path in paths:
        assert images.open_picture(tmp_path / path).size == (16, 16)
    assert not [p for p in (tmp_path / "out").iterdir() if ".tmp" in p.name]


def test_a_reader_that_goes_away(model: str) -> None:
    process = subprocess.Popen([*PROGRAM, "inspect", model], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
    assert process.wait() == 141
