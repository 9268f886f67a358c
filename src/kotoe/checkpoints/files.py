"""Files of untrusted origin: paths that stay inside, JSON of sane size, tensors that are exactly those expected.

Nothing here knows what a UNet is. Every refusal is a CheckpointError that names the file and the tensor or key.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kotoe import hub
from kotoe.checkpoints.pickles import read_pickle
from kotoe.errors import CheckpointError, UserError, nearest
from kotoe.tokenizers import parse_json

LARGEST_CONFIG_BYTES = 2 * 2**20
LARGEST_TOKENIZER_BYTES = 64 * 2**20
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
LFS_POINTER = b"version https://git-lfs"
SHOWN = 8  # names listed in an error before "and n more"
MAPPED_BYTES = 64 * 2**20  # of a file, converted before its mapping is dropped: see `_Mapped`

M = TypeVar("M", bound=nn.Module)


class Folder:
    """A checkpoint folder that may be hostile: only regular files inside it are read."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).resolve()
        if not self.root.is_dir():
            raise CheckpointError(f"no checkpoint folder at {root}")

    @property
    def name(self) -> str:
        """What it is called in messages and records: see `hub.named`."""
        return hub.named(self.root)

    def has(self, name: str) -> bool:
        """Whether something of this name is there (a link that leads nowhere counts, and is refused when read)."""
        return os.path.lexists(self.root / name)

    def path(self, name: str) -> Path:
        """The regular file `name` inside the folder. Refuses what leads outside it, devices, pipes and folders."""
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts or "\\" in name or "\0" in name:
            raise CheckpointError(f"{self.name}: the path {name!r} leads out of the folder")
        try:
            real = (self.root / relative).resolve()
        except (OSError, RuntimeError):
            raise CheckpointError(f"{self.name}/{name} is a link that leads to itself") from None
        if not (real.is_relative_to(self.root) or self._is_hub_blob(real)):
            raise CheckpointError(
                f"{self.name}/{name} is a link to {real}, outside the folder",
                hint="If you trust it, copy the folder with its links resolved: cp -rL FOLDER COPY",
            )
        try:
            mode = real.stat().st_mode
        except OSError as error:
            raise CheckpointError(f"can't read {self.name}/{name} ({error.strerror})") from None
        if not stat.S_ISREG(mode):
            raise CheckpointError(f"{self.name}/{name} is not a regular file")
        return self.root / relative

    def _is_hub_blob(self, real: Path) -> bool:
        # The hub's cache keeps snapshots/<revision>/ as links into blobs/ beside it: that layout is known to be meant.
        # Files that several of its repositories have lie in blobs/ab/<hash> beside those, and blobs/ links there.
        repository = self.root.parent.parent
        places = (repository / "blobs", repository.parent / "blobs" / real.name[:2])
        return self.root.parent.name == "snapshots" and real.parent in places

    def read(self, name: str, limit: int = LARGEST_CONFIG_BYTES) -> bytes:
        """The content of a file of at most `limit` bytes."""
        path = self.path(name)
        size = path.stat().st_size
        if size > limit:
            raise CheckpointError(f"{self.name}/{name} has {size} bytes", allowed=f"at most {limit} bytes")
        refuse_pointer(path, f"{self.name}/{name}")
        with path.open("rb") as file:
            return file.read(limit)

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object of at most LARGEST_CONFIG_BYTES."""
        return parse_json(self.read(name), f"{self.name}/{name}")


# --- Tensors ------------------------------------------------------------------------------------------------


class _Skeleton(TorchFunctionMode):
    """Modules built under it hold meta tensors and run no random initialisation.

    `torch.device("meta")` would do the former, but sends the initialisers through Python kernels whose import alone
    takes longer than loading the model.
    """

    FILLS = frozenset(f for name, f in vars(nn.init).items() if name.endswith("_") and callable(f))
    MAKES = frozenset((torch.empty, torch.zeros, torch.ones, torch.full, torch.arange, torch.rand, torch.randn))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in self.FILLS:
            return args[0] if args else kwargs["tensor"]
        if func in self.MAKES and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def skeleton(make: Callable[[], M]) -> M:
    """The module that `make` builds, without memory behind its tensors: shapes only, until tensors are assigned."""
    with _Skeleton():
        return make()


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a checkpoint of this module must hold."""
    return {name: tuple(t.shape) for name, t in module.state_dict().items()}


