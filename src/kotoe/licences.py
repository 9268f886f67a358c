"""What a model's licence binds to: read from its model card, said in our words, and whether it was accepted here.

A card is a README.md that begins with YAML front matter, as the Hugging Face hub has it (license, license_name,
license_link, language, extra_gated_prompt). It is untrusted: no object but text, lists and tables is made from it.
What Kotoe says of a licence is a summary; its text is what binds.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kotoe import builtin, hub
from kotoe.config import dumps, read_json, to_json
from kotoe.errors import CheckpointError, UserError
from kotoe.runs import write_atomic

if TYPE_CHECKING:
    from kotoe.checkpoints.files import Folder

LARGEST_CARD_BYTES = 2 * 2**20
LARGEST_HEAD_BYTES = 64 * 2**10  # of front matter
DEEPEST = 20  # tables in lists in tables
SHOWN = 200  # characters of a text from outside
SUMMARY = 1  # the version of the summaries below: another one asks again
STANDARD = ("openrail-m", "openrail++-m")  # kinds whose text is the same everywhere
FIELDS = ("license", "license_name", "license_link")
OTHER = "other"  # what the hub writes for a licence that it has no id for
URL = re.compile(r"https?://")
HEAD = re.compile(r"\s*---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)

# Licences, as the hub writes them, that leave free what is done with a model.
FREE = re.compile(
    r"(apache-2\.0|mit|bsd(-.*)?|isc|zlib|unlicense|wtfpl|cc0-1\.0|pddl|cc-by(-sa)?-\d\.\d|(a|l)?gpl(-.*)?|mpl-2\.0"
    r"|artistic-2\.0|bsl-1\.0|ecl-2\.0|epl-\d\.0|eupl-1\.\d|osl-3\.0|afl-3\.0|ofl-1\.1|odbl|odc-by|ms-pl|postgresql|ncsa"
    r"|openmdw-.*|cdla-permissive-.*)"
)
# CreativeML's two. Other OpenRAIL licences, BigScience's say, forbid other things.
RAIL = re.compile(r"creativeml[\s_-]*open[\s_-]*rail|open[\s_-]*rail\s*\+\+", re.IGNORECASE)
PLUS = re.compile(r"rail\s*\+\+", re.IGNORECASE)
NOT_COMMERCIAL = re.compile(
    r"[-_]nc(?![a-z])|non[\s_-]*commercial|商用(利用)?(を)?(禁止|不可)|非商用|非商业|비상업", re.IGNORECASE
)
USES = (
    "You may use, change and share the model, and what you draw with it is yours to answer for; but nobody may use it",
    "- to break a law, or to exploit or harm minors;",
    "- to spread false statements, or a person's data, in order to harm; to insult, threaten or harass;",
    "- to decide, without a human, over somebody's rights or duties;",
    "- to discriminate against people or harm them for how they behave, what they are, or what they can't defend;",
    "- to give medical advice, or for law enforcement, justice, immigration or asylum, such as foretelling a crime.",
    "Whoever gets the model from you, or one that you made of it, must be bound so too and get the licence's text.",
)
NO_MONEY = ("Commercial use is not allowed, but for what the licence's text excepts.",)
OWN = ("Terms of its own, which Kotoe doesn't know. Read them before you use the model.",)


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a licence binds to.

    kind:    openrail-m, openrail++-m, each also with -nc; non-commercial; or own, which nobody has summarised.
    title:   its name.
    summary: lines, in our words.
    text:    where the text is that binds: a URL, or a file beside the card; "" where the card doesn't say.
    """

    kind: str
    title: str
    summary: tuple[str, ...]
    text: str


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a model's card, or else its kotoe.json, says of its licence. Texts are as they were given.

    licence:   its id on the hub, its name where that is "other", or None.
    fields:    license, license_name, license_link as far as they are there.
    languages: BCP 47 tags, as the card has them.
    terms:     None where the licence leaves free what is done with the model, or isn't known.
    sha256:    of the card; None where there is only kotoe.json.
    text_sha256: of the text that binds, where that is beside the card and nobody's standard one.
    reason:    why the card couldn't be read, or "".
    """

    licence: str | None
    fields: Mapping[str, str]
    languages: tuple[str, ...]
    terms: Terms | None
    sha256: str | None
    text_sha256: str | None = None
    reason: str = ""

    @property
    def name(self) -> str | None:
        """What a model made of this one is to say: a licence that has no name, or can't be read, is some licence."""
        return self.licence or (None if self.terms is None else OTHER)

    @property
    def terms_sha256(self) -> str:
        """What was accepted: another licence has another one, another sentence in the card has not."""
        about = {**self.fields, "kind": None if self.terms is None else self.terms.kind}
        about |= {} if self.text_sha256 is None else {"text": self.text_sha256}
        return hashlib.sha256(dumps(about).encode()).hexdigest()


