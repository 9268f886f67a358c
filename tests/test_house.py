"""The house rules that a machine can hold: sizes, leftovers, names of machines, and documents that say true things."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
TRANSLATIONS = ("ja", "zh", "ko")
LONGEST = 600  # lines of one Python file
WEIGHTS = 48_000_000  # bytes of all shipped weights

LEFTOVERS = re.compile(r"\b(TO[D]O|FIX[M]E|XX[X]|NotImplemente[d]Error)\b")
LENIENT = re.compile(r"strict\s*=\s*Fals[e]|weights_only\s*=\s*Fals[e]")
# A path of somebody's machine, a package registry's host, a tool of ours: none belongs in the project.
PLACES = re.compile(
    r"(?<![\w.$)}~-])/(?:work|root|opt|home|tmp|Users)/\w"
    r"|py[p]i\.org|pythonhos[t]ed|pytor[c]h\.org/whl|npm[j]s"
    r"|issues[ ]show|contracts[.]md|style-anchors[.]md|seed-systems[.]md|shared[/]docs",
    re.IGNORECASE,
)


@functools.cache
def _tracked() -> tuple[Path, ...]:
    """Files of the project: what git knows or would add; the folder itself where there is no git."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, check=True).stdout.decode().split("\0")
        paths = [ROOT / name for name in listed if name]
    except (OSError, subprocess.CalledProcessError):
        paths = [p for p in ROOT.rglob("*") if not any(part.startswith(".") for part in p.relative_to(ROOT).parts)]
    return tuple(p for p in paths if p.is_file())


def _texts() -> Iterator[tuple[Path, str]]:
    for path in _tracked():
        if path.suffix in {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".cfg", ""} and path.name != "LICENSE":
            yield path, path.read_text("utf-8")


def _hits(pattern: re.Pattern[str], text: str) -> list[str]:
    lines = enumerate(text.splitlines(), 1)
    return [f"{number}: {line.strip()[:100]}" for number, line in lines if pattern.search(line)]


def _all_hits(pattern: re.Pattern[str], suffixes: set[str] | None = None) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{hit}"
        for path, text in _texts()
        if suffixes is None or path.suffix in suffixes
        for hit in _hits(pattern, text)
    ]


def test_no_file_is_too_long() -> None:
    long = {str(p.relative_to(ROOT)): text.count("\n") for p, text in _texts() if p.suffix == ".py"}
    assert {name: n for name, n in long.items() if n > LONGEST} == {}


@pytest.mark.parametrize(
    ("pattern", "suffixes", "bad", "good"),
    [
        (LEFTOVERS, {".py"}, "x = 1  # " + "TO" + "DO: later", "# nothing left to do"),
        (LENIENT, {".py"}, "net.load_state_dict(state, strict=" + "False)", "net.load_state_dict(state, strict=True)"),
        (PLACES, None, "open('/ro" + "ot/x.txt')", "open('/usr/share/unicode/x.txt')"),
        (PLACES, None, "pip install -i https://py" + "pi.org/simple", "pip install kotoe"),
    ],
    ids=["leftovers", "lenient loading", "machine paths", "registries"],
)
def test_no_such_words(pattern: re.Pattern[str], suffixes: set[str] | None, bad: str, good: str) -> None:
    assert _hits(pattern, bad), "the pattern doesn't bite"
    assert not _hits(pattern, good)
    found = _all_hits(pattern, suffixes)
    assert not found, "\n".join(found)


def test_weights_are_small() -> None:
    sizes = {p.name: p.stat().st_size for p in (ROOT / "src/kotoe/models").rglob("*.safetensors")}
    assert sizes, "no built-in model"
    assert sum(sizes.values()) <= WEIGHTS, sizes


# -- documents -----------------------------------------------------------------------------------------------------


def _documents() -> list[Path]:
    return [p for p in _tracked() if p.suffix == ".md"]


def _code(text: str) -> list[str]:
    """Commands of fenced code blocks (continued lines as one) and inline code."""
    text = text.replace("\\\n", " ")
    fenced = [line for block in re.findall(r"^```\w*\n(.*?)^```", text, re.S | re.M) for line in block.splitlines()]
    return fenced + re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M))


def broken_links(folder: Path, text: str) -> list[str]:
    targets = re.findall(r"\]\(([^)\s#]+)[^)]*\)", text) + re.findall(r'src="([^"]+)"', text)
    return [t for t in targets if not re.match(r"[a-z]+:", t) and not (folder / t).exists()]


def test_links_lead_somewhere() -> None:
    assert broken_links(ROOT, "[a](benchmarks/no-such-card.md)") == ["benchmarks/no-such-card.md"]
    broken = {str(p.relative_to(ROOT)): broken_links(p.parent, p.read_text("utf-8")) for p in _documents()}
    assert {name: links for name, links in broken.items() if links} == {}


def uncarded_numbers(readme: str) -> list[str]:
    """Rows of the section of measured numbers that name no card, or whose figures the card doesn't have."""
    section = re.search(r"^## Measured\n(.*?)(?=^## |\Z)", readme, re.S | re.M)
    assert section, "README.md has no section 'Measured'"
    bad = []
    for row in re.findall(r"^\|.*\|$", section[1], re.M)[2:]:
        cards = [ROOT / c for c in re.findall(r"\]\(([^)#]+\.md)", row)]
        if not cards or not all(card.is_file() for card in cards):
            bad.append(f"no card: {row}")
            continue
        said = "\n".join(card.read_text("utf-8") for card in cards)
        for figure in re.findall(r"\d+(?:\.\d+)?", row.strip("|").split("|")[1]):
            if not re.search(rf"(?<![\d.]){re.escape(figure)}(?!\.?\d)", said):
                bad.append(f"{figure} is not in the card: {row}")
    return bad


