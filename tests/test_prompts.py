"""Prompts as people write them: worked examples of the grammar, widths, windows, weights on states, and bad input."""

from __future__ import annotations

import re
import time
import unicodedata
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from commands import Kotoe, running
from kotoe import builtin
from kotoe.checkpoints import Bundle, load
from kotoe.config import Request, from_json
from kotoe.drawing import generate, resolve
from kotoe.drawing import plan as planned
from kotoe.errors import UserError
from kotoe.prompts import Part, Prompt, folded, literal, parse
from kotoe.reading import read_prompts, said
from kotoe.record import Record
from kotoe.text import emphasised
from kotoe.tokens import Tokenizer
from tiny import tiny_bundle, tiny_conditioner, tiny_tokenizer

WIDE = {**{c: c + 0xFEE0 for c in range(0x21, 0x7F)}, 0x20: 0x3000}  # what an input method for Japanese types
WORDS = {
    "en": ["a red cat", "on a blue background", "owl", "two dogs", "A4 paper"],
    "ja": ["赤い猫", "青い背景に", "ペンギン", "パンダ", "犬が2匹"],
    "zh": ["红色的猫", "蓝色背景上", "猫头鹰", "两只狗", "熊猫"],
    "ko": ["빨간 고양이", "파란 배경의", "부엉이", "강아지 두 마리", "판다"],
}


@pytest.fixture
def kotoe(capsys: pytest.CaptureFixture[str]) -> Kotoe:
    return running(capsys)


def spoken(prompt: Prompt) -> list[tuple[str, float]]:
    """Runs of characters of one weight, rounded; None between parts is ("BREAK", 0)."""
    runs: list[tuple[str, float]] = []
    for k, part in enumerate(prompt.parts):
        if k:
            runs.append(("BREAK", 0.0))
        for c, w in zip(part.text, part.weights or (1.0,) * len(part.text), strict=True):
            if runs and runs[-1][1] == round(w, 4) and runs[-1][0] != "BREAK":
                runs[-1] = (runs[-1][0] + c, runs[-1][1])
            else:
                runs.append((c, round(w, 4)))
    return runs


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a (word)", [("a ", 1), ("word", 1.1)]),
        ("a ((word))", [("a ", 1), ("word", 1.21)]),
        ("a [word]", [("a ", 1), ("word", 0.9091)]),
        ("a (word:1.5)", [("a ", 1), ("word", 1.5)]),
        ("a (word:0.25)", [("a ", 1), ("word", 0.25)]),
        ("a \\(word\\)", [("a (word)", 1)]),
        ("(unbalanced\\)", None),
        ("a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).", None),
        ("a (((house:1.3)) [on] a (hill:0.5), sun, (((sky)))).", [
            ("a ", 1), ("house", 1.573), (" ", 1.1), ("on", 1), (" a ", 1.1), ("hill", 0.55), (", sun, ", 1.1),
            ("sky", 1.4641), (".", 1),
        ]),
        ("(a (b:2) c:0.5)", [("a ", 0.5), ("b", 1), (" c", 0.5)]),
        ("(zero:0) (less:-1)", [("zero", 0), (" ", 1), ("less", -1)]),
        ("(time 12\\:30:1.2)", [("time 12:30", 1.2)]),
        ("time 12:30", [("time 12:30", 1)]),
        ("a cat BREAK a dog", [("a cat", 1), ("BREAK", 0), ("a dog", 1)]),
        ("a cat BREAK", [("a cat", 1)]),
        ("BREAK a cat", [("BREAK", 0), ("a cat", 1)]),
        ("(a cat BREAK a dog:1.2)", [("a cat", 1.2), ("BREAK", 0), ("a dog", 1.2)]),
        ("breaking BREAKFAST", [("breaking BREAKFAST", 1)]),
        ("", []),
    ],
)  # fmt: skip
def test_worked_examples(text: str, wanted: list[tuple[str, float]] | None) -> None:
    """Of AUTOMATIC1111's documentation, and ours; None: it guesses there, and we don't."""
    if wanted is None:
        with pytest.raises(UserError, match="without its"):
            parse(text)
    else:
        assert spoken(parse(text)) == wanted


