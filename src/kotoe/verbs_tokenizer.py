"""What `kotoe tokenizer train` and `kotoe tokenizer report` do. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kotoe import builtin
from kotoe.config import to_json
from kotoe.console import Common, Comparing, TrainingTokenizer, Values, finish, part_of, say, show_config
from kotoe.errors import UserError

COLUMN = "target"  # of a file of pairs: the texts of the new language
MODEL_LANGUAGE = re.compile(r"(.+):([A-Za-z]{2,8}(?:-[A-Za-z0-9]{1,8}){0,4})")


# --- train ------------------------------------------------------------------------------------------------------------


def train(common: Common, values: Values) -> int:
    """Train a tokenizer and say what it makes of its own texts."""
    wanted: TrainingTokenizer = part_of(values, TrainingTokenizer)
    from kotoe.localize.fertility import corpus, measure
    from kotoe.localize.fertility_report import said, text
    from kotoe.localize.vocabulary import settled, train_tokenizer

    names = ("model_type", "normalization", "byte_fallback", "character_coverage", "lower_case", "pad_token")
    choices = settled(wanted.family, **{name: getattr(wanted, name) for name in names})
    config = {**to_json(wanted), **choices}
    show_config("tokenizer train", config)
    out = Path(wanted.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file", allowed="a folder, there or not")
    if out.is_dir() and any(out.iterdir()) and not wanted.overwrite:
        raise UserError(f"{out} is there already", allowed="a name that isn't taken, or --overwrite")
    texts = [line for file in wanted.texts for line in _read(file, _column_of(file, wanted.column))]
    given = corpus(texts)
    if given.blank:
        say(f"note: {given.blank} of {len(texts)} texts are blank and not trained on")
    document: dict[str, Any] = {"config": config, "texts": given.to_json()}
    if common.dry_run:
        finish(common, {"dry_run": True, **document}, [])
        return 0
    tokenizer = train_tokenizer(
        given.texts,
        out,
        family=wanted.family,
        vocab_size=wanted.vocab_size,
        max_tokens=wanted.max_tokens,
        overwrite=wanted.overwrite,
        **choices,
    )
    found = measure(tokenizer, given).to_json()
    special = {"bos": tokenizer.bos, "eos": tokenizer.eos, "pad": tokenizer.pad}
    document |= {
        "out": str(out),
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "max_tokens": tokenizer.max_tokens,
        "special": special,
        "sha256": tokenizer.sha256,
        "figures": found,
    }
    shown = ", ".join(f"{name} {'none' if i is None else i}" for name, i in special.items())
    results = {"texts": {"its own texts": document["texts"]}, "figures": {"its own texts": {out.name: found}}}
    tables = [line for line in text(results).splitlines() if line.startswith("|") or not line]
    lines = [
        f"{out}: {tokenizer.kind}, {tokenizer.vocab_size:,} ids ({shown}), {tokenizer.max_tokens} positions",
        said(document["texts"]),
        *tables[1:],
    ]
    finish(common, document, lines)
    return 0


# --- report -----------------------------------------------------------------------------------------------------------


def report(common: Common, values: Values) -> int:
    """Compare tokenizers on texts."""
    wanted: Comparing = part_of(values, Comparing)
    config = to_json(wanted)
    show_config("tokenizer report", config)
    from kotoe.localize import fertility_report
    from kotoe.localize.fertility import corpus

    found, places = _tokenizers(wanted)
    files: dict[str, tuple[str, str | None]] = {}
    for each in wanted.texts:
        name, rest = _named(each)
        file, column = _file_and_column(rest)
        asked = _column_of(file, wanted.column) if column is None else column
        name = name or (Path(file).stem if column is None else f"{Path(file).stem}:{column}")
        _free(name, files)
        files[name] = file, asked
    if wanted.out is not None:
        fertility_report.check(Path(wanted.out), [*found, *files])
    texts = {name: corpus(_read(file, column)) for name, (file, column) in files.items()}
    if common.dry_run:
        finish(common, {"dry_run": True, "config": config, "tokenizers": list(found), "texts": list(texts)}, [])
        return 0
    said = {name: file if column is None else f"{file}:{column}" for name, (file, column) in files.items()}
    results = fertility_report.compare(found, texts, limit=wanted.limit, places=places, files=said)
    if wanted.out is not None:
        for path in fertility_report.write(results, Path(wanted.out)).values():
            say(str(path))
    finish(common, {**results, "config": config}, fertility_report.text(results).splitlines())
    return 0


def _tokenizers(wanted: Comparing) -> tuple[dict[str, Any], dict[str, str]]:
    """Tokenizers by name, and where each came from."""
    found: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for each in wanted.tokenizer:
        name, place = _named(each)
        several = _of_place(place, wanted.limit)
        base = name or _short(place)
        for language, tokenizer in several.items():
            label = base if len(several) == 1 else f"{base}:{language}"
            _free(label, found)
            found[label] = tokenizer
            sources[label] = place if len(several) == 1 else f"{place}:{language}"
    return found, sources


def _of_place(place: str, limit: int | None) -> dict[str, Any]:
    """By language the tokenizers of a place: of a folder with one, of a model's folder, of one language of a model. One
    that several languages share is there once, as the first of them."""
    from kotoe.tokenizers import FILES, load_tokenizer

    path = Path(place).expanduser()
    if path.is_dir() and not (path / "model_index.json").is_file():
        inner = path / "tokenizer"
        folder = inner if inner.is_dir() and not any((path / name).is_file() for name in FILES) else path
        return {"": load_tokenizer(folder, positions=limit)}
    from kotoe.checkpoints.conditioners import tokenizers
    from kotoe.language import choose

    match = MODEL_LANGUAGE.fullmatch(place)
    if match is None or path.exists() or place in builtin.NAMES:
        every = tokenizers(place)
        firsts = {tokenizer.sha256: tag for tag, tokenizer in reversed(every.items())}
        return {tag: every[tag] for tag in every if firsts[every[tag].sha256] == tag}
    several = tokenizers(match[1])
    language = choose(match[2], several)
    return {language: several[language]}


def _short(place: str) -> str:
    """The name of a place: its last part, or for folders that are all called so the one above it."""
    path = Path(place)
    return path.parent.name if path.name == "tokenizer" and path.parent.name else path.name or place


def _named(asked: str) -> tuple[str, str]:
    """NAME and the rest of NAME=REST; no name where there is none, or where the whole is a file's name."""
    name, equals, rest = asked.partition("=")
    if not equals or Path(asked).exists():
        return "", asked
    if not name or not rest:
        raise UserError(f"{asked!r}", allowed="NAME=PLACE, or a place alone")
    return name, rest


def _free(name: str, taken: Mapping[str, Any]) -> None:
    if name in taken:
        raise UserError(f"two of the name {name!r}", allowed="different names", hint="Give them as NAME=PLACE")


# --- Texts ------------------------------------------------------------------------------------------------------------


def _file_and_column(asked: str) -> tuple[str, str | None]:
    """FILE and COLUMN of FILE:COLUMN; None where there is no column."""
    file, colon, column = asked.rpartition(":")
    if not colon or Path(asked).exists() or not Path(file).exists():
        return asked, None
    return file, column


def _column_of(file: str, asked: str | None) -> str | None:
    """The column of a file that names none itself."""
    return None if Path(file).suffix.lower() == ".txt" else COLUMN if asked is None else asked


def _read(file: str, column: str | None) -> Sequence[str]:
    from kotoe.data.texts import read_texts

    return list(read_texts(file, column))
