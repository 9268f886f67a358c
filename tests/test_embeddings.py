"""Textual inversion: new words for one text encoder; what doesn't fit is refused by name, and nothing is changed.

That the result is the right one is shown against diffusers: parity/test_adapters_diffusers.py.
"""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

import seeds
from adapters import vectors
from kotoe.checkpoints import Bundle, load, save
from kotoe.checkpoints.bundle import conditioner_hashes
from kotoe.checkpoints.embeddings import Embedding, vocabulary, with_embeddings
from kotoe.checkpoints.files import tensors_sha256
from kotoe.config import Request
from kotoe.drawing import generate, replay
from kotoe.errors import CheckpointError, UserError
from kotoe.recording import check_same
from kotoe.text import Conditioner
from kotoe.tokenizers import load_tokenizer
from tiny import saved_tiny, tiny_bundle, tiny_tokenizer

WIDTH = 32


@pytest.fixture(scope="module")
def base() -> Bundle:
    return tiny_bundle("sd1", languages=("en", "ja"))


def embedding(folder: Path, token: str = "<toy>", n: int = 2, *, seed: int = 0, name: str = "toy") -> Path:
    path = folder / f"{name}.safetensors"
    save_file({token: vectors(n, WIDTH, seed=seed)}, path)
    return path


def row(conditioner: Conditioner, i: int) -> Tensor:
    encoder: Any = conditioner.encoder
    return encoder.text_model.embeddings.token_embedding.weight[i]


# --- What is changed, and what isn't


def test_the_loaded_bundle_stays_as_it_is(base: Bundle, tmp_path: Path) -> None:
    encoder, tokenizer = base.conditioner().encoder, base.conditioner().tokenizer
    before = tensors_sha256(encoder)
    adapted = with_embeddings(base, [Embedding(file=embedding(tmp_path))])
    new = adapted.conditioner()
    assert base.conditioner().encoder is encoder
    assert (base.conditioner().tokenizer, tensors_sha256(encoder)) == (tokenizer, before)
    assert adapted.unet is base.unet
    assert adapted.conditioner("ja").encoder is base.conditioner("ja").encoder
    # old words are read as before, to the bit; no tensor but the table is a copy
    for words in ("a red cat", "a toy"):
        assert torch.equal(new.encode([words]).states, base.conditioner().encode([words]).states)
    ours, theirs = dict(encoder.named_parameters()), dict(new.encoder.named_parameters())
    assert {n for n in ours if ours[n] is not theirs[n]} == {"text_model.embeddings.token_embedding.weight"}
    assert new.encoder.spec.vocab_size == tokenizer.vocab_size + 2 == new.tokenizer.vocab_size


def test_a_word_is_its_vectors_wherever_it_stands(base: Bundle, tmp_path: Path) -> None:
    adapted = with_embeddings(base, [Embedding(file=embedding(tmp_path, n=3, seed=4))])
    found = adapted.conditioner()
    old = base.conditioner().tokenizer
    ids = [old.vocab_size + k for k in range(3)]
    for place, vector in zip(ids, vectors(3, WIDTH, seed=4), strict=True):
        assert torch.equal(row(found, place), vector)
    a, cat = (old.text_ids([word])[0] for word in ("a", "cat"))
    for text, expected in {
        "<toy>": ids,
        "a <toy> cat": a + ids + cat,
        "a<toy>cat": a + ids + cat,
        "<TOY> <toy>": ids + ids,
        "<toy>_1": ids[1:2],
        "cat <toy>": cat + ids,
    }.items():
        assert found.tokenizer.text_ids([text]) == [expected], text
        for told in (f.name for f in fields(found.tokenizer) if f.name.startswith("text_") and f.name != "text_ids"):
            assert len(getattr(found.tokenizer, told)(text)) == len(expected), (told, text)
    assert found.tokenizer.text_pieces("a <toy> cat") == ["a", "<toy>", "", "", "ca", "t"]


def test_all_vectors_count_towards_the_limit(base: Bundle, tmp_path: Path) -> None:
    adapted = with_embeddings(base, [Embedding(file=embedding(tmp_path, n=8))])
    words = adapted.conditioner().tokenizer
    assert words.encode(["<toy> a"]).counts == [9]
    with pytest.raises(UserError, match=r"has 16 tokens, 2 over the limit"):
        words.encode(["<toy> <toy>"])
    assert words.encode(["<toy> <toy>"], long_prompt="chunk").windows == 2
    with pytest.raises(CheckpointError, match="15 vectors, more than a prompt has room for. Allowed: 14"):
        with_embeddings(base, [Embedding(file=embedding(tmp_path, n=15))])


