"""A checkpoint's name on the Hugging Face hub to a folder: the hub's own cache, downloaded once, pinned by revision.

huggingface_hub asks, authenticates and lays out the cache. Files in git LFS, which are the large ones, are loaded with
its `http_get` into `blobs/<sha256>.incomplete`, because its own downloads begin anew after an interrupt: the next
command goes on there, and only what has the sha256 that the hub names becomes `blobs/<sha256>`.

In the repository's folder of the cache there is beside the hub's own files
.kotoe/<commit>.json   {"files": {name: sha256 or null}, "listed": [name]}: what is to be there, and all there is
.kotoe/verified.json   {sha256: [bytes, mtime_ns]}: files that were hashed, and how they were then
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from kotoe.config import dumps
from kotoe.errors import CheckpointError, UserError
from kotoe.runs import write_atomic

NAME = re.compile(r"([\w.-]+/[\w.-]+?)(?:@([\w.-]+(?:/[\w.-]+)*))?")  # owner/name or owner/name@revision (refs/pr/1)
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "conditioners", "small_decoder", "fast")
TOP = ("model_index.json", "kotoe.json")
TEXT_MODEL = "config.json"  # at the top of a repository: a model of one part, see checkpoints/text_models.py
MODEL = (f"{TOP[0]}|{TEXT_MODEL}",)
MODELS = "a repository in diffusers' layout of folders, or of a text model for `kotoe conditioner add`"
PICKLED, SAFE, CARD = ".bin", ".safetensors", "README.md"
SAFER = "Where you trust its pickle, transformers' from_pretrained and save_pretrained write a folder with safetensors"
TERMS = re.compile(r"LICEN[CS]E(-\w+)?(\.(md|txt))?", re.IGNORECASE)  # a licence's text, at the top of a repository
COMMIT, SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")
NO_WRITING = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
LIMITS = ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT")
HALVES = ("", "fp16", "bf16")  # how names say that weights are in half precision, the one that is taken first
HALF = re.compile(r"\.(fp16|bf16)(?=[.-])")
PIECE = 2**18  # bytes that are written at a time
Listing = Mapping[str, tuple[str | None, int | None]]  # by file its sha256 (of files in LFS) and size in bytes
LOG = logging.getLogger(__name__)


class Absent(CheckpointError):
    """The hub has no such model."""


class Lacking(CheckpointError):
    """The model on the hub has no such file."""


def wanted(files: Iterable[str]) -> list[str]:
    """Those of a repository's files that make up the model, nothing for other frameworks: see `best_weights`."""
    files = list(files)
    alone = TOP[0] not in files and TEXT_MODEL in files
    return best_weights(
        name
        for name in files
        if name in TOP
        or (
            ("/" not in name if alone else name.split("/")[0] in PARTS)
            and name.endswith((".json", ".txt", ".model", SAFE, PICKLED))
            and not TERMS.fullmatch(name)
            and not re.search(r"\.non_ema\.|flax|openvino|onnx", name)
        )
    )


def best_weights(files: Iterable[str]) -> list[str]:
    """The files, and of weights that a folder has in several forms one alone: safetensors rather than pickles, and of
    these full precision rather than half."""
    files, best = list(files), dict[PurePosixPath, tuple[bool, int]]()

    def form(name: str) -> tuple[bool, int] | None:
        if not (name.endswith((SAFE, PICKLED)) or ".index." in name):
            return None
        half = HALF.search(name)
        return SAFE not in name, HALVES.index(half[1] if half else "")

    for name in files:
        found, folder = form(name), PurePosixPath(name).parent
        if found is not None:
            best[folder] = min(found, best.get(folder, found))
    return [name for name in files if form(name) in (None, best.get(PurePosixPath(name).parent))]


def named(folder: Path, own: str | None = None) -> str:
    """What a model in a folder is called: owner/name@commit where the folder is in the hub's cache, else `own`, or as
    the folder."""
    kind, _, repository = folder.parent.parent.name.partition("--")
    if kind == "models" and folder.parent.name == "snapshots" and COMMIT.fullmatch(folder.name):
        return f"{repository.replace('--', '/')}@{folder.name}"
    return folder.name if own is None else own


