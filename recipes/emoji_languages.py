"""kotoe-emoji, part 4 of 4: Japanese, Chinese and Korean, each with an own tokenizer and text encoder, the LDM frozen.

    kotoe train recipes/emoji_languages.py --run runs/languages --size cpu

Per language: a SentencePiece unigram tokenizer is trained on its captions; the text encoder starts as English but for
its token embeddings and learns from parallel text alone, first what the English encoder says behind the words
before its last layer, which draws and is the same in every language (`routes/`), then what the frozen UNet reads
(`reader/`; design section 7), after that from captioned latents through the frozen UNet (`stage1/`). At size `cpu` only
`routes/`: a short `reader/` after it made the pictures worse (docs/log.md). English encoder and UNet come from
`emoji_base.py`'s runs.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kotoe.checkpoints.files import tensors_sha256
from kotoe.data.captions import vocabulary_texts
from kotoe.data.emoji import atlas
from kotoe.data.latents import PATCHES, basis
from kotoe.denoise import training_input
from kotoe.errors import UserError
from kotoe.localize.fit import Plan, fit, load_average, step_seed
from kotoe.localize.losses import Queries, TextBehind, TextLatents, TextPairs, behind, diffusion, reader, record_queries
from kotoe.localize.vocabulary import train_sentencepiece
from kotoe.rng import keyed_generator
from kotoe.runs import Run
from kotoe.text import CLIPText, first_eos
from kotoe.tokenizers import Tokenizer, load_tokenizer
from kotoe.unet import UNet
from recipes import emoji_base
from recipes.emoji_base import CHANNELS, DROPOUT, PAIRS, ROUTES, SCHEDULE, TEXT, Captioned, ids, new_text, previews

LANGUAGES = ("ja", "zh", "ko")
STAGES = ("routes", "reader", "stage1")
CUT = 40  # positions that most steps of `routes` look at: the words, and patches from there to the fifth of eight rows
VOCABULARY = {"ja": 2000, "zh": 2000, "ko": 1800}
PREVIEWS = {
    "ja": ("青い背景に猫", "白い背景に赤いりんご", "黒い背景にロケット", "緑の背景にピザ"),
    "zh": ("蓝色背景上的猫", "白色背景上的红苹果", "黑色背景上的火箭", "绿色背景上的披萨"),
    "ko": ("파란 배경의 고양이", "하얀 배경의 빨간 사과", "검은 배경의 로켓", "초록 배경의 피자"),
}

SIZES: dict[str, dict[str, Any]] = {
    "cpu": {"tier": "everyday", "routes": (3000, 64), "reader": (0, 64), "stage1": (0, 64),
            "scenes": 20_000, "queries": 96, "lr": 1e-3},
    "gpu": {"tier": "all", "routes": (10_000, 256), "reader": (10_000, 256), "stage1": (10_000, 256),
            "scenes": 200_000, "queries": 256, "lr": 1e-3},
}  # fmt: skip


def questions(
    unet: UNet, text: CLIPText, tokenizer: Tokenizer, data: Captioned, latents: Tensor, per_layer: int
) -> Queries:
    """Queries of the frozen UNet over 256 noised latents with their English captions, all noise levels."""
    draw = keyed_generator(data.seed, "queries")
    device = next(unet.parameters()).device
    calls = []
    for step in range(4):
        chosen, rng = data.draw(step, 64)
        x0 = latents[chosen].float().to(device)
        t = torch.randint(SCHEDULE.num_train_timesteps, (64,), generator=draw).to(device)
        eps = torch.randn(x0.shape, generator=draw).to(device)
        with torch.inference_mode():
            context = text(ids(tokenizer, data.captions(chosen, rng, "en")).to(device))
        calls.append((training_input(SCHEDULE, x0, eps, t), t, context))
    return record_queries(unet, calls, per_layer)


def warm_student(tokenizer: Tokenizer, english: CLIPText, seed: int) -> CLIPText:
    """An encoder that has English's weights but for what it knows of tokens."""
    student = new_text(tokenizer, seed)
    own = {name: p for name, p in student.state_dict().items() if "token_embedding" in name}
    student.load_state_dict({**english.state_dict(), **own})
    return student


def trained(run_dir: Path, english: CLIPText) -> tuple[Tokenizer, CLIPText] | None:
    """A language's tokenizer and encoder as its run's latest checkpoint has averaged it; None before the first."""
    stages = [stage for stage in STAGES if (run_dir / stage / "state.pt").exists()]
    if not stages:
        return None
    tokenizer = load_tokenizer(run_dir / "tokenizer")
    student = warm_student(tokenizer, english, 0)
    for stage in stages:
        load_average({"text": student}, run_dir / stage)
    return tokenizer, student


