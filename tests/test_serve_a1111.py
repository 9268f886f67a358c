"""The AUTOMATIC1111 API, asked by its client package, by the calls that programs make, and by hand."""

from __future__ import annotations

import base64
import json
import re
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import webuiapi
from PIL import Image, ImageChops

import a1111_traces
from a1111_someone import KEYS, LONG, PICTURE, SMALL, Someone, b64, busy, opened, server, wait
from a1111_traces import TRACES, at, filled
from kotoe import images
from kotoe.config import from_json
from kotoe.errors import UserError
from kotoe.provenance.infotext import infotext, read_settings
from kotoe.provenance.names import sampler_of
from kotoe.record import Record
from kotoe.serve import a1111_fields
from serving import Served, serving

pytestmark = pytest.mark.enable_socket


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with server(tmp_path_factory.mktemp("a1111")) as found:
        yield found


@pytest.fixture(scope="module")
def everyone(served: Served) -> Iterator[dict[str, Someone]]:
    found = {name: Someone(served, name) for name in KEYS}
    yield found
    for one in found.values():
        one.session.close()


@pytest.fixture
def ann(everyone: dict[str, Someone]) -> Someone:
    return everyone["ann"]


@pytest.fixture
def bob(everyone: dict[str, Someone]) -> Someone:
    return everyone["bob"]


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[webuiapi.WebUIApi]:
    made = webuiapi.WebUIApi(baseurl=f"{served.url}/sdapi/v1", username="eve", password=KEYS["eve"])
    yield made
    made.session.close()


@pytest.fixture
def aside() -> Iterator[Callable[..., Future[Any]]]:
    """Does things beside the test; what a test leaves is awaited."""
    with ThreadPoolExecutor(4) as pool:
        yield pool.submit


# --- The client package ---------------------------------------------------------------------------


def test_words_become_pictures(client: webuiapi.WebUIApi) -> None:
    """With all that the client sends by itself: 40 fields, most of which Kotoe has no use for."""
    done = client.txt2img(
        prompt="青い背景に猫", negative_prompt="犬", seed=3, batch_size=2, n_iter=2, steps=4, width=128, height=160
    )
    assert [picture.size for picture in done.images] == [(128, 160)] * 4
    assert done.info["all_seeds"] == [3, 4, 5, 6]
    assert done.info["seed"] == 3
    assert done.info["all_prompts"] == ["青い背景に猫"] * 4
    assert (done.info["sampler_name"], done.info["steps"], done.info["cfg_scale"]) == ("Euler a", 4, 7)
    assert done.info["languages"] == ["ja"] * 4
    assert len({picture.tobytes() for picture in done.images}) == 4
    for picture, text in zip(done.images, done.info["infotexts"], strict=True):
        assert picture.info["parameters"] == text
        record = from_json(Record, json.loads(picture.info[images.RECORD_KEY]))
        assert infotext(record) == text
        assert record.negative_prompt == "犬"
    assert done.parameters["seed"] == 3
    assert done.parameters["hr_scale"] == 2


INFO = """
    prompt all_prompts negative_prompt all_negative_prompts seed all_seeds subseed all_subseeds subseed_strength width
    height sampler_name cfg_scale steps batch_size restore_faces face_restoration_model sd_model_name sd_model_hash
    sd_vae_name sd_vae_hash seed_resize_from_w seed_resize_from_h denoising_strength extra_generation_params
    index_of_first_image infotexts styles job_timestamp clip_skip is_using_inpainting_conditioning version
"""


def test_info_has_every_key(ann: Someone) -> None:
    done = ann.post("txt2img", SMALL)
    assert set(done) == {"images", "parameters", "info"}
    assert set(INFO.split()) <= set(json.loads(done["info"]))


def far_pixels(picture: Image.Image) -> int:
    """How many are far from those of PICTURE."""
    return sum(ImageChops.difference(PICTURE, picture.convert("RGB")).convert("L").histogram()[30:])


def test_a_picture_becomes_another(client: webuiapi.WebUIApi) -> None:
    given = {"images": [PICTURE], "prompt": "a cat", "seed": 5, "steps": 8, "width": 128, "height": 128}
    little, much = (client.img2img(denoising_strength=share, **given).image for share in (0.25, 0.9))
    assert images.differences(PICTURE, little)[0] > 0
    near, far = (
        sum(ImageChops.difference(PICTURE, p.convert("RGB")).convert("L").histogram()[30:]) for p in (little, much)
    )
    assert near < far
    echo = client.img2img(**given).parameters
    assert (echo["init_images"], echo["mask"]) == (None, None)