@pytest.mark.parametrize("generation", ["transformers 5", "transformers 4", "added_tokens.json", "tokenizer.json"])
def test_tokenizers_of_every_generation_learn_words(generation: str, tmp_path: Path) -> None:
    """Beside a word that was added before."""
    folder = tmp_path / "words"
    folder.mkdir()
    tiny_tokenizer("en").save(folder)
    if generation == "transformers 5":
        stock = CLIPTokenizer.from_pretrained(folder)
        stock.add_tokens(["<old>"])
        stock.save_pretrained(folder)
        (folder / "vocab.json").unlink()
    elif generation == "tokenizer.json":
        stock = CLIPTokenizer.from_pretrained(folder)
        stock.add_tokens(["<old>"])
        stock.save_pretrained(folder)
        config = json.loads((folder / "tokenizer_config.json").read_text())
        config.pop("added_tokens_decoder", None)
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        (folder / "vocab.json").unlink()
    else:
        size = tiny_tokenizer("en").vocab_size
        config = json.loads((folder / "tokenizer_config.json").read_text())
        if generation == "transformers 4":
            vocab = json.loads((folder / "vocab.json").read_text())
            ends = {t: vocab[t] for t in ("<|startoftext|>", "<|endoftext|>")}
            flags = {"lstrip": False, "rstrip": False, "single_word": False}
            decoder = {str(i): {"content": t, "normalized": False, "special": True, **flags} for t, i in ends.items()}
            decoder[str(size)] = {"content": "<old>", "normalized": True, "special": False, **flags}
            config["added_tokens_decoder"] = decoder
            (folder / "tokenizer_config.json").write_text(json.dumps(config))
        else:
            (folder / "added_tokens.json").write_text(json.dumps({"<old>": size}))
    words = load_tokenizer(folder)
    assert "<old>" in vocabulary(words)
    bundle = tiny_bundle("sd1")
    conditioner = bundle.conditioner()
    encoder: Any = conditioner.encoder
    table = encoder.text_model.embeddings.token_embedding
    table.weight = nn.Parameter(torch.cat([table.weight.detach(), torch.ones(1, WIDTH)]))  # for <old>
    bundle = bundle.changed(conditioners={"en": Conditioner("en", words, encoder)})
    adapted = with_embeddings(bundle, [Embedding(file=embedding(tmp_path))]).conditioner()
    start = words.vocab_size
    (found,) = adapted.tokenizer.text_ids(["a <toy> <old>"])
    assert found == [*words.text_ids(["a"])[0], start, start + 1, start - 1]
    assert torch.equal(row(adapted, start), vectors(2, WIDTH)[0])
    with pytest.raises(UserError, match="the token '<old>' is taken by the tokenizer"):
        with_embeddings(bundle, [Embedding(file=embedding(tmp_path), token="<old>")])


def test_rows_that_the_table_has_to_spare_are_used(tmp_path: Path) -> None:
    """As in checkpoints whose table was rounded up."""
    bundle = tiny_bundle("sd1")
    encoder: Any = bundle.conditioner().encoder
    spare = 5
    table = encoder.text_model.embeddings.token_embedding
    table.weight = nn.Parameter(torch.cat([table.weight.detach(), torch.ones(spare, WIDTH)]))
    rows = len(table.weight)
    encoder.spec = replace(encoder.spec, vocab_size=rows)
    adapted = with_embeddings(bundle, [Embedding(file=embedding(tmp_path))]).conditioner()
    assert adapted.encoder.spec.vocab_size == rows
    assert torch.equal(row(adapted, rows - spare), vectors(2, WIDTH)[0])
    assert torch.equal(row(adapted, rows - 1), torch.ones(WIDTH))
    assert torch.equal(table.weight[rows - spare], torch.ones(WIDTH))  # the base's own


