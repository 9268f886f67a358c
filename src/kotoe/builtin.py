"""Models by name: which names Kotoe knows, and which folder each means."""

from __future__ import annotations

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


def resolve(source: str | Path) -> Path:
    """The folder or single file that a model's name or path means. Raises UserError for anything else, saying what to
    do.
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
            hint=HOW,
        )
    near = nearest(text, NAMES)
    if near is None and not path.exists() and "/" in text and hub.NAME.fullmatch(text):
        return hub.fetch(text)
    raise UserError(
        f"unknown model {text!r}",
        allowed=f"a folder, or {', '.join(NAMES)}",
        hint=f"Did you mean {near!r}?" if near else HOW,
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
