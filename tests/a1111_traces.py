"""What programs send to a server that speaks AUTOMATIC1111's API, and what they read of its answers.

Written down from their sources as the calls they make, in their order. In a body, "$name" is what an earlier call's
`keep` took under that name, and "*" puts a kept object's own keys in first. `needs` are paths into the answer:
"a.b", "[]" each of a list, "[0]" the first one, with a type, or a value that it must have.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Call:
    """One of a client's requests. until: it is repeated until the answer has these values."""

    method: str
    path: str
    body: Any = None
    needs: dict[str, Any] = field(default_factory=dict)
    keep: dict[str, str] = field(default_factory=dict)
    until: dict[str, Any] = field(default_factory=dict)


GET_OPTIONS = Call(
    method="GET", path="/sdapi/v1/options", needs={"sd_model_checkpoint": str}, keep={"options": ""}
)  # fmt: skip
MODELS = Call(
    method="GET", path="/sdapi/v1/sd-models", needs={"[].title": str, "[].model_name": str},
    keep={"first": "[0].title", "second": "[1].title"},
)  # fmt: skip
IDLE = Call(
    method="GET", path="/sdapi/v1/progress", needs={"progress": (int, float), "state.job_count": int},
    until={"progress": 0, "state.job_count": 0},
)  # fmt: skip

TRACES: dict[str, list[Call]] = {
    # The administrator's page asks for the options and the models; choosing one sends all options back.
    "Open WebUI": [
        GET_OPTIONS,
        MODELS,
        Call(method="GET", path="/sdapi/v1/samplers", needs={"[].name": str}),
        Call(method="GET", path="/sdapi/v1/schedulers", needs={"[].name": str, "[].label": str}),
        GET_OPTIONS,
        Call(
            method="POST", path="/sdapi/v1/options", body={"*": "options", "sd_model_checkpoint": "$second"},
        ),
        Call(method="GET", path="/sdapi/v1/options", needs={"sd_model_checkpoint": "$second"}),
        Call(method="POST", path="/sdapi/v1/options", body={"*": "options", "sd_model_checkpoint": "$first"}),
        Call(
            method="POST",
            path="/sdapi/v1/txt2img",
            body={
                "prompt": "青い背景に猫", "batch_size": 2, "width": 128, "height": 128, "steps": 4,
                "negative_prompt": "犬",
            },
            needs={"images.[]": str, "info": str, "images.len": 2},
        ),
        Call(
            method="POST",
            path="/sdapi/v1/txt2img",
            body={
                "prompt": "a cat", "batch_size": 1, "width": 128, "height": 128, "cfg_scale": 3.0,
                "sampler_name": "DPM++ 2M", "scheduler": "Karras",
            },
            needs={"images.len": 1, "info": str, "parameters.sampler_name": "DPM++ 2M"},
        ),
    ],
    # Its settings' lists, a model chosen and waited for, a picture, and the interrupt of a closed page.
    "SillyTavern": [
        Call(method="GET", path="/sdapi/v1/options", needs={"sd_model_checkpoint": str}),
        Call(method="GET", path="/sdapi/v1/upscalers", needs={"[].name": str}),
        Call(method="GET", path="/sdapi/v1/latent-upscale-modes", needs={"": list}),
        Call(method="GET", path="/sdapi/v1/sd-vae", needs={"": list}),
        Call(method="GET", path="/sdapi/v1/samplers", needs={"[].name": str}),
        Call(method="GET", path="/sdapi/v1/schedulers", needs={"[].name": str}),
        MODELS,
        Call(method="POST", path="/sdapi/v1/options", body={"sd_model_checkpoint": "$first"}),
        IDLE,
        Call(
            method="POST",
            path="/sdapi/v1/txt2img",
            body={
                "prompt": "a cat, best quality", "negative_prompt": "worst quality", "sampler_name": "Euler a",
                "scheduler": "Automatic", "steps": 4, "cfg_scale": 7, "width": 128, "height": 128,
                "restore_faces": False, "enable_hr": False, "hr_upscaler": "Latent", "hr_scale": 2,
                "hr_additional_modules": [], "denoising_strength": 0.7, "hr_second_pass_steps": 0, "seed": 11,
                "override_settings": {
                    "CLIP_stop_at_last_layers": 1, "sd_vae": "Automatic", "forge_additional_modules": [],
                },
                "override_settings_restore_afterwards": True, "clip_skip": 1, "save_images": True,
                "send_images": True, "do_not_save_grid": False, "do_not_save_samples": False,
            },
            needs={"images.[0]": str, "images.len": 1},
        ),
        Call(method="POST", path="/sdapi/v1/interrupt", body={}),
        IDLE,
    ],
    # The model goes with each request.
    "Dify": [
        MODELS,
        Call(method="GET", path="/sdapi/v1/samplers", needs={"[].name": str}),
        Call(
            method="POST",
            path="/sdapi/v1/txt2img",
            body={
                "prompt": "a cat", "negative_prompt": "", "steps": 4, "width": 128, "height": 128, "batch_size": 1,
                "seed": -1, "cfg_scale": 7, "sampler_name": "DPM++ 2M Karras",
                "override_settings": {"sd_model_checkpoint": "$first"},
            },
            needs={"images.[0]": str},
        ),
    ],
    "KoboldCpp": [
        MODELS,
        Call(method="GET", path="/sdapi/v1/options", needs={"samples_format": str, "sd_model_checkpoint": str}),
        Call(
            method="POST",
            path="/sdapi/v1/txt2img",
            body={
                "prompt": "a cat", "sampler_name": "k_euler_a", "batch_size": 1, "n": 1, "steps": 4, "cfg_scale": 7,
                "width": 128, "height": 128, "seed": -1, "negative_prompt": "", "do_not_save_grid": True,
                "do_not_save_samples": True, "enable_hr": False, "eta": 1, "s_churn": 0, "s_tmax": 0, "s_tmin": 0,
                "s_noise": 1,
            },
            needs={"images.[0]": str},
        ),
    ],
}  # fmt: skip


def at(document: Any, path: str) -> list[Any]:
    """What is found at a path: one thing, or with "[]" any number. "len" is a list's length."""
    found = [document]
    for step in filter(None, path.split(".")):
        if step == "[]":
            found = [each for one in found for each in one]
        elif step.startswith("["):
            found = [one[int(step[1:-1])] for one in found]
        elif step == "len":
            found = [len(one) for one in found]
        else:
            found = [one[step] for one in found]
    return found


def filled(body: Any, kept: dict[str, Any]) -> Any:
    """A body with what was kept in its places."""
    if isinstance(body, dict):
        own = {key: filled(value, kept) for key, value in body.items() if key != "*"}
        return {**(kept[body["*"]] if "*" in body else {}), **own}
    return kept[body[1:]] if isinstance(body, str) and body.startswith("$") else body