@pytest.mark.parametrize("invert", [0, 1])
def test_what_a_mask_keeps_stays(client: webuiapi.WebUIApi, invert: int) -> None:
    """Outside the mask and its blur to the bit; also where the mask is one of see-through and opaque."""
    mask = Image.new("L", PICTURE.size, 0)
    mask.paste(255, (0, 0, 64, 128))
    clear = Image.new("RGBA", PICTURE.size, (9, 9, 9, 0))
    clear.paste((9, 9, 9, 255), (0, 0, 64, 128))
    for one in (mask, clear):
        done = client.img2img(
            images=[PICTURE], mask_image=one, prompt="a cat", seed=5, steps=4, width=128, height=128, mask_blur=2,
            inpaint_full_res=False, inpainting_mask_invert=invert, denoising_strength=0.9,
        ).image.convert("RGB")  # fmt: skip
        kept, anew = ((88, 0, 128, 128), (0, 0, 40, 128))[:: -1 if invert else 1]
        assert images.differences(done.crop(kept), PICTURE.crop(kept)) == (0, 0)
        assert images.differences(done.crop(anew), PICTURE.crop(anew))[1] > 20


def test_only_what_is_masked(client: webuiapi.WebUIApi) -> None:
    """What the client asks for by default: a part of a larger picture is drawn at the model's size and put back."""
    photo, mask = PICTURE.resize((600, 417)), Image.new("L", (600, 417), 0)
    mask.paste(255, (300, 200, 340, 240))
    answer = client.img2img(
        images=[photo], mask_image=mask, prompt="a cat", seed=5, steps=4, width=128, height=128, mask_blur=2,
        inpaint_full_res_padding=20, denoising_strength=0.9,
    )  # fmt: skip
    done = answer.image.convert("RGB")
    assert done.size == photo.size
    changed = ImageChops.difference(done, photo).convert("L").point(lambda v: 255 * (v > 0)).getbbox()
    assert changed is not None
    left, top, right, bottom = changed  # the mask with its blur, and nothing around it
    assert 285 <= left <= 302
    assert 185 <= top <= 202
    assert 338 <= right <= 355
    assert 238 <= bottom <= 255
    text = answer.info["infotexts"][0]
    assert "Inpaint area: Only masked, Masked area padding: 20" in text
    assert "Size: 128x128" in text
    assert answer.info["notes"] == []


def test_the_part_that_is_masked_of_a_remembered_picture(client: webuiapi.WebUIApi) -> None:
    """`infotext` says it for who doesn't, and is overruled by who does."""
    said = "a cat\nSteps: 4, Sampler: Euler, CFG scale: 3, Seed: 1, Inpaint area: Only masked, Masked area padding: 9"
    mask = Image.new("L", PICTURE.size, 0)
    mask.paste(255, (10, 10, 50, 50))
    body = {"init_images": [b64(PICTURE)], "mask": b64(mask), "infotext": said, "width": 128, "height": 128}
    for more, expected in (
        ({}, "Masked area padding: 9"), ({"inpaint_full_res": False}, ""),
        ({"inpaint_full_res": True, "inpaint_full_res_padding": 7}, "Masked area padding: 7"),
    ):  # fmt: skip
        answer = client.session.post(url=f"{client.baseurl}/img2img", json={**body, **more}).json()
        info = json.loads(answer["info"])
        found = re.search("Masked area padding: [0-9]+", info["infotexts"][0])
        assert (found[0] if found else "") == expected
    body.pop("mask")
    answer = client.session.post(url=f"{client.baseurl}/img2img", json=body).json()
    assert "infotext: Masked area padding belongs to a mask" in json.loads(answer["info"])["notes"]