@pytest.mark.parametrize(
    ("text", "what", "shown"),
    [
        ("a (cat", "a ( without its )", "a ▸(◂cat"),
        ("a cat)", "a ) without its (", "cat▸)◂"),
        ("[a cat", "a [ without its ]", "▸[◂a cat"),
        ("a (cat] b", "a ( without its )", "▸(◂cat]"),
        ("a [cat) b", "a ) without its (", "▸)◂ b"),
        ("(cat:big)", "weight 'big' is no number", "▸(◂cat:big)"),
        ("(cat:1,3)", "weight '1,3' is no number", "▸(◂"),
        ("(cat:)", "weight '' is no number", "▸(◂"),
        ("(cat:[1.3])", "weight '[1.3]' is no number", "▸(◂"),
        ("(cat:nan)", "weight 'nan' is no number", "▸(◂"),
        ("[cat:dog:0.5]", "prompt editing", "▸[◂cat"),
        ("[cat|dog]", "alternation", "cat▸|◂dog"),
        (f"(cat:{'9' * 400})", "a weight out of range", "▸(◂cat"),
        ("((cat:1000000):1000000)", "a weight out of range", "▸(◂(cat"),
        ("a " + "(" * 101 + "b" + ")" * 101, "brackets too deep in brackets", "▸(◂b"),
        ("a <lora:foo:0.8> cat", "an adapter <lora:foo:0.8>", "a ▸<◂lora"),
    ],
)
def test_what_is_wrong_is_shown_where_it_is(text: str, what: str, shown: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(text)
    assert what in str(caught.value)
    assert shown in str(caught.value)


@pytest.mark.parametrize(
    "text", ["a(" * 90 + "b" + ")" * 90, "(a:1.2) " * 50_000, " " * 500_000 + "x", "BREAK " * 90_000]
)
def test_reading_takes_time_in_proportion(text: str) -> None:
    """Of texts on which a greedy pattern or nested brackets would take minutes."""
    begun = time.process_time()
    parse(folded(text))
    assert time.process_time() - begun < 5


@given(st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    """And what is literal loses nothing."""
    assert literal(text).parts[0].text == text
    try:
        prompt = parse(text)
    except UserError:
        return
    assert all(len(part.weights) in (0, len(part.text)) for part in prompt.parts)


@given(st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=40))
def test_escaped_text_says_itself(text: str) -> None:
    if "BREAK" in text or re.search("<(lora|lyco|hypernet):", text, re.IGNORECASE):
        return
    assert parse(re.sub(r"([()\[\]:\\])", r"\\\1", text)) == literal(text)


# --- Widths ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    """The built-in model's, and a CLIP one, which has no NFKC of its own."""
    bundle = load(builtin.DEFAULT, dtype="float32")
    return {tag: bundle.conditioner(tag).tokenizer for tag in ("en", "ja", "zh", "ko")}


@given(data=st.data(), tag=st.sampled_from(sorted(WORDS)))
def test_full_width_and_half_width_prompts_give_the_same_tokens(
    tokenizers: dict[str, Tokenizer], data: st.DataObject, tag: str
) -> None:
    words = st.sampled_from(WORDS[tag])
    weight = st.sampled_from(["({})", "[{}]", "({}:1.3)", "({}:0)", "(({}):0.75)", "{}", "{} BREAK"])
    pieces = data.draw(st.lists(st.tuples(weight, words), min_size=1, max_size=5))
    narrow = ", ".join(form.format(word) for form, word in pieces)
    wide = narrow.translate(WIDE)
    assert wide != narrow
    read = [tokenizers[tag].encode([said(Request(prompt=p), p)], long_prompt="chunk") for p in (narrow, wide)]
    assert read[0] == read[1]


def test_grammar_and_width_change_no_language() -> None:
    """gato and (gato:1.2), cat and ｃａｔ are read by the same encoder."""
    bundle = load(builtin.resolve("kotoe-emoji"))
    for plain, *others in (
        ("gato", "(gato:1.2)", "[gato]", "ｇａｔｏ"),
        ("un gato rojo", "un gato (rojo)", "un BREAK gato rojo"),
        ("猫", "猫 BREAK", "BREAK 猫", "（猫：１．２）"),
        ("개", "개 BREAK"),
        ("cat", "ｃａｔ", "((cat))"),
    ):
        (wanted,) = planned(bundle, Request(prompt=plain))
        for other in others:
            (job,) = planned(bundle, Request(prompt=other))
            assert (job.language, job.language_source) == (wanted.language, wanted.language_source), other


def test_half_width_kana_are_kana() -> None:
    assert folded("ﾊﾟﾝﾀﾞ　Ａ４") == "パンダ A4"
    assert folded("ペンギン、赤い。「猫」") == "ペンギン、赤い。「猫」"  # nothing else changes
    assert unicodedata.normalize("NFKC", "①") == "1"
    assert folded("①") == "①"


def test_kept_leaves_full_width_brackets_as_text() -> None:
    kept = said(Request(prompt="-", full_width="kept"), "（猫：１．３）と(犬:2)")
    assert kept == Prompt(parts=(Part(text="（猫：１．３）と犬", weights=(1.0,) * 8 + (2.0,)),))


# --- Tokens ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", sorted(WORDS))
def test_weights_change_no_token_and_stand_on_their_words(tokenizers: dict[str, Tokenizer], tag: str) -> None:
    one, two = WORDS[tag][1], WORDS[tag][2]
    gap = " " if tag in ("en", "ko") else "、"
    plain, weighted = f"{one}{gap}{two}", f"{one}{gap}({two}:1.5)"
    tokenizer = tokenizers[tag]
    read, bare = (tokenizer.encode([parse(text)]) for text in (weighted, plain))
    assert read.ids == bare.ids
    assert bare.weights is None
    assert read.weights is not None
    heavy = [i for i, w in zip(read.ids[0], read.weights[0], strict=True) if w == 1.5]
    start = len(tokenizer.text_ids([f"{one}{gap}"])[0])
    assert heavy[-1:] == tokenizer.text_ids([plain])[0][-1:]
    assert len(heavy) == pytest.approx(len(tokenizer.text_ids([plain])[0]) - start, abs=1)  # pieces may join there
    assert set(read.weights[0]) == {1.0, 1.5}


@pytest.mark.parametrize("text", ["ﾊﾟﾝﾀﾞ と猫", "İstanbul 𩸽 e\u0301", "  a   b ", "①②", "😀 猫", "ß\u3000ＡＢ"])
def test_every_token_begins_somewhere(tokenizers: dict[str, Tokenizer], text: str) -> None:
    """As many places as tokens, in order, inside the text: whatever the normalisation does to its length."""
    for tokenizer in [*tokenizers.values(), tiny_tokenizer("ja")]:
        starts = tokenizer.text_starts(text)
        assert len(starts) == len(tokenizer.text_ids([text])[0])
        assert starts == sorted(starts)
        assert all(0 <= at < len(text) for at in starts)


def test_break_begins_a_window() -> None:
    tokenizer = tiny_tokenizer("en")
    read = tokenizer.encode([parse("a red cat BREAK two dogs"), parse("an owl")])
    apart = [tokenizer.encode([text]).ids[0] for text in ("a red cat", "two dogs", "an owl", "")]
    assert read.windows == 2
    assert read.ids == [apart[0] + apart[1], apart[2] + apart[3]]
    assert read.counts[0] == sum(len(i) for i in tokenizer.text_ids(["a red cat", "two dogs"]))


# --- States ----------------------------------------------------------------------------------------------------


def test_weights_multiply_states_and_the_mean_comes_back() -> None:
    states = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)) + 0.5
    weights = torch.tensor([[1.0, 1.3, 1.3, 0.0, 1.0], [1.0] * 5])
    heavy = emphasised(states, weights, restore_mean=True)
    by_hand = states[0] * weights[0][:, None]
    by_hand = by_hand * (states[0].mean() / by_hand.mean())
    assert torch.allclose(heavy[0], by_hand, rtol=1e-5)
    assert torch.equal(heavy[1], states[1])  # its window has no weights
    assert torch.equal(emphasised(states, weights, restore_mean=False)[0], states[0] * weights[0][:, None])
    assert not torch.allclose(heavy[0], states[0] * weights[0][:, None], rtol=1e-2)  # the mean matters


