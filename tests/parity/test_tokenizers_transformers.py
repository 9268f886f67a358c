"""CLIP BPE against transformers' CLIPTokenizer, id for id, on random Unicode; and faults that texts must show."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import normalizers, pre_tokenizers
from transformers import CLIPTokenizer

from kotoe import tokenizers as ours
from kotoe.localize.vocabulary import train_clip_bpe
from kotoe.tokenizers import load_tokenizer
from kotoe.tokens import Tokenizer
from tiny import LINES

L = 24
ALPHABETS = (
    "abcxyzABCXYZ 0129'!,.-éÉïñçßİıſ",
    "あいうカキクー青背景猫。、々ｱﾞ がパ",
    "蓝色背景上的猫龍龜㐀𠀀，！",
    "가각파란고양이ㄱㅏᄀ\u1161\u11a8 뷁",
    " \t\n\u00a0\u3000\u2003\u200b\u200d\ufeff\u0000\x1f",
    "e\u0301o\u0308\u0323\u3099\u309a😀👩\u200d🚀🏳️\u200d🌈①Ⅳﬁﷺ",
)
SNIPPETS = (
    "<|startoftext|>",
    "<|endoftext|>",
    "<|ENDOFTEXT|>",
    " <|endoftext|> ",
    "it's",
    "WE'LL",
    "I'm",
    "!",
    "cat!",
    "</w>",
    "dog</w>",
    *(line for lines in LINES.values() for line in lines),
)
PIECES = st.one_of(
    *(st.text(alphabet=list(a), max_size=12) for a in ALPHABETS), st.sampled_from(SNIPPETS), st.text(max_size=8)
)
TEXTS = st.lists(PIECES, max_size=5).map("".join)
# What the faults below are looked for in: a few of each kind, always the same.
FIXED = ("", *SNIPPETS, *ALPHABETS, "e\u0301 É", "A  b\tc", "ﬁ ①", "1234", "a\u00a0b")


@cache
def folder(kind: str) -> Path:
    """A tokenizer folder of each shape that checkpoints have."""
    import tempfile

    path = Path(tempfile.mkdtemp()) / kind
    texts = [line for lines in LINES.values() for line in lines]
    train_clip_bpe(texts, path, 640, max_tokens=L, pad_token="!" if "sd2" in kind else "<|endoftext|>")
    if "json" in kind:  # as transformers 5 writes: tokenizer.json alone, no vocab.json, no merges.txt
        CLIPTokenizer.from_pretrained(path).save_pretrained(path / "again")
        path = path / "again"
        assert not (path / "vocab.json").exists()
    if "old" in kind:  # as SD 1.x was published: specials as tables that are matched after normalisation
        config = json.loads((path / "tokenizer_config.json").read_text())
        token = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
        tables = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
        config |= {k: {"__type": "AddedToken", "content": v, **token} for k, v in tables.items()}
        config |= {
            "errors": "replace",
            "add_prefix_space": False,
            "do_lower_case": True,
            "special_tokens_map_file": "x",
        }
        (path / "tokenizer_config.json").write_text(json.dumps(config))
        legacy = {**{k: {"content": v, **token} for k, v in tables.items()}, "pad_token": config["pad_token"]}
        (path / "special_tokens_map.json").write_text(json.dumps(legacy))
    if "added" in kind:  # textual inversion adds words of its own
        (path / "added_tokens.json").write_text('{"<猫-style>": 640, "mycat": 641}')
    if "decoder" in kind:
        config = json.loads((path / "tokenizer_config.json").read_text())
        flags = {"lstrip": False, "rstrip": False, "single_word": False}
        config["added_tokens_decoder"] = {
            "638": {"content": "<|startoftext|>", "normalized": True, "special": True, **flags},
            "639": {"content": "<|endoftext|>", "normalized": True, "special": True, **flags},
            "640": {"content": "cat", "normalized": False, "special": False, **flags, "rstrip": True},
        }
        (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


KINDS = ("sd1", "sd2", "sd1-json", "sd2-json", "sd1-old", "sd2-old", "sd1-added", "sd1-decoder")


@cache
def pair(kind: str) -> tuple[Tokenizer, CLIPTokenizer]:
    return load_tokenizer(folder(kind)), CLIPTokenizer.from_pretrained(folder(kind))


def theirs(tokenizer: CLIPTokenizer, texts: list[str]) -> list[list[int]]:
    """As StableDiffusionPipeline calls it."""
    size = tokenizer.model_max_length
    return tokenizer(texts, padding="max_length", max_length=size, truncation=True).input_ids


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
@example(texts=list(FIXED))
@example(texts=["<猫-style> by mycat", "cat  cat!"])
def test_ids_equal(kind: str, texts: list[str]) -> None:
    mine, other = pair(kind)
    found = mine.text_ids(texts)
    expected = [i[1:-1] for i in other(texts).input_ids]  # all of it, without BOS and EOS
    assert found == expected
    fitting = [t for t, ids in zip(texts, found, strict=True) if len(ids) <= mine.room]
    if fitting:
        assert mine.encode(fitting).ids == theirs(other, fitting)


@pytest.mark.parametrize("kind", KINDS)
def test_special_ids_equal(kind: str) -> None:
    mine, other = pair(kind)
    assert (mine.bos, mine.eos, mine.pad) == (other.bos_token_id, other.eos_token_id, other.pad_token_id)
    assert (mine.max_tokens, mine.vocab_size) == (other.model_max_length, len(other))


def test_cut_equals_stock_truncation() -> None:
    mine, other = pair("sd1")
    long = ["a red cat on a blue background " * 4, "青い背景に猫" * 6]
    assert mine.encode(long, long_prompt="cut").ids == theirs(other, long)


# --- faults -------------------------------------------------------------------------------------------------


def _without(step: str) -> Callable[..., object]:
    """A backend whose normaliser or splitter lacks a step."""
    build = ours.bpe_backend

    def faulty(*args: object) -> object:
        backend = build(*args)
        from tokenizers import Regex

        steps = {
            "nfc": normalizers.NFC(),
            "spaces": normalizers.Replace(Regex(r"\s+"), " "),
            "lower": normalizers.Lowercase(),
        }
        if step == "digits":
            pattern = ours.CLIP_PATTERN.replace(r"[\p{N}]|", r"[\p{N}]+|")
            split = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
            backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        elif step == "nfkc":
            backend.normalizer = normalizers.Sequence([normalizers.NFKC(), steps["spaces"], steps["lower"]])
        else:
            backend.normalizer = normalizers.Sequence([s for name, s in steps.items() if name != step])
        return backend

    return faulty


@pytest.mark.parametrize("fault", ["nfc", "lower", "nfkc", "digits"])
def test_faults_show(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left out or exchanged, each step of the pipeline changes ids of the fixed texts."""
    monkeypatch.setattr(ours, "bpe_backend", _without(fault))
    faulty, other = load_tokenizer(folder("sd1")), pair("sd1")[1]
    texts = [*FIXED, "1234 12"]
    assert faulty.text_ids(texts) != [i[1:-1] for i in other(texts).input_ids]


def test_a_lost_merge_shows() -> None:
    lines = (folder("sd1") / "merges.txt").read_text().splitlines()
    files = {p.name: p.read_bytes() for p in folder("sd1").iterdir()}
    faulty = ours.tokenizer_from_files({**files, "merges.txt": "\n".join(lines[:1] + lines[2:]).encode()})
    assert faulty.text_ids(list(FIXED)) != pair("sd1")[0].text_ids(list(FIXED))


def test_a_pad_that_is_only_a_number_shows() -> None:
    """SD 2.x: the pad "!" is a special token, so "cat!" ends in id 0, not in the id of "!" at a word's end."""
    sd1, sd2 = pair("sd1")[0], pair("sd2")[0]
    assert sd2.pad == 0
    assert sd2.text_ids(["cat!"])[0][-1] == 0
    assert sd1.text_ids(["cat!"])[0][-1] == 256
