"""Settings in pictures: what Kotoe writes as `parameters`, and what it makes of other programs' pictures."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kotoe import images
from kotoe.config import GRID_NAMES, SAMPLER_NAMES, Request, dumps, from_json
from kotoe.errors import UserError
from kotoe.provenance.encode import FORMATS, encode
from kotoe.provenance.infotext import LONGEST_LINE, from_infotext, infotext, parsed, read_settings, settings_in
from kotoe.provenance.names import apart, grid_of, sampler_of
from kotoe.record import AdapterRecord, Record
from pictures import RECORD, drawn, png, scene

# --- Writing


def test_the_text_is_laid_out_as_documented() -> None:
    assert infotext(RECORD).split("\n") == [
        "青い背景に猫",
        "Negative prompt: 犬",
        "Steps: 10, Sampler: DDIM, Schedule type: Simple, CFG scale: 2.5, Seed: 7, Size: 128x128, Model hash: "
        "3a3a3a3a3a, Model: kotoe-emoji, RNG: CPU, Language: ja, Version: kotoe-0.1.0",
    ]


def test_values_with_marks_are_quoted_and_keep_their_script() -> None:
    model = replace(RECORD.model, name='猫, "the":\nbest')
    text = infotext(replace(RECORD, model=model, negative_prompt=""))
    assert 'Model: "猫, \\"the\\":\\nbest", ' in text
    assert "Negative" not in text
    assert parsed(text)[2]["Model"] == model.name
    lora = AdapterRecord(name="a.safetensors", kind="lora", sha256="9" * 64, weight=0.5)
    text = infotext(replace(RECORD, adapters=(lora,), emphasis="no-norm", strength=0.75, eta=0.5))
    assert 'Lora hashes: "a.safetensors: 999999999999"' in text
    for part in ("Denoising strength: 0.75", "Eta: 0.5", "Emphasis: No norm"):
        assert part in text


@given(
    prompt=st.text(max_size=200),
    negative=st.text(max_size=100),
    seed=st.integers(0, 2**32 - 1),
    sampler=st.sampled_from(SAMPLER_NAMES),
    grid=st.sampled_from([g for g in GRID_NAMES if not g.startswith("kerascv")]),
    scale=st.sampled_from([0.0, 1.5, 7.0, 12.25]),
)
def test_what_is_written_is_read(prompt: str, negative: str, seed: int, sampler: str, grid: str, scale: float) -> None:
    """But for white space at the ends of lines, and lines that look like the layout's own."""
    prompt, negative = (
        "\n".join(line.strip() for line in text.split("\n") if "prompt:" not in line).strip()
        for text in (prompt, negative)
    )
    record = replace(
        RECORD, prompt=prompt, negative_prompt=negative, seed=seed, sampler=sampler, grid=grid, guidance_scale=scale
    )
    found = from_infotext(infotext(record))
    assert found is not None
    assert found.tool == "Kotoe"
    expected = {
        "prompt": prompt, "negative_prompt": negative, "seed": seed, "sampler": sampler, "grid": grid, "steps": 10,
        "width": 128, "height": 128, "guidance_scale": scale, "emphasis": None,
    }  # fmt: skip
    assert {key: found.request.get(key, "" if key == "negative_prompt" else None) for key in expected} == expected
    assert not [note for note in found.notes if "drawn by the model" not in note]


# --- In files


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("prompt", ["a cat", "Käse", "青い背景に猫 😀\nと犬"])
def test_every_format_carries_all_texts(format: Any, prompt: str) -> None:
    picture = drawn(prompt=prompt)
    content = encode(picture, format=format)
    with Image.open(BytesIO(content)) as image:
        assert image.format == format.upper()
        image.load()
        texts = images.texts(image)  # of an open picture
        assert images.texts(image.copy()) == texts
    assert texts == images.texts(content)
    assert texts["parameters"] == infotext(picture.record)
    assert from_json(Record, json.loads(texts["kotoe"])) == picture.record
    found = read_settings(content)
    assert found.record == picture.record
    assert found.request["prompt"] == prompt


