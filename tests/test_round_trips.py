"""Every format to every other and back is the identity, and what a format can't hold is refused in words.

Networks are tiny, of the proportions that single files and KerasCV's files take for granted: 32 groups, 8 heads in SD
1.x, heads 64 wide in SD 2.x and in texts. Compared are files, byte for byte: tensors, configurations, schedule,
defaults, tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from hashlib import sha256
from itertools import permutations
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

import seeds
from kotoe.bert import BertText
from kotoe.checkpoints import FORMATS, Bundle, kerascv, load, save
from kotoe.checkpoints.files import file_sha256
from kotoe.errors import CheckpointError, UserError
from kotoe.spec import BertSpec, ScheduleSpec, TextSpec, UNetSpec, VAESpec
from kotoe.text import CLIPText, Conditioner
from kotoe.tokens import Tokenizer
from kotoe.unet import UNet
from kotoe.vae import VAE
from tiny import edit, seeded, tiny_tokenizer

CONFIG = "tokenizer_config.json"
WIDTH = 64  # of the texts' states


@cache
def published(make: Callable[[Path], Path]) -> Tokenizer:
    """The tokenizer of a seed system's folder."""
    return load(make(Path(mkdtemp()) / "m")).conditioner().tokenizer


def clip(words: Tokenizer, act: str = "quick_gelu") -> Conditioner:
    ids = {"vocab_size": words.vocab_size, "max_tokens": words.max_tokens}
    ids |= {"bos": words.bos, "eos": words.eos, "pad": words.pad}
    sizes = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_layers": 2, "num_heads": 1, "hidden_act": act}
    language = "en" if words.kind == "clip-bpe" else "und"  # what is taken for granted where a file doesn't say it
    return Conditioner(language, words, seeded(CLIPText(TextSpec(**ids, **sizes)), 2))  # type: ignore[arg-type]


def bert(words: Tokenizer, **changes: object) -> Conditioner:
    spec = BertSpec(
        vocab_size=words.vocab_size,
        hidden_size=WIDTH,
        intermediate_size=128,
        num_layers=2,
        num_heads=1,
        bos=words.bos,
        eos=words.eos,
        pad=words.pad,
    )
    return Conditioner("und", words, seeded(BertText(replace(spec, **changes)), 2))  # type: ignore[arg-type]


def model(conditioner: Conditioner, *, two: bool = False, inpaints: bool = False, **schedule: object) -> Bundle:
    velocity = schedule.get("prediction_type") == "v_prediction"
    unet = UNetSpec(
        in_channels=9 if inpaints else 4,
        block_out_channels=(64, 128) if two else (32, 64),
        layers_per_block=1,
        cross_attention=(True, True) if two else (True, False),
        num_heads=(1, 2) if two else (8, 8),
        cross_attention_dim=WIDTH,
        use_linear_projection=two,
        sample_size=96 if velocity else 64,
    )
    vae = VAESpec(block_out_channels=(32, 64), layers_per_block=1, sample_size=2 * unet.sample_size)
    given = {"sampler": "ddim" if velocity else "pndm", **schedule}
    return Bundle(
        name="m",
        unet=seeded(UNet(unet), 0),
        vae=seeded(VAE(vae), 1),
        schedule=ScheduleSpec(**given),  # type: ignore[arg-type]
        conditioners={conditioner.language: conditioner},
        default_language=conditioner.language,
        family=unet.family,
    )


def english(family: str) -> Conditioner:
    return clip(tiny_tokenizer("en", "!"), "gelu") if family == "sd2" else clip(tiny_tokenizer("en"))


