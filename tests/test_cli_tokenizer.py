"""kotoe tokenizer train and report: what they print, write, refuse and leave behind."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from commands import running
from kotoe import cli
from kotoe.tokenizers import load_tokenizer
from tiny import LINES, saved_tiny

Kotoe = Callable[..., tuple[int, str, str]]
PAIRS = [("a red cat", "青い背景に猫"), ("an owl", "フクロウ"), ("", " "), ("a painting of a castle", "城の絵")]


@pytest.fixture
def kotoe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Kotoe:
    """Run the command in a folder with some texts, in this process: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    Path("ja.txt").write_text("\n".join([*LINES["ja"], ""]), "utf-8")
    Path("en.txt").write_text("\n".join([*LINES["en"], "", ""]), "utf-8")
    Path("pairs.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in [("source", "target"), *PAIRS]), "utf-8")

    command = running(capsys)

    def run(*arguments: str) -> tuple[int, str, str]:
        done = command(*arguments)
        return done.code, done.out, done.err

    return run


def train(kotoe: Kotoe, *more: str, texts: str = "ja.txt", family: str = "sentencepiece", size: str = "300") -> Any:
    return kotoe("tokenizer", "train", texts, "--family", family, "--vocab-size", size, *more)


# --- train


def test_train_says_what_it_made(kotoe: Kotoe) -> None:
    code, out, err = train(kotoe, "--out", "tok", "--model-type", "bpe")
    assert code == 0, err
    t = load_tokenizer("tok")
    assert (t.kind, t.vocab_size, t.max_tokens, t.pad) == ("sentencepiece", 300, 77, 3)
    first, second, *tables = out.splitlines()
    assert first == "tok: sentencepiece, 300 ids (bos none, eos 2, pad 3), 77 positions"
    assert second.startswith("5 texts, 38 characters")
    assert "No spaces between words" in second
    assert sum(line.startswith("| tok ") for line in tables) == 2
    assert '"normalization": "nmt_nfkc"' in err  # the resolved configuration


@pytest.mark.parametrize("family", ["clip", "sentencepiece", "xlm-roberta", "bert"])
def test_train_document(kotoe: Kotoe, family: str) -> None:
    size = {"clip": "520", "sentencepiece": "292", "xlm-roberta": "38", "bert": "50"}[family]
    code, out, err = train(kotoe, "pairs.tsv", "--out", "tok", "--json", "--max-tokens", "40", family=family, size=size)
    assert code == 0, err
    document = json.loads(out)
    t = load_tokenizer("tok")
    assert document.keys() == {
        *("config", "texts", "out", "kind", "vocab_size", "max_tokens", "special", "sha256", "figures")
    }
    assert (document["sha256"], document["kind"], document["max_tokens"]) == (t.sha256, t.kind, 40)
    assert document["vocab_size"] == int(size)
    assert document["special"] == {"bos": t.bos, "eos": t.eos, "pad": t.pad}
    assert document["texts"]["texts"] == document["figures"]["n"] == 5 + 3
    assert document["texts"]["blank"] == 1
    assert "1 of 9 texts are blank and not trained on" in err
    assert document["config"]["texts"] == ["ja.txt", "pairs.tsv"]


def test_train_reads_the_column_that_is_asked_for(kotoe: Kotoe) -> None:
    for column, text in (("source", "cat"), ("target", "猫")):
        code, _, err = train(kotoe, "--out", column, "--column", column, texts="pairs.tsv", family="bert", size="50")
        assert code == 2
        assert "the texts yield" in err or "too small" in err
        least = err.split("Allowed: ")[1].split()[0]
        code, _, err = train(kotoe, "--out", column, "--column", column, texts="pairs.tsv", family="bert", size=least)
        assert code == 0, err
        assert 1 not in load_tokenizer(column).text_ids([text])[0]


def test_train_dry_run_writes_nothing(kotoe: Kotoe, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    code, out, _ = train(kotoe, "--out", "tok", "--dry-run", "--json")
    assert code == 0
    document = json.loads(out)
    assert (document["dry_run"], document["texts"]["texts"], document["config"]["byte_fallback"]) == (True, 5, True)
    assert sorted(tmp_path.iterdir()) == before


def test_train_overwrites_only_when_asked(kotoe: Kotoe) -> None:
    assert train(kotoe, "--out", "tok")[0] == 2  # unigram pieces of five texts are fewer than 300
    assert train(kotoe, "--out", "tok", "--model-type", "bpe")[0] == 0
    before = load_tokenizer("tok").sha256
    code, _, err = train(kotoe, "--out", "tok", family="clip", size="520")
    assert code == 2
    assert "tok is there already. Allowed: a name that isn't taken, or --overwrite." in err
    assert load_tokenizer("tok").sha256 == before
    assert train(kotoe, "--out", "tok", "--overwrite", family="clip", size="520")[0] == 0
    assert load_tokenizer("tok").kind == "clip-bpe"


CLIP = ("--out", "x", "--family", "clip", "--vocab-size", "600")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ja.txt"], "out is missing. Allowed: texts, out, family, vocab_size are needed"),
        ([*CLIP], "texts is missing"),
        (["ja.txt", "--out", "x", "--family", "clp", "--vocab-size", "600"], "unknown family .*Did you mean 'clip'"),
        (["ja.txt", "--out", "x", "--family", "clip", "--vocab-size", "9999"], "the texts yield .*Allowed: 514 to"),
        (["ja.txt", "--out", "x", "--family", "clip", "--vocab-size", "100"], "Allowed: 514 or more"),
        (["ja.txt", "--out", "x", "--family", "bert", "--vocab-size", "many"], "kotoe tokenizer train --help lists"),
        (["ja.txt", "--out", "ja.txt", "--family", "clip", "--vocab-size", "600"], "--out ja.txt is a file"),
        (["no.txt", *CLIP], "can't read no.txt: No such file"),
        (["pairs.tsv", *CLIP, "--column", "tgt"], "Allowed: source, target"),
        (["blank.txt", *CLIP], "no text among 2, they are all blank"),
        (["latin.txt", *CLIP], "latin.txt, line 2 is not UTF-8: byte 4"),
        (["ja.txt", *CLIP, "--no-byte-fallback"], "byte_fallback false"),
    ],
)  # fmt: skip
def test_train_refuses(kotoe: Kotoe, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "blank.txt").write_text(" \n\n")
    (tmp_path / "latin.txt").write_bytes(b"a\ncaf\xe9\n")
    code, out, err = kotoe("tokenizer", "train", *arguments)
    assert (code, out) == (2, "")
    assert re.search(message, err), err
    assert not (tmp_path / "x").exists()