def test_lists(client: webuiapi.WebUIApi) -> None:
    assert {"Euler", "Euler a", "DDIM", "DPM++ 2M"} <= set(client.util_get_sampler_names())
    for sampler in client.get_samplers():
        assert {sampler_of(name) for name in (sampler["name"], *sampler["aliases"])} == {sampler_of(sampler["name"])}
    assert "karras" in client.util_get_scheduler_names()
    (emoji, tiny) = client.get_sd_models()
    assert emoji["title"] == f"kotoe-emoji [{emoji['sha256'][:10]}]"
    assert emoji["model_name"] == emoji["filename"] == "kotoe-emoji"  # no path of the server's
    assert tiny["hash"] == tiny["sha256"][:10] != emoji["hash"]
    for asked in (
        client.get_sd_vae, client.get_loras, client.get_hypernetworks, client.get_face_restorers,
        client.get_realesrgan_models, client.get_prompt_styles, client.get_latent_upscale_modes,
    ):  # fmt: skip
        assert asked() == []
    assert [one["name"] for one in client.get_upscalers()] == ["None"]
    assert client.get_embeddings() == {"loaded": {}, "skipped": {}}
    assert client.get_scripts() == {"txt2img": [], "img2img": []}
    assert client.get_memory()["ram"]
    assert client.get_cmd_flags()["api"] is True
    assert "Nothing was done" in client.refresh_checkpoints()["detail"]


@pytest.mark.parametrize("name", ["unload-checkpoint", "reload-checkpoint", "refresh-loras"])
def test_what_needs_nothing_says_so(ann: Someone, name: str) -> None:
    assert "Nothing was done" in ann.post(name)["detail"]


@pytest.mark.parametrize("name", ["extra-single-image", "extra-batch-images", "interrogate"])
def test_what_kotoe_lacks_is_said(ann: Someone, name: str) -> None:
    assert ann.refused({"image": b64(PICTURE)}, name, 501).startswith(f"Kotoe can't do {name}")


def test_settings_of_a_picture(client: webuiapi.WebUIApi, ann: Someone) -> None:
    drawn = client.txt2img(prompt="고양이", seed=9, steps=4, width=128, height=128).image
    found = client.png_info(drawn)
    assert found.info.startswith("고양이\nSteps: 4, Sampler: Euler a")
    assert found.parameters["Prompt"] == "고양이"
    assert found.parameters["Seed"] == "9"
    assert images.RECORD_KEY in found.json["items"]
    assert read_settings(drawn).request["seed"] == 9
    assert ann.post("png-info", {"image": b64(PICTURE)}) == {"info": "", "items": {}, "parameters": {}}
    assert "no base64" in ann.refused({"image": "%%%"}, "png-info")
    assert "is not a picture" in ann.refused({"image": "AAAA"}, "png-info")


def test_settings_go_in_again_as_infotext(ann: Someone) -> None:
    """`infotext` stands for what a request leaves out, and for nothing that it says."""
    first = ann.post("txt2img", {**SMALL, "sampler_name": "DPM++ 2M", "scheduler": "karras", "cfg_scale": 3.5})
    (text,) = json.loads(first["info"])["infotexts"]
    again = ann.post("txt2img", {"infotext": text})
    assert json.loads(again["info"])["infotexts"] == [text]
    count, most = images.differences(opened(first["images"][0]), opened(again["images"][0]))
    assert most <= 1, (count, most)
    other = json.loads(ann.post("txt2img", {"infotext": text, "steps": 5, "sampler_name": "Euler"})["info"])
    assert (other["steps"], other["sampler_name"], other["cfg_scale"], other["seed"]) == (5, "Euler", 3.5, 7)
    assert "infotext" in ann.refused({"infotext": "just words"})


# --- Options --------------------------------------------------------------------------------------