V = {"prediction_type": "v_prediction"}
ZERO_SNR = {**V, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
MODELS: dict[str, Callable[[], Bundle]] = {
    "sd1": lambda: model(english("sd1")),
    "sd1 inpainting": lambda: model(english("sd1"), inpaints=True),
    "sd2, cool japan": lambda: model(english("sd2"), two=True),
    "sd2 v": lambda: model(english("sd2"), two=True, **V),
    "sd2 v, zero SNR": lambda: model(english("sd2"), two=True, **ZERO_SNR),
    "sd2 inpainting": lambda: model(english("sd2"), two=True, inpaints=True),
    "bingsu": lambda: model(clip(published(seeds.bingsu))),
    "rinna": lambda: model(clip(published(seeds.rinna))),
    "taiyi": lambda: model(bert(published(seeds.taiyi))),
    "alt": lambda: model(
        bert(published(seeds.alt_diffusion), counts_from_pad=True, masked=True, projection_dim=WIDTH, token_types=1)
    ),
    "two languages": lambda: model(english("sd1")).changed(
        conditioners={"en": english("sd1"), "ko": replace(clip(published(seeds.bingsu)), language="ko")}
    ),
}
REFUSED: dict[tuple[str, str], str] = {  # what a format has no place for, and what is said
    ("alt", "compvis"): "a single file can't say that a BERT's",
    ("two languages", "compvis"): "has 2 languages, and a single file has one text encoder",
    ("sd1 inpainting", "kerascv"): "the family is sd1-inpainting; KerasCV has another. Allowed: sd1",
    ("sd2 inpainting", "kerascv"): "the family is sd2-inpainting; KerasCV has another. Allowed: sd2",
    ("sd2 v", "kerascv"): "the noise schedule is .*v_prediction",
    ("sd2 v, zero SNR", "kerascv"): "the noise schedule is .*v_prediction",
    ("rinna", "kerascv"): "the kind of tokenizer is sentencepiece; KerasCV has another. Allowed: clip-bpe",
    ("taiyi", "kerascv"): "a BERT text encoder, which this format has no place for",
    ("alt", "kerascv"): "a BERT text encoder, which this format has no place for",
    ("two languages", "kerascv"): "has the languages en, ko, KerasCV's layout one",
}
ROUTES = [(a, b, a) for a, b in permutations(FORMATS, 2)]
ROUTES += [("diffusers", "compvis", "kerascv", "diffusers"), ("diffusers", "kerascv", "compvis", "diffusers")]
CASES = [(name, r) for name in MODELS for r in ROUTES if not any((name, to) in REFUSED for to in r)]


@cache
def original(name: str, before: str) -> Bundle:
    """A model with the sampler, grid and steps that files of that format are read with."""
    bundle = MODELS[name]()
    if before != "kerascv":
        return bundle
    return bundle.changed(schedule=kerascv.SCHEDULE, defaults=kerascv.DEFAULTS)


def files_of(path: Path) -> dict[str, str]:
    """sha256 of every file; of a single file, the texts of whose head are in no order, of what is in it."""
    if path.is_dir():
        return {str(p.relative_to(path)): file_sha256(p) for p in sorted(path.rglob("*")) if p.is_file()}
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        return {
            **file.metadata(),
            **{name: f"{t.dtype} {sha256(t.numpy()).hexdigest()}" for name, t in tensors.items()},
        }


def states(bundle: Bundle) -> dict[str, Tensor]:
    nets = {"unet": bundle.unet, "vae": bundle.vae}
    nets |= {x: bundle.conditioner(x).encoder for x in bundle.languages}
    return {f"{part}.{name}": t for part, net in nets.items() for name, t in net.state_dict().items()}


def equal(a: Bundle, b: Bundle) -> bool:
    """Tensors to the bit, specs, schedule, defaults, and what tokenizers are made of."""
    ours, theirs = states(a), states(b)
    specs = [(x.unet.spec, x.vae.spec, x.schedule, x.defaults, x.name, x.languages) for x in (a, b)]
    texts = [[(x.conditioner(k).encoder.spec, x.conditioner(k).tokenizer.sha256) for k in x.languages] for x in (a, b)]
    same = ours.keys() == theirs.keys() and all(torch.equal(t, theirs[name]) for name, t in ours.items())
    return same and specs[0] == specs[1] and texts[0] == texts[1]


@pytest.mark.parametrize(("name", "route"), CASES, ids=[f"{name}-{'-'.join(route)}" for name, route in CASES])
def test_there_and_back_is_the_identity(name: str, route: tuple[str, ...], tmp_path: Path) -> None:
    first = original(name, route[-2])
    words = tmp_path / "words"
    words.mkdir()
    first.conditioner().tokenizer.save(words)
    bundle, written = first, []
    for k, to in enumerate(route):
        place = tmp_path / str(k) / ("m.safetensors" if to == "compvis" else "m")
        place.parent.mkdir()
        written.append(save(bundle, place, to=to))
        bundle = load(place, dtype="stored", tokenizer=words if to == "compvis" else None)
    assert files_of(written[-1]) == files_of(written[0])
    last = route[-1]
    if last == "diffusers":
        assert equal(bundle, first)
    if last != "compvis":  # the tokenizer's own files
        assert files_of(written[-1] / "tokenizer") == files_of(words)
    with torch.no_grad():  # the fault: one number of one tensor
        bundle.unet.conv_in.bias[0] += 1.0
    place = tmp_path / "fault" / written[-1].name
    place.parent.mkdir()
    assert files_of(save(bundle, place, to=last)) != files_of(written[0])


@pytest.mark.parametrize(("name", "to"), REFUSED)
def test_what_a_format_cannot_hold_is_refused_in_words(name: str, to: str, tmp_path: Path) -> None:
    with pytest.raises((CheckpointError, UserError), match=REFUSED[name, to]):
        save(MODELS[name](), tmp_path / ("m.safetensors" if to == "compvis" else "m"), to=to)
    assert not list(tmp_path.iterdir())


def test_a_seed_systems_tokenizer_is_written_as_it_was_published(tmp_path: Path) -> None:
    """Byte for byte, whatever files it is in; rinna's with the 77 that its own pipeline class sets."""
    for make in (seeds.bingsu, seeds.rinna, seeds.taiyi, seeds.cool_japan, seeds.alt_diffusion):
        folder = make(tmp_path / make.__name__) / "tokenizer"
        again = save(load(folder.parent, dtype="float32"), tmp_path / f"{make.__name__}-again") / "tokenizer"
        if make is seeds.rinna:
            assert json.loads((again / CONFIG).read_text())["model_max_length"] == 77
            edit(again / CONFIG, model_max_length="gone")
            edit(folder / CONFIG)  # written by the same hand
        assert files_of(again) == files_of(folder), make.__name__