# --- report


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(saved_tiny(tmp_path_factory.mktemp("model") / "tiny", languages=("en", "ja")))


def test_report_of_files_and_models(kotoe: Kotoe, model: str, tmp_path: Path) -> None:
    train(kotoe, "--out", "tok", "--model-type", "bpe")
    code, out, err = kotoe(
        *("tokenizer", "report", "en=en.txt", "pairs.tsv:target", "pairs.tsv:source", "--limit", "20", "--out", "o"),
        *("--tokenizer", "own=tok", model, "--tokenizer", "kotoe-emoji:ja", f"again={model}:ja", "--json"),
    )
    assert code == 0, err
    results = json.loads(out.splitlines()[-1])
    assert list(results["texts"]) == ["en", "pairs:target", "pairs:source"]
    assert list(results["tokenizers"]) == ["own", "tiny:en", "tiny:ja", "kotoe-emoji:ja", "again"]
    assert results["tokenizers"]["again"]["sha256"] == results["tokenizers"]["tiny:ja"]["sha256"]
    assert results["tokenizers"]["own"]["source"] == "tok"
    assert results["texts"]["pairs:target"]["source"] == "pairs.tsv:target"
    assert (results["texts"]["en"]["texts"], results["texts"]["en"]["blank"]) == (5, 1)
    assert results["figures"]["en"]["tiny:en"]["limit"] == 18  # 20 less BOS and EOS
    written = json.loads((tmp_path / "o" / "report.json").read_text("utf-8"))
    assert written["figures"] == results["figures"]
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == ["fertility.png", "report.json", "report.md"]
    for path in ("report.json", "report.md", "fertility.png"):
        assert str(Path("o") / path) in err


def test_report_prints_tables(kotoe: Kotoe, model: str) -> None:
    code, out, _ = kotoe("tokenizer", "report", "ja.txt", "en.txt", "--tokenizer", model)
    assert code == 0
    assert [line for line in out.splitlines() if line.startswith("## ")] == ["## ja", "## en"]
    assert out.count("| tiny:ja ") == 4
    assert "5 texts, 129 characters, 129 graphemes, 36 words (1 blank ones are left out). Tokens per word count." in out