def test_numbers_have_cards() -> None:
    head = "## Measured\n\n| what | figure | card |\n|---|---|---|\n"
    assert uncarded_numbers(head + "| speed | 3 s | |\n")
    assert uncarded_numbers(head + "| speed | 987654 s | [card](README.md) |\n")
    assert uncarded_numbers(README.read_text("utf-8")) == []


TWO_WORDS = (
    "conditioner add",
    "conditioner remove",
    "data pairs",
    "study localization",
    "tokenizer train",
    "tokenizer report",
)


@functools.cache
def _help(verb: str) -> str:
    """The help of a verb ('' for the list of verbs), whatever library draws it."""
    code = "import sys; from kotoe.cli import main; sys.argv = ['kotoe', *sys.argv[1:]]; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *verb.split(), "--help"],
        capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    return done.stdout if done.returncode == 0 else ""


def unknown_commands(text: str) -> list[str]:
    """Commands in a document's code that the command line, the Makefile or Git of this project doesn't have."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    bad = []
    for line in _code(text):
        line = line.split(" #")[0].strip().removeprefix("$ ").removeprefix(".venv/bin/")
        if match := re.match(r"make((?: [A-Z]+=\S+)*) ([a-z]+)$", line):
            bad += [line] if match[2] not in targets else []
        elif match := re.match(r"kotoe ([a-z][a-z-]*)(.*)", line):
            verb = next((v for v in TWO_WORDS if line.startswith(f"kotoe {v}")), match[1])
            text_of_help = _help(verb)
            flags = re.findall(r"(?<=\s)--[a-z0-9-]+", re.sub(r"\"[^\"]*\"", "", match[2]))
            if not re.search(rf"\b{verb}\b", _help("")) or not text_of_help:
                bad.append(line)
            bad += [f"{line}: {flag}" for flag in flags if not re.search(rf"{flag}\b", text_of_help)]
    return bad


def test_documents_say_commands_that_exist() -> None:
    assert unknown_commands("`make coffee`") == ["make coffee"]
    assert unknown_commands("```\nkotoe paint x\n```") == ["kotoe paint x"]
    assert unknown_commands("`kotoe generate x --no-such-flag 1`")
    bad = {str(p.relative_to(ROOT)): unknown_commands(p.read_text("utf-8")) for p in _documents()}
    assert {name: lines for name, lines in bad.items() if lines} == {}


def _blocks(text: str) -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```", text, re.S | re.M)


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_translations_have_the_same_commands(language: str) -> None:
    """Comments are translated; commands and code are the README's own."""

    def bare(blocks: list[str]) -> list[str]:
        return [re.sub(r"\s*# .*", "", block) for block in blocks]

    ours = bare(_blocks((ROOT / f"README.{language}.md").read_text("utf-8")))
    english = bare(_blocks(README.read_text("utf-8")))
    assert ours, "no command in it"
    assert ours == english[: len(ours)]


def test_version_is_said_once() -> None:
    import tomllib

    import kotoe

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert kotoe.__version__ == project["version"]
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_every_dependency_is_pinned_and_justified() -> None:
    import tomllib

    text = (ROOT / "pyproject.toml").read_text("utf-8")
    project = tomllib.loads(text)["project"]
    pinned = {
        re.split("==", line)[0].lower().replace("_", "-"): line
        for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
        if "==" in line
    }
    wanted = project["dependencies"] + [d for extra in project["optional-dependencies"].values() for d in extra]
    names = {re.split(r"[<>=\[ ;]", d)[0].lower().replace("_", "-") for d in wanted} - {"kotoe"}
    assert names <= pinned.keys()
    for dependency in project["dependencies"]:
        assert re.search(rf'"{re.escape(dependency)}",\s+# \w+', text), f"{dependency}: say what it is for"


# -- the gates of conftest.py ----------------------------------------------------------------------------------------

GATES = {  # a test file that breaks a rule, and what pytest says of it
    "skip": ("def test(): pytest.skip('I felt like it')", "unexpected skip: 'I felt like it'"),
    "absent": ("pytest.importorskip('no_such_library')\ndef test(): pass", 'unexpected skip: "could not import'),
    "network": ("def test(): socket.create_connection(('127.0.0.1', 9))", "SocketBlockedError"),
    "warning": ("def test(): warnings.warn('old')", "UserWarning: old"),
    "marker": ("@pytest.mark.no_such_marker\ndef test(): pass", "'no_such_marker' not found"),
    "home": ("def test(): assert 'kotoe-tests-' not in str(pathlib.Path.home())", "kotoe-tests-"),
}


def test_gates_close(tmp_path: Path) -> None:
    """Each rule of tests/conftest.py and of the pytest settings fails the test that breaks it."""
    (tmp_path / "conftest.py").write_text((ROOT / "tests/conftest.py").read_text("utf-8"), "utf-8")
    for gate, (code, _) in GATES.items():
        (tmp_path / f"test_{gate}.py").write_text(f"import pathlib, pytest, socket, warnings\n{code}\n", "utf-8")
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path)]
    command += ["-p", "no:cacheprovider", "--continue-on-collection-errors", str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path).stdout
    for gate, (_, words) in GATES.items():
        assert re.search(rf"^(FAILED|ERROR) test_{gate}\.py", said, re.M), (gate, said)
        assert words in said, (gate, said)
    assert " passed" not in said
