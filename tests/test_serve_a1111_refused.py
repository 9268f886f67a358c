"""What the AUTOMATIC1111 API refuses, by which field and why, and what it doesn't."""

from __future__ import annotations

import base64
import json
import struct
import time
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from PIL import Image
from pydantic import ValidationError

from a1111_someone import KEYS, PICTURE, SMALL, Someone, b64, server
from kotoe.serve.a1111_fields import Img2Img, plain
from kotoe.serve.a1111_lists import Options
from kotoe.serve.refusals import Refusal
from pictures import png
from serving import Served

pytestmark = pytest.mark.enable_socket


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with server(tmp_path_factory.mktemp("a1111")) as found:
        yield found


@pytest.fixture(scope="module")
def ann(served: Served) -> Iterator[Someone]:
    found = Someone(served, "ann")
    yield found
    found.session.close()


# --- What is refused ------------------------------------------------------------------------------


REFUSED: list[tuple[str, Any, str]] = [
    ("enable_hr", True, "no second pass"),
    ("restore_faces", True, "restores no faces"),
    ("tiling", True, "no tiles"),
    ("subseed_strength", 0.5, "mixes no seeds"),
    ("styles", ["oil"], "no styles"),
    ("refiner_checkpoint", "sd_xl_refiner", "one model"),
    ("script_name", "X/Y/Z plot", "no scripts"),
    ("alwayson_scripts", {"ControlNet": {"args": []}}, "no scripts"),
    ("s_churn", 0.4, "have none"),
    ("s_min_uncond", 1.5, "guidance"),
    ("seed_resize_from_h", 512, "own size"),
    ("seed_resize_from_w", 512, "own size"),
    ("seed", -7, "-1, a random one"),
    ("seed", 2**32, "0 to 4294967295"),
    ("batch_size", 0, "1 to 10 pictures"),
    ("n_iter", 11, "1 to 10 pictures"),
    ("batch_size", 10**12, "1 to 10 pictures"),
    ("steps", 0, "1 or more"),
    ("steps", 10**12, "1 to 1000"),
    ("width", 130, "128 or 160"),
    ("cfg_scale", -1, "0.0 or more"),
    ("scheduler", "Exponential", "Karras"),
    ("prompt", "a (cat", "bracket"),
    ("prompt", "a cat <lora:x:1>", "lora"),
    ("prompt", "a" * 20_001, "20000 at most"),
]


@pytest.mark.parametrize(("name", "value", "why"), REFUSED, ids=lambda value: str(value)[:20])
def test_what_cannot_be_done_is_refused(ann: Someone, name: str, value: Any, why: str) -> None:
    found = ann.refused({**SMALL, name: value})
    assert why in found
    assert name in found.replace("batch_size x n_iter", "batch_size n_iter") or name in ("scheduler", "prompt")


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("resize_mode", 2, "1 crops"), ("resize_mode", 3, "1 crops"), ("inpainting_fill", 2, "keeps what is there"),
        ("initial_noise_multiplier", 0.9, "noise"), ("latent_mask", "AAAA", "pixels"),
        ("inpaint_full_res_padding", -1, "0 to 8192"),
        ("mask_blur", -1, "0 to 256"), ("mask_blur", 1e9, "0 to 256"), ("inpainting_mask_invert", 2, "0 or 1"),
        ("denoising_strength", 0, "above 0.0"), ("denoising_strength", 1.5, "to 1.0"),
        ("init_images", [b64(PICTURE)] * 2, "one"),
        ("init_images", ["https://example.org/a.png"], "fetches no addresses"),
        ("init_images", ["http://127.0.0.1/a.png"], "fetches no addresses"),
        ("mask", "https://example.org/a.png", "fetch"),
    ],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
def test_what_cannot_be_done_with_a_picture(ann: Someone, name: str, value: Any, why: str) -> None:
    body = {**SMALL, "init_images": [b64(PICTURE)], "mask": b64(Image.new("L", (128, 128), 255))}
    found = ann.refused({**body, name: value}, "img2img")
    assert why in found
    assert name in found


def test_pictures_that_would_be_too_large(ann: Someone) -> None:
    huge = {**SMALL, "width": 8192, "height": 8192, "init_images": [b64(PICTURE)]}
    for name in ("txt2img", "img2img"):
        found = ann.refused(huge, name)
        assert "width" in found
        assert "1572864 pixels at most" in found


def test_no_picture_to_begin_with(ann: Someone) -> None:
    for given in ({}, {"init_images": []}, {"init_images": None}, {"init_images": [""]}):
        assert ann.refused({**SMALL, **given}, "img2img", 404) == "Init image not found"


