"""The command line with adapters: `kotoe generate --lora --embedding`, its replay, `kotoe inspect` of their files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adapters import factors, lora_file, vectors
from commands import Kotoe, running
from kotoe import images
from kotoe.checkpoints import load
from tiny import saved_tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model and adapters for it."""
    folder = tmp_path_factory.mktemp("made")
    model = saved_tiny(folder / "tiny", "sd2", languages=("en", "ja"))
    bundle = load(model, dtype="float32")
    unet, text = factors(bundle.unet, seed=1), factors(bundle.conditioner().encoder, seed=2)
    said = {"ss_base_model_version": "sd_v2", "ss_network_dim": "4", "ss_secret_path": "/x", "modelspec.title": "a\nb"}
    lora_file(folder / "style.safetensors", "kohya", unet, text, alpha=2.0, metadata=said)
    kinds = factors(bundle.unet, rank=2, seed=3, keep=lambda m: m.endswith(("conv1", "to_k")))
    lora_file(folder / "other.safetensors", "peft", kinds)
    save_file({"emb_params": vectors(3, 32)}, folder / "toy.safetensors")
    torch.save({"string_to_param": {"*": vectors(2, 32)}, "name": "<old>"}, folder / "old.pt")
    files = {path.stem: str(path) for path in folder.iterdir() if path.is_file()}
    return {**files, "model": str(model), "folder": str(folder)}


@pytest.fixture
def kotoe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Kotoe:
    monkeypatch.chdir(tmp_path)
    return running(capsys)


def pixels(path: str) -> bytes:
    return images.open_picture(path).tobytes()


def test_generate_with_adapters_and_replay(kotoe: Kotoe, made: dict[str, str]) -> None:
    start = ["generate", "a toy cat", "--language", "en", "--model", made["model"], "--seed", "3", "--json"]
    adapters = ["--lora", f"{made['style']}:0.8", f"{made['other']}:-0.5", "--embedding", made["toy"]]
    plain, done = kotoe(*start, "--out", "plain"), kotoe(*start, *adapters)
    assert done.code == 0, done.err
    ((before,), (entry,)) = plain.json["pictures"], done.json["pictures"]
    assert pixels(entry["path"]) != pixels(before["path"])
    record = entry["record"]
    assert [(a["kind"], a["name"], a["weight"], a["language"], a["token"]) for a in record["adapters"]] == [
        ("embedding", "toy.safetensors", None, "en", "toy"),
        ("lora", "style.safetensors", 0.8, "en", None),
        ("lora", "other.safetensors", -0.5, None, None),
    ]
    assert (before["record"]["adapters"], before["record"]["model"]) == ([], record["model"])
    assert before["record"]["conditioner"] == record["conditioner"]
    assert "note: style.safetensors: its text part is for the text encoder of en alone" in done.err
    assert "note: toy.safetensors: all of it is for the text encoder of en alone" in done.err
    assert "other.safetensors: its" not in done.err

    again = ["generate", "--replay", entry["path"], "--model", made["model"], "--json"]
    replayed = kotoe(*again, *adapters)
    assert (replayed.code, replayed.json["identical"]) == (0, True), replayed.err
    drawn = sorted(Path().rglob("*.png"))
    for given, message in (
        ([], "was drawn with the embedding toy.safetensors (token 'toy', text encoder of en, sha256"),
        (["--embedding", made["toy"]], "the LoRA style.safetensors (weight 0.8, text encoder of en, sha256"),
        (["--embedding", made["toy"], "--lora", made["style"], f"{made['other']}:-0.5"], "differs here"),
        ([*adapters, "--no-lora-text"], "differs here"),
        (["--embedding", f"<x>={made['toy']}", *adapters[:3]], "differs here"),
    ):
        bad = kotoe(*again, *given)
        assert bad.code == 2
        assert message in bad.err
    assert sorted(Path().rglob("*.png")) == drawn


def test_a_word_that_no_prompt_has_is_said(kotoe: Kotoe, made: dict[str, str]) -> None:
    start = ["--language", "en", "--model", made["model"], "--embedding", made["toy"], "--dry-run"]
    assert "note: no prompt has the word 'toy' of the embedding toy.safetensors" in kotoe("generate", "a", *start).err
    assert "no prompt has the word" not in kotoe("generate", "a", "a (Toy:1.2)", *start).err


def test_weight_zero_draws_what_the_base_draws(kotoe: Kotoe, made: dict[str, str]) -> None:
    start = ["generate", "a cat", "--language", "en", "--model", made["model"], "--json"]
    plain = kotoe(*start)
    none = kotoe(*start, "--lora", f"{made['style']}:0", "--out", "none")
    assert pixels(plain.json["pictures"][0]["path"]) == pixels(none.json["pictures"][0]["path"])
    assert none.json["pictures"][0]["record"]["adapters"][0]["weight"] == 0.0