def test_options_are_each_callers_own(client: webuiapi.WebUIApi, bob: Someone) -> None:
    before = client.get_options()
    (_, tiny) = client.util_get_model_names()
    assert client.util_get_current_model() == before["sd_model_checkpoint"] != tiny
    try:
        client.set_options({"sd_model_checkpoint": tiny, "samples_format": "webp"})
        assert client.util_get_current_model() == tiny
        assert bob.get("options") == before
        done = client.txt2img(prompt="a cat", steps=2, sampler_name="DDIM", width=None, height=None)
        assert done.info["sd_model_name"] == tiny.split(" [")[0]
        assert done.image.format == "WEBP"
        assert infotext(read_settings(base64.b64decode(done.json["images"][0])).record) == done.info["infotexts"][0]
        once = client.txt2img(
            prompt="a cat", steps=2, width=128, height=128,
            override_settings={"sd_model_checkpoint": "kotoe-emoji", "samples_format": "jpg"},
        )  # fmt: skip
        assert (once.info["sd_model_name"], once.image.format) == ("kotoe-emoji", "JPEG")
        assert client.util_get_current_model() == tiny  # it was for that request
        client.txt2img(
            prompt="a cat", steps=2, width=128, height=128, override_settings_restore_afterwards=False,
            override_settings={"sd_model_checkpoint": before["sd_checkpoint_hash"][:10]},
        )  # fmt: skip
        assert client.util_get_current_model() == before["sd_model_checkpoint"]
    finally:
        client.set_options(before)  # all of them, as they came
    assert client.get_options() == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sd_model_checkpoint", "kotoe-emojo"), ("sd_model_checkpoint", 5), ("samples_format", "gif"),
        ("jpeg_quality", 0), ("jpeg_quality", True), ("emphasis", "Loud"), ("CLIP_stop_at_last_layers", 2),
        ("CLIP_stop_at_last_layers", True), ("sd_vae", "other.pt"), ("randn_source", "GPU"),
        ("eta_noise_seed_delta", 31337), ("initial_noise_multiplier", 0.5),
    ],
)  # fmt: skip
def test_options_that_make_no_sense(ann: Someone, name: str, value: Any) -> None:
    before = ann.get("options")
    why = ann.refused({"samples_format": "webp", name: value}, "options")
    assert why.startswith(f"{name} {value!r}. Allowed: ")
    assert ann.get("options") == before  # none of them was set
    assert ann.refused({**SMALL, "override_settings": {name: value}}) == why


def test_unknown_options_and_fields_are_noted(ann: Someone) -> None:
    assert ann.post("options", {"live_previews_enable": True})["notes"][0].startswith("live_previews_enable: ")
    done = ann.post("txt2img", {**SMALL, "clip_skip": 2, "override_settings": {"no_such": [1]}})
    notes = json.loads(done["info"])["notes"]
    assert [note.split(":")[0] for note in notes] == ["no_such", "clip_skip"]
    assert "clip_skip" not in done["parameters"]


# --- What programs send ---------------------------------------------------------------------------


@pytest.mark.parametrize("program", TRACES)
def test_traces(program: str, bob: Someone) -> None:
    kept: dict[str, Any] = {}
    for call in TRACES[program]:
        for _ in range(200):
            answer = bob.ask(call.method, call.path, filled(call.body, kept))
            assert answer.status_code == 200, (call, answer.text)
            found = answer.json()
            if all(at(found, path) == [value] for path, value in call.until.items()):
                break
            time.sleep(0.05)
        else:
            raise AssertionError(call)
        for path, need in call.needs.items():
            values = at(found, path)
            assert values, (call, path)
            need = filled(need, kept)
            if isinstance(need, type | tuple):
                assert all(isinstance(value, need) for value in values), (call, path)
            else:
                assert values == [need], (call, path)
        kept |= {name: at(found, path)[0] for name, path in call.keep.items()}


def test_a_trace_can_fail() -> None:
    assert at([{"name": 1}, {"name": 2}], "[].name") == [1, 2]
    assert at({"images": ["a"]}, "images.len") == [1]
    with pytest.raises(KeyError):
        at({}, "state.job_count")
    assert filled({"*": "options", "a": "$b"}, {"options": {"c": 1, "a": 2}, "b": 3}) == {"c": 1, "a": 3}
    assert a1111_traces.IDLE.until


# --- Progress, interrupt, skip --------------------------------------------------------------------


