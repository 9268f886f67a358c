"""Each published model's own scheduler settings draw stock diffusers' latents, from words and from a picture.

The settings are those of the folders that Kotoe was made for; the weights are tiny and random. The stock side is the
real pipeline. diffusers starts from a sample of the picture's posterior and Kotoe from its mean (T7), so that here the
stock pipeline is handed that mean's latent.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from kotoe import drawing as g
from kotoe.checkpoints import Bundle, load
from kotoe.config import Request, dumps, from_json
from kotoe.drawing import replay
from kotoe.errors import UserError
from kotoe.images import to_tensor
from kotoe.record import Record
from kotoe.rng import generator
from kotoe.schedule import sigma_to_t, walk
from seeds import BETAS
from tiny import apart, edit, latents_decoded, pictures, saved_tiny

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

TOLERANCE = 5e-5  # of the largest latent, where 1e-3 is promised; measured: 4e-7 to 5e-6
PROMPT, NEGATIVE, SEED, SCALE = "a red cat on a dog!", "an owl", 7, 3.0

OLD = {**BETAS, "trained_betas": None}
SD1 = {**OLD, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "clip_sample": False}
DPM = {**SD1, "prediction_type": "epsilon", "algorithm_type": "dpmsolver++", "solver_order": 2}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "rinna": ("LMSDiscreteScheduler", {**OLD, "prediction_type": "epsilon", "_diffusers_version": "0.8.1"}),
    "svjack": ("LMSDiscreteScheduler", {**OLD, "clip_sample": False, "_diffusers_version": "0.6.0"}),
    "sd1.4": ("PNDMScheduler", {**SD1, "_diffusers_version": "0.7.0.dev0"}),
    "cool japan as ddim": ("DDIMScheduler", {**SD1, "prediction_type": "epsilon", "_diffusers_version": "0.8.0"}),
    "cool japan as pndm": ("PNDMScheduler", {**SD1, "prediction_type": "epsilon", "_diffusers_version": "0.8.0"}),
    "bingsu": ("EulerAncestralDiscreteScheduler", {**SD1, "_diffusers_version": "0.6.0"}),
    "dpm++": ("DPMSolverMultistepScheduler", DPM),
    "dpm++ leading": ("DPMSolverMultistepScheduler", {**DPM, "timestep_spacing": "leading"}),
    "dpm++ karras": ("DPMSolverMultistepScheduler", {**DPM, "use_karras_sigmas": True}),
    "dpm++ sde": ("DPMSolverMultistepScheduler", {**DPM, "algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", SD1),
    "unipc leading": ("UniPCMultistepScheduler", {**SD1, "timestep_spacing": "leading"}),
    "ddim linspace": ("DDIMScheduler", {**SD1, "timestep_spacing": "linspace"}),
    "pndm linspace": ("PNDMScheduler", {**SD1, "timestep_spacing": "linspace", "set_alpha_to_one": True}),
    "ddim trailing": ("DDIMScheduler", {**SD1, "timestep_spacing": "trailing"}),
    "pndm trailing": ("PNDMScheduler", {**SD1, "timestep_spacing": "trailing"}),
    "heun": ("HeunDiscreteScheduler", SD1),
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = saved_tiny(tmp_path_factory.mktemp("tiny") / "m")
    (folder / "kotoe.json").unlink()  # published folders have none
    return folder


def folder_of(original: Path, name: str) -> Path:
    """The tiny folder with the scheduler of that name."""
    kind, config = SETTINGS[name]
    (original / "scheduler/scheduler_config.json").write_text(json.dumps({"_class_name": kind, **config}))
    edit(original / "model_index.json", scheduler=["diffusers", kind])
    return original


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return Path(pictures(tmp_path)["photo"])


def ours(bundle: Bundle, **changes: Any) -> Tensor:
    """The latents (1, C, h, w) of unit variance that Kotoe hands to the autoencoder."""
    asked = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "language": "en", "seed": SEED, "guidance_scale": SCALE}
    with latents_decoded() as ends:
        g.generate(bundle, Request(**{**asked, **changes}))
    return ends[-1]


def theirs(pipe: Any, **asked: Any) -> Tensor:
    """The stock pipeline's latents; its generator draws the starting noise and then that of each step."""
    pipe.set_progress_bar_config(disable=True)
    found: Tensor = pipe(
        PROMPT,
        negative_prompt=NEGATIVE,
        guidance_scale=SCALE,
        generator=[generator(SEED)],
        output_type="latent",
        **asked,
    ).images
    return found