def pinned(name: str) -> bool:
    """Whether a name is owner/name@commit."""
    found = NAME.fullmatch(name)
    return found is not None and COMMIT.fullmatch(found[2] or "") is not None


def fetch(
    name: str,
    *,
    needed: Sequence[str] = MODEL,
    wanted: Callable[[Sequence[str]], list[str]] = wanted,
    check: Callable[[Path, Sequence[str]], None] | None = None,
) -> Path:
    """The folder of `owner/name`, or `owner/name@revision` (a branch, a tag, a commit, refs/pr/1), in the hub's cache.

    needed: patterns of files that it must have, a|b for either; a diffusers or text model's by default.
    wanted: those of its files to download; the model card and the licence's text come with them.
    check:  raises where the model can't be used, given its folder, in which all but the weights is then, and the names
            of all its files: called before the weights are downloaded.
    What the cache holds is used as it is, without asking the hub; else it is downloaded, the rest of it where a
    download was broken off. Either way a file whose name in the cache is a sha256 is hashed once. HF_TOKEN opens gated
    models. Raises CheckpointError when the hub can't be reached or refuses, when a file isn't what the hub says it is,
    and when the cache can't be written; Absent when the hub has no such model, Lacking when that has no such file.
    """
    place = _Place.of(name)
    with place.explaining():
        folder = place.folder()
        if folder is not None and _has(folder, needed) and not place.missing(folder, wanted):
            place.verify(folder, wanted)
            return folder
        if folder is not None and pinned(name) and (known := place.known(folder.name)):
            place.check(known, needed)  # a commit's files stay what they are: no need to ask
        commit, listed = place.listing()
        place.check(listed, needed)
        return place.download(commit, listed, wanted, check)


def card(name: str) -> Path | None:
    """The folder of a name with what says its licence (its card, kotoe.json, the licence's text), without the model if
    that isn't in the cache yet: it can be read before gigabytes are loaded. None where the hub has none of them. For a
    model that other programs left in the cache without its card the hub is asked, if it answers. Raises as `fetch`.
    """
    place = _Place.of(name)
    folder = place.folder()
    if folder is not None and _has(folder, MODEL):
        known = (folder / CARD).is_file() or place._planned(folder.name)
        if not known and not (place.root / ".no_exist" / folder.name / CARD).exists():
            with suppress(CheckpointError), place.explaining():
                place.load(folder.name, CARD, None, None)
        return folder
    with place.explaining():
        commit, listed = place.listing()
        files = [file for file in listed if file in (CARD, "kotoe.json") or TERMS.fullmatch(file)]
        return next(iter([place.load(commit, file, *listed[file]).parent for file in files]), None)


def page(name: str) -> str:
    """The address of a name's page on the hub."""
    return f"{_endpoint()}/{_Place.of(name).repository}"


def _endpoint() -> str:
    """The hub's address, as it may be shown."""
    from huggingface_hub import constants

    return _public(constants.ENDPOINT)


def _public(text: str) -> str:
    """A text without the names and passwords in its URLs."""
    return re.sub(r"(?<=://)[^/\s]*@", "", text)


def _logged_publicly(record: logging.LogRecord) -> bool:
    record.msg, record.args = _public(record.getMessage()), ()
    return True