def test_fresh_noise_is_there_or_it_is_another_sampler(ann: Someone) -> None:
    for name in ("eta", "s_noise"):
        assert ann.refused({**SMALL, "sampler_name": "Euler a", name: 0.5}).startswith(
            f"{name} 0.5. Allowed: 1 with Euler a"
        )
        ann.post("txt2img", {**SMALL, "sampler_name": "DPM++ 2M", name: 0.5})  # which has none, there as here
    seen = {ann.post("txt2img", {**SMALL, "sampler_name": "DDIM", "eta": eta})["images"][0] for eta in (0, 0.5)}
    assert len(seen) == 2
    assert "0.0 to 1.0" in ann.refused({**SMALL, "sampler_name": "DDIM", "eta": 1.5})


def test_all_defaults_of_that_program_pass(ann: Someone) -> None:
    """Whatever it has as a default is no reason to refuse, said or not."""
    both = {
        "negative_prompt": "", "styles": None, "seed": -1, "subseed": -1, "subseed_strength": 0,
        "seed_resize_from_h": -1, "seed_resize_from_w": -1, "sampler_name": None, "scheduler": None,
        "sampler_index": "Euler", "batch_size": 1, "n_iter": 1, "steps": 4, "cfg_scale": 7, "width": 128, "height": 128,
        "restore_faces": None, "tiling": None, "do_not_save_samples": False, "do_not_save_grid": False, "eta": None,
        "s_min_uncond": None, "s_churn": None, "s_tmax": None, "s_tmin": None, "s_noise": None,
        "override_settings": None, "override_settings_restore_afterwards": True, "refiner_checkpoint": None,
        "refiner_switch_at": None, "disable_extra_networks": False, "firstpass_image": None, "comments": None,
        "script_name": None, "script_args": [], "send_images": True, "save_images": False, "alwayson_scripts": {},
        "infotext": None, "force_task_id": None,
    }  # fmt: skip
    words = {
        "enable_hr": False, "firstphase_width": 0, "firstphase_height": 0, "hr_scale": 2.0, "hr_upscaler": None,
        "hr_second_pass_steps": 0, "hr_resize_x": 0, "hr_resize_y": 0, "hr_checkpoint_name": None,
        "hr_sampler_name": None, "hr_scheduler": None, "hr_prompt": "", "hr_negative_prompt": "",
        "denoising_strength": 0.75,
    }  # fmt: skip
    picture = {
        "init_images": [b64(PICTURE)], "resize_mode": 0, "denoising_strength": 0.75, "image_cfg_scale": None,
        "mask": None, "mask_blur": None, "mask_blur_x": 4, "mask_blur_y": 4, "mask_round": True, "inpainting_fill": 0,
        "inpaint_full_res": True, "inpaint_full_res_padding": 0, "inpainting_mask_invert": 0,
        "initial_noise_multiplier": None, "latent_mask": None, "include_init_images": False,
    }  # fmt: skip
    for name, more in (("txt2img", words), ("img2img", picture)):
        done = ann.post(name, {"prompt": "a cat", **both, **more})
        assert json.loads(done["info"])["notes"] == []
        assert set(done["parameters"]) == {"prompt", *both, *more}


def test_what_is_left_out_is_the_models_own(ann: Someone) -> None:
    done = ann.post("txt2img", {"prompt": "a cat"})
    info = json.loads(done["info"])
    assert (info["width"], info["height"], info["steps"], info["cfg_scale"]) == (128, 128, 10, 2)
    assert (info["sampler_name"], info["extra_generation_params"]) == ("DDIM", {"Schedule type": "Simple"})
    assert (done["parameters"]["width"], done["parameters"]["sampler_name"]) == (128, "DDIM")
    assert json.loads(ann.post("txt2img", {"prompt": "a cat"})["info"])["seed"] != info["seed"]


def test_samplers_by_all_their_names(ann: Someone) -> None:
    for name, theirs in (
        ("k_euler_a", "Euler a"),
        ("DPM++ 2M Karras", "DPM++ 2M"),
        ("PLMS", "PLMS"),
        ("uni_pc", "UniPC"),
    ):
        info = json.loads(ann.post("txt2img", {**SMALL, "sampler_name": name})["info"])
        assert info["sampler_name"] == theirs
        assert ("Karras" in name) == (info["extra_generation_params"]["Schedule type"] == "Karras")
    for name in ("Euler b", "DPM adaptive", "k_dpm_fast", "DPM++ 2M Whatever"):
        found = ann.post("txt2img", {**SMALL, "sampler_name": name}, 400)
        assert found["error"] == "Sampler not found"
        assert found["detail"].startswith(f"Sampler not found: {name!r}. Allowed: Euler, Euler a")
    assert "Did you mean 'Euler'" in ann.refused({**SMALL, "sampler_index": "Eulr"})
    assert ann.refused({**SMALL, "sampler_name": "DPM++ 2M Exponential"}).startswith("scheduler 'Exponential'")
    assert ann.refused({**SMALL, "sampler_name": "DPM++ 2M Karras", "scheduler": "simple"}).startswith(
        "scheduler 'simple'"
    )


