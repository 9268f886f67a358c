"""Models by their names on a small hub of our own (hub_server.py), through the command line: what is downloaded when,
what models are called, their safety checkers, and what is said of names that aren't one."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from checkers import save_checker, stock_checker
from hub_client import Client, Done
from hub_server import Hub
from kotoe import images
from tiny import edit, saved_tiny

DRAW = ("--steps", "2", "--json", "--accept-license")


@pytest.fixture(scope="module")
def client(running_hub: Hub, hub_folder: Path) -> Iterator[Client]:
    found = Client(running_hub.environment(hub_folder / "home"), drawing=True)
    yield found
    found.close()


@pytest.fixture(scope="module")
def offline(running_hub: Hub, hub_folder: Path) -> Iterator[Client]:
    found = Client(running_hub.environment(hub_folder / "home", HF_HUB_OFFLINE="1"), drawing=True)
    yield found
    found.close()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved_tiny(tmp_path / "m")


def refused(done: Done, *messages: str) -> None:
    assert done.code == 2, done.err
    assert "Traceback" not in done.err
    for message in messages:
        assert message in done.err, done.err


def weights(server: Hub) -> list[str]:
    """Of the large files that were asked for since the server was told something."""
    return [each["path"].split("/resolve/")[1][41:] for each in server.asked("GET") if "/resolve/" in each["path"]
            and each["path"].endswith((".safetensors", ".bin"))]  # fmt: skip


# --- What models are called


def test_pictures_and_messages_name_repository_and_commit(
    server: Hub, client: Client, model: Path, tmp_path: Path
) -> None:
    commit = server.put("someone/named", model)
    done = client.kotoe("inspect", "someone/named")
    assert re.search(r"^downloading [0-9.]+ MB of someone/named$", done.err, re.MULTILINE), done.err
    assert done.out.startswith(f"someone/named@{commit}: sd1"), done.err
    done = client.kotoe("generate", "a cat", "--model", "someone/named", "--out", tmp_path / "out", *DRAW)
    assert done.code == 0, done.err
    picture = json.loads(done.out)["pictures"][0]
    assert picture["record"]["model"]["name"] == f"someone/named@{commit}"
    # The record alone says where to get the model, in a cache that hasn't got it too, whatever the branch is by now.
    server.put("someone/named", saved_tiny(tmp_path / "newer", seed=7))
    elsewhere = Client(server.environment(tmp_path / "home"), drawing=True)
    again = elsewhere.kotoe("generate", "--replay", picture["path"], "--out", tmp_path / "again", "--json")
    assert json.loads(again.out)["identical"], again.err
    elsewhere.close()
    # What is made of it is another model.
    client.kotoe("convert", f"someone/named@{commit}", "--to", "diffusers", "--out", tmp_path / "made")
    assert json.loads((tmp_path / "made" / "kotoe.json").read_text())["name"] == "named"


def test_a_record_names_no_path_to_load(client: Client, model: Path, tmp_path: Path) -> None:
    done = client.kotoe("generate", "a cat", "--model", model, "--out", tmp_path / "out", *DRAW)
    picture = json.loads(done.out)["pictures"][0]
    for name in ("me/tiny", "../m", "me/tiny@main"):
        record = json.dumps({**picture["record"], "model": {**picture["record"]["model"], "name": name}})
        images.save_png(images.open_picture(picture["path"]), tmp_path / "x.png", record)
        refused(client.kotoe("generate", "--replay", tmp_path / "x.png"), f"drawn by {name!r}. Say where that model is")


# --- What is known before the weights are loaded


def pickled(folder: Path) -> None:
    (folder / "vae" / "diffusion_pytorch_model.safetensors").rename(folder / "vae" / "diffusion_pytorch_model.bin")


UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "another pipeline": (
        lambda f: edit(f / "model_index.json", _class_name="StableDiffusionXLPipeline"),
        "a pipeline of class 'StableDiffusionXLPipeline'",
    ),
    "a broken index": (lambda f: (f / "model_index.json").write_text("{"), "model_index.json"),
    "a pickle": (pickled, "vae/diffusion_pytorch_model.bin is a pickle"),
    "no unet": (lambda f: shutil.rmtree(f / "unet"), "/unet/config.json"),
    "no weights": (lambda f: (f / "unet/diffusion_pytorch_model.safetensors").unlink(), "/unet holds no weights"),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "tokenizer"),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), "/scheduler/scheduler_config.json"),
    "a text model": (lambda f: [(f / "model_index.json").unlink(), edit_text(f)], "holds no model_index.json"),
}


def edit_text(folder: Path) -> None:
    shutil.rmtree(folder / "unet")
    for path in (folder / "text_encoder").iterdir():
        path.rename(folder / path.name)


@pytest.mark.parametrize("case", list(UNUSABLE))
def test_what_cannot_be_used_is_not_downloaded(case: str, server: Hub, client: Client, model: Path) -> None:
    change, message = UNUSABLE[case]
    change(model)
    name = f"someone/{case.replace(' ', '-')}"
    server.put(name, model)
    refused(client.kotoe("generate", "a cat", "--model", name), message)
    assert weights(server) == []
    if case == "a pickle":
        done = client.kotoe("generate", "a cat", "--model", name, "--allow-pickle", "--dry-run")
        assert "vae/diffusion_pytorch_model.bin" in weights(server), done.err


# --- Safety checkers


def test_a_models_own_checker_is_downloaded_when_it_is_used(
    server: Hub, client: Client, offline: Client, model: Path, tmp_path: Path
) -> None:
    save_checker(stock_checker(), model)
    edit(model / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    commit = server.put("someone/checked", model)
    draw = ("generate", "a cat", "--model", "someone/checked", "--out", tmp_path / "out", *DRAW)
    assert client.kotoe(*draw, "--safety", "off").code == 0
    assert [each for each in weights(server) if "safety" in each] == []
    refused(offline.kotoe(*draw), "HF_HUB_OFFLINE", "Or draw without a check: --safety off")
    for each in (client, offline):
        done = each.kotoe(*draw)
        assert done.code == 0, done.err
        verdict = json.loads(done.out)["pictures"][0]["record"]["picture_verdict"]
        assert verdict["checker"] == f"someone/checked@{commit}/safety_checker"
    assert offline.kotoe(*draw, "--safety", "off").code == 0


def test_a_checker_that_is_named_and_not_there(
    server: Hub, client: Client, offline: Client, model: Path, tmp_path: Path
) -> None:
    edit(model / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    server.put("someone/unchecked", model)
    for each in (client, offline):
        done = each.kotoe("generate", "a cat", "--model", "someone/unchecked", "--out", tmp_path / "out", *DRAW)
        assert done.code == 0, done.err
        assert "names a safety checker that isn't in its folder, so pictures aren't checked" in done.err


def test_a_checker_that_the_model_does_not_name_is_not_its_own(
    server: Hub, client: Client, model: Path, tmp_path: Path
) -> None:
    """Be it in the cache, as after --safety-checker, or not."""
    server.put("someone/beside", save_checker(stock_checker(), model))
    draw = ("generate", "a cat", "--model", "someone/beside", "--out", tmp_path / "out", *DRAW)
    found = [client.kotoe(*draw, *more) for more in ((), ("--safety-checker", "someone/beside"), ())]
    verdicts = [json.loads(done.out)["pictures"][0]["record"]["picture_verdict"] for done in found]
    assert [verdict is None for verdict in verdicts] == [True, False, True]


# --- Names


def test_names_like_the_built_in_models(server: Hub, client: Client, model: Path) -> None:
    for name in ("me/emoji", "aa/kotoe-emoji", "someone/kotoe-emoji-v2"):
        commit = server.put(name, model)
        done = client.kotoe("inspect", name)
        assert done.out.startswith(f"{name}@{commit}"), done.err
    for verb in (("inspect", "kotoe/emoji"), ("generate", "a cat", "--model", "kotoe/emoji")):
        refused(
            client.kotoe(*verb),
            "the hub has no model kotoe/emoji, or it is private",
            "Did you mean 'kotoe-emoji', which is built in?",
        )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("https://huggingface.co/me/emoji", "named owner/name: me/emoji."),
        ("https://huggingface.co/me/emoji/tree/v1", "named owner/name: me/emoji@v1."),
        ("hf://me/emoji", "named owner/name: me/emoji."),
        ("huggingface.co/me/emoji/", "named owner/name: me/emoji."),
        ("me/tiny@", "a name on the hub (owner/name or owner/name@revision)"),
        ("me/em oji", "a name on the hub (owner/name or owner/name@revision)"),
        ("me/tiny/v1.safetensors", "hf download me/tiny v1.safetensors"),
        ("https://huggingface.co/me/tiny/resolve/v2/a/b.ckpt", "hf download me/tiny a/b.ckpt --revision v2"),
    ],
)
def test_other_spellings(given: str, message: str, client: Client) -> None:
    refused(client.kotoe("inspect", given), message)


def test_a_repository_of_single_files(server: Hub, client: Client, tmp_path: Path) -> None:
    (tmp_path / "single").mkdir()
    (tmp_path / "single" / "v1-5.safetensors").write_bytes(b"0")
    server.put("someone/single", tmp_path / "single")
    refused(client.kotoe("inspect", "someone/single"), "hf download someone/single v1-5.safetensors")


def test_an_address_with_a_password(running_hub: Hub, hub_folder: Path, model: Path) -> None:
    """It is neither shown nor kept."""
    address = running_hub.url.replace("://", "://user:s3cret@")
    client = Client(running_hub.environment(hub_folder / "other", HF_ENDPOINT=address))
    done = [client.kotoe("inspect", name) for name in ("no/such", "no/such@v1")]
    running_hub.told(html=True)
    done.append(client.kotoe("inspect", "no/such"))
    running_hub.told()
    running_hub.put("someone/cut", model)
    running_hub.told(cut=1, cuts=100)
    done.append(client.kotoe("inspect", "someone/cut"))
    assert "Error while downloading from http://127" in done[-1].err
    running_hub.told()
    client.close()
    gone = Client(running_hub.environment(hub_folder / "other", HF_ENDPOINT="http://user:s3cret@127.0.0.1:9"))
    done.append(gone.kotoe("inspect", "no/such"))
    gone.close()
    for each in done:
        refused(each)
        assert "s3cret" not in each.out + each.err


# --- Half precision


def test_half_precision_where_there_is_no_other(server: Hub, client: Client, model: Path) -> None:
    for part, stem in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        (model / part / f"{stem}.safetensors").rename(model / part / f"{stem}.fp16.safetensors")
    (model / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    server.put("someone/half", model)
    done = client.kotoe("inspect", "someone/half")
    assert "note: unet, vae, text_encoder: half precision" in done.out, done.err
    assert "vae/diffusion_pytorch_model.bin" not in weights(server)