def _has(folder: Path, needed: Sequence[str]) -> bool:
    return all(any(any(folder.glob(p)) for p in each.split("|")) for each in needed)


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A name on the hub, and where the cache keeps it.

    root: the repository's folder in the cache.
    """

    name: str
    repository: str
    revision: str
    root: Path

    @classmethod
    def of(cls, name: str) -> _Place:
        try:
            from huggingface_hub import constants
        except ValueError as error:
            limits = [f"{k}={os.environ[k]!r}" for k in LIMITS if not os.environ.get(k, "0").strip().isdecimal()]
            raise UserError(
                f"huggingface_hub refuses its settings: {', '.join(limits) or error}",
                allowed="whole numbers of seconds",
            ) from None
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        found = NAME.fullmatch(name)
        try:
            validate_repo_id(found[1] if found else "")
        except HFValidationError:
            found = None
        if found is None or {".", ".."} & set((found[2] or "").split("/")):
            raise CheckpointError(f"hub name {name!r}", allowed="owner/name or owner/name@revision")
        repository, revision = found.groups()
        root = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
        return cls(name=name, repository=repository, revision=revision or "main", root=root)

    # --- What is there

    def folder(self) -> Path | None:
        """The snapshot of the revision, whole or not."""
        commit = self.revision
        if not COMMIT.fullmatch(commit):
            try:
                commit = (self.root / "refs" / commit).read_text("utf-8").strip()
            except (OSError, UnicodeDecodeError):
                return None
        folder = self.root / "snapshots" / commit
        return folder if COMMIT.fullmatch(commit) and folder.is_dir() else None

    def missing(self, folder: Path, wanted: Callable[[Sequence[str]], list[str]]) -> list[str]:
        """What a download that was broken off hasn't brought."""
        files = wanted(list(self._planned(folder.name)) or self.known(folder.name))
        return [file for file in files if not (folder / file).is_file()]

    def known(self, commit: str) -> list[str]:
        """The names of all files of a commit, if a download has noted them: ours, or huggingface_hub's from its version
        2 on."""
        listed = self._noted(commit).get("listed")
        if not isinstance(listed, list):
            listed = _read(self.root / "trees" / f"{commit}.json").get("files")
        return [file for file in listed if isinstance(file, str)] if isinstance(listed, list | dict) else []

    def check(self, files: Iterable[str], needed: Sequence[str]) -> None:
        """Refuse a repository that lacks what is needed."""
        files = list(files)
        for pattern in needed:
            if not any(fnmatch(file, p) for file in files for p in pattern.split("|")):
                raise Lacking(
                    f"{self.name} on the hub holds no {pattern.replace('|', ' and no ')}",
                    allowed=MODELS if needed == MODEL else f"a repository with {', '.join(needed)}",
                    hint=SAFER if pattern.endswith(SAFE) else self._single(files) if needed == MODEL else "",
                )

    def _single(self, files: Sequence[str]) -> str:
        """What to do where a repository holds models as single files."""
        single = [file for file in files if file.endswith((SAFE, ".ckpt"))]
        return f"It holds single files: hf download {self._at(single[0])}" if single else ""

    def _at(self, file: str = "") -> str:
        """What follows `hf download`."""
        at = "" if self.revision == "main" else f"--revision {self.revision}"
        return " ".join(filter(None, (self.repository, file, at)))

    def _noted(self, commit: str) -> dict[str, Any]:
        return _read(self.root / ".kotoe" / f"{commit}.json")

    def _planned(self, commit: str) -> dict[str, str | None]:
        files = self._noted(commit).get("files")
        if not isinstance(files, dict) or not all(isinstance(sha256, str | None) for sha256 in files.values()):
            return {}  # somebody else has written there
        return files

    # --- What the hub says

    def listing(self) -> tuple[str, Listing]:
        """The commit that the revision is now, and its files."""
        from huggingface_hub import HfApi, constants

        try:
            info = HfApi().model_info(
                self.repository, revision=self.revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
            )
            found: Listing = {
                each.rfilename: (each.lfs.sha256, each.lfs.size) if each.lfs else (None, each.size)
                for each in info.siblings or ()
            }
            right = COMMIT.fullmatch(str(info.sha)) and all(
                sha256 is None or (SHA256.fullmatch(sha256) and isinstance(size, int) and size >= 0)
                for sha256, size in found.values()
            )
        except UnicodeEncodeError:
            raise CheckpointError(
                "the token that is set can't be sent: it has letters that no token has",
                allowed="a token as the hub gives it",
                hint=f"Look at HF_TOKEN and at {constants.HF_TOKEN_PATH}",
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError):  # HTML of a login page, JSON of something else
            right = None
        if not right:
            raise CheckpointError(
                f"what answers at {_endpoint()} for {self.name} is no hub",
                allowed="the hub's list of a model's files",
                hint="Check HF_ENDPOINT, and whether this network wants a login first",
            )
        for file in found:
            if {"..", ".", ""} & set(file.split("/")) or re.search(r"[\\\0:]", file):  # "/x" begins with ""
                raise CheckpointError(f"{self.name} lists a file {file!r}, which leads out of its folder")
        return str(info.sha), found

    # --- Downloading

    def download(
        self,
        commit: str,
        listed: Listing,
        wanted: Callable[[Sequence[str]], list[str]],
        check: Callable[[Path, Sequence[str]], None] | None,
    ) -> Path:
        """The snapshot with these files. Small files first: a hub that refuses does so before the large ones, and so
        does `check`."""
        files = [*wanted(list(listed)), *(file for file in listed if file == CARD or TERMS.fullmatch(file))]
        plan = {**self._planned(commit), **{file: listed[file][0] for file in files}}
        note = {"files": plan, "listed": list(listed)}
        write_atomic(self.root / ".kotoe" / f"{commit}.json", dumps(note) + "\n")
        folder = self.root / "snapshots" / commit
        weights = [file for file in files if file.endswith((SAFE, PICKLED))]
        for file in files:
            if file not in weights:
                self.load(commit, file, *listed[file])
        if check is not None:
            folder.mkdir(parents=True, exist_ok=True)
            check(folder, list(listed))
        self._announce({file: listed[file] for file in weights if not (folder / file).exists()})
        for file in sorted(weights, key=lambda file: listed[file][0] is not None):
            self.load(commit, file, *listed[file])
        self.verify(folder, wanted)
        if self.revision != commit:
            write_atomic(self.root / "refs" / self.revision, commit)
        return folder

    def _announce(self, files: Listing) -> None:
        """Say how much is to come. Raises CheckpointError where there is no room for it."""
        blobs = self.root / "blobs"
        there = [blobs / f"{sha256}{end}" for sha256, _ in files.values() if sha256 for end in ("", ".incomplete")]
        bytes_left = sum(size or 0 for _, size in files.values()) - sum(p.stat().st_size for p in there if p.is_file())
        if bytes_left <= 0:
            return
        free = shutil.disk_usage(self.root).free
        if free < bytes_left:
            raise self._no_room(f": {_amount(bytes_left)} are to come and {_amount(free)} are free")
        LOG.info("downloading %s of %s", _amount(bytes_left), self.name)

    def _no_room(self, why: str = "") -> CheckpointError:
        from huggingface_hub import constants

        return CheckpointError(
            f"no room for {self.name} in the hub's cache {constants.HF_HUB_CACHE}{why}",
            hint="Free some, or set HF_HOME to a folder that has more",
        )

    def load(self, commit: str, file: str, sha256: str | None, size: int | None) -> Path:
        """One file, in the snapshot of its commit."""
        from huggingface_hub import constants, hf_hub_download

        if sha256 is not None and size is not None and not (self.root / "snapshots" / commit / file).exists():
            self._large(commit, file, sha256, size)
        seconds = constants.HF_HUB_ETAG_TIMEOUT
        return Path(hf_hub_download(self.repository, file, revision=commit, etag_timeout=seconds))

    def _large(self, commit: str, file: str, sha256: str, size: int) -> None:
        """blobs/<sha256>, from where an earlier download was broken off."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import WeakFileLock, build_hf_headers

        blob = self.root / "blobs" / sha256
        lock = self.root.parent / ".locks" / self.root.name / f"{sha256}.lock"  # huggingface_hub's own
        for each in (blob, lock):
            each.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            if blob.exists():
                return
            part = blob.with_name(f"{sha256}.incomplete")
            while True:
                if part.is_file() and part.stat().st_size > size:
                    part.unlink()
                with part.open("ab") as out, _small_pieces():
                    had = out.tell()
                    http_get(
                        hf_hub_url(self.repository, file, revision=commit),
                        out,  # type: ignore[arg-type]
                        resume_size=had,
                        headers=build_hf_headers(),
                        expected_size=size,
                        displayed_filename=file,
                    )
                    out.flush()
                    os.fsync(out.fileno())
                found = _sha256(part)
                if found == sha256:
                    break
                part.unlink()
                if not had:  # else what was there from before may be what is wrong: once more from the beginning
                    raise self._wrong(file, found, sha256)
            os.replace(part, blob)
            self._remember({sha256: _state(blob)})

    # --- Hashing

    def verify(self, folder: Path, wanted: Callable[[Sequence[str]], list[str]]) -> None:
        """Hash those files in use that have a sha256 and weren't hashed, or have changed since; what is wrong is taken
        out of the cache."""
        there = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
        planned, known = self._planned(folder.name), _read(self.root / ".kotoe" / "verified.json")
        for file in wanted(there):
            path = folder / file
            blob = path.readlink().name if path.is_symlink() else ""
            sha256 = planned.get(file) or (blob if SHA256.fullmatch(blob) else None)
            if sha256 is None or known.get(sha256) == _state(path):
                continue
            found = _sha256(path)
            if found != sha256:
                gone = self._take_out(path)
                raise self._wrong(file, found, sha256, gone)
            self._remember({sha256: _state(path)})

    def _take_out(self, path: Path) -> bool:
        """Remove a file of a snapshot and the blob behind it."""
        blobs = (self.root / "blobs").resolve()
        behind = path.parent / path.readlink() if path.is_symlink() else path
        try:
            if behind.parent.resolve() == blobs:
                behind.unlink()
            path.unlink(missing_ok=True)
        except OSError:
            return False
        return True

    def _remember(self, states: Mapping[str, list[int]]) -> None:
        path = self.root / ".kotoe" / "verified.json"
        with suppress(OSError):  # a cache that is read-only here is hashed again next time
            write_atomic(path, dumps({**_read(path), **states}) + "\n")

    def _wrong(self, file: str, found: str, sha256: str, gone: bool = True) -> CheckpointError:
        again = "It was removed: the same command downloads it again. If that goes wrong too, something on the way "
        return CheckpointError(
            f"{self.name}: {file} is not what the hub says it is (sha256 {found}, not {sha256})",
            allowed="files as they were published",
            hint=again + "changes files" if gone else f"Remove it from {self.root}, which can't be written here",
        )

    # --- What went wrong

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Errors of huggingface_hub, of HTTP and of the file system as CheckpointErrors that say what to do."""
        from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # the HTTP library's, whichever

        try:
            yield
        except CheckpointError:
            raise
        except (HTTPError, OSError) as error:
            raise self._explained(error) from None

    def _explained(self, error: BaseException) -> CheckpointError:
        from huggingface_hub import constants, errors

        chain: list[BaseException] = []
        cause: BaseException | None = error
        while cause is not None and cause not in chain:
            chain.append(cause)
            cause = cause.__cause__ or cause.__context__
        page, has_token = f"{_endpoint()}/{self.repository}", _has_token()
        response = next((e.response for e in chain if isinstance(e, errors.HfHubHTTPError)), None)
        status = None if response is None else response.status_code
        number = next((e.errno for e in chain if isinstance(e, OSError) and e.errno is not None), None)
        login = f"HF_TOKEN, a token with the right to read, from {_endpoint()}/settings/tokens"

        def of(kind: type[BaseException]) -> bool:
            return any(isinstance(each, kind) for each in chain)

        if of(errors.GatedRepoError):
            without = "the token that is set belongs to an account without it" if has_token else "no token is set"
            return CheckpointError(
                f"{self.name} is gated: its authors give it to accounts that accept their terms, and {without}",
                allowed="an account that has accepted them",
                hint=f"Read and accept them at {page}, then set {login}",
            )
        if of(errors.RepositoryNotFoundError):
            return Absent(
                f"the hub has no model {self.repository}, or it is private",
                allowed="owner/name of a model that you may see",
                hint=f"Look at {page}" + ("" if has_token else f"; if it is private, set {login}"),
            )
        if of(errors.RevisionNotFoundError):
            return CheckpointError(
                f"{self.repository} has no revision {self.revision!r}",
                allowed=f"a branch, a tag or a commit, see {page}/commits",
            )
        if status in (401, 403):
            return CheckpointError(f"the hub refuses {self.name} (HTTP {status})", allowed=f"{login}")
        if any(isinstance(e, OSError) and e.filename == constants.HF_TOKEN_PATH for e in chain):
            return CheckpointError(
                f"the hub's token in {constants.HF_TOKEN_PATH} can't be read ({os.strerror(number or 0)})",
                allowed="a file that you may read, or none",
                hint="Set HF_HOME to a folder of yours, or HF_TOKEN_PATH to another file",
            )
        if number in NO_SPACE:
            return self._no_room()
        if number in NO_WRITING:
            reason = os.strerror(number or 0)
            return CheckpointError(
                f"{self.name} can't be written into the hub's cache {constants.HF_HUB_CACHE} ({reason})",
                allowed="a folder that you may write",
                hint="Set HF_HOME to one",
            )
        if any("Timeout" in type(each).__name__ for each in chain):
            reason = (
                f"no answer within {constants.HF_HUB_ETAG_TIMEOUT} s, or none within "
                f"{constants.HF_HUB_DOWNLOAD_TIMEOUT} s while loading; HF_HUB_ETAG_TIMEOUT and "
                "HF_HUB_DOWNLOAD_TIMEOUT set other limits"
            )
        elif of(errors.OfflineModeIsEnabled):
            reason = "HF_HUB_OFFLINE forbids asking the hub"
        elif response is not None and status == 429:
            seconds = response.headers.get("Retry-After", "")
            wait = f"{seconds} seconds" if seconds.isdecimal() else "a while"
            reason = f"the hub answers HTTP 429, too many requests: wait {wait}"
        elif status is not None:
            reason = f"the hub answers HTTP {status}" + (", it is down" if status >= 500 else "")
        else:
            reason = _public(str(error)).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        return CheckpointError(
            f"{self.name} is neither in the hub's cache nor could it be downloaded ({reason})",
            allowed="a model's name on the hub, or a folder",
            hint=self._begun() + f"Download it where there is a network: hf download {self._at()} --local-dir FOLDER",
        )

    def _begun(self) -> str:
        """What there is of a download that was broken off, and how it goes on."""
        plans = [p for p in (self.root / ".kotoe").glob("*.json") if COMMIT.fullmatch(p.stem)]
        plan = max(plans, key=lambda p: p.stat().st_mtime, default=None)
        if plan is None:
            return ""
        files = self._planned(plan.stem)
        left = [file for file in files if not (self.root / "snapshots" / plan.stem / file).is_file()]
        kept = f"{len(files) - len(left)} of {len(files)} files are kept, also parts of one"
        return f"{kept}: the same command goes on from there. " if left else ""


@contextmanager
def _small_pieces() -> Iterator[None]:
    """huggingface_hub writes 10 MiB at a time: a connection that is always cut before that would never bring a file."""
    from huggingface_hub import constants

    logging.getLogger("huggingface_hub.file_download").addFilter(_logged_publicly)  # warnings there hold URLs
    before, constants.DOWNLOAD_CHUNK_SIZE = constants.DOWNLOAD_CHUNK_SIZE, PIECE
    try:
        yield
    finally:
        constants.DOWNLOAD_CHUNK_SIZE = before


def _has_token() -> bool:
    from huggingface_hub import get_token

    try:
        return get_token() is not None
    except (OSError, UnicodeDecodeError):
        return False


def _amount(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def _state(path: Path) -> list[int]:
    """What tells that a file hasn't changed since it was hashed."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> dict[str, Any]:
    """A JSON object that we wrote; nothing where there is none, or where something else has written."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