def fill(module: M, tensors: Mapping[str, Tensor]) -> M:
    """Give a skeleton its tensors (as they are, no copy) and set it to evaluation."""
    module.load_state_dict(tensors, strict=True, assign=True)
    left = [name for name, t in (*module.named_parameters(), *module.named_buffers()) if t.is_meta]
    assert not left, f"tensors that are in no checkpoint: {left}"
    return module.eval()


@dataclass(frozen=True)
class Entry:
    """A tensor of a file, not read yet. kind: as safetensors names dtypes (F32, F16, BF16, I64, ...).

    read: the tensor in a dtype; None: that of the file.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    read: Callable[[torch.dtype | None], Tensor]


def read_tensors(
    paths: Iterable[Path],
    expected: Mapping[str, tuple[int, ...]],
    *,
    what: str,
    dtype: torch.dtype | None,
    device: torch.device,
    rename: Callable[[str], str | None] = lambda name: name,
    allow_pickle: bool = False,
) -> dict[str, Tensor]:
    """Exactly the expected tensors, from safetensors files (memory-mapped: tensors of the right dtype aren't copied,
    and of the others there are never two copies).

    dtype:  None for that of the file.
    rename: a file's tensor name to ours, or None for one that is left out on purpose.
    Raises CheckpointError naming tensors that are missing, extra, renamed, transposed or of another shape.
    """
    found: dict[str, Entry] = {}
    for path in paths:
        for entry in weights(entries(path, what, allow_pickle), what):
            ours = rename(entry.name)
            if ours is None:
                continue
            if ours in found:
                raise CheckpointError(f"{what}: {found[ours].name} and {entry.name} are both {ours}")
            found[ours] = entry
    check_shapes(expected, {ours: entry.shape for ours, entry in found.items()}, what)
    # Taken out one by one: what a pickle held is let go as soon as it is converted.
    return {name: found.pop(name).read(dtype).to(device) for name in expected}


def entries(path: Path, what: str, allow_pickle: bool = False) -> list[Entry]:
    """Every tensor of a safetensors file, or of a pickle where that is allowed."""
    if path.suffix.lower() != ".safetensors":
        refuse_pointer(path, f"{what}: {path.name}")
        state = read_pickle(path, what, allow_pickle)
        return [Entry(name, tuple(t.shape), _kind(t), partial(held, t)) for name, t in state.items()]
    mapped = _Mapped(path, what)  # stays open for as long as the readers below live
    heads = [(name, mapped.file.get_slice(name)) for name in mapped.file.keys()]
    return [Entry(name, tuple(h.get_shape()), h.get_dtype(), partial(mapped.read, name)) for name, h in heads]


def held(t: Tensor, dtype: torch.dtype | None) -> Tensor:
    """What `Entry.read` gives of a tensor that is in memory."""
    return t.to(dtype)


class _Mapped:
    """A safetensors file mapped into memory, mapped anew after every MAPPED_BYTES of it that were converted.

    The pages of a mapping that were looked at count as the process's own memory for as long as the mapping lives:
    without this a whole file would lie beside the tensors converted from it.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path, self.what = path, what
        self.file, self.stamp, self.spent = _opened(path, what), stamp(path), 0

    def read(self, name: str, dtype: torch.dtype | None) -> Tensor:
        """A tensor in a dtype (None: its own, then it is a view of the mapping)."""
        if self.spent >= MAPPED_BYTES:
            if stamp(self.path) != self.stamp:
                raise CheckpointError(f"{self.what}: {self.path} changed while it was read", hint="Load it again")
            self.file, self.spent = _opened(self.path, self.what), 0
        stored: Tensor = self.file.get_tensor(name)
        if dtype not in (None, stored.dtype):
            self.spent += stored.nbytes
        return stored.to(dtype)