# --- Reading a card ------------------------------------------------------------------------------------------------


def read(folder: Path, stated: str | None = None, page: str = "") -> Card | None:
    """The card of a checkpoint's folder; None where there is neither a card nor a licence stated elsewhere.

    stated: the licence in kotoe.json, which stands where the card has none.
    page:   of the model on the hub, which the card's links begin at.
    Never raises for what a card holds: its `reason` says what is wrong with it.
    """
    from kotoe.checkpoints.files import Folder

    inside, data = Folder(folder), b""
    if not inside.has(hub.CARD):
        return None if stated is None else _with_text(_card({"license": stated}, "", None, page), inside, page)
    try:
        data = inside.read(hub.CARD, LARGEST_CARD_BYTES)
        text = data.decode("utf-8-sig")
        head = front_matter(text)
    except (CheckpointError, UnicodeDecodeError) as error:
        reason = error.given if isinstance(error, CheckpointError) else f"not UTF-8 at byte {error.start}"
        unread = Terms(kind="own", title="a licence that Kotoe can't read", summary=OWN, text=page)
        card = Card(licence=None, fields={}, languages=(), terms=unread, sha256=_sha256(data) if data else None)
        return _with_text(replace(card, reason=_printable(f"{hub.CARD}: {reason}")), inside, page)
    head = {**({} if stated is None else {"license": stated}), **head}
    return _with_text(_card(head, text[:LARGEST_HEAD_BYTES], _sha256(data), page), inside, page)


def _with_text(card: Card, inside: Folder, page: str) -> Card:
    """The card with the sha256 of the text that binds. Of a licence that the card names by nothing the hub knows, and
    that has no text beside it, that is the card itself. Of a model on the hub other files than hub.TERMS don't count:
    they may not be there before the model is."""
    if card.terms is None or card.terms.kind in STANDARD:
        return card
    names = [n for n in texts_beside(inside, card.fields) if not page or hub.TERMS.fullmatch(n)]
    if not names:
        named = card.fields.get("license", OTHER).lower() != OTHER
        return card if named else replace(card, text_sha256=card.sha256)
    digest = hashlib.sha256()
    for name in names:
        try:
            digest.update(inside.read(name))
        except CheckpointError as error:
            digest.update(error.given.encode())
    return replace(card, text_sha256=digest.hexdigest())