def test_without_guidance_a_negative_prompt_changes_nothing(ann: Someone) -> None:
    done = ann.post("txt2img", {**SMALL, "cfg_scale": 1, "negative_prompt": "dog"})
    info = json.loads(done["info"])
    assert info["negative_prompt"] == ""
    assert info["notes"] == ["negative_prompt: has no effect at cfg_scale 1"]


def test_long_prompts_are_read_piecewise(ann: Someone) -> None:
    info = json.loads(ann.post("txt2img", {**SMALL, "prompt": "a cat on a blue background, " * 30})["info"])
    assert info["dropped"] == [[]]


def test_pictures_only_where_they_are_asked_for(ann: Someone) -> None:
    """send_images, and save_images: what isn't saved isn't kept for /kotoe/v1."""
    for saved in (False, True):
        done = ann.post("txt2img", {**SMALL, "send_images": False, "save_images": saved})
        assert done["images"] == []
        found = ann.ask("GET", f"/kotoe/v1/jobs/{json.loads(done['info'])['job']}").json()
        assert found["kept"] is saved


def bomb(width: int, height: int) -> str:
    """A PNG of a few bytes that says it is huge."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 10_000)) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + body).decode()


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (bomb(60_000, 60_000), "hostile"),
        (bomb(4_000, 4_000), "damaged"),
        (b64(PICTURE)[:400], "damaged"),
        ("data:image/png;base64," + b64(PICTURE)[:400], "damaged"),
        ("data:image/svg+xml,<svg/>", "a data URL"),
        ("not base64!", "no base64"),
        (base64.b64encode(b"GIF89a" + bytes(50)).decode(), "is not a picture"),
        (base64.b64encode(b"<svg onload='x'/>").decode(), "is not a picture"),
        ("file:///etc/passwd", "no base64"),
    ],
    ids=["bomb", "empty", "truncated", "truncated data URI", "svg", "no base64", "gif", "text", "file"],
)
def test_pictures_that_are_none(ann: Someone, given: str, why: str) -> None:
    body = {**SMALL, "init_images": [given]}
    began = time.monotonic()
    found = ann.refused(body, "img2img")
    assert why in found
    assert "init_images" in found
    assert ann.refused({**body, "init_images": [b64(PICTURE)], "mask": given}, "img2img").startswith("mask")
    assert why in ann.refused({"image": given}, "png-info") or why == "damaged"  # its texts may be whole
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt", 5), ("prompt", ["a"]), ("prompt", None), ("steps", "20"), ("steps", 2.5), ("steps", True),
        ("width", [128]), ("cfg_scale", "7"), ("seed", {}), ("sampler_name", 3), ("styles", "oil"), ("styles", [1]),
        ("override_settings", []), ("send_images", "yes"), ("force_task_id", 7), ("alwayson_scripts", []),
        ("enable_hr", "no"), ("batch_size", None),
    ],
)  # fmt: skip
def test_wrong_types(ann: Someone, name: str, value: Any) -> None:
    assert ann.refused({**SMALL, name: value}).startswith(name)


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b"5", b'{"steps": NaN}', b'{"comments": {"a": Infinity}}', b'{"force_task_id": "\\ud800"}', b"\xff"],
)  # fmt: skip
def test_bodies_that_are_none(ann: Someone, body: bytes) -> None:
    answer = ann.ask("POST", "/sdapi/v1/txt2img", data=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert set(answer.json()) == {"error", "detail", "body", "errors"}


def test_whole_numbers_may_have_a_point(ann: Someone) -> None:
    assert json.loads(ann.post("txt2img", {**SMALL, "steps": 3.0})["info"])["steps"] == 3


def test_a_body_that_is_too_large(ann: Someone) -> None:
    answer = ann.ask("POST", "/sdapi/v1/img2img", {"init_images": ["A" * (5 * 2**20)]})
    assert answer.status_code == 413
    assert answer.json()["detail"] == "The body has more than 4 MB."


def test_keys(served: Served) -> None:
    for auth in (None, ("ann", KEYS["bob"]), ("", KEYS["ann"])):
        answer = requests.get(f"{served.url}/sdapi/v1/options", auth=auth, timeout=10)
        assert answer.status_code == 401
        assert answer.json()["error"] == "invalid_api_key"
        assert "Basic" in answer.headers["WWW-Authenticate"]
    bearer = {"Authorization": f"Bearer {KEYS['ann']}"}
    answer = requests.get(f"{served.url}/sdapi/v1/sd-models", headers=bearer, timeout=10)
    assert answer.status_code == 200
    assert float(answer.headers["X-Process-Time"]) >= 0


def test_paths_that_are_none(ann: Someone) -> None:
    assert ann.refused({}, "train/embedding", 404) == "Not Found"
    assert ann.refused({}, "samplers", 405) == "Method Not Allowed"


def test_the_description_has_the_errors(ann: Someone) -> None:
    paths = ann.ask("GET", "/openapi.json").json()["paths"]
    ours = [how for path, ways in paths.items() if path.startswith(("/sdapi/", "/internal/")) for how in ways.values()]
    assert len(ours) > 35
    for how in ours:
        assert {"400", "401", "403", "404", "408", "413", "429", "500", "503"} <= set(how["responses"])


# --- How much of it is repeated, and what text it is in


def test_notes_on_what_has_no_effect_are_counted_and_not_all_given(ann: Someone) -> None:
    many = {f"option {i}": i for i in range(25)}
    for body, word in (({**SMALL, **many}, "field"), ({**SMALL, "override_settings": many}, "option")):
        notes = json.loads(ann.post("txt2img", body)["info"])["notes"]
        assert len(notes) == 21
        assert notes[0].startswith(f"option 0: a{'n' if word == 'option' else ''} {word}")
        assert notes[20].startswith("and 5 more: a")
    notes = ann.post("options", many)["notes"]
    assert [notes[0][:10], notes[20][:11], len(notes)] == ["option 0: ", "and 5 more:", 21]
    pairs = ", ".join(f"Key {i}: {i}" for i in range(24))
    notes = json.loads(ann.post("txt2img", {**SMALL, "infotext": f"a\n{pairs}"})["info"])["notes"]
    assert notes[20:] == ["infotext: and 4 more notes on what is not taken over"]


@pytest.mark.parametrize("name", ["override_settings", "comments", "alwayson_scripts"])
def test_options_in_any_number_are_refused(ann: Someone, name: str) -> None:
    found = ann.refused({**SMALL, name: {f"k{i}": 0 for i in range(1001)}})
    assert "at most 1000" in found
    assert name in found
    assert len(found) < 500


def test_names_and_ids_have_a_length(ann: Someone) -> None:
    for name, most in (("sampler_name", 200), ("scheduler", 200), ("sampler_index", 200), ("force_task_id", 256)):
        found = ann.refused({**SMALL, name: "x" * (most + 1)})
        assert found.startswith(f"{name}: String should have at most {most} characters; given: 'xxx")
        assert len(found) < 300
    ann.post("txt2img", {**SMALL, "force_task_id": "x" * 256})


def test_one_error_is_made_of_any_number_of_wrong_things() -> None:
    """pydantic would make one of each, on the event loop."""
    halves = {f"\ud800{i}": 0 for i in range(500)}
    for body in ({"styles": [1] * 500}, {"init_images": [1] * 500}):
        with pytest.raises(ValidationError) as caught:
            Img2Img.model_validate(body)
        assert caught.value.error_count() == 1
    with pytest.raises(Refusal, match="no Unicode"):
        Img2Img.model_validate(halves)
    for name in ("override_settings", "comments", "alwayson_scripts"):
        with pytest.raises(Refusal, match="no Unicode"):
            plain(Img2Img.model_validate({name: halves}))
    Options.model_validate(halves)  # which are noted, escaped


def test_half_a_character_in_settings_breaks_nothing(ann: Someone) -> None:
    """JSON text within text may spell it, and no answer and no store can hold it."""
    text = 'a cat\nSteps: 2, Sampler: Euler, CFG scale: 2, Model: "x\\ud800", App: "y\\udc00"'
    file = png({"parameters": text})
    for saved in (False, True):
        done = ann.post("txt2img", {"infotext": text, "width": 128, "height": 128, "save_images": saved})
        notes = json.loads(done["info"])["notes"]
        assert "infotext: drawn by the model x\ufffd" in notes
    found = ann.post("png-info", {"image": base64.b64encode(file).decode()})
    assert found["parameters"]["Model"] == "x\ufffd"
    answer = ann.ask("POST", "/kotoe/v1/settings", data=file, headers={"Content-Type": "image/png"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["tool"] == "y\ufffd"
    assert "drawn by the model x\ufffd" in answer.json()["notes"]