def test_a_png_keeps_its_pixels_and_pillows_rule_for_texts() -> None:
    for prompt, kind in (("Käse", b"tEXtparameters"), ("猫", b"iTXtparameters")):
        content = encode(drawn(prompt=prompt, negative_prompt=""))
        assert kind in content
        with Image.open(BytesIO(content)) as image:
            assert image.convert("RGB").tobytes() == scene().tobytes()


@pytest.mark.parametrize("format", FORMATS)
def test_the_digest_is_of_what_a_reader_sees(format: Any) -> None:
    content = encode(drawn(), format=format)
    digest = json.loads(images.texts(content)["kotoe-digest"])
    with Image.open(BytesIO(content)) as image:
        assert digest["pixels_sha256"] == images.pixels_sha256(image)


def test_a_record_too_long_for_jpeg_is_refused() -> None:
    long = drawn(prompt="猫" * 20_000)
    with pytest.raises(UserError, match="too many for a JPEG"):
        encode(long, format="jpeg")
    assert read_settings(encode(long, format="webp")).request["prompt"] == "猫" * 20_000
    assert encode(drawn(prompt="猫" * 10_000), format="jpeg")


def test_wrong_formats_are_refused() -> None:
    for how, message in (({"format": "gif"}, "format 'gif'"), ({"quality": 0}, "quality 0. Allowed: 1 to 100")):
        with pytest.raises(UserError, match=message):
            encode(drawn(), **how)


# --- Names


def test_every_sampler_and_grid_comes_back() -> None:
    from kotoe.provenance.names import SAMPLERS, SCHEDULES

    assert set(SAMPLERS) == set(SAMPLER_NAMES)
    assert set(SCHEDULES) == {g for g in GRID_NAMES if not g.startswith("kerascv")}
    assert all(sampler_of(theirs) == ours for ours, theirs in SAMPLERS.items())
    assert all(grid_of(theirs) == ours for ours, theirs in SCHEDULES.items())


@pytest.mark.parametrize(
    ("given", "sampler", "grid"),
    [
        ("DPM++ 2M Karras", "dpmpp_2m", "karras"),
        ("DPM++ 2M", "dpmpp_2m", "linspace"),
        ("Euler a", "euler_ancestral", "linspace"),
        ("k_euler_ancestral", "euler_ancestral", "linspace"),
        ("euler_a karras", "euler_ancestral", "karras"),
        ("dpm++2m", "dpmpp_2m", "linspace"),
        ("dpmpp_2m_sde_k", "dpmpp_2m_sde", "karras"),
        ("uni_pc", "unipc", "leading"),
        ("DDIM", "ddim", "leading"),
        ("ddim_trailing", "ddim", "trailing"),
        ("LMS Karras", "lms", "karras"),
        ("DPM++ 2M Exponential", "dpmpp_2m", None),
        ("Restart", None, None),
    ],
)
def test_names_of_other_programs(given: str, sampler: str | None, grid: str | None) -> None:
    name, tail = apart(given)
    assert sampler_of(name) == sampler
    if sampler is not None:
        assert grid_of(tail, sampler) == grid


# --- AUTOMATIC1111 and those that write as it does

A1111 = """a (red:1.2) cat,
watercolour <lora:paint:0.8>
Negative prompt: blurry,
dog
Steps: 28, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 1234567890, Size: 512x768, \
Model hash: 6ce0161689, Model: v1-5-pruned, Denoising strength: 0.6, Clip skip: 2, \
Lora hashes: "paint: 0123456789ab, ink: ba9876543210", Version: v1.10.1"""


def test_a1111() -> None:
    found = read_settings(png({"parameters": A1111}))
    assert found.tool == "AUTOMATIC1111"
    assert found.request == {
        "prompt": "a (red:1.2) cat,\nwatercolour <lora:paint:0.8>", "negative_prompt": "blurry,\ndog", "steps": 28,
        "sampler": "dpmpp_2m", "grid": "karras", "guidance_scale": 6.5, "seed": 1234567890, "width": 512,
        "height": 768, "strength": 0.6,
    }  # fmt: skip
    notes = "\n".join(found.notes)
    for part in ("<lora:...>", "v1-5-pruned 6ce0161689", "not drawn on a processor", "Clip skip '2'", "Lora hashes"):
        assert part in notes
    assert found.record is None
    Request(**{**found.request, "init_image": "a.png"})


