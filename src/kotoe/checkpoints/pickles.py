"""Pickled weights (.ckpt, .bin, .pt, .pth), read only when asked for, as tensors and nothing else.

torch's restricted unpickler builds tensors, dicts and numbers, and calls nothing that a file names. Around it stands
what it leaves open: archives and tensors that say they are larger than their file, tables that aren't flat, and
messages that advise to switch the restriction off.
"""

from __future__ import annotations

import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kotoe.errors import CheckpointError

ZIP = b"PK\x03\x04"  # how the files of torch 1.6 and later begin
TIED = 2  # tensors may say this many times the file's size: those tied together are stored once
# What PyTorch Lightning writes beside the tensors of a model that it trained.
BOOKKEEPING = frozenset(
    "callbacks epoch global_step hparams_name hyper_parameters loops lr_schedulers native_amp_scaling_state "
    "optimizer_states pytorch-lightning_version".split()
)
AGAIN = "Get the file again and compare its size and sha256 with its source"
HARMLESS = "Convert it to safetensors where it can do no harm, or get a file that holds tensors only"


def read_pickle(path: Path, what: str, allow_pickle: bool) -> dict[str, Tensor]:
    """Name to tensor of a pickled file; nothing in it is ever run. `what` is the part's name, for messages.

    Raises CheckpointError for a file that is damaged, holds or wants to call anything else, or isn't allowed at all.
    """
    where = f"{what}: {path.name}"
    return dense(_state(unpickled(path, where, allow_pickle), where), where, path.stat().st_size)


def unpickled(path: Path, where: str, allow_pickle: bool) -> Any:
    """What a pickled file holds, of tensors, numbers and texts in dicts and lists. Its tensors are to go through
    `dense` before they are used."""
    if not allow_pickle:
        raise CheckpointError(
            f"{where} is a pickle, which can run any program when it is opened",
            allowed="safetensors",
            hint="Convert it where it can do no harm, or pass allow_pickle=True (--allow-pickle), which reads tensors "
            "only",
        )
    size = path.stat().st_size
    with path.open("rb") as file:
        archive = file.read(len(ZIP)) == ZIP
    if archive:
        _check_archive(path, where, size)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)  # not mmap: it trusts the sizes of storages
    except Exception as error:  # noqa: BLE001 (a damaged or hostile pickle raises anything)
        raise _refused(error, where, size) from None


def dense(state: dict[str, Tensor], where: str, size: int) -> dict[str, Tensor]:
    """The tensors of a pickled file of `size` bytes, which must be plain, and not say that they are larger than it."""
    for name, t in state.items():
        _check_plain(name, t, where)
    said = sum(t.numel() * t.element_size() for t in state.values())
    if said > TIED * size:
        raise CheckpointError(f"{where}: its tensors say that they are {said} bytes, in a file of {size}", hint=AGAIN)
    return {name: t.detach() for name, t in state.items()}


def _check_archive(path: Path, where: str, size: int) -> None:
    """Refuse an archive that is cut off, compressed (torch never does), or says that it holds more than its size."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, struct.error) as error:
        raise CheckpointError(f"{where} ({size} bytes) is truncated or damaged ({error})", hint=AGAIN) from None
    if any(m.filename.endswith("/constants.pkl") for m in members):
        raise CheckpointError(f"{where} is a program (a TorchScript archive), no table of tensors", hint=HARMLESS)
    packed = [m.filename for m in members if m.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise CheckpointError(f"{where}: {packed[0]} in it is compressed, which torch never does", hint=AGAIN)
    said = sum(m.file_size for m in members)
    if said > size:
        raise CheckpointError(f"{where}: an archive that says it holds {said} bytes, in {size}", hint=AGAIN)


def _refused(error: Exception, where: str, size: int) -> CheckpointError:
    """One sentence for what torch refused, without its advice to load the file all the same."""
    text = " ".join(str(error).split())
    if match := re.search(r"GLOBAL ([\w.]+)", text):
        return CheckpointError(
            f"{where} is damaged or holds more than tensors: it names {match[1]}, which was not called",
            allowed="tensors, numbers and texts in dicts and lists",
            hint=HARMLESS,
        )
    if "legacy .tar format" in text:
        return CheckpointError(f"{where} is of torch's .tar format of 2016, which tells code from tensors nowhere")
    _, _, reason = text.rpartition("WeightsUnpickler error: ")
    reason = (
        re.split(r"(?<=\w)\. (?=[A-Z])| Check the doc| Please ", reason)[0][:200].strip(" .") or "it ends too early"
    )
    return CheckpointError(
        f"{where} ({size} bytes) is damaged or holds more than tensors ({type(error).__name__}: {reason})", hint=AGAIN
    )


def _state(found: Any, where: str) -> dict[str, Tensor]:
    """The table of tensors in what was unpickled: itself, or its "state_dict" beside a trainer's bookkeeping."""
    if isinstance(found, dict) and "state_dict" in found:
        beside = [name for name in found if name != "state_dict" and name not in BOOKKEEPING]
        if beside:
            raise CheckpointError(
                f"{where}: {beside[0]!r} beside state_dict", allowed=f"state_dict, {', '.join(sorted(BOOKKEEPING))}"
            )
        found = found["state_dict"]
    if not isinstance(found, dict) or not found:
        raise CheckpointError(f"{where} holds something else than a table of tensors ({_said(found)})")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{where} holds something else than a table of tensors (at {name!r}: {_said(value)})",
                allowed="text to tensor",
            )
    return found


def _said(value: Any) -> str:
    if isinstance(value, dict | list | tuple | set):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__


def _check_plain(name: str, t: Tensor, where: str) -> None:
    """Refuse what only looks like numbers in memory: sparse, quantised, on no device, or larger than its storage."""
    plain = t.layout == torch.strided and t.device.type == "cpu" and not t.is_quantized and not t.is_nested
    if not plain or type(t) not in (Tensor, torch.nn.Parameter):
        raise CheckpointError(f"{where}: {name} is no dense tensor in memory ({t.layout}, {t.device}, {t.dtype})")
    if t.numel() * t.element_size() > t.untyped_storage().nbytes():
        raise CheckpointError(
            f"{where}: {name} {list(t.shape)} says it is larger than the {t.untyped_storage().nbytes()} bytes it has"
        )
