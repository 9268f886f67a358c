"""Models by name: which names Kotoe knows, and which folder each means."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from kotoe import hub
from kotoe.errors import UserError, nearest

DEFAULT = "kotoe-emoji"
NAMES = {DEFAULT: Path(__file__).parent / "models" / "kotoe-emoji"}
SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
HOW = (
    "Pass a folder in diffusers' layout (model_index.json, unet/, vae/, text_encoder/, tokenizer/, scheduler/), "
    "or a single file"
)

# A URL or hf:// of a model, with a revision and a file perhaps; or owner/name/file.
ADDRESS = re.compile(
    r"(?:https?://[^/]+/|hf://|(?:huggingface\.co|hf\.co)/)([\w.-]+/[\w.-]+)(?:@([\w.-]+))?"
    r"(?:/(?:tree|blob|resolve)/([^/]+))?(?:/(.+))?"
)
INSIDE = re.compile(r"(\w[\w.-]*/[\w.-]+)/(.+\.\w+)")


def resolve(source: str | Path, *, allow_pickle: bool = False, text_model: bool = False) -> Path:
    """The folder or single file that a model's name or path means. Raises UserError for anything else, saying what to
    do.

    Of a name on the hub, before its weights are downloaded: allow_pickle: they may be pickles; text_model: it may be a
    text model's own repository.
    """
    text = str(source)
    path = path_of(source)
    if path.is_dir() or (path.is_file() and path.suffix.lower() in SINGLE_FILES):
        return path
    if text in NAMES:
        folder = NAMES[text]
        if not (folder / "model_index.json").is_file():
            raise UserError(
                f"the built-in model {text} is not in this installation ({folder})",
                hint="Install Kotoe again, or make the model with recipes/emoji_base.py",
            )
        return folder
    if path.is_file() or path.suffix.lower() in (*SINGLE_FILES, ".h5"):
        raise UserError(
            f"{text} is of no format that this version reads" if path.is_file() else f"no file at {text}",
            allowed=f"a folder, a single file ({', '.join(SINGLE_FILES)}), or {', '.join(NAMES)}",
            hint=spelling(text) or HOW,
        )
    if not path.exists() and hub.NAME.fullmatch(text):
        from kotoe.checkpoints.inspect import foresee

        with suggesting(text):
            return hub.fetch(text, check=partial(foresee, allow_pickle=allow_pickle, text_model=text_model))
    near = None if "/" in text else nearest(text, NAMES)
    raise UserError(
        f"unknown model {text!r}",
        allowed=f"a folder, a name on the hub (owner/name or owner/name@revision), or {', '.join(NAMES)}",
        hint=spelling(text) or (f"Did you mean {near!r}?" if near else HOW),
    )


def path_of(source: str | Path) -> Path:
    """What a model's name or path is as a path. Raises UserError for what can be neither."""
    try:
        if not str(source):
            raise ValueError("empty")
        path = Path(source).expanduser()
        path.is_dir()  # asks the file system, which refuses names that are too long
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        shown = str(source) if len(str(source)) <= 80 else f"{str(source)[:77]}..."
        allowed = f"a folder, or {', '.join(NAMES)}"
        raise UserError(f"unknown model {shown!r} ({reason})", allowed=allowed, hint=HOW) from None
    return path


@contextmanager
def suggesting(name: str) -> Iterator[None]:
    """Where the hub has no model of this name, say which built-in one has a similar name."""
    try:
        yield
    except hub.Absent as error:
        near = nearest(name, NAMES)
        hint = error.hint if near is None else f"{error.hint}. Did you mean {near!r}, which is built in?"
        raise hub.Absent(error.given, allowed=error.allowed, hint=hint) from None


def spelling(text: str) -> str:
    """What to do about a text that isn't owner/name but seems to mean a model on the hub; "" where it doesn't."""
    if found := ADDRESS.fullmatch(text.rstrip("/")):
        name, revision, file = found[1], found[2] or found[3] or "main", found[4]
    elif found := INSIDE.fullmatch(text):
        name, revision, file = found[1], "main", found[2]
    else:
        return ""
    at = "" if revision == "main" else revision
    if file is None:
        return f"Models on the hub are named owner/name: {name}" + (f"@{at}" if at else "")
    of = f" --revision {at}" if at else ""
    return f"If it is a file on the hub, download it first: hf download {name} {file}{of}"