def test_a1111_in_exif() -> None:
    for format in ("JPEG", "WEBP"):
        for order in ("utf-16-be", "utf-16-le"):
            exif, file = Image.Exif(), BytesIO()
            exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + ("猫\n" + A1111).encode(order)
            scene().save(file, format, exif=exif)
            found = read_settings(file.getvalue())
            assert found.request["prompt"].startswith("猫\na (red:1.2) cat")
            assert found.request["seed"] == 1234567890


def test_a_second_pass_keeps_its_strength() -> None:
    text = "a cat\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Denoising strength: 0.7, Hires upscale: 2"
    found = from_infotext(text)
    assert found is not None
    assert "strength" not in found.request
    assert "second pass" in "\n".join(found.notes)
    assert "Hires upscale" in "\n".join(found.notes)


def test_what_a_request_refuses_is_said_and_left() -> None:
    found = from_infotext("a cat\nSteps: 0, Sampler: Restart, CFG scale: x, Seed: -1, Size: 99999x64, Schedule type: a")
    assert found is not None
    assert found.request == {"prompt": "a cat", "height": 64}
    notes = "\n".join(found.notes)
    for part in ("Steps is not taken over: steps 0", "sampler 'Restart'", "CFG scale 'x'", "seed -1", "width 99999"):
        assert part in notes
    found = from_infotext("a\nNegative prompt: b\nSteps: 5, CFG scale: 1, Seed: 2")
    assert found is not None
    assert "negative_prompt" not in found.request
    assert "without guidance" in "\n".join(found.notes)


@pytest.mark.parametrize("text", ["", "a cat", "a cat\nSteps: 20, Seed: 7", "one: two, three", "\n\n"])
def test_other_texts_are_no_settings(text: str) -> None:
    assert from_infotext(text) is None
    with pytest.raises(UserError, match="holds no settings"):
        read_settings(png({"parameters": text, "Comment": "hello"}))


def test_stable_diffusion_cpp_writes_utf8_where_latin1_belongs() -> None:
    text = (
        "青い背景に猫\nNegative prompt: 犬\nSteps: 20, CFG scale: 7.000000, Guidance: 3.5, Seed: 42, Size: 512x512, "
        "Model: sd.safetensors, RNG: cuda, Sampler: euler_a karras, VAE: , Version: stable-diffusion.cpp"
    )
    found = read_settings(png({"parameters": text}, raw=True))
    assert found.tool == "stable-diffusion.cpp"
    assert found.request["prompt"] == "青い背景に猫"
    assert (found.request["sampler"], found.request["grid"]) == ("euler_ancestral", "karras")
    assert "Guidance" in "\n".join(found.notes)
    latin = read_settings(png({"parameters": "Käse\nSteps: 1, Seed: 2, CFG scale: 3"}))  # true Latin-1 stays
    assert latin.request["prompt"] == "Käse"


# --- ComfyUI