def test_weights_that_turn_the_mean_are_refused() -> None:
    states = torch.tensor([[[1.0], [-0.9]]])
    with pytest.raises(UserError, match="move the mean"):
        emphasised(states, torch.tensor([[0.1, 1.0]]), restore_mean=True)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return tiny_bundle("sd1", languages=("en", "ja"))


def states_of(bundle: Bundle, prompt: str, **asked: object) -> torch.Tensor:
    request = resolve(bundle, Request(prompt=prompt, language="en", **asked))  # type: ignore[arg-type]
    (read,) = read_prompts(bundle, request, planned(bundle, request)).values()
    return read.positive


def test_the_request_says_what_brackets_do(bundle: Bundle) -> None:
    plain, weighted = states_of(bundle, "a red cat"), states_of(bundle, "a (red:1.4) cat")
    assert weighted.shape == plain.shape
    assert not torch.equal(weighted, plain)
    assert torch.equal(states_of(bundle, "a (red:1.4) cat", emphasis="ignore"), plain)
    assert torch.equal(states_of(bundle, "a (red:1.0) cat"), plain)
    bare = states_of(bundle, "a (red:1.4) cat", emphasis="no-norm")
    assert torch.equal(bare[:, 0], plain[:, 0])
    assert not torch.equal(bare, plain)
    factor = weighted[0, 0, 0] / plain[0, 0, 0]  # BOS weighs 1.0: what it changes by is the factor of the mean
    assert torch.allclose(weighted, bare * factor, rtol=1e-4, atol=1e-6)
    none = states_of(bundle, "a (red:1.4) cat", emphasis="none", long_prompt="chunk")
    assert none.shape[1] >= plain.shape[1]
    assert not torch.equal(none[:, : plain.shape[1]], plain)