def test_the_saved_configuration_has_the_adapters(kotoe: Kotoe, made: dict[str, str]) -> None:
    first = kotoe(
        *("generate", "a <old> cat", "--language", "en", "--model", made["model"], "--json", "--allow-pickle"),
        *("--embedding", made["old"], "--lora", f"{made['style']}:0.5", "--no-lora-text"),
    )
    (saved,) = Path("out").glob("generate-*.json")
    config = json.loads(saved.read_text("utf-8"))
    assert (config["lora"], config["lora_text"]) == ([f"{made['style']}:0.5"], False)
    second = kotoe("generate", "--config", str(saved), "--out", "again", "--json")
    assert pixels(first.json["pictures"][0]["path"]) == pixels(second.json["pictures"][0]["path"])
    assert first.json["pictures"][0]["record"]["adapters"][1]["language"] is None


BAD = {
    "no file": (["--lora", "nowhere.safetensors:0.5"], "no file at nowhere.safetensors"),
    "no number": (["--lora", "{style}:much"], "weight 'much' of the LoRA"),
    "not finite": (["--lora", "{style}:inf"], "weight inf of the LoRA"),
    "a pickle": (["--embedding", "{old}"], "is a pickle, which can run any program"),
    "an embedding as a LoRA": (["--lora", "{toy}"], "emb_params of no naming that LoRAs have"),
    "a LoRA as an embedding": (["--embedding", "{style}"], "It may be a LoRA: --lora FILE"),
    "no text encoder of CLIP's": (
        ["--embedding", "{toy}", "--adapter-language", "ja"],
        "no CLIP with CLIP's tokenizer",
    ),
    "no such language": (["--embedding", "{toy}", "--adapter-language", "jp"], "Did you mean 'ja'?"),
    "a language for nothing": (
        ["--lora", "{other}", "--adapter-language", "en"],
        "without anything for its text encoder",
    ),
    "a text part that isn't there": (["--lora", "{other}", "--no-lora-text"], "has no part for the text encoder"),
    "no LoRA": (["--no-lora-text"], "without a LoRA"),
    "truncated": (["--lora", "cut.safetensors"], "is truncated or not a safetensors file"),
    "a model": (["--lora", "{model}/unet/diffusion_pytorch_model.safetensors"], "of no naming that LoRAs have"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_adapters_end_with_a_reason_and_no_picture(case: str, kotoe: Kotoe, made: dict[str, str]) -> None:
    arguments, reason = BAD[case]
    Path("cut.safetensors").write_bytes(Path(made["style"]).read_bytes()[:1000])
    given = [argument.format(**made) for argument in arguments]
    done = kotoe("generate", "a cat", "--language", "en", "--model", made["model"], *given)
    assert done.code == 2
    assert reason in done.err
    assert not Path("out").exists()


def test_inspect_says_what_an_adapter_is(kotoe: Kotoe, made: dict[str, str]) -> None:
    found = kotoe("inspect", made["style"], "--json").json
    assert (found["adapter"], found["form"], found["width"], found["family"]) == ("lora", "kohya", 32, None)
    assert found["parts"]["unet"] == {"modules": 32, "convolutions": 0, "ranks": [4], "alphas": [2.0]}
    assert found["parts"]["text_encoder"]["modules"] == 8
    assert found["metadata"] == {"ss_base_model_version": "sd_v2", "ss_network_dim": "4", "modelspec.title": "a\nb"}
    assert len(found["hashes"]["file"]) == 64
    other = kotoe("inspect", made["other"], "--json").json
    assert other["form"] == "diffusers"
    assert other["parts"]["unet"]["convolutions"] > 0
    toy = kotoe("inspect", made["toy"], "--json").json
    assert (toy["adapter"], toy["token"], toy["vectors"], toy["width"]) == ("embedding", "toy", 3, 32)
    plain = kotoe("inspect", made["style"])
    assert "style: a LoRA in kohya's form, text states 32 wide" in plain.out
    assert "unet: 32 modules, 0 of them convolutions of several pixels, ranks 4, alphas 2" in plain.out
    assert "modelspec.title: 'a\\nb'" in plain.out
    assert "toy: an embedding, token 'toy' of 3 vectors" in kotoe("inspect", made["toy"]).out


def test_inspect_infers_the_family_from_the_widths(kotoe: Kotoe) -> None:
    pair = {"lora_A": torch.ones(2, 768), "lora_B": torch.ones(320, 2)}
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    save_file({f"{name}.{end}.weight": t for end, t in pair.items()}, "a.safetensors")
    assert kotoe("inspect", "a.safetensors", "--json").json["family"] == "Stable Diffusion 1.x"
    save_file({"<toy>": torch.ones(1, 1024)}, "b.safetensors")
    assert kotoe("inspect", "b.safetensors", "--json").json["family"] == "Stable Diffusion 2.x"
