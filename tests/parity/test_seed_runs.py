"""Whole runs of every system that Kotoe grew from, by its own software and by Kotoe, to the same latents.

From words with the sampler, steps and guidance of the system's card; from a picture; and into a masked part of one. The
checkpoints are tests/seeds.py's, the stock side is diffusers' own pipeline for each. diffusers starts from a sample of
the picture's posterior and Kotoe from its mean (T7), so that here a posterior's sample is its mode.
Beside each comparison are faults that fail it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    AltDiffusionImg2ImgPipeline,
    AltDiffusionPipeline,
    AutoencoderKL,
    DiffusionPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.pipelines.deprecated.alt_diffusion.modeling_roberta_series import RobertaSeriesModelWithTransformation
from PIL import Image
from sentencepiece import SentencePieceProcessor
from torch import Tensor
from transformers import BertModel, BertTokenizer, CLIPTextModel, CLIPTokenizer

import seeds
from kotoe import drawing as g
from kotoe.checkpoints import Bundle, load, save
from kotoe.config import Request
from kotoe.denoise import inpainted
from kotoe.rng import ImageNoise, generator
from kotoe.vae import VAE
from tiny import apart, latents_decoded, pictures

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

TOLERANCE = 3e-5  # of the largest latent, where 1e-3 is promised; measured: 1e-6 to 4e-6
SEED = 7
Asked = dict[str, Any]
Change = Callable[[Bundle], Bundle]


# --- What the stock side reads ------------------------------------------------------------------------------


def clip_states(path: Path, ids: list[list[int]]) -> Tensor:
    with torch.no_grad():
        return CLIPTextModel.from_pretrained(path / "text_encoder").eval()(torch.tensor(ids))[0]


def rinna_states(path: Path, lines: list[str]) -> Tensor:
    """Ids by sentencepiece, lower-cased, no BOS, [PAD]; transformers 5 has no tokenizer for this file."""
    words = SentencePieceProcessor(model_file=str(path / "tokenizer" / "spiece.model"))
    rows = [[*words.encode(line.lower()), 2] for line in lines]
    return clip_states(path, [row + [3] * (77 - len(row)) for row in rows])


def taiyi_states(path: Path, lines: list[str]) -> Tensor:
    """As svjack's training padded: to the longer of the two."""
    words, encoder = BertTokenizer.from_pretrained(path / "tokenizer"), BertModel.from_pretrained(path / "text_encoder")
    with torch.no_grad():
        return encoder.eval()(words(lines, padding="longest", return_tensors="pt").input_ids)[0]


def alt_states(path: Path, lines: list[str]) -> Tensor:
    """XLM-RoBERTa's ids by sentencepiece; the mask where the configuration says so."""
    words = SentencePieceProcessor(model_file=str(path / "tokenizer" / "sentencepiece.bpe.model"))
    rows = [[0, *(i + 1 if i else 3 for i in words.encode(line)), 2] for line in lines]
    ids = torch.tensor([row + [1] * (77 - len(row)) for row in rows])
    encoder = RobertaSeriesModelWithTransformation.from_pretrained(path / "text_encoder").eval()
    with torch.no_grad():
        return encoder(ids, attention_mask=(ids != 1).long() if encoder.config.use_attention_mask else None)[0]


@dataclass(frozen=True, kw_only=True)
class System:
    """A system as its card draws.

    make:      writes its folder.
    states:    of lines, for `prompt_embeds`; None: the stock pipeline reads the words itself, by the classes in `own`.
    scheduler: the card's, made from the folder's; "": the folder's own.
    asked:     what Kotoe has to be told beyond steps and guidance to draw so.
    faults:    what was asked or loaded otherwise, each seen in the latents from words.
    """

    make: Callable[[Path], Path]
    prompt: str
    states: Callable[[Path, list[str]], Tensor] | None = None
    own: tuple[Any, Any] = (CLIPTextModel, CLIPTokenizer)
    alt: bool = False
    scheduler: str = ""
    steps: int = 50
    scale: float = 7.5
    asked: Asked = field(default_factory=dict)
    faults: dict[str, Asked | Change] = field(default_factory=dict)
    inpaints: bool = False