def test_a_word_that_weighs_twice_has_twice_its_states() -> None:
    """Those of its words, by what was asked, and no other."""
    conditioner = tiny_conditioner("zh", 32)
    plain, heavy = (conditioner.encode([parse(t)], restore_mean=False).states for t in ("红色的猫", "(红色的猫:2)"))
    count = conditioner.tokenizer.encode(["红色的猫"]).counts[0]
    first = 0 if conditioner.tokenizer.bos is None else 1
    assert torch.allclose(heavy[:, first : first + count], 2 * plain[:, first : first + count])


# --- Long prompts ----------------------------------------------------------------------------------------------

LONG = {
    "en": "a red cat on a blue background, " * 60,
    "ja": "青い背景に赤い猫、" * 60,
    "zh": "蓝色背景上的红色的猫，" * 60,
    "ko": "파란 배경의 빨간 고양이, " * 60,
}


@pytest.mark.parametrize("tag", sorted(LONG))
def test_three_hundred_tokens_are_read_whole_or_their_loss_is_shown(kotoe: Kotoe, tmp_path: Path, tag: str) -> None:
    text = LONG[tag]
    bundle = load(builtin.DEFAULT, dtype="float32")
    tokenizer = bundle.conditioner(tag).tokenizer
    ids = tokenizer.text_ids([folded(text)])[0]
    assert len(ids) >= 300
    asked = {"prompt": text, "language": tag, "steps": 1, "seed": 1}
    whole = generate(bundle, Request(**asked, long_prompt="chunk"))[0].record
    assert (whole.tokens, whole.dropped) == (len(ids), ())
    cut = generate(bundle, Request(**asked, long_prompt="cut"))[0].record
    pieces = (piece.lstrip("▁") for piece in tokenizer.text_pieces(folded(text))[tokenizer.room :])
    assert cut.dropped == tuple(piece for piece in pieces if piece)
    done = kotoe("generate", text, "--language", tag, "--steps", "1", "--long-prompt", "cut", "--out", tmp_path / "out")
    assert done.code == 0
    assert f"is not read, {len(cut.dropped)} pieces" in done.err
    assert kotoe("generate", text, "--language", tag, "--dry-run").code == 2  # nothing is dropped unasked


def test_the_record_says_how_the_prompt_was_read(bundle: Bundle) -> None:
    record = generate(bundle, Request(prompt="a (cat:1.2)", language="en", steps=1))[0].record
    assert (record.emphasis, record.full_width) == ("original", "folded")
    assert record.request().emphasis == "original"


def test_a_record_of_before_the_grammar_reads_brackets_as_text(bundle: Bundle) -> None:
    from kotoe.config import to_json

    record = to_json(generate(bundle, Request(prompt="a cat", language="en", steps=1))[0].record)
    del record["emphasis"], record["full_width"]
    old = from_json(Record, record)
    assert (old.emphasis, old.full_width) == ("none", "kept")
