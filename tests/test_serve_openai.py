"""OpenAI's images API, asked by OpenAI's own client."""

from __future__ import annotations

import base64
import io
import json
import socket
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from PIL import Image

from kotoe import images
from serving import Served, serving

pytestmark = pytest.mark.enable_socket


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving("--max-steps", "400") as server:
        yield server


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def opened(b64: str | None) -> Image.Image:
    assert b64 is not None
    return Image.open(io.BytesIO(base64.b64decode(b64)))


def png(image: Image.Image) -> tuple[str, bytes, str]:
    kept = io.BytesIO()
    image.save(kept, format="PNG")
    return "a.png", kept.getvalue(), "image/png"


@pytest.fixture(scope="module")
def drawn(client: openai.OpenAI) -> Image.Image:
    found = client.images.generate(prompt="a cat on a blue background", extra_body={"seed": 3})
    assert found.data is not None
    return opened(found.data[0].b64_json)


def test_words_become_pictures(client: openai.OpenAI) -> None:
    found = client.images.generate(prompt="青い背景に猫", n=2, size="auto", extra_body={"seed": 7})
    assert found.data is not None
    assert [each.model_extra for each in found.data] == [{"seed": 7}, {"seed": 8}]
    assert (found.size, found.output_format, found.background) == ("128x128", "png", "opaque")
    assert found.usage is not None
    assert found.usage.input_tokens == found.usage.total_tokens > 0
    first, second = (opened(each.b64_json) for each in found.data)
    assert first.size == (128, 128)
    assert images.differences(first.convert("RGB"), second.convert("RGB"))[0] > 1000
    record = json.loads(first.text["kotoe"])  # type: ignore[attr-defined]
    assert (record["seed"], record["conditioner"]["language"]) == (7, "ja")
    assert "Seed: 7" in first.text["parameters"]  # type: ignore[attr-defined]


def test_what_is_asked_for_beside_openais_fields_is_done(client: openai.OpenAI) -> None:
    extra = {"seed": 1, "num_inference_steps": 3, "guidance_scale": 4.5, "negative_prompt": "a dog", "language": "ko"}
    found = client.images.generate(prompt="고양이", size="64x96", extra_body={**extra, "sampler": "dpmpp_2m"})
    assert found.data is not None
    record = json.loads(opened(found.data[0].b64_json).text["kotoe"])  # type: ignore[attr-defined]
    asked = {"seed": 1, "steps": 3, "guidance_scale": 4.5, "negative_prompt": "a dog", "width": 64, "height": 96}
    assert asked.items() <= record.items()
    assert (record["sampler"], record["conditioner"]["language"]) == ("dpmpp_2m", "ko")


def test_a_prompt_is_plain_text_however_long(client: openai.OpenAI) -> None:
    """Brackets are brackets, and all of a text over the encoder's limit is read."""
    found = client.images.generate(
        prompt="a (cat " + "on a blue background " * 30, extra_body={"num_inference_steps": 1}
    )
    assert found.usage is not None
    assert found.usage.input_tokens > 94


def test_an_unknown_model_is_drawn_with_the_first_and_the_answer_says_so(client: openai.OpenAI) -> None:
    found = client.images.generate(prompt="a cat", model="dall-e-3", quality="hd", style="vivid", user="someone")
    assert found.model_extra == {"model": "kotoe-emoji"}


def test_low_quality_is_the_models_few_step_way(client: openai.OpenAI) -> None:
    found = client.images.generate(prompt="a cat", quality="low")
    assert found.data is not None
    record = json.loads(opened(found.data[0].b64_json).text["kotoe"])  # type: ignore[attr-defined]
    assert (record["steps"], record["guidance_scale"], found.quality) == (4, 1.0, "low")


def test_urls_are_of_the_host_that_was_asked_and_can_be_read(client: openai.OpenAI, served: Served) -> None:
    found = client.images.generate(prompt="a cat", response_format="url", output_format="webp", output_compression=80)
    assert found.data is not None
    url = found.data[0].url
    assert url is not None
    assert url.startswith(served.url)
    with urllib.request.urlopen(url) as answer:
        assert answer.headers["content-type"] == "image/webp"
        assert Image.open(answer).format == "WEBP"