GRAPH: dict[str, Any] = {
    "3": {"class_type": "KSampler", "inputs": {"seed": 8566257, "steps": 20, "cfg": 8, "sampler_name": "dpmpp_2m",
          "scheduler": "karras", "denoise": 1, "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0],
          "latent_image": ["5", 0]}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 640, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "青い背景に猫", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "犬", "clip": ["4", 1]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
}  # fmt: skip
FROM_GRAPH = {
    "seed": 8566257, "steps": 20, "guidance_scale": 8.0, "sampler": "dpmpp_2m", "grid": "karras",
    "prompt": "青い背景に猫", "negative_prompt": "犬", "width": 512, "height": 640,
}  # fmt: skip


def graph(**change: dict[str, Any]) -> dict[str, Any]:
    """GRAPH with inputs of nodes n3, n6, ... changed, and nodes added where there are none."""
    found = json.loads(json.dumps(GRAPH))
    for name, inputs in change.items():
        node = found.setdefault(name[1:], {"class_type": inputs.get("class_type", ""), "inputs": {}})
        node["inputs"] |= {key: value for key, value in inputs.items() if key != "class_type"}
    return found


def test_comfyui() -> None:
    found = read_settings(png({"prompt": json.dumps(GRAPH), "workflow": "{}"}))
    assert found.tool == "ComfyUI"
    assert found.request == FROM_GRAPH
    assert found.notes == ("drawn by the model 'v1-5.safetensors'",)
    file, exif = BytesIO(), Image.Exif()
    exif[0x0110] = "prompt:" + json.dumps(GRAPH)
    scene().save(file, "WEBP", exif=exif)
    assert read_settings(file.getvalue()).request == FROM_GRAPH


def test_comfyui_texts_through_other_nodes() -> None:
    through = graph(
        n6={"text": ["10", 0]}, n10={"class_type": "PrimitiveString", "value": "a cat"},
        n3={"negative": ["11", 0], "seed": ["12", 0]},
        n11={"class_type": "ConditioningZeroOut", "conditioning": ["6", 0]},
        n12={"class_type": "PrimitiveInt", "value": 5},
    )  # fmt: skip
    found = read_settings(png({"prompt": json.dumps(through)}))
    assert found.request["prompt"] == "a cat"
    assert found.request["seed"] == 5
    assert "negative_prompt" not in found.request
    both = graph(
        n3={"positive": ["10", 0]},
        n10={"class_type": "ConditioningCombine", "conditioning_1": ["6", 0], "conditioning_2": ["7", 0]},
    )
    found = read_settings(png({"prompt": json.dumps(both)}))
    assert "prompt" not in found.request
    assert "the positive prompt is not one text" in "\n".join(found.notes)
    assert found.request["seed"] == 8566257
    held = graph(
        n3={"positive": ["10", 0]},
        n10={"class_type": "ControlNetApplyAdvanced", "positive": ["6", 0], "negative": ["7", 0], "image": ["8", 0]},
    )
    found = read_settings(png({"prompt": json.dumps(held)}))
    assert found.request["prompt"] == "青い背景に猫"
    assert "ControlNetApplyAdvanced" in "\n".join(found.notes)


def test_comfyui_where_it_is_in_doubt() -> None:
    second = {**GRAPH["3"]["inputs"], "class_type": "KSampler", "latent_image": ["3", 0], "seed": 1}
    found = read_settings(png({"prompt": json.dumps(graph(n9=second))}))
    assert found.request["seed"] == 8566257  # the pass that starts from nothing
    assert "2 samplers" in "\n".join(found.notes)
    found = read_settings(png({"prompt": json.dumps(graph(n9={**second, "latent_image": ["5", 0]}))}))
    assert found.request == {}
    assert "2 come into question" in "\n".join(found.notes)
    from_picture = graph(
        n3={"latent_image": ["9", 0], "denoise": 0.6}, n9={"class_type": "VAEEncode", "pixels": ["1", 0]}
    )
    found = read_settings(png({"prompt": json.dumps(from_picture)}))
    assert found.request["strength"] == 0.6
    assert "width" not in found.request
    loop = graph(n3={"positive": ["10", 0]}, n10={"class_type": "X", "conditioning": ["10", 0]})
    assert "prompt" not in read_settings(png({"prompt": json.dumps(loop)})).request


# --- InvokeAI, NovelAI


def test_invokeai() -> None:
    document = {
        "generation_mode": "img2img", "positive_prompt": "青い背景に猫", "negative_prompt": "", "width": 512,
        "height": 512, "seed": 99, "rand_device": "cuda", "cfg_scale": 7.5, "cfg_rescale_multiplier": 0.5, "steps": 30,
        "scheduler": "dpmpp_2m_k", "model": {"name": "juggernaut", "hash": "blake3:0"}, "strength": 0.7,
        "loras": [{"model": {"name": "x"}, "weight": 1}],
    }  # fmt: skip
    found = read_settings(png({"invokeai_metadata": json.dumps(document, ensure_ascii=False)}))
    assert found.tool == "InvokeAI"
    assert found.request == {
        "prompt": "青い背景に猫", "seed": 99, "steps": 30, "guidance_scale": 7.5, "width": 512, "height": 512,
        "strength": 0.7, "guidance_rescale": 0.5, "sampler": "dpmpp_2m", "grid": "karras",
    }  # fmt: skip
    notes = "\n".join(found.notes)
    for part in ("juggernaut", "not drawn on a processor", "loras", "generation_mode 'img2img'"):
        assert part in notes
    plain = read_settings(png({"invokeai_metadata": json.dumps({**document, "scheduler": "euler_a"})}))
    assert plain.request["sampler"] == "euler_ancestral"
    assert "grid" not in plain.request  # its model's own, which isn't said


def test_novelai() -> None:
    comment = {"prompt": "{cat}", "uc": "dog", "steps": 28, "scale": 5.0, "seed": 3, "width": 832, "height": 1216,
               "sampler": "k_euler_ancestral", "noise_schedule": "karras", "strength": 0.7}  # fmt: skip
    texts = {"Software": "NovelAI", "Description": "{cat}", "Comment": json.dumps(comment)}
    found = read_settings(png(texts))
    assert found.tool == "NovelAI"
    assert found.request == {
        "prompt": "{cat}", "negative_prompt": "dog", "steps": 28, "guidance_scale": 5.0, "seed": 3, "width": 832,
        "height": 1216, "sampler": "euler_ancestral", "grid": "karras",
    }  # fmt: skip
    assert "braces" in "\n".join(found.notes)


# --- Kotoe's own


def test_kotoes_record_comes_first_and_gives_a_request() -> None:
    content = encode(drawn(grid="kerascv", strength=0.5, init_image="a.png", guidance_stop=0.5))
    found = read_settings(content)
    assert found.tool == "Kotoe"
    assert found.request["grid"] == "kerascv"
    assert found.request["language"] == "ja"
    assert found.request["guidance_stop"] == 0.5
    assert "cache_interval" not in found.request  # as usual
    assert "drawn from another picture" in "\n".join(found.notes)
    Request(**{**found.request, "init_image": "a.png"})


def test_a_forged_record_is_no_record() -> None:
    forged = {**json.loads(dumps(RECORD)), "steps": 0}
    found = read_settings(png({"kotoe": json.dumps(forged), "parameters": infotext(RECORD)}))
    assert found.record is None
    assert found.request["steps"] == 10


# --- Garbage

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
keys = st.sampled_from(["parameters", "kotoe", "prompt", "invokeai_metadata", "Comment", "Software"])


def survives(content: bytes) -> None:
    try:
        found = read_settings(content)
    except UserError:
        return
    request = {k: v for k, v in found.request.items() if k != "strength"}
    Request(**{"prompt": "", **request})
    dumps(request)
    assert all(isinstance(note, str) and len(note) < 2000 for note in found.notes)


@settings(max_examples=150)
@given(st.dictionaries(keys, st.text(max_size=300) | anything.map(json.dumps), max_size=3))
def test_any_texts_are_survived(texts: dict[str, str]) -> None:
    texts = {k: v.encode("utf-8", "replace").decode() for k, v in texts.items()}
    survives(png({"Software": "NovelAI", **texts}))


@settings(max_examples=150)
@given(st.data())
def test_any_graph_is_survived(data: st.DataObject) -> None:
    wild = json.loads(json.dumps(GRAPH))
    for _ in range(3):
        node = data.draw(st.sampled_from(sorted(wild)))
        if isinstance(wild[node], dict) and isinstance(wild[node].get("inputs"), dict):
            link = st.tuples(st.sampled_from(sorted(wild)), st.integers(0, 2)).map(list)
            name = data.draw(st.sampled_from(sorted(wild[node]["inputs"]) or ["x"]))
            wild[node]["inputs"][name] = data.draw(anything | link)
        if data.draw(st.booleans()):
            wild[node] = data.draw(anything | st.just(wild[node]))
    survives(png({"prompt": json.dumps(wild)}))
    survives(png({"invokeai_metadata": json.dumps(data.draw(st.dictionaries(
        st.sampled_from(["positive_prompt", "seed", "steps", "cfg_scale", "scheduler", "model", "width", "strength"]),
        anything)))}))  # fmt: skip


@settings(max_examples=60)
@given(st.sampled_from(FORMATS), st.data())
def test_damaged_files_are_survived(format: Any, data: st.DataObject) -> None:
    content = bytearray(encode(drawn(), format=format))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    survives(bytes(content[: data.draw(st.integers(1, len(content)))]))


def test_long_lines_take_no_quadratic_time() -> None:
    began = time.process_time()
    for line in (" " * LONGEST_LINE, "ab " * (LONGEST_LINE // 3), 'ab:"x,' * (LONGEST_LINE // 6), "a:" * 30_000):
        from_infotext("a cat\n" + line)
        from_infotext("a cat\n" + line + ", ab: c, bc: d, cd: e")
    assert time.process_time() - began < 5
    with pytest.raises(UserError, match="holds no settings"):
        read_settings(png({"parameters": "x" * 2**21 + "\nSteps: 1, Seed: 2, CFG scale: 3"}))
    deep = "[" * 100_000
    for key in ("prompt", "invokeai_metadata", "kotoe", "Comment"):
        with pytest.raises(UserError, match="holds no settings"):
            read_settings(png({key: deep, "Software": "NovelAI"}))


# --- Text that is none

HALVES = st.lists(st.sampled_from([*"\ud800\udc00\ud83d猫😀a,"]), max_size=6).map("".join)
FOREIGN = st.recursive(
    st.integers(0, 30) | HALVES | st.just("img2img"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(HALVES, inner, max_size=3),
    max_leaves=6,
)


def with_halves(data: st.DataObject, document: dict[str, Any]) -> str:
    """JSON text of a document of which some values, and some keys, became others."""
    for name in data.draw(st.lists(st.sampled_from(sorted(document)), max_size=4)):
        document[name] = data.draw(FOREIGN)
    return json.dumps(document | data.draw(st.dictionaries(HALVES, FOREIGN, max_size=2)))


@settings(max_examples=200)
@given(st.data())
def test_no_text_that_is_read_has_half_a_character(data: st.DataObject) -> None:
    """JSON spells lone surrogates, which neither SQLite nor an answer in UTF-8 can hold, in every dialect."""
    own = json.loads(dumps(RECORD))
    own["model"]["name"] = data.draw(HALVES)
    nodes = json.loads(json.dumps(GRAPH))
    nodes["6"]["inputs"]["text"], nodes["4"]["inputs"]["ckpt_name"] = data.draw(HALVES), data.draw(HALVES)
    nodes["8"]["class_type"], nodes["8"]["inputs"]["lora_name"] = data.draw(HALVES) + "lora", data.draw(FOREIGN)
    invoke = dict.fromkeys(("positive_prompt", "model", "scheduler", "loras", "generation_mode", "seed", "vae"), "x")
    novel = dict.fromkeys(("prompt", "uc", "sampler", "noise_schedule", "seed", "request_type"), "x")
    quoted = json.dumps(data.draw(HALVES))
    for texts in (
        {"kotoe": json.dumps(own)},
        {"prompt": json.dumps(nodes)},
        {"invokeai_metadata": with_halves(data, invoke)},
        {"Comment": with_halves(data, novel), "Software": "NovelAI"},
        {"parameters": f"a\nSteps: 1, Sampler: {quoted}, Seed: 2, Model: {quoted}, App: {quoted}, Other: {quoted}"},
        {"parameters": f"{data.draw(HALVES)}\nSteps: 1, Seed: 2, Model: {data.draw(HALVES)}, CFG scale: 2"},
    ):
        try:
            found = settings_in(texts)
        except UserError:
            continue
        dumps([found.tool, found.request, found.notes, found.record, found.text]).encode()
        dumps(parsed(texts.get("parameters", ""))).encode()


def test_half_a_character_is_read_as_the_mark_for_it() -> None:
    found = from_infotext('a\nSteps: 2, Sampler: Euler, CFG scale: 2, Model: "x\\ud800", VAE: "\\ud83d\\ude00"')
    assert found is not None
    assert "drawn by the model x\ufffd" in found.notes
    assert parsed(found.text)[2]["VAE"] == "😀"  # two halves in JSON are one
    found = read_settings(png({"prompt": json.dumps(graph(n6={"text": "a \ud83d cat 😀"}))}))
    assert found.request["prompt"] == "a \ufffd cat 😀"
