"""A corpus of hostile and damaged pickles: nothing in them runs, and each is one sentence that says what is wrong."""

from __future__ import annotations

import copy
import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kotoe.checkpoints.pickles import read_pickle
from kotoe.errors import CheckpointError

pytestmark = pytest.mark.filterwarnings(
    "ignore:Detected pickle protocol",
    "ignore:Sparse invariant checks are implicitly disabled",
)


class Calls:
    """Pickles to a call of `function` with `arguments`."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def archive(path: Path, data: bytes, *, method: int = zipfile.ZIP_STORED, **more: bytes) -> None:
    """A file as torch writes it, with this data.pkl."""
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/version", b"3\n")
        for name, content in more.items():
            file.writestr(f"archive/{name}", content)


# --- What would run -----------------------------------------------------------------------------------------


def called(function: Callable[..., object], *arguments: object) -> Callable[[Path], bytes]:
    return lambda canary: pickle.dumps(
        {"w": Calls(function, *(a.format(canary) if isinstance(a, str) else a for a in arguments))}, protocol=2
    )


def by_hand(text: str) -> Callable[[Path], bytes]:
    return lambda canary: text.format(canary).encode("latin-1")


def numpy_objects(canary: Path) -> bytes:
    return pickle.dumps({"w": np.array([Calls(os.mkdir, str(canary))], dtype=object)}, protocol=2)


# name: (pickle that would make the canary, words of the message)
BOMBS: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "os.system": (called(os.system, "touch {}"), "it names posix.system, which was not called"),
    "eval": (called(eval, "__import__('os').mkdir('{}')"), "it names eval, which"),
    "exec": (called(exec, "import os; os.mkdir('{}')"), "it names exec, which"),
    "a method": (lambda canary: pickle.dumps(Calls(Path.touch, canary), protocol=2), "it names [a-z.]*getattr"),
    "a chain of getattr": (
        by_hand(
            "\x80\x02cbuiltins\ngetattr\n(c__builtin__\n__import__\nU\x08__call__tR(U\x02ostR0cos\nmkdir\n(V{}\ntR."
        ),
        "it names getattr",
    ),
    "torch.load": (
        by_hand("\x80\x02ctorch.serialization\nos.mkdir\n(V{}\ntR."),
        "it names torch.serialization.os.mkdir",
    ),
    "an instance": (by_hand("(V{}\nios\nmkdir\n."), "Unsupported operand 86"),
    "an object": (by_hand("(cos\nmkdir\nV{}\no."), "it names os.mkdir"),
    "protocol 4": (
        lambda canary: pickle.dumps(Calls(os.mkdir, str(canary)), protocol=4),
        "damaged or holds more than tensors",
    ),
    "objects in numpy": (numpy_objects, r"it names numpy\.?_?c?o?r?e?\.multiarray\._reconstruct"),
}


@pytest.mark.parametrize("packed", [True, False], ids=["archive", "bare"])
@pytest.mark.parametrize("bomb", BOMBS)
def test_nothing_runs(bomb: str, packed: bool, tmp_path: Path) -> None:
    make, message = BOMBS[bomb]
    canary, path = tmp_path / "canary", tmp_path / "m.ckpt"
    data = make(canary)
    if packed:
        archive(path, data)
    else:
        path.write_bytes(data)
    with pytest.raises(CheckpointError, match=f"^UNet: m.ckpt.*{message}") as caught:
        read_pickle(path, "UNet", allow_pickle=True)
    assert not canary.exists()
    for advice in ("weights_only", "torch.load", "add_safe_globals"):
        assert advice not in str(caught.value)


@pytest.mark.parametrize("bomb", [name for name in BOMBS if name != "torch.load"])
def test_the_bombs_are_live(bomb: str, tmp_path: Path) -> None:
    """Python's own unpickler makes the canary: the test above could fail."""
    canary = tmp_path / "canary"
    pickle.loads(BOMBS[bomb][0](canary))
    assert canary.exists()


