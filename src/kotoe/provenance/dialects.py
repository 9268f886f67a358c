"""Settings as ComfyUI, InvokeAI and NovelAI put them into pictures: JSON documents, as far as they leave no doubt.

Each reader takes the texts of a file by their keys and gives Settings, or None where the program's aren't there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kotoe.config import foreign_json
from kotoe.provenance.settings import Settings, Taking, shown

LONGEST_WAY = 32  # nodes between a sampler and its text
SAMPLER_NODES = {"KSampler": "seed", "KSamplerAdvanced": "noise_seed"}
TEXT_INPUTS = ("text", "value", "string", "prompt")


def _document(text: str | None) -> dict[str, Any] | None:
    try:
        found = None if text is None else foreign_json(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


# --- ComfyUI ----------------------------------------------------------------------------------------


def comfyui(texts: Mapping[str, str]) -> Settings | None:
    """Of the graph that ComfyUI ran: its one sampler, and the texts, sizes and model that lead to it."""
    nodes = _document(texts.get("prompt"))
    if nodes is None:
        return None
    graph = {
        key: node for key, node in nodes.items() if isinstance(node, dict) and isinstance(node.get("inputs"), dict)
    }
    if not any(isinstance(node.get("class_type"), str) for node in graph.values()):
        return None
    taking = Taking("ComfyUI")
    samplers = [node for node in graph.values() if node.get("class_type") in SAMPLER_NODES]
    if len(samplers) > 1:  # passes after one another: the first starts from nothing
        taking.note(f"the graph has {len(samplers)} samplers")
        samplers = [s for s in samplers if _kind(_linked(graph, s, "latent_image")).startswith("Empty")]
    if len(samplers) != 1:
        taking.note(f"settings are read from one sampler (KSampler), and {len(samplers)} come into question")
        return taking.done(texts["prompt"])
    inputs = samplers[0]["inputs"]
    for name, key, whole in (
        ("seed", SAMPLER_NODES[samplers[0]["class_type"]], True),
        ("steps", "steps", True),
        ("guidance_scale", "cfg", False),
    ):
        value = _value(graph, inputs.get(key))
        if value is not None:
            taking.number(name, value, key, whole=whole)
    schedule = _value(graph, inputs.get("scheduler"))
    taking.sampling(_value(graph, inputs.get("sampler_name")), schedule if isinstance(schedule, str) else "")
    for name, key in (("prompt", "positive"), ("negative_prompt", "negative")):
        text = _text(graph, inputs.get(key), key, taking)
        if text:
            taking.take(name, text)
    latent = _linked(graph, samplers[0], "latent_image")
    if latent is not None and _kind(latent).startswith("Empty"):
        for name in ("width", "height"):
            taking.number(name, _value(graph, latent["inputs"].get(name)), whole=True)
    else:
        taking.note("drawn from another picture, whose size and content have to be given")
        taking.number("strength", inputs.get("denoise"), "denoise")
    names = [n["inputs"].get("ckpt_name") for n in graph.values() if _kind(n).startswith("CheckpointLoader")]
    for model in filter(None, names):
        taking.note(f"drawn by the model {shown(model)}")
    for node in graph.values():
        if "lora" in _kind(node).lower():
            taking.left("LoRA", node["inputs"].get("lora_name", "?"), "has to be given")
    return taking.done(texts["prompt"])


def _kind(node: Mapping[str, Any] | None) -> str:
    kind = None if node is None else node.get("class_type")
    return kind if isinstance(kind, str) else ""


def _node(graph: Mapping[str, Any], link: Any) -> dict[str, Any] | None:
    """The node that a link [id, output] leads to."""
    if isinstance(link, list) and len(link) == 2 and isinstance(link[0], (str, int)):
        found = graph.get(str(link[0]))
        return found if isinstance(found, dict) else None
    return None


def _linked(graph: Mapping[str, Any], node: Mapping[str, Any], key: str) -> dict[str, Any] | None:
    return _node(graph, node["inputs"].get(key))


def _value(graph: Mapping[str, Any], given: Any) -> Any:
    """An input's value; that of a node that is nothing but a value, where it is a link."""
    for _ in range(LONGEST_WAY):
        if not isinstance(given, list):
            return given
        node = _node(graph, given)
        values = [] if node is None else [v for v in node["inputs"].values() if isinstance(v, (str, int, float, list))]
        if len(values) != 1:
            return None
        given = values[0]
    return None