def test_each_sees_and_stops_their_own(ann: Someone, bob: Someone, everyone: dict[str, Someone], aside: Any) -> None:
    """Two draw at the same time, with one name for their tasks; a third one draws nothing."""
    eve, name = everyone["eve"], {"force_task_id": "task(1)"}
    anns = aside(ann.post, "txt2img", {**LONG, **name, "steps": 149})
    bobs = aside(bob.post, "txt2img", {**LONG, **name, "batch_size": 2})
    assert (busy(ann)["state"]["sampling_steps"], busy(bob)["state"]["sampling_steps"]) == (149, 150)
    assert (ann.get("progress")["state"]["job_count"], bob.get("progress")["state"]["job_count"]) == (1, 2)
    shown = {one.name: wait(lambda one=one: one.get("progress")["current_image"]) for one in (ann, bob)}
    assert opened(shown["ann"]).size[0] > 1
    idle = eve.get("progress")
    assert (idle["progress"], idle["state"]["job_count"], idle["current_image"]) == (0, 0, None)
    look = {"id_task": "task(1)", "id_live_preview": -1}
    assert not eve.ask("POST", "/internal/progress", look).json()["active"]
    found = bob.ask("POST", "/internal/progress", look).json()
    assert found["active"]
    assert not found["queued"]
    assert opened(found["live_preview"].removeprefix("data:image/png;base64,")).size[0] > 1
    assert found["id_live_preview"] > 0
    eve.post("interrupt")
    eve.post("skip")
    ann.post("interrupt")
    done = anns.result(10)
    assert done["images"] == []
    assert json.loads(done["info"])["all_seeds"] == []
    assert ann.get("progress")["progress"] == 0
    assert not bobs.done()
    assert bob.get("progress")["progress"] > 0
    after = ann.ask("POST", "/internal/progress", look).json()
    assert (after["completed"], after["active"]) == (True, False)
    bob.post("skip")
    wait(lambda: bob.get("progress")["state"]["job_no"] == 1)
    assert not bobs.done()  # the other one goes on
    bob.post("interrupt")
    assert bobs.result(10)["images"] == []


def test_interrupt_gives_what_is_done(ann: Someone, aside: Any) -> None:
    going = aside(ann.post, "txt2img", {**SMALL, "steps": 40, "batch_size": 10})
    wait(lambda: ann.get("progress?skip_current_image=true")["state"]["job_no"] >= 2)
    ann.post("interrupt")
    done = going.result(10)
    seeds = json.loads(done["info"])["all_seeds"]
    assert 2 <= len(done["images"]) == len(seeds) < 10
    for text, seed in zip(done["images"], seeds, strict=True):
        assert read_settings(opened(text)).request["seed"] == seed


def test_skip_keeps_the_others(ann: Someone, aside: Any) -> None:
    going = aside(ann.post, "txt2img", {**SMALL, "steps": 60, "batch_size": 4})
    busy(ann)
    ann.post("skip")
    done = going.result(30)
    assert len(done["images"]) == 3
    assert json.loads(done["info"])["all_seeds"] == [8, 9, 10]


def test_progress_goes_up(ann: Someone, aside: Any) -> None:
    idle = ann.get("progress")
    assert set(idle) == {"progress", "eta_relative", "state", "current_image", "textinfo"}
    going = aside(ann.post, "txt2img", {**LONG, "steps": 40, "n_iter": 2})
    seen = []
    while not going.done():
        seen.append(ann.get("progress?skip_current_image=true"))
        time.sleep(0.05)
    shares = [one["progress"] for one in seen if one["state"]["job_count"]]
    assert shares == sorted(shares)
    assert shares[0] < 0.2 < 0.8 < shares[-1] < 1
    assert min(shares) >= 0.01
    assert all(one["current_image"] is None for one in seen)
    assert going.result()["parameters"]["n_iter"] == 2


def test_tasks_that_wait(ann: Someone, aside: Any) -> None:
    going = []
    try:
        for name in ("task(a)", "task(b)", "task(c)"):
            going.append(aside(ann.post, "txt2img", {**LONG, "batch_size": 10, "force_task_id": name}))
            wait(lambda name=name: ann.get("progress")["state"]["job"] == name)
        wait(lambda: ann.ask("POST", "/internal/progress", {"id_task": "task(a)"}).json()["active"])
        found = ann.ask("GET", "/internal/pending-tasks").json()
        assert found["size"] == len(found["tasks"]) > 0
        assert found["tasks"][-1] == "task(c)"
        look = ann.ask("POST", "/internal/progress", {"id_task": "task(c)"}).json()
        assert (look["queued"], look["active"], look["completed"]) == (True, False, False)
        assert look["textinfo"].startswith("In queue: ")
    finally:
        wait(lambda: ann.post("interrupt") == {} and all(one.done() for one in going))