@pytest.mark.parametrize("steps", [20, 30])
@pytest.mark.parametrize("name", SETTINGS)
def test_from_words(name: str, steps: int, original: Path) -> None:
    folder = folder_of(original, name)
    expected = theirs(StableDiffusionPipeline.from_pretrained(folder), num_inference_steps=steps)
    bundle = load(folder, dtype="float32")
    assert not any("other pictures" in note for note in bundle.notes)
    assert apart(ours(bundle, steps=steps), expected) < TOLERANCE
    # the faults: another ending, another grid, another seed, another sampler
    for fault in ({"grid": "karras" if "karras" not in name else "linspace"}, {"seed": 8}, {"sampler": "euler"}):
        assert apart(ours(bundle, steps=steps, **fault), expected) > 10 * TOLERANCE, fault
    if bundle.schedule.sampler in ("ddim", "pndm"):
        other = "zero" if not bundle.schedule.set_alpha_to_one else "legacy"
        assert apart(ours(bundle, steps=steps, ending=other), expected) > 10 * TOLERANCE


@pytest.mark.parametrize(("steps", "strength"), [(20, 0.75), (20, 0.5), (30, 0.1), (20, 0.96)])
@pytest.mark.parametrize("name", SETTINGS)
def test_from_a_picture(name: str, steps: int, strength: float, original: Path, photo: Path) -> None:
    folder = folder_of(original, name)
    bundle = load(folder, dtype="float32")
    with torch.no_grad():
        known = bundle.vae.encode(to_tensor(Image.open(photo)))
    pipe = StableDiffusionImg2ImgPipeline.from_pretrained(folder)
    expected = theirs(pipe, image=known, strength=strength, num_inference_steps=steps)
    found = ours(bundle, init_image=str(photo), strength=strength, steps=steps)
    assert apart(found, expected) < TOLERANCE
    assert apart(ours(bundle, init_image=str(photo), strength=strength, steps=steps, seed=8), expected) > 0.01


def without_forwards(*args: Any, **asked: Any) -> Any:
    return replace(walk(*args, **asked), forwards=())


def without_before(*args: Any, **asked: Any) -> Any:
    return replace(walk(*args, **asked), before=())


def as_euler(*args: Any, **asked: Any) -> Any:
    return walk(*args, **{**asked, "sampler": "euler"})


def unrounded(spec: Any, sigmas: Tensor, **_: Any) -> Tensor:
    return sigma_to_t(spec, sigmas)


FAULTS: list[tuple[str, str, Callable[..., Any], float]] = [
    ("ddim linspace", "walk", without_forwards, 1.0),
    ("pndm linspace", "walk", without_forwards, 1.0),
    ("ddim trailing", "walk", without_forwards, 1.0),  # 30 steps don't divide 1000
    ("sd1.4", "walk", without_forwards, 0.5),
    ("rinna", "walk", without_before, 0.5),
    ("dpm++", "walk", as_euler, 1.0),
    ("unipc leading", "walk", as_euler, 1.0),
    ("dpm++ karras", "told_timesteps", unrounded, 1.0),
]


@pytest.mark.parametrize(("name", "what", "fault", "strength"), FAULTS)
def test_each_piece_of_a_walk_counts(
    name: str,
    what: str,
    fault: Callable[..., Any],
    strength: float,
    original: Path,
    photo: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Left out, whatever diffusers does in its own way is seen in the latents."""
    bundle = load(folder_of(original, name), dtype="float32")
    asked: dict[str, Any] = {"steps": 30}
    if strength < 1.0:
        asked |= {"init_image": str(photo), "strength": strength}
    right = ours(bundle, **asked)
    monkeypatch.setattr(g, what, fault)
    assert apart(ours(bundle, **asked), right) > 4 * TOLERANCE


def test_t5_the_ending_is_the_folders_and_is_recorded_and_replayed(original: Path) -> None:
    """T5: PNDM and DDIM folders with set_alpha_to_one false stop at the noise of timestep 0; --ending settles it."""
    bundle = load(folder_of(original, "sd1.4"), dtype="float32")
    asked = {"prompt": PROMPT, "language": "en", "seed": SEED, "steps": 4}
    drawn = {
        ending: g.generate(bundle, Request(**asked, ending=ending))[0]  # type: ignore[arg-type]
        for ending in (None, "zero", "legacy")
    }
    assert [drawn[e].record.ending for e in (None, "zero", "legacy")] == ["legacy", "zero", "legacy"]
    assert drawn[None].image.tobytes() == drawn["legacy"].image.tobytes() != drawn["zero"].image.tobytes()
    for picture in drawn.values():
        record = from_json(Record, json.loads(dumps(picture.record)))
        assert replay(bundle, record).image.tobytes() == picture.image.tobytes()
    # a sampler that has no such ending; and a scheduler whose configuration doesn't speak of one
    assert g.resolve(bundle, Request(**asked, sampler="ddim")).ending == "legacy"
    assert g.resolve(bundle, Request(**asked, sampler="euler")).ending == "zero"
    with pytest.raises(UserError, match=r"ending legacy with sampler euler\. Allowed: ending legacy with .*ddim, pndm"):
        Request(**asked, sampler="euler", ending="legacy")
    lms = load(folder_of(original, "svjack"), dtype="float32")
    assert g.resolve(lms, Request(**asked, sampler="ddim")).ending == "zero"
    with pytest.raises(UserError, match="ending legacy with lms, this model's sampler"):
        g.resolve(lms, Request(**asked, ending="legacy"))
