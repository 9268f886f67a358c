"""A licence goes with what it binds: from a model's card to the conditioner, the folder or the file made of it.

What goes is a card's FIELDS, their license_link the URL or, in memory, the absolute path of the text that binds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from kotoe import builtin, hub
from kotoe.checkpoints.files import Folder
from kotoe.config import dumps
from kotoe.errors import CheckpointError
from kotoe.licences import LARGEST_CARD_BYTES, OTHER, URL, of_file, of_folder, texts_beside

BASE_TEXT = "LICENSE-base.md"  # the base's card, where that is its licence's only text


def carried(source: str | Path, name: str = "") -> dict[str, str] | None:
    """What a model made of the one in a folder must say of its licence; None where none is known.

    name: of the model, where that is the hub's.
    """
    folder = Path(source)
    if not folder.is_dir():
        card = of_file(folder)
        return None if card is None or card.name is None else {"license": card.name}
    page = hub.page(name) if _on_hub(name) else ""
    card, inside = of_folder(folder, page), Folder(folder)
    if card is None or card.name is None:
        return None
    found = {"license": OTHER, **card.fields}
    if found["license"].lower() == OTHER and card.name != OTHER:  # named by what the card says besides
        found["license_name"] = card.name
    texts = texts_beside(inside, found)
    if URL.match(found.get("license_link", "")):
        return found
    link = found.pop("license_link", "")
    if texts:
        link = str(inside.path(texts[0]))
    elif card.terms is not None and URL.match(card.terms.text):
        link = card.terms.text
    elif card.terms is not None:  # the card alone says them
        with suppress(CheckpointError):  # where it can't be read, its reason was said
            link = str(inside.path(hub.CARD))
    else:
        link = ""
    return {**found, **({"license_link": link} if link else {})}


def laid(fields: Mapping[str, str], folder: Path, name: str) -> dict[str, str]:
    """Fields as a file in `folder` has them: the text that they link to is copied there, by this name."""
    link = fields.get("license_link", "")
    if not link or URL.match(link):
        return dict(fields)
    rest = {key: value for key, value in fields.items() if key != "license_link"}
    if not Path(link).is_file():
        return rest
    (folder / name).write_bytes(Path(link).read_bytes()[:LARGEST_CARD_BYTES])
    return {**rest, "license_link": name}


def text_name(conditioner: str) -> str:
    """Of the file with the text of a conditioner's licence: at the top of a model's folder, as hub.TERMS has it."""
    return f"LICENSE-{conditioner.replace('-', '_')}.txt"


def of_conditioner(inside: Folder, card: Mapping[str, Any], language: str) -> dict[str, str] | None:
    """The licence that kotoe.json's table states of a language's conditioner."""
    fields = card["licences"].get(card["read_by"].get(language, language))
    if fields is None:
        return None
    link = fields.get("license_link", "")
    if not link or URL.match(link):
        return dict(fields)
    rest = {key: value for key, value in fields.items() if key != "license_link"}
    with suppress(CheckpointError):  # it leads out of the folder, say: nothing else may be copied when this is saved
        return {**rest, "license_link": str(inside.path(link))}
    return rest


def differs(fields: Mapping[str, str] | None, licence: str | None) -> bool:
    """Whether a conditioner's licence has to be said beside the model's: those without a name may be any."""
    if fields is None:
        return False
    name = _name(fields).lower()
    return name in (OTHER, "unknown") or name != (licence or "").lower()


def joined(licence: str | None, parts: Iterable[Mapping[str, str] | None]) -> str | None:
    """The licences of a model and of its conditioners, where there is room for one text."""
    names = [licence, *(_name(part) for part in parts if part is not None and differs(part, licence))]
    return ", ".join(dict.fromkeys(each for each in names if each)) or None


def _name(fields: Mapping[str, str]) -> str:
    return fields.get("license_name") or fields["license"]


def hand_on(source: Path, folder: Path, name: str, licence: str | None = None) -> Path | None:
    """Write a card with the licence of the model in `source` into the folder of one that was made of it, which has
    none yet; the licence's own text too, where it lies beside the card. None where no licence is known.

    name:    of the base, as the card is to say it.
    licence: what the model made of it is under, where there is no kotoe.json to say that conditioners have others.
    """
    if not source.is_dir() or not folder.is_dir():
        return None
    card, fields = of_folder(source), carried(source, name)
    if card is None or fields is None:
        return None
    inside = Folder(source)
    copied = [each for each in texts_beside(inside, card.fields) if hub.TERMS.fullmatch(each)]
    for each in copied:
        (folder / each).write_bytes(inside.read(each))
    if (folder / hub.CARD).exists() or (card.sha256 is None and not card.reason and (folder / "kotoe.json").exists()):
        return None  # said there already
    link = Path(fields.get("license_link", "")).name
    fields = laid(fields, folder, link if hub.TERMS.fullmatch(link) else BASE_TEXT)
    fields |= {} if licence is None or (folder / "kotoe.json").exists() else {"license": licence}
    about: dict[str, Any] = {**fields, **({"language": list(card.languages)} if card.languages else {})}
    about |= {"base_model": name.partition("@")[0]} if _on_hub(name) else {}
    base = name if _on_hub(name) else Path(name).name
    head = [f"{key}: {dumps(value)}" for key, value in about.items()]
    lines = ["---", *head, "---", f"# {folder.name}", "", f"Made by Kotoe from {base}, whose licence it has."]
    texts = dict.fromkeys([*copied, *filter(None, [fields.get("license_link")])])
    lines += [f"Its text is in {each}." if not URL.match(each) else f"Its text: {each}" for each in texts]
    if card.terms is not None:
        lines += ["", "In short, and the licence's text is what binds:", "", *card.terms.summary]
    (folder / hub.CARD).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / hub.CARD


def _on_hub(name: str) -> bool:
    return hub.NAME.fullmatch(name) is not None and not builtin.path_of(name).exists()