def encoder_as(**changes: Any) -> Change:
    """The bundle with its text encoder's spec otherwise, over the same tensors."""

    def change(bundle: Bundle) -> Bundle:
        found = bundle.conditioner()
        other = type(found.encoder).__new__(type(found.encoder))
        other.__dict__.update({**found.encoder.__dict__, "spec": replace(found.encoder.spec, **changes)})
        return bundle.changed(conditioners={found.language: replace(found, encoder=other)})

    return change


def schedule_as(**changes: Any) -> Change:
    return lambda bundle: bundle.changed(schedule=replace(bundle.schedule, **changes))


def change_one_norm(bundle: Bundle) -> Bundle:
    """One tensor of the UNet doubled."""
    with torch.no_grad():
        bundle.unet.conv_norm_out.weight *= 2
    return bundle


def padded_with_eos(bundle: Bundle) -> Bundle:
    found = bundle.conditioner()
    other = replace(found, tokenizer=replace(found.tokenizer, pad=found.tokenizer.eos))
    return bundle.changed(conditioners={found.language: other})


JAPANESE, CHINESE, KOREAN, ENGLISH = "サラリーマン 油絵 CAT", "蓝色背景上的猫,CAT", "파란 배경의 고양이", "a red cat!"
MANY = "青い背景に猫 a red cat"


def alt(generation: str, fault: Change, *, masked: bool = True) -> System:
    return System(
        make=partial(seeds.alt_diffusion, generation=generation, masked=masked),
        prompt=MANY,
        states=alt_states,
        alt=True,
        faults={"mask the other way": encoder_as(masked=not masked), "one layer": fault},
    )


last_layer = encoder_as(projects_penultimate=False)  # of m18, as if it were m9


def one_layer_less(bundle: Bundle) -> Bundle:
    spec = bundle.conditioner().encoder.spec
    return encoder_as(num_layers=spec.num_layers - 1)(bundle)


SYSTEMS = {
    "rinna": System(
        make=seeds.rinna,
        prompt=JAPANESE,
        states=rinna_states,
        faults={"padded with EOS": padded_with_eos, "grid": {"grid": "leading"}},
    ),
    "taiyi": System(
        make=seeds.taiyi,
        prompt=CHINESE,
        own=(BertModel, BertTokenizer),
        faults={"padding hidden": encoder_as(masked=True), "real tokens": {"padding": "longest"}},
    ),
    "taiyi, real tokens only": System(
        make=seeds.taiyi,
        prompt=CHINESE,
        states=taiyi_states,
        asked={"padding": "longest"},
        faults={"512 tokens": {"padding": "max_length"}},
    ),
    "cool japan": System(
        make=seeds.cool_japan,
        prompt=ENGLISH,
        faults={"v": schedule_as(prediction_type="v_prediction"), "ending": {"ending": "zero"}},
    ),
    "cool japan, v": System(
        make=partial(seeds.cool_japan, prediction_type="v_prediction"),
        prompt=ENGLISH,
        faults={"epsilon": schedule_as(prediction_type="epsilon"), "padded with EOS": padded_with_eos},
    ),
    "bingsu": System(
        make=seeds.bingsu,
        prompt=KOREAN,
        scheduler="EulerAncestralDiscreteScheduler",
        steps=25,
        asked={"sampler": "euler_ancestral", "grid": "linspace"},
        faults={"grid of the folder": {"grid": "leading"}, "steps": {"steps": 24}},
    ),
    "alt m2": alt("m2", one_layer_less),
    "alt m9": alt("m9", one_layer_less),
    "alt m18": alt("m18", last_layer),
    "alt m9, mask off": alt("m9", one_layer_less, masked=False),
    "alt m18, mask off": alt("m18", last_layer, masked=False),
    "sd 1": System(
        make=seeds.stable_diffusion,
        prompt=ENGLISH,
        faults={"ending": {"ending": "zero"}, "sampler": {"sampler": "ddim"}},
    ),
    "sd 1 inpainting": System(make=partial(seeds.stable_diffusion, inpaints=True), prompt=ENGLISH, inpaints=True),
    "sd 2 inpainting": System(
        make=partial(seeds.stable_diffusion, version="2", inpaints=True), prompt=ENGLISH, inpaints=True
    ),
}
PLAIN = [name for name, system in SYSTEMS.items() if not system.inpaints]
ONCE = [name for name in SYSTEMS if not name.endswith("mask off")]  # from here on they are the systems beside them