def test_report_dry_run(kotoe: Kotoe, model: str, tmp_path: Path) -> None:
    code, out, _ = kotoe("tokenizer", "report", "pairs.tsv", "--tokenizer", model, "--out", "o", "--dry-run", "--json")
    document = json.loads(out)
    assert code == 0
    assert (document["tokenizers"], document["texts"]) == (["tiny:en", "tiny:ja"], ["pairs"])
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ja.txt"], "tokenizer is missing"),
        (["--tokenizer", "kotoe-emoji"], "texts is missing"),
        (["ja.txt", "ja.txt", "--tokenizer", "kotoe-emoji"], "two of the name 'ja'.*Give them as NAME=PLACE"),
        (["ja.txt", "--tokenizer", "kotoe-emoji:ja", "kotoe-emoji:ja"], "two of the name 'kotoe-emoji:ja'"),
        (["ja.txt", "--tokenizer", "kotoe-emoji:da"], "language 'da' is not in this model. Allowed: am, ar, bn"),
        (["ja.txt", "--tokenizer", "kotoe-emojy"], "unknown model 'kotoe-emojy'.*Did you mean 'kotoe-emoji'"),
        (["ja.txt", "--tokenizer", "empty"], "no tokenizer that Kotoe reads; found no file of one"),
        (["ja.txt", "--tokenizer", "one.safetensors"], "one.safetensors holds no tokenizers. Allowed: a folder"),
        (["pairs.tsv:targt", "--tokenizer", "kotoe-emoji:ja"], "no column 'targt'.*Did you mean 'target'"),
        (["ja.txt:target", "--tokenizer", "kotoe-emoji:ja"], "ja.txt has one text a line and no columns"),
        (["x=", "--tokenizer", "kotoe-emoji:ja"], "'x='.*NAME=PLACE, or a place alone"),
        (["no.txt", "--tokenizer", "kotoe-emoji:ja"], "can't read no.txt"),
        (["ja.txt", "--tokenizer", "kotoe-emoji:ja", "--limit", "1"], "limit 1. Allowed: 2 or more"),
        (["ja.txt", "--tokenizer", "kotoe-emoji:ja", "--out", "ja.txt"], "--out ja.txt is a file"),
        (["\U0003fffd=ja.txt", "--tokenizer", "kotoe-emoji:ja", "--out", "o"], "no font here has"),
    ],
)
def test_report_refuses(kotoe: Kotoe, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "one.safetensors").write_bytes(b"")
    code, out, err = kotoe("tokenizer", "report", *arguments)
    assert (code, out) == (2, "")
    assert re.search(message, err), err
    assert not (tmp_path / "o").exists()


def test_a_limit_stands_in_for_one_that_no_file_names(kotoe: Kotoe) -> None:
    """As rinna's published configuration, which names none."""
    train(kotoe, "--out", "tok", "--model-type", "bpe")
    config = json.loads(Path("tok/tokenizer_config.json").read_text())
    del config["model_max_length"]
    Path("tok/tokenizer_config.json").write_text(json.dumps(config))
    assert kotoe("tokenizer", "report", "ja.txt", "--tokenizer", "tok")[0] == 2
    code, out, err = kotoe("tokenizer", "report", "ja.txt", "--tokenizer", "tok", "--limit", "77", "--json")
    assert code == 0, err
    assert json.loads(out)["figures"]["ja"]["tok"]["limit"] == 76


def test_folders_are_named_by_their_model(kotoe: Kotoe, model: str) -> None:
    """Also MODEL/tokenizer, and a folder that holds tokenizer/ and text_encoder/ alone."""
    code, out, err = kotoe(
        *("tokenizer", "report", "ja.txt", "--json", "--tokenizer", f"{model}/tokenizer", f"{model}/conditioners/ja")
    )
    assert code == 0, err
    assert list(json.loads(out)["tokenizers"]) == ["tiny", "ja"]


def test_the_verbs_load_no_torch_for_files_alone(tmp_path: Path) -> None:
    (tmp_path / "ja.txt").write_text("\n".join(LINES["ja"]), "utf-8")
    code = "import sys; from kotoe import cli; cli.run(sys.argv[1:]); assert 'torch' not in sys.modules"
    folder = Path(cli.__file__).parent / "models/kotoe-emoji/tokenizer"
    command = [sys.executable, "-c", code, "tokenizer", "report", "ja.txt", "--tokenizer", f"x={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_report_has_a_tokenizer_that_languages_share_once(kotoe: Kotoe, tmp_path: Path) -> None:
    (tmp_path / "ja.txt").write_text("青い背景に猫\n", encoding="utf-8")
    _, out, _ = kotoe("tokenizer", "report", str(tmp_path / "ja.txt"), "--tokenizer", "kotoe-emoji", "--json")
    assert list(json.loads(out.splitlines()[-1])["tokenizers"]) == [
        "kotoe-emoji:en",
        "kotoe-emoji:ja",
        "kotoe-emoji:am",
    ]
