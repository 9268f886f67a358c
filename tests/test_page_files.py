"""The page's files: words in four languages, what it loads, what may not stand in it, and that all of it is shipped."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
UI = ROOT / "src/kotoe/serve/ui"
LANGUAGES = ("en", "ja", "ko", "zh")
WORDS = {tag: json.loads((UI / f"strings/{tag}.json").read_text("utf-8")) for tag in LANGUAGES}
PAGE = (UI / "index.html").read_text("utf-8")
MODULES = {path.name: path.read_text("utf-8") for path in sorted(UI.glob("*.js"))}
STYLES = {path.name: path.read_text("utf-8") for path in sorted(UI.glob("*.css"))}
LONGEST = 400  # lines
PLURALS = {"en": {"one", "other"}, "ja": {"other"}, "ko": {"other"}, "zh": {"other"}}  # CLDR's, of whole numbers
SAME = {"theme.auto"}  # may read alike in two languages; nothing else may be left untranslated


def _forms(value: str | dict[str, str]) -> dict[str, str]:
    return {"other": value} if isinstance(value, str) else value


def _placeholders(text: str) -> set[str]:
    return set(re.findall(r"\{(\w+)\}", text))


def _keys() -> set[str]:
    """Keys that the page asks for by their whole names."""
    sources = [PAGE, *MODULES.values()]
    patterns = (
        r'data-t(?:-\w+)?="([^"]+)"', r'"data-t-\w+": "([^"]+)"', r'\bt: "([^"]+)"', r'\bt\("([^"]+)"',
        r'\bkey: "([^"]+)"', r'button\("([^"]+)"', r'mark\("[^"]+", "([^"]+)"', r'\["([a-z]+(?:\.\w+)?)", [a-zS]',
    )  # fmt: skip
    found = {key for text in sources for pattern in patterns for key in re.findall(pattern, text)}
    either = {
        key for text in sources for pair in re.findall(r'\? "([a-z]+\.\w+)" : "([a-z]+\.\w+)"', text) for key in pair
    }
    return found | either


@pytest.mark.parametrize("tag", LANGUAGES[1:])
def test_every_language_has_every_string(tag: str) -> None:
    assert set(WORDS[tag]) == set(WORDS["en"])
    for key, english in WORDS["en"].items():
        forms, here = _forms(english), _forms(WORDS[tag][key])
        wanted = set().union(*(_placeholders(text) for text in forms.values()))
        assert {k for text in here.values() for k in _placeholders(text)} <= wanted, key
        assert _placeholders(here["other"]) == _placeholders(forms["other"]), key
        assert set(here) == (PLURALS[tag] if isinstance(english, dict) else {"other"}), key
        assert all(text.strip() for text in here.values()), key


@pytest.mark.parametrize("tag", LANGUAGES[1:])
def test_every_string_is_translated(tag: str) -> None:
    def bare(text: str) -> str:
        return re.sub(r"\{\w+\}|Kotoe|[\W\d_]", "", text)

    left = [k for k, text in WORDS["en"].items() if bare(_forms(text)["other"]) and WORDS[tag][k] == text]
    assert left == []
    script = {"ja": r"[\u3040-\u30ff\u4e00-\u9fff]", "ko": r"[\uac00-\ud7a3]", "zh": r"[\u4e00-\u9fff]"}[tag]
    for key, text in WORDS[tag].items():
        if bare(_forms(text)["other"]):
            assert re.search(script, _forms(text)["other"]), key


def test_strings_stay_in_their_script() -> None:
    """No kana in Korean or Chinese, no hangul in the others: a text in the wrong file."""
    for tag, strange in {
        "ja": r"[\uac00-\ud7a3]",
        "ko": r"[\u3040-\u30ff]",
        "zh": r"[\u3040-\u30ff\uac00-\ud7a3]",
    }.items():
        assert {k: v for k, v in WORDS[tag].items() if re.search(strange, json.dumps(v, ensure_ascii=False))} == {}


def test_the_page_asks_for_strings_that_are_there_and_for_all_of_them() -> None:
    made = {  # keys that are put together: their heads
        "state.name.": {"waiting", "drawing", "done", "failed", "cancelled", "lost"},
        "state.": {"cancelled", "lost"},
    }
    computed = {head + tail for head, tails in made.items() for tail in tails}
    asked = {key for key in _keys() if "." in key or key in WORDS["en"]}
    assert asked - set(WORDS["en"]) == set()
    assert set(WORDS["en"]) - asked - computed == set()
    for head in made:
        assert any(f"t(`{head}${{" in text for text in MODULES.values()), head


def test_the_text_in_the_page_is_english() -> None:
    """What stands in index.html before the first words are loaded is what en.json says."""
    for key, text in re.findall(r'data-t="([^"]+)"[^>]*>([^<]+)<', PAGE):
        if text.strip():
            assert text.strip() == WORDS["en"][key], key


def test_whole_files_are_reached_and_short() -> None:
    """Every module is imported by another or the page, nothing is missing, and no file is long."""
    wanted = set(re.findall(r'(?:src|href)="ui/([^"]+)"', PAGE))
    for text in MODULES.values():
        wanted |= set(re.findall(r'from "\./([^"]+)"', text))
    assert wanted == {*MODULES, *STYLES}
    long = {name: text.count("\n") for name, text in {**MODULES, **STYLES, "index.html": PAGE}.items()}
    assert {name: lines for name, lines in long.items() if lines > LONGEST} == {}


@pytest.mark.parametrize(
    ("pattern", "bad"),
    [
        (r"innerHTML|outerHTML|insertAdjacentHTML|document\.write", "a.innerHTML = b"),
        (r"\beval\(|new Function\b|setTimeout\(\s*[\"'`]", "eval('1')"),
        (r"https?://(?!www\.w3\.org/2000/svg)", "fetch('https://example.org')"),
        (r"console\.|debugger", "console.log(1)"),
        (r"setAttribute\(\"style\"|\.style\.cssText", 'a.setAttribute("style", b)'),
    ],
    ids=["html from text", "code from text", "other hosts", "leftovers", "inline style"],
)
def test_nothing_forbidden(pattern: str, bad: str) -> None:
    assert re.search(pattern, bad), "the pattern doesn't bite"
    found = {n: re.findall(pattern, text) for n, text in {**MODULES, **STYLES, "index.html": PAGE}.items()}
    assert {name: hits for name, hits in found.items() if hits} == {}


def test_no_inline_script_style_or_listener() -> None:
    assert re.findall(r"<style|\sstyle=|\son\w+=|javascript:", PAGE) == []
    assert re.findall(r"<script(?![^>]*\ssrc=)", PAGE) == []


def test_exports_have_types() -> None:
    """Exported functions and classes say what they take and give, in JSDoc."""
    for name, text in MODULES.items():
        for match in re.finditer(r"^export (?:async )?(?:function\*?|class) (\w+)\(?([^)\n]*)", text, re.MULTILINE):
            before = text[: match.start()].rstrip()
            assert before.endswith("*/"), f"{name}: {match[1]}"
            comment = before[before.rindex("/**") :]
            if match[2].strip() and "class " not in match[0]:
                assert "@param" in comment, f"{name}: {match[1]}"


def test_all_of_it_is_in_the_wheel() -> None:
    """hatchling packs src/kotoe whole, but for what .gitignore names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel == {"packages": ["src/kotoe"]}
    assert not {"exclude", "include", "only-include", "artifacts"} & set(project["tool"]["hatch"]["build"])
    files = [str(path.relative_to(ROOT)) for path in UI.rglob("*") if path.is_file()]
    assert len(files) == len(MODULES) + len(STYLES) + len(LANGUAGES) + 1
    if (ROOT / ".git").exists():
        ignored = subprocess.run(
            ["git", "-C", str(ROOT), "check-ignore", "--no-index", *files], capture_output=True, text=True
        )
        assert (ignored.returncode, ignored.stdout) == (1, "")  # 1: none is