def metadata(path: Path, what: str) -> dict[str, str]:
    """The texts in a safetensors file's head; none in a pickle."""
    return dict(_opened(path, what).metadata() or {}) if path.suffix.lower() == ".safetensors" else {}


def _opened(path: Path, what: str) -> Any:
    from safetensors import SafetensorError, safe_open

    refuse_pointer(path, f"{what}: {path.name}")
    try:
        return safe_open(path, framework="pt", device="cpu")
    except SafetensorError as error:
        raise CheckpointError(
            f"{what}: {path.name} ({path.stat().st_size} bytes) is truncated or not a safetensors file ({error})",
            hint="Get the file again and compare its size and sha256 with its source",
        ) from None


def refuse_pointer(path: Path, where: str) -> None:
    """Refuse what git leaves of a large file where git-lfs isn't installed."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) != LFS_POINTER:
            return
    raise CheckpointError(
        f"{where} is git-lfs' pointer to a file, not the file",
        allowed="the file itself",
        hint="In that folder: git lfs install, then git lfs pull",
    )


def _kind(t: Tensor) -> str:
    return next((kind for kind, dtype in FLOATS.items() if dtype == t.dtype), str(t.dtype).removeprefix("torch."))


def weights(found: Iterable[Entry], what: str) -> Iterator[Entry]:
    """The entries without stored position ids (0, 1, 2, ...: no weight). Refuses other dtypes than FLOATS."""
    for entry in found:
        if entry.name.endswith("position_ids"):
            continue
        if entry.kind not in FLOATS:
            raise CheckpointError(f"{what}: tensor {entry.name} holds {entry.kind}", allowed=", ".join(FLOATS))
        yield entry


def check_shapes(
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    what: str,
    *,
    says: str = "its config.json",
    hint: str = "The weights and the config.json beside them belong to different models, or one was changed",
) -> None:
    """Raise a CheckpointError naming every tensor that is missing, extra, renamed, transposed or of another shape.

    says: what the expected shapes come from, and hint, what to do, for the message.
    """
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    problems = []
    for name in list(missing):
        near = nearest(name, [e for e in extra if found[e] == expected[name]])
        if near is not None:
            problems.append(f"{name} is missing but {near} of the same shape is there (renamed?)")
            missing.remove(name)
            extra.remove(near)
    problems += [f"{name} {list(expected[name])} is missing" for name in missing]
    problems += [f"{name} {list(found[name])} is extra" for name in extra]
    for name, shape in expected.items():
        if name in found and found[name] != shape:
            turned = len(shape) > 1 and sorted(shape) == sorted(found[name])
            verb = "is transposed" if turned else "has another shape"
            problems.append(f"{name} {verb}: {list(found[name])} in the file, {list(shape)} by {says}")
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise CheckpointError(
            f"{what}: {len(problems)} of {len(expected)} tensors don't fit: {'; '.join(problems[:SHOWN])}{more}",
            hint=hint,
        )


def write_tensors(
    module: nn.Module, path: Path, dtype: torch.dtype | None, rename: Callable[[str], str] = lambda name: name
) -> None:
    """The module's tensors as safetensors, in `dtype` or as they are. rename: our tensor name to the file's."""
    save_tensors({rename(n): t.detach().to("cpu", dtype).contiguous() for n, t in module.state_dict().items()}, path)


def save_tensors(tensors: dict[str, Tensor], path: Path, texts: Mapping[str, str] | None = None) -> None:
    """A safetensors file with these texts in its head. Raises OSError where it can't be written, as for a full disk."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, path, metadata={"format": "pt", **(texts or {})})  # transformers refuses files without pt
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


# --- Hashes and dtypes --------------------------------------------------------------------------------------