def test_a_bundle_with_words_is_not_saved(base: Bundle, tmp_path: Path) -> None:
    adapted = with_embeddings(base, [Embedding(file=embedding(tmp_path))])
    with pytest.raises(UserError, match="with the embedding '<toy>' in it can't be saved"):
        save(adapted, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_low_memory_and_bfloat16(tmp_path: Path) -> None:
    folder = saved_tiny(tmp_path / "m")
    file = embedding(tmp_path)
    request = Request(prompt="a <toy>", language="en", seed=3, engine="plain")
    drawn = [
        generate(with_embeddings(load(folder, dtype="bfloat16", low_memory=x), [Embedding(file=file)]), request)[0]
        for x in (False, True)
    ]
    assert drawn[0].image.tobytes() == drawn[1].image.tobytes()
    assert drawn[0].record.text_dtype == "bfloat16"


# --- Records


def test_hashes_stay_those_of_the_base_and_a_replay_needs_the_words(base: Bundle, tmp_path: Path) -> None:
    files = [embedding(tmp_path), embedding(tmp_path, "<b>", 1, name="b", seed=1)]
    adapted = with_embeddings(base, [Embedding(file=f) for f in files])
    assert conditioner_hashes(adapted.conditioner()) == conditioner_hashes(base.conditioner())
    picture = generate(adapted, Request(prompt="a <toy> <b>", language="en", seed=3))[0]
    said = [(a.kind, a.name, a.token, a.language, a.weight) for a in picture.record.adapters]
    assert said == [
        ("embedding", "toy.safetensors", "<toy>", "en", None),
        ("embedding", "b.safetensors", "<b>", "en", None),
    ]
    turned = with_embeddings(base, [Embedding(file=f) for f in files[::-1]])
    assert replay(turned, picture.record).image.tobytes() == picture.image.tobytes()
    with pytest.raises(UserError, match=r"with the embedding b.safetensors \(token '<b>', .*which is missing"):
        check_same(with_embeddings(base, [Embedding(file=files[0])]), picture.record)
    renamed = [Embedding(file=files[0]), Embedding(file=files[1], token="<c>")]
    with pytest.raises(UserError, match=r"embedding b.safetensors \(token '<b>', .* differs here: .* \(token '<c>'"):
        check_same(with_embeddings(base, renamed), picture.record)


# --- What doesn't fit


def refused(base: Bundle, *words: Embedding, language: str | None = None, allow_pickle: bool = False) -> str:
    with pytest.raises(UserError) as caught:
        with_embeddings(base, words, language=language, allow_pickle=allow_pickle)
    return str(caught.value)


def test_vectors_of_another_width(base: Bundle, tmp_path: Path) -> None:
    save_file({"<toy>": torch.ones(768)}, tmp_path / "wide.safetensors")
    assert "wide.safetensors: vectors 768 wide for the text encoder of en, which is 32 wide" in refused(
        base, Embedding(file=tmp_path / "wide.safetensors")
    )


def test_tokens_that_are_taken(base: Bundle, tmp_path: Path) -> None:
    one = embedding(tmp_path, n=2)
    same = embedding(tmp_path, "<TOY>", n=1, name="same")
    known = embedding(tmp_path, "a", n=1, name="known")
    numbered = embedding(tmp_path, "<toy>_1", n=1, name="numbered")
    assert "known.safetensors: the token 'a' is taken by the tokenizer" in refused(base, Embedding(file=known))
    assert "the token '<toy>' is taken by toy.safetensors" in refused(base, Embedding(file=one), Embedding(file=one))
    assert "the token '<toy>_1' is taken by toy.safetensors" in refused(
        base, Embedding(file=one), Embedding(file=numbered)
    )
    assert "the token '<toy>_1' is taken by numbered.safetensors" in refused(
        base, Embedding(file=numbered), Embedding(file=one)
    )
    assert "isn't read as one word" in refused(base, Embedding(file=one), Embedding(file=same))
    twice = with_embeddings(base, [Embedding(file=one)])
    assert "the token '<toy>' is taken by the tokenizer" in refused(twice, Embedding(file=one))
    both = with_embeddings(base, [Embedding(file=one), Embedding(file=one, token="<other>")])
    ids = both.conditioner().tokenizer.text_ids(["<toy>", "<other>"])
    assert ids[1] == [i + 2 for i in ids[0]]
    with pytest.raises(UserError, match="isn't read as one word"):
        with_embeddings(base, [Embedding(file=one, token="<|endoftext|>x")])


@pytest.mark.parametrize("token", ["", " ", " a", "a\n", "x" * 201, "(a)", "a:b", "[a]", "ＴＯＹ", "<lora:a>"])
def test_tokens_that_are_no_words(token: str, base: Bundle, tmp_path: Path) -> None:
    assert f"the token {token!r}" in refused(base, Embedding(file=embedding(tmp_path), token=token))


CONTENTS: dict[str, tuple[dict[str, Tensor], str]] = {
    "NaN": ({"<a>": torch.full((WIDTH,), torch.nan)}, "its vectors hold NaN or infinity"),
    "whole numbers": ({"<a>": torch.ones(WIDTH, dtype=torch.int64)}, "its vectors are torch.int64"),
    "no vectors": ({"<a>": torch.ones(0, WIDTH)}, "vectors of shape [0, 32]"),
    "a number": ({"<a>": torch.ones(())}, "vectors of shape []"),
    "three dimensions": ({"<a>": torch.ones(1, 2, WIDTH)}, "vectors of shape [1, 2, 32]"),
    "two words": ({"<a>": torch.ones(WIDTH), "<b>": torch.ones(WIDTH)}, "holds 2 tensors (<a>, <b>)"),
    "SDXL": ({"clip_l": torch.ones(1, WIDTH), "clip_g": torch.ones(1, 64)}, "Stable Diffusion XL"),
    "a LoRA": (
        {"lora_unet_x.lora_up.weight": torch.ones(2, 2), "lora_unet_x.lora_down.weight": torch.ones(2, 2)},
        "It may be a LoRA: --lora FILE",
    ),
}


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("case", list(CONTENTS))
def test_files_of_anything_else(case: str, pickled: bool, base: Bundle, tmp_path: Path) -> None:
    content, reason = CONTENTS[case]
    path = tmp_path / ("bad.bin" if pickled else "bad.safetensors")
    if pickled:
        torch.save(content, path)
    else:
        save_file(content, path)
    said = refused(base, Embedding(file=path), allow_pickle=True)
    assert path.name in said
    assert reason in said


PICKLED: dict[str, tuple[Any, str]] = {
    "a tensor alone": (torch.ones(1, WIDTH), "holds no table of tensors"),
    "a list": ([1], "holds no table of tensors"),
    "a number for a tensor": ({"<a>": 1}, "<a> holds a int"),
    "unknown keys": ({"string_to_param": {"*": torch.ones(1, WIDTH)}, "x": 1, "y": 2}, "x, y beside string_to_param"),
    "two words of A1111": ({"string_to_param": {"*": torch.ones(1, WIDTH), "b": torch.ones(1)}}, "of another layout"),
    "a name that is none": ({"string_to_param": {"*": torch.ones(1, WIDTH)}, "name": 7}, "of another layout"),
    "a list of A1111": ({"string_to_param": [1]}, "of another layout"),
    "a sparse tensor": ({"<a>": torch.ones(1, WIDTH).to_sparse()}, "is no dense tensor in memory"),
    "a tensor larger than its storage": ({"<a>": torch.ones(1).expand(1000, WIDTH)}, "larger"),
    "a module": (nn.ParameterDict({"<a>": nn.Parameter(torch.ones(WIDTH))}), "ParameterDict, which was not called"),
}


@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")
@pytest.mark.parametrize("case", list(PICKLED))
def test_pickles_of_anything_else(case: str, base: Bundle, tmp_path: Path) -> None:
    content, reason = PICKLED[case]
    torch.save(content, tmp_path / "bad.pt")
    assert reason in refused(base, Embedding(file=tmp_path / "bad.pt"), allow_pickle=True)


def test_pickles_are_read_when_asked_for(base: Bundle, tmp_path: Path) -> None:
    torch.save({"string_to_param": {"*": vectors(2, WIDTH)}}, tmp_path / "my-toy.pt")
    assert "is a pickle, which can run any program" in refused(base, Embedding(file=tmp_path / "my-toy.pt"))
    adapted = with_embeddings(base, [Embedding(file=tmp_path / "my-toy.pt")], allow_pickle=True)
    assert adapted.adapters[0].token == "my-toy"


def test_text_encoders_of_another_kind(base: Bundle, tmp_path: Path) -> None:
    file = embedding(tmp_path)
    reason = "which is no CLIP with CLIP's tokenizer"
    assert f"toy.safetensors for the text encoder of ja, {reason} (sentencepiece)" in refused(
        base, Embedding(file=file), language="ja"
    )
    taiyi = load(seeds.taiyi(tmp_path / "taiyi"), dtype="float32")
    assert f"{reason} (wordpiece)" in refused(taiyi, Embedding(file=file))
    assert "unknown language 'xx'" in refused(base, Embedding(file=file), language="xx")


def test_file_and_token_in_one_text(tmp_path: Path) -> None:
    assert Embedding.parse("a.pt") == Embedding(file="a.pt")
    assert Embedding.parse("<toy>=a.pt") == Embedding(file="a.pt", token="<toy>")
    odd = tmp_path / "a=b.pt"
    odd.write_bytes(b"")
    assert Embedding.parse(str(odd)) == Embedding(file=str(odd))
    with pytest.raises(UserError, match="no file at nowhere.pt"):
        with_embeddings(tiny_bundle(), [Embedding.parse("<toy>=nowhere.pt")])