@pytest.mark.parametrize("partial", [0, 1, 3])
def test_partial_pictures_come_before_the_whole_one(client: openai.OpenAI, partial: int) -> None:
    events = list(client.images.generate(prompt="a cat", stream=True, partial_images=partial))
    names = [f"image_generation.{name}" for name in ["partial_image"] * partial + ["completed"]]
    assert [one.type for one in events] == names
    assert [one.partial_image_index for one in events[:-1]] == list(range(partial))  # type: ignore[union-attr]
    assert {opened(one.b64_json).size for one in events} == {(128, 128)}


def test_partial_pictures_come_to_look_like_the_whole_one(client: openai.OpenAI) -> None:
    *partial, whole = client.images.generate(prompt="a cat", stream=True, partial_images=3, extra_body={"seed": 2})

    def apart(one: Any) -> float:
        a, b = (images.to_tensor(opened(x.b64_json)) for x in (one, whole))
        return float((a - b).abs().mean())

    first, _, last = (apart(one) for one in partial)
    assert last < 0.1 < first


def test_a_picture_is_drawn_anew(client: openai.OpenAI, drawn: Image.Image) -> None:
    near, far = (
        opened(edited.data[0].b64_json)  # type: ignore[index]
        for edited in (
            client.images.edit(image=png(drawn), prompt="a dog", extra_body={"strength": strength, "seed": 1})
            for strength in (0.2, 1.0)
        )
    )
    assert near.size == far.size == drawn.size
    distance = [float((images.to_tensor(x) - images.to_tensor(drawn)).abs().mean()) for x in (near, far)]
    assert distance[0] < 0.5 * distance[1]
    assert json.loads(near.text["kotoe"])["init_image"].count("/") == 0  # type: ignore[attr-defined] - no path of ours