def train_language(
    run_dir: Path,
    language: str,
    unet: UNet,
    english: CLIPText,
    english_tokenizer: Tokenizer,
    settings: Mapping[str, Any],
    *,
    device: str = "cpu",
    seed: int = 0,
    student: CLIPText | None = None,
) -> tuple[Tokenizer, CLIPText]:
    """One language; run_dir gets tokenizer/, routes/, reader/ and stage1/. student: an encoder to go on from."""
    if language not in LANGUAGES:
        raise UserError(f"no recipe for {language!r}", allowed=", ".join(LANGUAGES))
    tier = settings["tier"]
    folder = run_dir / "tokenizer"
    if folder.exists():
        tokenizer = load_tokenizer(folder)
    else:
        tokenizer = train_sentencepiece(
            vocabulary_texts(language, tier), folder, VOCABULARY[language], max_tokens=TEXT["max_tokens"]
        )
    world, base = atlas(tier, device), basis(tier, CHANNELS)
    data = Captioned(world, tier, seed + 3, settings["scenes"], pairs=PAIRS)
    latents = data.compute(base.encode)  # (count, C, 8, 8)
    student = warm_student(tokenizer, english, seed) if student is None else student
    student.to(device)
    frozen = {"unet": unet, "english": english}
    for module in frozen.values():
        module.requires_grad_(False)
    before = {name: tensors_sha256(module) for name, module in frozen.items()}
    common = {"recipe": "emoji_languages", "language": language, "seed": seed, **settings}
    modules = {"unet": unet, "text": student}

    def emptied(texts: Sequence[Sequence[str]], rng: Any) -> list[list[str]]:
        """The same rows of every language emptied, for guidance."""
        drop = [rng.random() < DROPOUT for _ in texts[0]]
        return [["" if gone else t for t, gone in zip(side, drop, strict=True)] for side in texts]

    def sides(step: int, batch: int) -> tuple[Tensor, Tensor]:
        """Ids (B, L) of the same scenes in the language and in English."""
        chosen, rng = data.draw(step, batch)
        there = data.captions(chosen, random.Random(step_seed(seed, step, "english")), "en")
        here, there = emptied([data.captions(chosen, rng, language), there], rng)
        return ids(tokenizer, here), ids(english_tokenizer, there)

    def teach(english_ids: Tensor) -> Tensor:
        with torch.inference_mode():
            context = english(english_ids.to(device))  # (B, L, D)
        return context.clone()  # inference tensors can't take part in a loss

    def read(step: int) -> TextPairs:
        own, other = sides(step, settings["reader"][1])
        return TextPairs(ids=own.to(device), teacher_ids=other.to(device), teacher=teach(other))

    def said_behind(step: int) -> TextBehind:
        own, other = sides(step, settings["routes"][1])
        mine = first_eos(own, tokenizer.eos)[:, None]  # (B, 1)
        theirs = first_eos(other, english_tokenizer.eos)[:, None]  # (B, 1)
        if step % 8:  # encoders are causal: cutting what follows changes nothing before it
            own, other = own[:, :CUT], other[:, :CUT]
        # Behind its own words the student shall say what the teacher says there. Where the teacher's words go on
        # longer, what it says of the same patch after they have ended, if that is not cut.
        position = torch.arange(own.shape[1])[None]  # (1, L)
        said = theirs + (position - theirs) % PATCHES  # (B, L)
        kept = (position >= mine) & (said < own.shape[1])
        at = said.clamp(max=own.shape[1] - 1)[:, :, None].to(device)
        with torch.inference_mode():
            before = english.before_last(other.to(device))
            before = before.gather(1, at.expand_as(before))  # (B, L, D)
        # a clone, since inference tensors can't take part in a loss
        return TextBehind(ids=own.to(device), before=before.clone(), behind=kept.to(device))

    def captioned(step: int) -> TextLatents:
        chosen, rng = data.draw(step, settings["stage1"][1])
        (texts,) = emptied([data.captions(chosen, rng, language)], rng)
        return TextLatents(text=ids(tokenizer, texts).to(device), latents=latents[chosen].float())

    sample = previews(("unet", "text"), tokenizer, base, PREVIEWS[language])
    if settings["routes"][0]:
        plan = Plan(
            name=f"{language}/routes", trainable=ROUTES, loss=behind(), steps=settings["routes"][0],
            lr=settings["lr"], ema=0.99, betas=(0.9, 0.98), seed=seed, bf16=device != "cpu",
        )  # fmt: skip
        with Run(run_dir / "routes", {**common, "stage": "routes"}) as run:
            fit(modules, plan, said_behind, run, device=device)
    if settings["reader"][0]:
        bank = questions(unet, english, english_tokenizer, data, latents, settings["queries"])
        plan = Plan(
            name=f"{language}/reader", trainable=("text.",), loss=reader(bank), steps=settings["reader"][0],
            lr=settings["lr"] / 2, ema=0.99, betas=(0.9, 0.98), seed=seed, bf16=device != "cpu", sample=sample,
            sample_every=500, warmup_steps=20,  # it starts from a student that already says nearly the right thing
        )  # fmt: skip
        with Run(run_dir / "reader", {**common, "stage": "reader"}) as run:
            fit(modules, plan, read, run, device=device)
    if settings["stage1"][0]:
        plan = Plan(
            name=f"{language}/stage1", trainable=("text.",), loss=diffusion(SCHEDULE), steps=settings["stage1"][0],
            lr=settings["lr"] / 4, ema=0.99, betas=(0.9, 0.98), seed=seed, bf16=device != "cpu", sample=sample,
            sample_every=500,
        )  # fmt: skip
        with Run(run_dir / "stage1", {**common, "stage": "stage1"}) as run:
            fit(modules, plan, captioned, run, device=device)
    after = {name: tensors_sha256(module) for name, module in frozen.items()}
    if before != after:
        raise AssertionError(f"frozen parts changed: {[n for n in before if before[n] != after[n]]}")
    return tokenizer, student


def main(
    run_dir: str | Path, *, size: str = "cpu", device: str = "cpu", seed: int = 0, base_run: str | Path | None = None,
    languages: Sequence[str] = LANGUAGES,
) -> dict[str, tuple[Tokenizer, CLIPText]]:  # fmt: skip
    """Train every language on the base that `emoji_base.py` left in base_run (default: `base` beside run_dir)."""
    run_dir = Path(run_dir)
    unet, english, tokenizer = emoji_base.trained(run_dir.parent / "base" if base_run is None else base_run, device)
    settings = SIZES[size]
    return {
        language: train_language(
            run_dir / language, language, unet, english, tokenizer, settings, device=device, seed=seed
        )
        for language in languages
    }
