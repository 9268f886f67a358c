"""Requests and Records: what is refused and with which words, and JSON that gives the same object back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kotoe.config import GRID_NAMES, MAX_SEED, SAMPLER_NAMES, Request, differing_keys, dumps, from_json, read_json
from kotoe.errors import UserError, nearest
from kotoe.record import ConditionerRecord, ModelRecord, Record

CONDITIONER = ConditionerRecord(language="ja", tokenizer_sha256="1" * 64, text_encoder_sha256="2" * 64)
MODEL = ModelRecord(name="m", unet_sha256="3" * 64, vae_sha256="4" * 64, schedule_sha256="5" * 64)
RECORD = Record(
    kotoe="0", torch="2", model=MODEL, conditioner=CONDITIONER, language_source="detected", prompt="青い背景に猫",
    negative_prompt="", width=64, height=64, steps=4, sampler="ddim", grid="trailing", guidance_scale=3.0,
    guidance_rescale=0.0, seed=7, eta=0.5, long_prompt="error", dtype="float32", vae_dtype="float32",
    text_dtype="float32", device="cpu", threads=1, tokens=5, batch=(1, 3), seconds=0.5,
)  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prompt": ()}, "no prompt"),
        ({"prompt": ("ok", 3)}, "prompt[1] is 3. Allowed: text"),
        ({"prompt": "\ud800"}, "not valid Unicode at character 1"),
        ({"steps": 0}, "steps 0. Allowed: 1 or more"),
        ({"steps": -5}, "steps -5. Allowed: 1 or more"),
        ({"steps": True}, "steps is True. Allowed: a whole number"),
        ({"steps": "20"}, "steps is '20'. Allowed: a whole number"),
        ({"n": 0}, "n 0. Allowed: 1 or more"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"width": 0}, "width 0. Allowed: 1 to 8192 pixels"),
        ({"height": 9000}, "height 9000"),
        ({"sampler": "eulr"}, "Did you mean 'euler'?"),
        ({"grid": "karas"}, "Did you mean 'karras'?"),
        ({"dtype": "float23"}, "Did you mean 'float32'?"),
        ({"long_prompt": "drop"}, "Allowed: chunk, cut, error"),
        ({"seed": -1}, "seed -1. Allowed: 0 to 4294967295"),
        ({"seed": MAX_SEED, "n": 2}, "Allowed: 0 to 4294967294"),
        ({"guidance_scale": -0.1}, "guidance_scale -0.1"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan. Allowed: a finite number"),
        ({"guidance_rescale": 1.1}, "guidance_rescale 1.1. Allowed: 0.0 to 1.0"),
        ({"eta": -0.1}, "eta -0.1. Allowed: 0.0 to 1.0"),
        ({"eta": 0.1, "sampler": "euler"}, "eta 0.1 with sampler euler has no effect"),
        ({"mask": "m.png"}, "mask without init_image"),
        ({"strength": 0.5}, "strength without init_image"),
        ({"strength": 0.0, "init_image": "a.png"}, "strength 0.0. Allowed: above 0.0 to 1.0"),
        ({"guidance_scale": 1.0, "negative_prompt": "x"}, "negative_prompt with guidance_scale 1.0 has no effect"),
        ({"guidance_scale": 1.0, "guidance_rescale": 0.5}, "guidance_rescale with guidance_scale 1.0"),
    ],
)  # fmt: skip
def test_bad_requests_are_refused_with_words(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        Request(**{"prompt": "a cat", **wrong})
    assert message in str(caught.value)


def test_zero_is_a_value() -> None:
    request = Request(prompt="", seed=0, guidance_scale=0.0, eta=0.0)
    assert request.guidance_scale == 0.0
    assert request.prompt == ("",)


def test_the_nearest_begins_alike() -> None:
    assert nearest("jp", ["pt", "ja", "pl"]) == "ja"
    assert nearest("tr", ["ur", "tk", "tr", "t"]) == "tr"
    assert nearest("xyz", ["abc"]) is None
    assert nearest("a", []) is None


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown key 'promt'.*Did you mean 'prompt'\?"):
        from_json(Request, {"promt": "a"})


def test_missing_key_and_wrong_document() -> None:
    with pytest.raises(UserError, match="'prompt' is missing"):
        from_json(Request, {})
    with pytest.raises(UserError, match="no JSON object"):
        from_json(Request, ["a"])


@given(
    st.builds(
        Request,
        prompt=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=3).map(tuple),
        seed=st.integers(0, 1000),
        n=st.integers(1, 9),
        steps=st.none() | st.integers(1, 99),
        sampler=st.sampled_from([None, *SAMPLER_NAMES]),
        grid=st.sampled_from([None, *GRID_NAMES]),
        guidance_scale=st.none() | st.floats(1.5, 20),
        guidance_rescale=st.floats(0, 1),
    )
)
def test_requests_survive_json(asked: Request) -> None:
    assert from_json(Request, json.loads(dumps(asked))) == asked


def test_records_survive_json_and_give_their_request_back() -> None:
    again = from_json(Record, json.loads(dumps(RECORD)))
    assert again == RECORD
    assert again.seconds == 0.5
    request = again.request()
    assert (request.prompt, request.language, request.seed, request.n) == (("青い背景に猫",), "ja", 7, 1)
    assert (request.steps, request.eta, request.batch_size) == (4, 0.5, 3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch": [3, 3]}, "index below size"),
        ({"batch": [0]}, "batch"),
        ({"dtype": "int8"}, "dtype"),
        ({"conditioner": {"language": "ja"}}, "conditioner"),
        ({"language_source": "guessed"}, "language_source"),
        ({"width": "64"}, "width"),
        ({"surprise": 1}, "unknown key 'surprise'"),
    ],
)
def test_a_forged_record_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_json(Record, {**json.loads(dumps(RECORD)), **changed})


def test_names_are_those_of_the_maths() -> None:
    from kotoe.samplers import SAMPLERS
    from kotoe.schedule import GRIDS

    assert set(SAMPLER_NAMES) == SAMPLERS.keys()
    assert set(GRID_NAMES) == GRIDS.keys()


def test_differing_keys() -> None:
    a = {"x": 1, "y": {"z": [1, 2], "w": None}, "t": 1.0, "b": True}
    assert differing_keys(a, {**a, "t": 1}) == []
    assert differing_keys(a, {**a, "b": 1}) == ["b"]
    assert differing_keys(a, {**a, "y": {"z": [1, 3], "w": None}, "q": 0}) == ["q", "y.z"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": ', "no JSON document"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 200_000, "no JSON document"),
    ],
)
def test_unreadable_json(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_json(tmp_path / "c.json")


def test_missing_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't read"):
        read_json(tmp_path / "no.json")


def test_nothing_that_json_lacks_is_written() -> None:
    with pytest.raises(ValueError, match="JSON"):
        dumps({"loss": float("nan")})


def test_every_option_says_what_it_is() -> None:
    from kotoe.cli import field_help

    assert field_help(Request).keys() == {f.name for f in dataclasses.fields(Request)}