@cache
def folder(name: str) -> Path:
    return SYSTEMS[name].make(Path(mkdtemp()) / "model")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return pictures(tmp_path_factory.mktemp("pictures"))


# --- The two sides ------------------------------------------------------------------------------------------


def stock(name: str, kind: str) -> Any:
    """The pipeline for words, a picture or a masked picture, with the scheduler of the system's card."""
    system, path = SYSTEMS[name], folder(name)
    scheduler = json.loads((path / "model_index.json").read_text())["scheduler"][1]
    settings = getattr(diffusers, scheduler).load_config(path / "scheduler")
    encoder, tokenizer = (None, None) if system.states else system.own
    classes = {
        "words": AltDiffusionPipeline if system.alt else StableDiffusionPipeline,
        "picture": AltDiffusionImg2ImgPipeline if system.alt else StableDiffusionImg2ImgPipeline,
        "mask": StableDiffusionInpaintPipeline,
    }
    return classes[kind](
        vae=AutoencoderKL.from_pretrained(path / "vae"),
        text_encoder=encoder and encoder.from_pretrained(path / "text_encoder"),
        tokenizer=tokenizer and tokenizer.from_pretrained(path / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(path / "unet"),
        scheduler=getattr(diffusers, system.scheduler or scheduler).from_config(settings),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def theirs(pipe: Any, name: str, path: Path, **asked: Any) -> Tensor:
    """The latents of a stock pipeline; path: of the folder whose tokenizer and encoder it reads words with."""
    system = SYSTEMS[name]
    pipe.set_progress_bar_config(disable=True)
    if system.states:
        states = system.states(path, [system.prompt, ""])
        asked |= {"prompt_embeds": states[:1], "negative_prompt_embeds": states[1:]}
    else:
        asked |= {"prompt": system.prompt}
    options = {"num_inference_steps": system.steps, "guidance_scale": system.scale, "output_type": "latent"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
        found: Tensor = pipe(generator=[generator(SEED)], **{**options, **asked}).images
    return found


def ours(name: str, fault: Asked | Change | None = None, **asked: Any) -> Tensor:
    """The latents that Kotoe decodes."""
    system = SYSTEMS[name]
    bundle = load(folder(name), dtype="float32")
    if callable(fault):
        bundle = fault(bundle)
    given = {"prompt": system.prompt, "seed": SEED, "steps": system.steps, "guidance_scale": system.scale}
    with latents_decoded() as ends:
        g.generate(bundle, Request(**{**given, **system.asked, **asked, **(fault if isinstance(fault, dict) else {})}))
    return ends[-1]


def masked(files: dict[str, str], mask: str, **asked: Any) -> Asked:
    """What the stock inpainting pipeline is shown."""
    return {
        "image": Image.open(files["photo"]),
        "mask_image": Image.open(files[mask]),
        "height": 16,
        "width": 16,
    } | asked


def unscaled(bundle: Bundle, picture: Tensor) -> Tensor:
    """The posterior's mean without the autoencoder's factor."""
    return VAE.encode(bundle.vae, picture) / bundle.vae.spec.scaling_factor


def silent(self: ImageNoise, i: int) -> Tensor:
    """The noise of each step left out."""
    return torch.zeros_like(self.initial())


def inverted(inner: Any, known: Tensor, mask: Tensor, **noise: Any) -> Any:
    """Black is painted anew."""
    return inpainted(inner, known, 1 - mask, **noise)


def all_anew(inner: Any, known: Tensor, mask: Tensor, **_: Any) -> Any:
    """Nothing is kept while drawing."""
    return inner


def not_masked(bundle: Bundle, init: Tensor | None, mask: Tensor | None) -> Any:
    """An inpainting UNet that is shown what the mask covers."""
    assert init is not None
    assert mask is not None
    return torch.nn.functional.interpolate((mask >= 0.5).float(), scale_factor=0.5), g._encode(bundle, init)


def black_is_anew(bundle: Bundle, init: Tensor | None, mask: Tensor | None) -> Any:
    """An inpainting UNet that is given the mask the wrong way round."""
    assert mask is not None
    return given_by_us(bundle, init, 1 - mask)


given_by_us = g._given


# --- The comparisons ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLAIN)
def test_from_words(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the card's own sampler, steps and guidance."""
    expected = theirs(stock(name, "words"), name, folder(name))
    assert apart(ours(name), expected) < TOLERANCE
    for what, fault in SYSTEMS[name].faults.items():
        assert apart(ours(name, fault), expected) > 10 * TOLERANCE, what
    if name == "bingsu":
        monkeypatch.setattr(ImageNoise, "__call__", silent)
        assert apart(ours(name), expected) > 10 * TOLERANCE


@pytest.mark.parametrize("name", [name for name in ONCE if name in PLAIN])
def test_from_a_picture(name: str, files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The stock img2img pipeline, which encodes the picture itself. Strength 0.75, as in rinna's notebook."""
    steps = SYSTEMS[name].steps if name == "rinna" else 10
    given = {"image": Image.open(files["photo"]), "strength": 0.75, "num_inference_steps": steps}
    expected = theirs(stock(name, "picture"), name, folder(name), **given)
    asked: Asked = {"init_image": files["photo"], "strength": 0.75, "steps": steps}
    assert apart(ours(name, **asked), expected) < TOLERANCE
    assert apart(ours(name, **{**asked, "strength": 0.75 - 1 / steps}), expected) > 10 * TOLERANCE  # one step later
    monkeypatch.setattr(g, "_encode", unscaled)
    assert apart(ours(name, **asked), expected) > 10 * TOLERANCE


@pytest.mark.parametrize("name", ONCE)
def test_into_a_mask(name: str, files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The stock inpainting pipeline. UNets of 4 channels on a mask of whole latent pixels, of 9 channels on any."""
    nine = SYSTEMS[name].inpaints
    steps, strength, mask = (SYSTEMS[name].steps, 1.0, "odd") if nine else (10, 0.75, "even")
    shown = masked(files, mask, strength=strength, num_inference_steps=steps)
    expected = theirs(stock(name, "mask"), name, folder(name), **shown)
    asked: Asked = {"init_image": files["photo"], "mask": files[mask], "strength": strength, "steps": steps}
    assert apart(ours(name, **asked), expected) < TOLERANCE
    where, faults = ("_given", (black_is_anew, not_masked)) if nine else ("inpainted", (inverted, all_anew))
    for fault in faults:
        monkeypatch.setattr(g, where, fault)
        assert apart(ours(name, **asked), expected) > 10 * TOLERANCE, fault.__name__


@pytest.mark.parametrize("name", ONCE)
def test_what_we_write_stock_opens_and_draws(name: str, files: dict[str, str], tmp_path: Path) -> None:
    """`DiffusionPipeline.from_pretrained` of the folder that Kotoe saved, with the card's scheduler.

    transformers 5 has no tokenizer for rinna's and XLM-RoBERTa's files, and diffusers 0.42 no `from_pretrained` for
    AltDiffusion: there the text encoder and the rest of the folder are opened, by their own classes, one by one.
    """
    system, nine = SYSTEMS[name], SYSTEMS[name].inpaints
    saved = save(load(folder(name), dtype="float32"), tmp_path / "m")
    if system.states:
        opener = StableDiffusionPipeline if system.alt else DiffusionPipeline
        pipe = opener.from_pretrained(saved, text_encoder=None, tokenizer=None)
    else:
        pipe = DiffusionPipeline.from_pretrained(saved)
        assert (type(pipe.text_encoder), type(pipe).__name__.startswith("StableDiffusion")) == (system.own[0], True)
    if system.scheduler:
        pipe.scheduler = getattr(diffusers, system.scheduler).from_config(stock(name, "words").scheduler.config)
    shown = masked(files, "odd", strength=1.0) if nine else {}
    expected = theirs(pipe, name, saved, num_inference_steps=4, **shown)
    asked: Asked = {"steps": 4, **({"init_image": files["photo"], "mask": files["odd"]} if nine else {})}
    assert apart(ours(name, **asked), expected) < TOLERANCE
    assert apart(ours(name, change_one_norm, **asked), expected) > 10 * TOLERANCE