@pytest.mark.parametrize("where", ["mask", "image", "json"])
def test_what_the_mask_keeps_stays_to_the_bit(
    client: openai.OpenAI, served: Served, drawn: Image.Image, where: str
) -> None:
    """The mask is transparent where to draw anew; an image that is transparent is its own mask."""
    mask = drawn.convert("RGBA")
    mask.paste((0, 0, 0, 0), (64, 0, 128, 128))
    if where == "json":
        urls = [f"data:image/png;base64,{base64.b64encode(png(x)[1]).decode()}" for x in (drawn, mask)]
        body = {"prompt": "a dog", "images": [{"image_url": urls[0]}], "mask": {"image_url": urls[1]}}
        request = urllib.request.Request(
            f"{served.url}/v1/images/edits", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            b64 = json.load(answer)["data"][0]["b64_json"]
    else:
        given = {"image": png(drawn), "mask": png(mask)} if where == "mask" else {"image": png(mask)}
        found = client.images.edit(prompt="a dog", **given)  # type: ignore[call-overload]
        b64 = found.data[0].b64_json
    result = opened(b64).convert("RGB")
    left, right = (0, 0, 64, 128), (64, 0, 128, 128)
    assert images.differences(result.crop(left), drawn.convert("RGB").crop(left)) == (0, 0)
    assert images.differences(result.crop(right), drawn.convert("RGB").crop(right))[0] > 500


def test_edits_are_streamed(client: openai.OpenAI, drawn: Image.Image) -> None:
    events = list(client.images.edit(image=png(drawn), prompt="a dog", stream=True, partial_images=2))
    assert [one.type for one in events] == ["image_edit.partial_image"] * 2 + ["image_edit.completed"]


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["kotoe-emoji"]
    assert client.models.retrieve("kotoe-emoji").owned_by == "kotoe"


REFUSED = [
    ({"size": "100x128"}, "size", "96 or 128"),
    ({"size": "4096x4096"}, "size", "1572864 pixels"),
    ({"size": "big"}, "size", "size 'big'. Allowed: WIDTHxHEIGHT in pixels, such as 512x512, or auto"),
    ({"n": 11}, "n", "less than or equal to 10"),
    ({"n": 0}, "n", "greater than or equal to 1"),
    ({"background": "transparent"}, None, "no transparency"),
    ({"partial_images": 2}, None, "stream"),
    ({"output_compression": 50}, None, "output_format jpeg, webp"),
    ({"prompt": ""}, "prompt", "at least 1 character"),
    ({"prompt": "a" * 20_001}, "prompt", "20000 at most"),
    ({"prompt": "cat " * 400, "extra_body": {"long_prompt": "error"}}, "prompt", "tokens"),
    ({"extra_body": {"stepz": 3}}, "stepz", "Unknown field"),
    ({"extra_body": {"num_inference_steps": 401}}, "num_inference_steps", "1 to 400"),
    ({"extra_body": {"num_inference_steps": 0}}, "num_inference_steps", "greater"),
    ({"extra_body": {"guidance_scale": "much"}}, "guidance_scale", "number"),
    ({"extra_body": {"seed": -1}}, "seed", "greater"),
    ({"extra_body": {"seed": 2**32}}, "seed", "less"),
    ({"extra_body": {"sampler": "euler_b"}}, "sampler", "Did you mean"),
    ({"extra_body": {"language": "tlh"}}, "language", "Allowed"),
]


@pytest.mark.parametrize(("given", "param", "words"), REFUSED)
def test_errors_are_openais_and_teach(
    client: openai.OpenAI, given: dict[str, Any], param: str | None, words: str
) -> None:
    asked = {"prompt": "a cat", **given}
    with pytest.raises(openai.BadRequestError) as raised:
        client.images.generate(**asked)
    error = raised.value
    assert isinstance(error.body, dict)
    assert error.body.keys() == {"message", "type", "param", "code"}
    assert words in error.body["message"]
    assert param is None or error.param == param


def test_errors_of_edits(client: openai.OpenAI, drawn: Image.Image) -> None:
    whole, half = png(drawn), drawn.resize((64, 64))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"image": ("a.png", b"no picture", "image/png")}, "not a picture"),
        ({"image": ("a.png", whole[1][:2000], "image/png")}, "damaged"),
        ({"image": [whole, whole]}, "one: a picture is drawn from one picture"),
        ({"image": whole, "mask": whole}, "transparent nowhere"),
        ({"image": png(Image.new("RGB", (100, 100)))}, "multiple of 32"),
    ]
    clear = half.convert("RGBA")
    clear.putalpha(0)
    cases.append(({"image": whole, "mask": png(clear)}, "the same size"))
    for given, words in cases:
        with pytest.raises(openai.BadRequestError, match=words):
            client.images.edit(prompt="a dog", **given)


def test_no_address_is_fetched_unless_the_server_is_told_to(served: Served) -> None:
    body = {"prompt": "a", "images": [{"image_url": "http://127.0.0.1:1/a.png"}]}
    request = urllib.request.Request(
        f"{served.url}/v1/images/edits", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(request)
    assert raised.value.code == 400
    assert "fetches no addresses" in json.load(raised.value)["error"]["message"]


def test_a_caller_that_goes_away_frees_its_place_within_a_step(served: Served) -> None:
    body = json.dumps({"prompt": "a cat", "num_inference_steps": 400, "n": 4}).encode()
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/images/generations HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        wait_for(lambda: figure(served, "kotoe_pictures_begun") == 4)
    began = time.monotonic()
    wait_for(lambda: figure(served, "kotoe_pictures_open") == 0)
    assert time.monotonic() - began < 1.0  # of some ten seconds
    assert figure(served, 'kotoe_jobs_total{state="cancelled"}') >= 1


def figure(served: Served, name: str) -> float:
    with urllib.request.urlopen(f"{served.url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), 0.0)


def wait_for(what: Any, seconds: float = 20.0) -> None:
    ends = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < ends
        time.sleep(0.01)