def test_a_file_that_loads_another_one(tmp_path: Path) -> None:
    """torch.load is itself no gadget: it isn't among what may be called."""
    archive(tmp_path / "inner.ckpt", BOMBS["os.system"][0](tmp_path / "canary"))
    archive(tmp_path / "m.ckpt", pickle.dumps(Calls(torch.load, str(tmp_path / "inner.ckpt")), protocol=2))
    with pytest.raises(CheckpointError, match=r"it names torch\.serialization\.load"):
        read_pickle(tmp_path / "m.ckpt", "UNet", allow_pickle=True)
    assert not (tmp_path / "canary").exists()


def test_a_pickle_is_not_opened_unasked(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"x: m\.ckpt is a pickle.*safetensors.*allow_pickle=True"):
        read_pickle(tmp_path / "m.ckpt", "x", allow_pickle=False)  # it isn't even there


# --- What is damaged, or lies -------------------------------------------------------------------------------


def saved(value: object, path: Path, *, legacy: bool = False) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


def repacked(path: Path, change: Callable[[str, bytes], bytes | None]) -> None:
    """The archive again with other members' contents; None leaves one out."""
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for name, content in members.items():
            if (new := change(name, content)) is not None:
                file.writestr(name, new)


def cut(path: Path) -> None:
    saved({"w": torch.ones(64)}, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_legacy(path: Path) -> None:
    saved({"w": torch.ones(64)}, path, legacy=True)
    path.write_bytes(path.read_bytes()[:-100])


def without_pickle(path: Path) -> None:
    repacked(saved({"w": torch.ones(64)}, path), lambda name, data: None if name.endswith("data.pkl") else data)


def short_storage(path: Path) -> None:
    repacked(saved({"w": torch.ones(64)}, path), lambda name, data: data[:8] if "/data/" in name else data)


def deflated(path: Path) -> None:
    archive(path, b"\0" * 2**26, method=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**17


def overlapping(path: Path) -> None:
    """One megabyte that a hundred members share."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data/0", b"\0" * 2**20)
        for i in range(1, 100):
            member = copy.copy(file.filelist[0])
            member.filename = f"archive/data/{i}"
            file.filelist.append(member)


def tar(path: Path) -> None:
    with tarfile.open(path, "w") as file:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = pickle.dumps({"protocol_version": 1000}, protocol=2)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))


def many_views(path: Path) -> None:
    """A thousand different tensors of one storage: 4 GB to be made of 4 MB."""
    storage = torch.zeros(2**20)
    saved({f"w{i}": storage[: len(storage) - i] for i in range(1000)}, path)


DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda p: p.write_bytes(b""), r"m\.ckpt \(0 bytes\) is damaged"),
    "text": (lambda p: p.write_text("<!DOCTYPE html><p>Not found</p>"), r"\(31 bytes\) is damaged"),
    "noise": (lambda p: p.write_bytes(bytes(range(256)) * 9), "is damaged"),
    "cut off": (cut, r"is truncated or damaged \(File is not a zip file\)"),
    "cut off, legacy": (cut_legacy, r"is damaged or holds more than tensors \(\w+: "),
    "no data.pkl": (without_pickle, "is damaged"),
    "short storage": (short_storage, r"m\.ckpt"),
    "compressed": (deflated, "archive/data.pkl in it is compressed, which torch never does"),
    "overlapping": (overlapping, r"an archive that says it holds \d{9} bytes, in \d{7}"),
    "legacy tar": (tar, r"is of torch's \.tar format"),
    "TorchScript": (lambda p: archive(p, b"\x80\x02}.", **{"constants.pkl": b"\x80\x02)."}), "is a program"),
    "stride 0": (
        lambda p: saved({"w": torch.zeros(1).expand(1000, 1000)}, p),
        r"w \[1000, 1000\] says it is larger than the 4 bytes it has",
    ),
    "many views": (many_views, "its tensors say that they are 4192306000 bytes, in a file of 4"),
    "sparse": (lambda p: saved({"w": torch.eye(3).to_sparse()}, p), r"w is no dense tensor in memory \(torch\.sparse"),
    "on no device": (lambda p: saved({"w": torch.ones(3, device="meta")}, p), "w is no dense tensor in memory"),
    "a list": (lambda p: saved([1, 2], p), r"something else than a table of tensors \(list of 2\)"),
    "one tensor": (lambda p: saved(torch.ones(2), p), r"something else than a table of tensors \(Tensor\)"),
    "nothing": (lambda p: saved({}, p), r"something else than a table of tensors \(dict of 0\)"),
    "a number": (lambda p: saved({"w": torch.ones(2), "v": 3}, p), r"table of tensors \(at 'v': int\)"),
    "numbered": (lambda p: saved({0: torch.ones(2)}, p), r"table of tensors \(at 0: Tensor\)"),
    "numpy": (lambda p: saved({"w": np.ones(3)}, p), r"it names numpy\..*_reconstruct"),
    "state_dict is a list": (lambda p: saved({"state_dict": [1]}, p), r"table of tensors \(list of 1\)"),
    "state_dict in state_dict": (
        lambda p: saved({"state_dict": {"state_dict": {"w": torch.ones(2)}}}, p),
        r"table of tensors \(at 'state_dict': dict of 1\)",
    ),
    "tensors beside state_dict": (
        lambda p: saved({"state_dict": {"w": torch.ones(2)}, "w": torch.zeros(2)}, p),
        "'w' beside state_dict",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_said(case: str, tmp_path: Path) -> None:
    make, message = DAMAGED[case]
    path = tmp_path / "m.ckpt"
    make(path)
    with pytest.raises(CheckpointError, match=f"^UNet: .*{message}"):
        read_pickle(path, "UNet", allow_pickle=True)


@pytest.mark.parametrize("legacy", [False, True], ids=["archive", "legacy"])
def test_any_changed_byte_is_read_or_refused(legacy: bool, tmp_path: Path) -> None:
    """Nothing but a CheckpointError comes out, whichever byte is changed, and whatever is read is plain."""
    path = saved({"a.weight": torch.ones(4, 2), "a.bias": torch.zeros(4)}, tmp_path / "m.ckpt", legacy=legacy)
    whole = path.read_bytes()
    random = np.random.default_rng(1)
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        data[random.integers(len(data))] ^= 1 << random.integers(8)
        path.write_bytes(data)
        try:
            found = read_pickle(path, "UNet", allow_pickle=True)
        except CheckpointError:
            refused += 1
        else:
            assert all(t.layout == torch.strided and t.numel() < 100 for t in found.values())
    assert refused > 50


# --- What is fine -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True], ids=["archive", "legacy"])
def test_tables_of_tensors_are_read(legacy: bool, tmp_path: Path) -> None:
    tensors: Mapping[str, torch.Tensor] = {
        "w": torch.arange(6.0).reshape(2, 3),
        "half": torch.ones(2, dtype=torch.float16),
        "count": torch.tensor(7),
        "p": torch.nn.Parameter(torch.ones(2)),
    }
    trained = {"state_dict": dict(tensors), "epoch": 3, "global_step": 9, "pytorch-lightning_version": "1.4"}
    trained["optimizer_states"] = [{"state": {0: {"exp_avg": torch.ones(2)}}}]
    for value in (dict(tensors), trained):
        found = read_pickle(saved(value, tmp_path / "m.ckpt", legacy=legacy), "UNet", allow_pickle=True)
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], t) and found[name].dtype == t.dtype for name, t in tensors.items())
        assert not any(t.requires_grad for t in found.values())


def test_tied_tensors_are_read(tmp_path: Path) -> None:
    w = torch.ones(100, 100)
    found = read_pickle(saved({"a": w, "b": w}, tmp_path / "m.ckpt"), "UNet", allow_pickle=True)
    assert torch.equal(found["a"], found["b"])
