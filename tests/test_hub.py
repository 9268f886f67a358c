"""Models by their names on the hub, through the real huggingface_hub: its cache as it lays it out, and no network."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import seeds
from kotoe import builtin, hub
from kotoe.checkpoints import load
from kotoe.checkpoints.conditioners import add
from kotoe.errors import CheckpointError, UserError
from tiny import saved_tiny

REVISION = "0123456789abcdef0123456789abcdef01234567"


def cached(name: str, folder: Path, revision: str = REVISION, branch: str = "main") -> Path:
    """The folder as the hub's cache would hold it: blobs, links in snapshots/<commit>/, the branch in refs/."""
    from huggingface_hub.constants import HF_HUB_CACHE

    root = Path(HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / branch).write_text(revision)
    blobs, snapshot = root / "blobs", root / "snapshots" / revision
    blobs.mkdir(exist_ok=True)
    for k, file in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
        blob, link = blobs / f"{revision[:8]}{k}", snapshot / file.relative_to(folder)
        shutil.copyfile(file, blob)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def test_a_name_in_the_hubs_cache_is_its_folder(tmp_path: Path) -> None:
    snapshot = cached("someone/tiny", saved_tiny(tmp_path / "m"))
    assert builtin.resolve("someone/tiny") == snapshot
    assert builtin.resolve(f"someone/tiny@{REVISION}") == snapshot
    assert load("someone/tiny").languages == ("en",)
    other = "f" * 40
    cached("someone/tiny", saved_tiny(tmp_path / "other", seed=3), other, "next")
    assert builtin.resolve("someone/tiny@next").name == other
    assert builtin.resolve("someone/tiny").name == REVISION


def test_without_a_network_the_error_says_what_to_do() -> None:
    with pytest.raises(CheckpointError, match="neither in the hub's cache nor.*hf download nobody/nothing --local-dir"):
        builtin.resolve("nobody/nothing")
    with pytest.raises(UserError, match="Did you mean 'kotoe-emoji'"):
        builtin.resolve("kotoe-emojo")


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached("someone/twice", saved_tiny(tmp_path / "m"))
    monkeypatch.chdir(tmp_path)
    own = saved_tiny(Path("someone/twice"))
    assert builtin.resolve("someone/twice").resolve() == own.resolve()


def test_a_file_that_several_repositories_share(tmp_path: Path) -> None:
    """huggingface_hub keeps what came by xet once, in blobs/ of the whole cache, and links blobs/ of each to it."""
    snapshot = cached("someone/sharing", saved_tiny(tmp_path / "m"))
    link = snapshot / "unet" / "diffusion_pytorch_model.safetensors"
    blob, name = link.resolve(), "ab" + "0" * 62
    store = snapshot.parent.parent.parent / "blobs" / "ab"
    store.mkdir(parents=True)
    blob.rename(store / name)
    blob.symlink_to(os.path.relpath(store / name, blob.parent))
    assert load("someone/sharing").languages == ("en",)
    elsewhere = store.parent / "cd"
    store.rename(elsewhere)
    blob.unlink()
    blob.symlink_to(os.path.relpath(elsewhere / name, blob.parent))
    with pytest.raises(CheckpointError, match="outside the folder"):
        load("someone/sharing")


def test_of_a_repository_only_the_model_is_wanted() -> None:
    files = [
        "model_index.json",
        "README.md",
        "v1-5-pruned.ckpt",
        "safety_checker/model.safetensors",
        "unet/config.json",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "vae/diffusion_pytorch_model.bin",
        "vae/diffusion_flax_model.msgpack",
        "text_encoder/openvino_model.bin",
        "tokenizer/spiece.model",
        "tokenizer/vocab.txt",
        "conditioners/ja/tokenizer/spiece.model",
        "LICENSE.txt",
    ]
    assert hub.wanted(files) == [
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.bin",
        "tokenizer/spiece.model",
        "tokenizer/vocab.txt",
        "conditioners/ja/tokenizer/spiece.model",
    ]


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        ("x.fp16.safetensors x.fp16.bin", "x.fp16.safetensors"),
        ("x.bin x.fp16.bin x.fp16.safetensors", "x.fp16.safetensors"),
        ("x.bin x.fp16.bin", "x.bin"),
        ("x.bf16.safetensors x.fp16.safetensors", "x.fp16.safetensors"),
        ("x.safetensors x.fp16.safetensors x.bin", "x.safetensors"),
        ("x.non_ema.safetensors x.bin", "x.bin"),
        (
            "x-1-of-2.safetensors x-2-of-2.safetensors x.safetensors.index.json x.fp16.safetensors",
            "x-1-of-2.safetensors x-2-of-2.safetensors x.safetensors.index.json",
        ),
    ],
)
def test_one_form_of_weights_is_wanted(there: str, taken: str) -> None:
    beside = ["unet/config.json", "vae/x.safetensors"]
    found = hub.wanted(["model_index.json", *beside, *(f"unet/{name}" for name in there.split())])
    assert found == ["model_index.json", *beside, *(f"unet/{name}" for name in taken.split())]


def test_what_git_leaves_of_a_large_file(tmp_path: Path) -> None:
    model = saved_tiny(tmp_path / "m")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    for file in ("tokenizer/vocab.json", "unet/diffusion_pytorch_model.safetensors"):
        kept = (model / file).read_bytes()
        (model / file).write_text(pointer)
        with pytest.raises(CheckpointError, match=f"{Path(file).name} is git-lfs' pointer.*git lfs pull"):
            load(model).tokenizer("en")
        (model / file).write_bytes(kept)
    weights = model / "vae" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    weights.with_suffix(".bin").write_text(pointer)
    with pytest.raises(CheckpointError, match="git lfs pull"):
        load(model, allow_pickle=True)


def test_a_text_models_own_repository(tmp_path: Path) -> None:
    """Not in diffusers' layout: the files at its top, for `kotoe conditioner add`."""
    published = "README.md config.json flax_model.msgpack tokenizer.json tokenizer_config.json onnx/model.json".split()
    weights = ["model.safetensors", "pytorch_model.bin", "model.fp16.safetensors"]
    wanted = hub.wanted(iter([*published, *weights]))
    assert wanted == ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
    assert "pytorch_model.bin" in hub.wanted([*published, "pytorch_model.bin"])
    assert hub.wanted(["model_index.json", "config.json", "model.safetensors"]) == ["model_index.json"]
    ours = saved_tiny(tmp_path / "m")
    cached("someone/korean-clip", seeds.korean_clip(tmp_path / "clip"))
    add(ours, "ko", "someone/korean-clip")
    assert load(ours).languages == ("en", "ko")
    with pytest.raises(CheckpointError, match="holds no model_index.json"):
        load("someone/korean-clip")