def texts_beside(inside: Folder, fields: Mapping[str, str]) -> list[str]:
    """The files of a checkpoint's folder with its licence's text: the one that the card links to first."""
    link = fields.get("license_link", "").removeprefix("./")
    others = {part.get("license_link") for part in _stated_parts(inside).values()}  # a conditioner's, not the model's
    names = sorted(p.name for p in inside.root.iterdir() if hub.TERMS.fullmatch(p.name) and p.name not in others)
    if link and not URL.match(link):
        with suppress(CheckpointError):  # it leads nowhere, or out of the folder
            inside.path(link)
            return [link, *(name for name in names if name != link)]
    return names


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def front_matter(text: str) -> dict[str, Any]:
    """The table at the head of a card: texts (numbers and dates too), lists and tables; {} where it has none.

    Raises CheckpointError for what isn't YAML, no table, larger or deeper than a card is, or refers to itself: a few
    such lines can stand for gigabytes.
    """
    import yaml

    if not re.match(r"\s*---[ \t]*(\r?\n|$)", text):
        return {}
    found = HEAD.match(text[:LARGEST_HEAD_BYTES])
    if found is None:
        raise CheckpointError(f"its front matter doesn't end within {LARGEST_HEAD_BYTES} characters")
    try:
        # Nodes only: nothing is constructed, and what is no text, list or table can't come to be.
        node = yaml.compose(found[1], Loader=yaml.SafeLoader)
        value = {} if node is None else _value(node, set(), 0)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = "" if mark is None else f" at line {mark.line + 2}"
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise CheckpointError(f"its front matter is no YAML ({problem}{at})") from None
    except (RecursionError, ValueError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise CheckpointError(f"its front matter is refused ({reason})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"its front matter is a {'list' if isinstance(value, list) else 'text'}, not a table")
    return value


def _value(node: Any, seen: set[int], depth: int) -> Any:
    import yaml

    if id(node) in seen:
        raise ValueError("an alias, which stands for another part")
    if depth > DEEPEST:
        raise ValueError("nested too deeply")
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError("a key that is no text")
            if key.value in found:
                raise ValueError(f"key {key.value!r} twice")
            found[key.value] = _value(value, seen, depth + 1)
        return found
    if isinstance(node, yaml.SequenceNode):
        return [_value(each, seen, depth + 1) for each in node.value]
    empty = node.tag == "tag:yaml.org,2002:null"
    return None if empty else node.value


def _card(head: Mapping[str, Any], body: str, sha256: str | None, page: str) -> Card:
    fields: dict[str, str] = {}
    for key in FIELDS:
        texts = _texts(head.get(key))
        if texts:
            fields[key] = ", ".join(texts)
    asked = "\n".join(_texts(head.get("extra_gated_prompt")))
    licence, terms = fields.get("license"), None
    given = (licence or "").lower()
    free = bool(given) and all(FREE.fullmatch(each) for each in given.split(", "))
    if not free and (given not in ("", "unknown") or asked or "license_name" in fields):
        terms = _terms(fields, asked, body if given == OTHER else "", page)
        if given in ("", OTHER):
            licence = fields.get("license_name") or (licence if terms.kind == "own" else terms.title)
    return Card(
        licence=None if licence is None else _printable(licence),
        fields={key: _printable(value) for key, value in fields.items()},
        languages=tuple(_printable(each) for each in _texts(head.get("language"))),
        terms=terms,
        sha256=sha256,
    )


def _terms(fields: Mapping[str, str], asked: str, body: str, page: str) -> Terms:
    """What a licence that isn't known to be free binds to. Its own fields are believed first, then what the card says
    to whoever wants access, and where the licence is "other" and has no name, the card's text."""
    named = " ".join(fields.values())
    for said in (named, asked, body):
        rail, unpaid = bool(RAIL.search(said)), bool(NOT_COMMERCIAL.search(said))
        if rail or unpaid:
            break
        if said is named and "license_name" in fields:
            break
    plus = bool(PLUS.search(said))
    link = fields.get("license_link", "")
    if rail:
        kind = "openrail++-m" if plus else "openrail-m"
        title = "CreativeML OpenRAIL++-M" if plus else "CreativeML OpenRAIL-M"
        known = "huggingface.co/stabilityai/stable-diffusion-2/blob/main/LICENSE-MODEL"
        text = f"https://{known if plus else 'huggingface.co/spaces/CompVis/stable-diffusion-license'}"
        if unpaid:  # somebody's own form of it: nobody's text but theirs
            kind, title, text = f"{kind}-nc", f"{title}, non-commercial", ""
        return Terms(kind=kind, title=title, summary=USES + NO_MONEY * unpaid, text=_where(link, page) or text or page)
    name = _printable(fields.get("license_name") or fields.get("license") or "a licence without a name")
    if unpaid:
        return Terms(kind="non-commercial", title=name, summary=NO_MONEY, text=_where(link, page) or page)
    return Terms(kind="own", title=name, summary=OWN, text=_where(link, page) or page)


def _where(link: str, page: str) -> str:
    """A card's link in full."""
    link = _printable(link)
    return link if not link or URL.match(link) or not page else f"{page}/blob/main/{link.lstrip('/')}"


def _texts(value: Any) -> list[str]:
    """The texts of a field that may be one or a list."""
    return [x.strip() for x in (value if isinstance(value, list) else [value]) if isinstance(x, str) and x.strip()]


def _printable(text: str) -> str:
    """Text from outside that may be shown: no control characters, which can write over a terminal."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return plain if len(plain) <= SHOWN else plain[: SHOWN - 3] + "..."


# --- A model's licence ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Licensed:
    """A model and its card.

    model:    its name on the hub without a revision, or its folder.
    revision: the commit, of a model from the hub.
    parts:    by the name of a conditioner that came from elsewhere, what binds those who use it beside the model's own.
    """

    model: str
    revision: str | None
    card: Card | None
    parts: Mapping[str, Licensed] = field(default_factory=dict)

    @property
    def from_hub(self) -> bool:
        """Whether it is named as on the hub."""
        return not Path(self.model).is_absolute()


def of(source: str | Path) -> Licensed | None:
    """The licence of what `kotoe.load` takes; None for the built-in model and for what is no model.

    A model on the hub that isn't in the cache yet: only what says its licence is downloaded. Raises as `hub.fetch`.
    """
    text, path = str(source), builtin.path_of(source)
    if path.is_dir():
        return _of_model(str(path.resolve()), path, "")
    if path.is_file():
        return Licensed(model=str(path.resolve()), revision=None, card=of_file(path))
    found = hub.NAME.fullmatch(text)
    if found is None or path.exists():  # as `builtin.resolve`
        return None
    with builtin.suggesting(text):
        folder = hub.card(text)
    if folder is None:
        return Licensed(model=found[1], revision=None, card=None)
    return _of_model(found[1], folder, hub.page(text))


def stated(folder: Path) -> str | None:
    """The licence that a folder's card states."""
    card = read(folder)
    return None if card is None else card.name


def _of_model(model: str, folder: Path, page: str) -> Licensed:
    from kotoe.checkpoints.files import Folder

    inside, revision, parts = Folder(folder), _revision(folder), dict[str, Licensed]()
    for name, fields in sorted(_stated_parts(inside).items()):
        card = _with_text(_card(fields, "", None, page), inside, page)
        parts[name] = Licensed(model=f"{model}, conditioner {name}", revision=revision, card=card)
    return Licensed(model=model, revision=revision, card=of_folder(folder, page), parts=parts)


def of_folder(folder: Path, page: str = "") -> Card | None:
    from kotoe.checkpoints.files import Folder

    stated = _stated(Folder(folder)).get("licence")
    return read(folder, stated if isinstance(stated, str) else None, page)


def _stated(inside: Folder) -> Mapping[str, Any]:
    """kotoe.json, or nothing."""
    try:
        return inside.json("kotoe.json") if inside.has("kotoe.json") else {}
    except CheckpointError:
        return {}  # loading it says what is wrong with it


def _stated_parts(inside: Folder) -> Mapping[str, Mapping[str, str]]:
    found = _stated(inside).get("licences", {})
    return found if are_parts(found) else {}


def are_parts(value: Any) -> bool:
    """Whether these can be kotoe.json's licences."""
    return isinstance(value, dict) and all(
        isinstance(part, dict)
        and "license" in part
        and all(key in FIELDS and isinstance(text, str) for key, text in part.items())
        for part in value.values()
    )


def of_file(path: Path) -> Card | None:
    """A single file's, from its head."""
    from kotoe.checkpoints.files import metadata

    if path.suffix != hub.SAFE:
        return None
    try:
        stated = metadata(path, path.name).get("modelspec.license")
    except CheckpointError:
        return None  # loading it says what is wrong with it
    return None if stated is None else _card({"license": stated}, "", None, "")


def _revision(folder: Path) -> str | None:
    """The commit of a snapshot in the hub's cache."""
    return folder.name if folder.parent.name == "snapshots" else None


# --- What was accepted ----------------------------------------------------------------------------------------------


def accepted_path() -> Path:
    """The file of what was accepted by this user: licences.json in the folder for configuration that the platform
    wants, of which XDG_CONFIG_HOME says another on Linux."""
    home = Path.home()
    if sys.platform == "darwin":
        base = home / "Library" / "Application Support"
    elif sys.platform == "win32":
        base = Path(os.environ.get("APPDATA") or home / "AppData" / "Roaming")
    else:
        said = Path(os.environ.get("XDG_CONFIG_HOME", ""))
        base = said if said.is_absolute() else home / ".config"  # its specification: ignore others
    return base / "kotoe" / "licences.json"


def accepted(licensed: Licensed) -> Mapping[str, Any] | None:
    """The entry of licences.json that says so: the same licence of the same model, or, where the licence's text is the
    same everywhere, of one with the same card.

    Raises UserError where that file isn't what Kotoe wrote.
    """
    card = licensed.card
    if card is None or card.terms is None:
        return None
    for entry in _entries():
        same = entry.get("terms_sha256") == card.terms_sha256 and entry.get("summary") == SUMMARY
        by_card = card.terms.kind in STANDARD and card.sha256 is not None and entry.get("card_sha256") == card.sha256
        if same and (entry.get("model") == licensed.model or by_card):
            return entry
    return None


def accept(licensed: Licensed) -> Path:
    """Record that this user has accepted a model's licence, and give the file. Raises OSError if it can't be written,
    UserError as `accepted`."""
    card = licensed.card
    assert card is not None
    assert card.terms is not None
    entry = {
        "model": licensed.model,
        "revision": licensed.revision,
        "licence": card.licence,
        "kind": card.terms.kind,
        "text": card.terms.text,
        "card_sha256": card.sha256,
        "terms_sha256": card.terms_sha256,
        "summary": SUMMARY,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    from huggingface_hub.utils import WeakFileLock

    path, new = accepted_path(), (licensed.model, card.terms_sha256)
    path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(path.with_suffix(".lock")):  # another Kotoe may be adding its own
        others = [each for each in _entries() if (each.get("model"), each.get("terms_sha256")) != new]
        return write_atomic(path, dumps({"format": 1, "accepted": [*others, entry]}, indent=2) + "\n")


def _entries() -> Sequence[Mapping[str, Any]]:
    path = accepted_path()
    if not path.exists():
        return []
    entries, reason = None, "is not what Kotoe wrote"
    try:
        document = read_json(path)
    except UserError as error:
        reason = f"can't be read: {error.given}"
    else:
        entries = document.get("accepted") if isinstance(document, dict) and document.get("format") == 1 else None
    if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
        raise UserError(
            f"{path} {reason}",
            allowed='{"format": 1, "accepted": [...]}',
            hint="Mend it, or remove it: licences are asked for again",
        )
    return entries


# --- For `kotoe inspect` ---------------------------------------------------------------------------------------------


def described(source: str | Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """licence, terms, card, parts and notes of a model, JSON-able, beside what its files say."""
    licensed = of(source)
    card = None if licensed is None else licensed.card
    notes = list(found["notes"])
    parts = {}
    for name, part in ({} if licensed is None else licensed.parts).items():
        assert part.card is not None
        parts[name] = {**part.card.fields, "licence": part.card.licence, "terms": _described(part, notes)}
    if licensed is None or card is None:
        unknown = [] if found["licence"] else [f"no licence is known: there is no {hub.CARD} that states one"]
        return {"terms": None, "card": None, "licences": parts, "notes": [*notes, *unknown]}
    licence = card.licence or found["licence"]
    terms = _described(licensed, notes)
    notes += [card.reason] if card.reason else [] if licence else [f"no licence is known: its {hub.CARD} states none"]
    about = {**card.fields, "languages": list(card.languages), "sha256": card.sha256}
    return {"licence": licence, "terms": terms, "card": about, "licences": parts, "notes": notes}


def _described(licensed: Licensed, notes: list[str]) -> dict[str, Any] | None:
    """The terms of a model or a conditioner, and since when they are accepted."""
    if licensed.card is None or licensed.card.terms is None:
        return None
    entry = None
    try:
        entry = accepted(licensed)
    except UserError as error:
        notes += [str(error)] if str(error) not in notes else []
    return {**to_json(licensed.card.terms), "accepted": None if entry is None else entry.get("date")}


def shown(terms: Mapping[str, Any] | None, whose: str = "its licence") -> list[str]:
    """The terms of `described` as lines."""
    if terms is None:
        return []
    when = f"accepted {terms['accepted']}" if terms["accepted"] else "not accepted"
    return [
        f"{whose} binds what you may do with it: {terms['title']} ({when})",
        *terms["summary"],
        f"Kotoe's summary; the licence's text is what binds: {terms['text'] or 'see ' + hub.CARD}",
    ]