def file_sha256(path: Path) -> str:
    """sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_whole(module: nn.Module) -> None:
    """Raise a UserError for a network whose weights an engine has let go of (`release` of `engine.of`)."""
    if any(p.numel() == 0 for p in module.parameters()):
        raise UserError(
            f"the weights of this {type(module).__name__} were let go of when its engine was made: it can only draw",
            allowed="a network with its weights",
            hint="Load the model again, or make the engine without release=True",
        )


def tensors_sha256(module: nn.Module) -> str:
    """sha256 of names, shapes and float32 values: the identity of weights that are in no file."""
    check_whole(module)
    digest = hashlib.sha256()
    for name, t in sorted(module.state_dict().items()):
        digest.update(f"{name}{list(t.shape)}".encode())
        digest.update(_bytes(t))
    return digest.hexdigest()


def tensor_sha256(t: Tensor) -> str:
    """sha256 of one tensor's shape and float32 values."""
    return hashlib.sha256(f"{list(t.shape)}".encode() + _bytes(t)).hexdigest()


def _bytes(t: Tensor) -> bytes:
    return t.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()


class LazyHashes(Mapping[str, str]):
    """Name to sha256 of files, computed when asked for: a picture needs them, a first denoising step doesn't."""

    def __init__(self, paths: Mapping[str, tuple[Path, ...]], known: Mapping[str, str] | None = None) -> None:
        self._paths = dict(paths)
        self._seen = {name: [stamp(p) for p in found] for name, found in self._paths.items()}
        self._known = dict(known or {})
        self._names = (*self._paths, *self._known)

    def __getitem__(self, name: str) -> str:
        if name not in self._known:
            paths = self._paths[name]
            if [stamp(p) for p in paths] != self._seen[name]:
                raise CheckpointError(f"{paths[0]} changed after it was loaded", hint="Load the model again")
            each = [file_sha256(p) for p in paths]
            self._known[name] = each[0] if len(each) == 1 else hashlib.sha256("".join(each).encode()).hexdigest()
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def stamp(path: Path) -> tuple[int, int, int] | None:
    """What tells that a file was changed or exchanged: inode, size, time. None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware (a CPU without it is slower in it than in float32)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text(errors="replace").split("\n\n", 1)[0].split()
    except OSError:
        return False
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags)


def choose_dtype(asked: Any, device: torch.device) -> torch.dtype | None:
    """torch.dtype of None or "auto" (bfloat16 where the processor has it, else float32), a name, or a dtype.

    "stored" is None: each tensor as its file has it, for converting.
    """
    if asked == "stored":
        return None
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if asked is None or asked == "auto":
        return torch.bfloat16 if has_bf16(device) else torch.float32
    for name, dtype in names.items():
        if asked in (name, dtype):
            return dtype
    raise UserError(f"dtype {asked!r}", allowed=f"auto, {', '.join(names)}, stored")


# --- Writing ------------------------------------------------------------------------------------------------


@contextmanager
def replacing(folder: Path, *, overwrite: bool, marker: str, drop: Iterable[str] = ()) -> Iterator[Path]:
    """A temporary folder that becomes `folder` when the block ends well, and vanishes when it doesn't.

    overwrite: replace an existing folder, which must hold `marker`; its other top-level files are kept.
    drop:      but not those of these names: what would be read together with the new files.
    """
    folder = folder.absolute()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file", allowed="a folder, or a name that isn't taken")
    taken = folder.exists() and any(folder.iterdir())
    if taken and not overwrite:
        raise UserError(f"{folder} is there already", hint="Pass overwrite=True to replace it, or another name")
    if taken and not (folder / marker).is_file():
        raise UserError(f"{folder} holds no {marker}, so it isn't a checkpoint that may be replaced")
    folder.parent.mkdir(parents=True, exist_ok=True)
    tag = f"{os.getpid()}-{secrets.token_hex(4)}"
    temporary, old = (folder.parent / f".{folder.name}.{word}-{tag}" for word in ("new", "old"))
    temporary.mkdir()
    try:
        yield temporary
        if taken:
            gone = frozenset(drop)
            for path in folder.iterdir():
                if path.name in gone or (temporary / path.name).exists():
                    continue
                if path.is_file() and not path.is_symlink():
                    shutil.copy2(path, temporary / path.name)
        for path in temporary.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        if taken:
            folder.rename(old)
        try:
            temporary.rename(folder)
        except OSError:
            if taken:
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