def test_who_goes_frees_the_place(served: Served, ann: Someone) -> None:
    """A client that closes the connection while its picture is drawn."""
    body = json.dumps({**LONG, "batch_size": 4}).encode()
    basic = base64.b64encode(f"ann:{KEYS['ann']}".encode()).decode()
    head = f"POST /sdapi/v1/txt2img HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Basic {basic}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + body)
        busy(ann)
        assert b"kotoe_pictures_begun 0.0" not in ann.ask("GET", "/metrics").content
    began = time.monotonic()
    wait(lambda: ann.get("progress")["state"]["job_count"] == 0, 5)
    wait(lambda: b"kotoe_pictures_open 0.0" in ann.ask("GET", "/metrics").content, 5)
    assert time.monotonic() - began < 5
    ended = [line for line in served.lines if line["message"] == "job ended"]
    assert ended[-1]["state"] == "cancelled"


# --- Without a server -----------------------------------------------------------------------------


def test_a_hole_is_filled_with_what_is_round_it() -> None:
    red = Image.new("RGB", (64, 64), (200, 30, 40))
    red.paste((0, 255, 0), (20, 20, 44, 44))
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (20, 20, 44, 44))
    found = a1111_fields.filled(red, mask)
    assert images.differences(found, Image.new("RGB", (64, 64), (200, 30, 40)))[1] <= 8
    assert a1111_fields.filled(red, Image.new("L", (64, 64), 0)).tobytes() == red.tobytes()
    assert a1111_fields.filled(red, Image.new("L", (64, 64), 255)).getpixel((0, 0)) == (128, 128, 128)


def test_sizes_of_pictures_that_come_along() -> None:
    wide = Image.new("RGB", (200, 100))
    wide.paste((255, 255, 255), (100, 0, 200, 100))
    stretched, cropped = (a1111_fields._fitted(wide, (64, 64), mode) for mode in (0, 1))
    assert (stretched.size, cropped.size) == ((64, 64), (64, 64))
    assert images.differences(stretched, cropped)[0] == 0 or stretched.getpixel((31, 30)) != cropped.getpixel((40, 30))


def test_refusals_use_the_words_of_this_api() -> None:
    from kotoe.config import Request
    from kotoe.serve import refusals
    from kotoe.serve.service import FIELDS

    cases = {"guidance_scale": (-1.0, "cfg_scale"), "n": (0, "batch_size x n_iter"), "sampler": ("x", "sampler_name")}
    for name, (value, word) in cases.items():
        with pytest.raises(UserError) as caught:
            Request(prompt="a", **{name: value})
        assert word in a1111_fields.named(refusals.of(caught.value, FIELDS)).message


def test_what_nobody_asked_for_long_is_forgotten() -> None:
    from kotoe.serve.a1111_state import MOST_SEATS, Running, Seats
    from kotoe.serve.gate import Caller

    seats = Seats()
    first = seats.of(Caller(name="first", owner=""))
    first.running.append(Running(task="t"))
    for i in range(MOST_SEATS + 10):
        seats.of(Caller(name=f"caller {i}", owner="")).options["samples_format"] = "webp"
    assert len(seats.seats) == MOST_SEATS
    assert seats.of(Caller(name="first", owner="")) is first  # who still waits is not
    assert seats.of(Caller(name="caller 0", owner="")).options == {}


def test_adapters_of_the_server(tmp_path: Path) -> None:
    """In every picture of its first model, listed, and recorded; its few-step way is then not there."""
    import kotoe
    from adapters import factors, lora_file

    lora_file(tmp_path / "style.safetensors", "kohya", factors(kotoe.load("kotoe-emoji").unet, seed=1), alpha=2.0)
    with serving("--lora", f"{tmp_path / 'style.safetensors'}:0.5") as with_it, serving() as without:
        pictures = []
        for one, names in ((with_it, ["style"]), (without, [])):
            client = webuiapi.WebUIApi(baseurl=f"{one.url}/sdapi/v1")
            assert [lora["name"] for lora in client.get_loras()] == names
            answer = client.txt2img(prompt="a cat", seed=3, steps=4)
            assert ("Lora hashes" in answer.info["infotexts"][0]) == bool(names)
            pictures.append(answer.image.convert("RGB").tobytes())
            client.session.close()
        assert pictures[0] != pictures[1]
        asked = urllib.request.urlopen(f"{with_it.url}/kotoe/v1/model")
        with asked as answer:
            assert json.load(answer)["fast"] is False