def _text(graph: Mapping[str, Any], link: Any, name: str, taking: Taking) -> str:
    """The text at the end of a chain of nodes; "" where the chain branches, which is said."""
    for _ in range(LONGEST_WAY):
        node = _node(graph, link)
        if node is None:
            break
        inputs = node["inputs"]
        texts = [inputs[key] for key in TEXT_INPUTS if key in inputs]
        if len(texts) == 1 and isinstance(texts[0], str):
            return texts[0]
        links = texts or [inputs[key] for key in ("conditioning", name) if isinstance(inputs.get(key), list)]
        if len(links) != 1:
            break
        if _kind(node) == "ConditioningZeroOut":
            return ""
        if not texts:
            taking.note(f"{shown(_kind(node))} changes the {name} prompt and is not taken over")
        link = links[0]
    taking.note(f"the {name} prompt is not one text and is not taken over")
    return ""


# --- InvokeAI ---------------------------------------------------------------------------------------


def invokeai(texts: Mapping[str, str]) -> Settings | None:
    """Of `invokeai_metadata`. Its samplers are diffusers', on the grid of the model unless their names end in _k."""
    found = _document(texts.get("invokeai_metadata"))
    if found is None:
        return None
    taking = Taking("InvokeAI")
    for name, key in (("prompt", "positive_prompt"), ("negative_prompt", "negative_prompt")):
        if isinstance(found.get(key), str) and (found[key] or name == "prompt"):
            taking.take(name, found[key])
    for name, key, whole in (
        ("seed", "seed", True),
        ("steps", "steps", True),
        ("guidance_scale", "cfg_scale", False),
        ("width", "width", True),
        ("height", "height", True),
        ("strength", "strength", False),
    ):
        if found.get(key) is not None:
            taking.number(name, found[key], key, whole=whole)
    if found.get("cfg_rescale_multiplier"):
        taking.number("guidance_rescale", found["cfg_rescale_multiplier"], "cfg_rescale_multiplier")
    if "scheduler" in found:
        taking.sampling(found["scheduler"], guess=False)
    mode = found.get("generation_mode")
    if mode not in (None, "txt2img"):
        taking.left("generation_mode", mode, "was used: what it started from has to be given")
    if found.get("rand_device", "cpu") != "cpu":
        taking.note("its noise was not drawn on a processor, so the same seed draws another picture")
    if model := found.get("model"):
        taking.note(f"drawn by the model {shown(model.get('name', model) if isinstance(model, dict) else model)}")
    known = {"loras", "controlnets", "ipAdapters", "t2iAdapters", "clip_skip", "hrf_enabled", "refiner_model", "vae"}
    for key in sorted(known):
        if found.get(key):
            taking.left(key, found[key])
    return taking.done(texts["invokeai_metadata"])


# --- NovelAI ----------------------------------------------------------------------------------------


def novelai(texts: Mapping[str, str]) -> Settings | None:
    """Of NovelAI's `Comment`. Its weights are braces, which Kotoe reads as text."""
    found = _document(texts.get("Comment"))
    if found is None or texts.get("Software") != "NovelAI":
        return None
    taking = Taking("NovelAI")
    prompt = found.get("prompt", texts.get("Description"))
    if isinstance(prompt, str):
        taking.take("prompt", prompt)
        if any(mark in prompt for mark in "{}"):
            taking.note("the prompt's {braces} are NovelAI's weights, which Kotoe reads as text")
    if isinstance(found.get("uc"), str) and found["uc"]:
        taking.take("negative_prompt", found["uc"])
    for name, key, whole in (
        ("seed", "seed", True),
        ("steps", "steps", True),
        ("guidance_scale", "scale", False),
        ("width", "width", True),
        ("height", "height", True),
    ):
        if found.get(key) is not None:
            taking.number(name, found[key], key, whole=whole)
    if found.get("cfg_rescale"):
        taking.number("guidance_rescale", found["cfg_rescale"], "cfg_rescale")
    if "sampler" in found:
        schedule = found.get("noise_schedule", "")
        native = schedule in ("", "native", None)
        taking.sampling(found["sampler"], "" if native else schedule)
    if "img2img" in str(found.get("request_type", "")).lower():
        taking.note("drawn from another picture, which has to be given")
        taking.number("strength", found.get("strength"))
    taking.note("drawn by a model of NovelAI's")
    return taking.done(texts["Comment"])
