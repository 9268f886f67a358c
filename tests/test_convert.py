"""`kotoe convert` from format to format, and what the other verbs make of a single file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from commands import running
from kotoe.checkpoints import load, save
from kotoe.checkpoints.files import file_sha256
from kotoe.checkpoints.inspect import describe
from singles import Made, ema_of, made, words, written
from tiny import tiny_bundle, tiny_tokenizer


@pytest.fixture(scope="module")
def source() -> Made:
    return made("sd2")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    done = running(capsys)(*arguments)
    return done.code, done.out, done.err


def test_convert(
    source: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    half = {name: t.half() for name, t in source.file.items()}
    written(half, tmp_path / "m.safetensors", resolution="16x16")
    tokenizer = words(tmp_path / "words", "sd2")
    here = ["convert", "m.safetensors", "folder", "--to", "diffusers"]
    code, out, err = run(capsys, *here)
    assert (code, out) == (2, "")
    assert "doesn't say what its UNet predicts" in err
    code, _, err = run(capsys, *here, "--prediction-type", "epsilon")
    assert code == 2
    assert "no tokenizer" in err
    asked = [*here, "--prediction-type", "epsilon", "--tokenizer", tokenizer]
    code, out, err = run(capsys, *asked, "--dry-run", "--json")
    assert (code, json.loads(out)["dry_run"]) == (0, True)
    assert not Path("folder").exists()
    code, out, err = run(capsys, *asked, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document.keys() == {"out", "to", "notes", "config"}
    assert "never run" in err
    found = load("folder", dtype="stored")
    assert found.unet.conv_in.weight.dtype == torch.float16  # as stored
    code, _, err = run(capsys, *asked)
    assert code == 2
    assert "folder is there already" in err
    code, out, _ = run(capsys, *asked, "--overwrite")
    assert (code, out) == (0, "folder\n")
    assert run(capsys, "convert", "folder", "again.safetensors", "--to", "compvis", "--dtype", "float32")[0] == 0
    assert load("again.safetensors", dtype="stored", tokenizer="folder").unet.conv_in.weight.dtype == torch.float32
    for arguments, message in (
        (
            ["folder", "x", "--to", "compviz"],
            "unknown format 'compviz'. Allowed: compvis, diffusers, kerascv. Did you mean",
        ),
        (["folder", "x.ckpt", "--to", "compvis"], "ends in .safetensors"),
        (["folder", "x", "--to", "diffusers", "--ema"], "ema True for the folder"),
        (["folder", "x.safetensors", "--to", "compvis", "--language", "jp"], "unknown language 'jp'"),
        (["folder", "x.safetensors", "--to", "compvis", "--dtype", "int8"], "dtype 'int8'"),
        (["nowhere", "x", "--to", "diffusers"], "unknown model 'nowhere'"),
        (["folder", "x"], "to is missing"),
    ):
        code, out, err = run(capsys, "convert", *arguments)
        assert (code, out) == (2, ""), arguments
        assert message in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.safetensors", "folder", "m.safetensors", "words"]


def test_convert_keeps_one_language(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = save(tiny_bundle(languages=("en", "ja")), tmp_path / "two")
    code, _, err = run(capsys, "convert", source, tmp_path / "one", "--to", "diffusers", "--language", "ja")
    assert code == 0, err
    assert load(tmp_path / "one").languages == ("ja",)


def test_other_verbs_say_what_to_do(source: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(source.file, tmp_path / "m.safetensors", prediction_type="epsilon")
    code, _, err = run(capsys, "generate", "a cat", "--model", path, "--out", tmp_path / "out")
    assert code == 2
    assert "Allowed: tokenizer=FOLDER (--tokenizer FOLDER)" in err
    assert not (tmp_path / "out").exists()


def test_every_verb_takes_what_a_file_leaves_open(
    source: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """generate, its saved configuration, check and evaluate load a pickled file of two UNets and an open prediction."""
    monkeypatch.chdir(tmp_path)
    averages = {k: t + 0.01 if t.ndim else t for k, t in ema_of(source.file).items()}
    torch.save({"state_dict": {**source.file, **averages}}, "m.ckpt")
    words(tmp_path / "words", "sd2")
    draw = ["generate", "a cat", "--model", "m.ckpt", "--steps", "2", "--width", "32", "--height", "32", "--json"]
    options: list[object] = []
    for message, *more in (
        (r"is a pickle", "--allow-pickle"),
        (r"(--ema, --no-ema)", "--ema"),
        (r"(--prediction-type)", "--prediction-type", "epsilon"),
        (r"(--tokenizer FOLDER)", "--tokenizer", "words"),
    ):
        code, out, err = run(capsys, *draw, *options)
        assert (code, out) == (2, "")
        assert message in err
        options += more
    code, out, err = run(capsys, *draw, *options)
    assert code == 0, err
    (picture,) = json.loads(out)["pictures"]
    (saved,) = Path("out").glob("generate-*.json")
    code, out, err = run(capsys, "generate", "--config", saved, "--out", "again", "--json")
    assert code == 0, err
    assert Path(json.loads(out)["pictures"][0]["path"]).name == Path(picture["path"]).name

    replay = ["generate", "--replay", picture["path"], "--model", "m.ckpt", "--out", "replayed", "--json"]
    code, out, err = run(capsys, *replay, *options)
    assert code == 0, err
    assert json.loads(out)["identical"] is True
    tiny_tokenizer("en", "<|endoftext|>").save(_new(tmp_path / "others"))  # the same vocabulary, padded otherwise
    for given, other, part in (
        ("--ema", "--no-ema", "UNet"),
        ("epsilon", "v_prediction", "noise schedule"),
        ("words", "others", "tokenizer of en"),
    ):
        code, out, err = run(capsys, *replay, *(other if x == given else x for x in options))
        assert (code, out) == (2, ""), given
        assert f"the {part} of m is another one than drew the picture" in err

    code, out, err = run(capsys, "check", "--model", "m.ckpt", *options, "--json")
    assert code == 0, err
    assert json.loads(out)["model"]["name"] == "m"
    code, _, err = run(capsys, "evaluate", "--model", "m.ckpt", *options, "--languages", "ja")
    assert code == 2
    assert "ja" in err.splitlines()[-1]  # loaded, and it has no Japanese
    assert "pickle" not in err.splitlines()[-1]


def _new(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize("verb", ["generate", "check", "evaluate"])
def test_options_that_do_not_apply_are_errors(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    folder = save(tiny_bundle(), tmp_path / "m")
    prompt = ["a cat", "--out", tmp_path / "out"] if verb == "generate" else []
    for option, message in (
        (["--tokenizer", folder], f"tokenizer {folder} for the folder {folder}"),
        (["--no-ema"], f"ema False for the folder {folder}"),
        (["--prediction-type", "epsilon"], f"prediction_type epsilon for the folder {folder}"),
    ):
        code, out, err = run(capsys, verb, *prompt, "--model", folder, *option)
        assert (code, out) == (2, "")
        assert message in err


def test_inspect_shows_a_file(source: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {**source.file, **ema_of(source.file)}
    path = written(tensors, tmp_path / "m.safetensors", resolution="16x16", license="MIT")
    found = describe(path)
    chosen = {"ema": False, "prediction_type": "epsilon", "tokenizer": words(tmp_path / "words", "sd2")}
    folder = describe(save(load(path, **chosen), tmp_path / "m"))  # type: ignore[arg-type]
    assert found.keys() == folder.keys()
    for part in ("unet", "vae"):
        assert found["components"][part] == folder["components"][part]
        assert found["sizes"][part]["parameters"] == folder["sizes"][part]["parameters"]
    assert found["sizes"]["ema"] == found["sizes"]["unet"]
    text = {k: v for k, v in folder["components"]["text_encoder"].items() if k in found["components"]["text_encoder"]}
    assert found["components"]["text_encoder"] == {**text, "layout": "openclip"}
    assert found["components"]["scheduler"]["prediction_type"] is None
    assert (found["family"], found["licence"], found["size_px"], found["languages"]) == ("sd2", "MIT", 16, [])
    assert found["hashes"] == {"file": file_sha256(path)}
    said = " ".join(found["notes"])
    for part in ("twice", "text_projection", "pass prediction_type", "no tokenizer"):
        assert part in said
    code, out, _ = run(capsys, "inspect", path)
    assert code == 0
    assert "languages not stated, licence MIT" in out
    torch.save(source.file, tmp_path / "m.ckpt")
    code, _, err = run(capsys, "inspect", tmp_path / "m.ckpt")
    assert code == 2
    assert "is a pickle" in err
