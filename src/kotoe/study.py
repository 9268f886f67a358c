"""`kotoe study localization`: the plans beside each other on the emoji world, one cell a plan, language and budget.

A cell is a run of `localize` and the suite's figures for what came of it; it is done once, kept, and skipped from then
on, so that a study can be stopped and gone on with, and grown by further languages, plans or budgets. Every cell of a
language reads the same pairs in the same order. What a cell costs is counted (floating-point operations of a step, by
torch's counter, times steps) and timed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from kotoe.checkpoints import Bundle, conditioners, load
from kotoe.config import Request, dumps, read_json, to_json
from kotoe.data.captions import caption
from kotoe.data.emoji import atlas, scene
from kotoe.data.latents import basis
from kotoe.data.pairs import TWO, pairs
from kotoe.drawing import generate
from kotoe.evaluate import suites
from kotoe.labels import labelled_grid
from kotoe.localize.localize import localize
from kotoe.localize.losses import Queries, TextPairs, pooled, reader
from kotoe.localize.plans import SELDOM, Captions, Reading, Task, Texts, questions, task
from kotoe.localize.settings import PLANS, Localizing, Studying
from kotoe.runs import atomic, write_atomic
from kotoe.study_picture import bars, curves, drawable
from kotoe.study_report import best, name_of, report, share
from kotoe.text import Conditioner

ROWS, COUNTED = 32, 8  # of a step, and of a step whose operations are counted
SHOWN = 4  # pictures of a language
AGREED = 256  # held-out captions that student and teacher are compared on
FIGURES = ("r1", "r5", "r1_held_out", "relation", "background")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One measurement. steps 0: what the student draws before it has learnt anything."""

    plan: str
    start: str
    language: str
    steps: int

    @property
    def name(self) -> str:
        return name_of(to_json(self))


def cells(wanted: Studying) -> Iterator[Cell]:
    """The cells, cheap ones first."""
    for steps in sorted(wanted.budgets):
        for plan in wanted.plans:
            starts = [s for s in wanted.starts if s in PLANS[plan].starts] or [PLANS[plan].starts[0]]
            for start in starts:
                for language in wanted.languages:
                    yield Cell(plan=plan, start=start, language=language, steps=steps)


def study(wanted: Studying, *, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Run what is not done yet, and write results.json. Gives its document."""
    if wanted.threads is not None:
        torch.set_num_threads(wanted.threads)
    out = Path(wanted.out)
    bundle = load(wanted.base, dtype="float32", allow_pickle=wanted.allow_pickle)
    teacher = bundle.default_language
    alone = bundle.changed(conditioners={teacher: bundle.conditioner()})
    english = _kept(out / "cells" / f"english-{wanted.n}.json", lambda: _figures(alone, teacher, wanted))
    todo = list(cells(wanted))
    for k, cell in enumerate(todo):
        file = out / "cells" / cell.name / f"result-{wanted.n}.json"
        if not file.exists():
            say(f"{k + 1} of {len(todo)}: {cell.name}")
        found = _kept(file, lambda cell=cell: _measured(alone, cell, wanted, out))  # type: ignore[misc]
        if cell.steps:
            r1, part = found["figures"]["r1"]["value"], share(found, {"english": english})
            say(f"{cell.name}: R@1 {r1:.1%}, {part:.1%} of English, {found['seconds']:.0f} s")
    for language in wanted.languages:
        file = out / "controls" / f"{language}-{wanted.n}.json"
        _kept(file, lambda language=language: _read_by_teacher(alone, language, wanted))  # type: ignore[misc]
    document = {
        "study": to_json(wanted),
        "english": english,
        "controls": [read_json(file) for file in sorted((out / "controls").glob(f"*-{wanted.n}.json"))],
        "cells": _done(out, wanted.n),
        "agreement": _agreement(alone, wanted, out),
    }
    write_atomic(out / "results.json", dumps(document, indent=2) + "\n")
    write_atomic(out / "report.md", "\n".join(report(document)) + "\n")
    if document["cells"]:
        chosen = best(document)
        drawn = {"r1.png": bars(document, list(chosen.values())), "cost.png": curves(document)}
        drawn["pictures.png"] = _pictures(alone, wanted, [cell["language"] for cell in chosen.values()], chosen, out)
        for name, image in drawn.items():
            with atomic(out / name) as temp:
                image.save(temp, format="PNG")
    return document


def _pictures(
    alone: Bundle, wanted: Studying, languages: Sequence[str], chosen: Mapping[str, Mapping[str, Any]], out: Path
) -> Image.Image:
    """The same scenes from the teacher and from each language's best cell, the same noise: a row a language."""
    pictures, labels, tags = [], [], []
    for language in (alone.default_language, *languages):
        bundle = alone
        if language != alone.default_language:
            source = out / "cells" / name_of(chosen[language]) / "conditioner"
            if not source.exists():  # measured before cells kept it
                continue
            bundle = conditioners.swap(alone, language, conditioners.read(source, language).conditioner)
        items = suites.items(language, tier=wanted.tier, n=SHOWN)[:SHOWN]
        for item in items:
            request = Request(
                prompt=(item.prompt,), language=language, seed=item.seed, long_prompt="chunk", emphasis="none"
            )
            pictures.append(generate(bundle, request)[0].image)
            labels.append(f"{language}: {item.prompt}" if drawable(item.prompt, language) else language)
            tags.append(language)
    return labelled_grid(pictures, labels, tags, columns=SHOWN)


def _done(out: Path, n: int) -> list[dict[str, Any]]:
    return [read_json(file) for file in sorted((out / "cells").glob(f"*/result-{n}.json"))]


def _cell(found: Mapping[str, Any]) -> Cell:
    return Cell(**{name: found[name] for name in ("plan", "start", "language", "steps")})


def _kept(file: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    if not file.exists():
        write_atomic(file, dumps(measure(), indent=2) + "\n")
    found: dict[str, Any] = read_json(file)
    return found


def _figures(bundle: Bundle, language: str, wanted: Studying) -> dict[str, Any]:
    found = suites.evaluate(bundle, languages=(language,), n=wanted.n, tier=wanted.tier, controls=False)
    figures = found.results["languages"][language]
    return {"language": language, "figures": {k: figures[k] for k in FIGURES}}


def _read_by_teacher(alone: Bundle, language: str, wanted: Studying) -> dict[str, Any]:
    """The control: prompts of the language read by the encoder that is there already."""
    return _figures(conditioners.swap(alone, language, alone.conditioner()), language, wanted)


def _measured(alone: Bundle, cell: Cell, wanted: Studying, out: Path) -> dict[str, Any]:
    texts = Texts(**_texts(cell.language, wanted.count, wanted.tier, wanted.seed))
    channels = alone.vae.spec.latent_channels
    captions = _captions(cell.language, wanted, channels) if PLANS[cell.plan].reads == "captions" else None
    asked = Localizing(
        base=wanted.base,
        language=cell.language,
        run=str(out / "cells" / cell.name / "run"),
        plan=cell.plan,
        pairs=("the world's own",),
        start=cell.start,
        steps=cell.steps,
        batch_size=ROWS,
        long_prompt="cut",
        seed=wanted.seed,
        dtype=wanted.dtype,
    )
    found = localize(alone, asked, pairs=texts, captions=captions, progress=False)
    figures = _figures(found.bundle, cell.language, wanted)
    student = found.bundle.conditioner(cell.language)
    each = _flops(asked, alone, student, texts, captions) if cell.steps else 0
    (Path(asked.run) / "state.pt").unlink(missing_ok=True)  # the optimizer's: a finished cell is not gone on with
    conditioners.write(student, out / "cells" / cell.name / "conditioner", dtype=torch.float16)
    return {
        **to_json(cell),
        **figures,
        "texts": ROWS * cell.steps,
        "seconds": found.report.get("seconds", 0.0),
        "flop": each * cell.steps,
        "loss": found.report.get("loss"),
        "vocab_size": found.report["vocab_size"],
        "threads": torch.get_num_threads(),
        "dtype": found.report["dtype"],
    }


def _agreement(alone: Bundle, wanted: Studying, out: Path) -> dict[str, Any]:
    """By cell what its student leaves unexplained of the teacher, on held-out captions: of its pooled vector, and of
    what the UNet reads of its states. Not of cells measured before students were kept."""
    found, teacher = {}, alone.conditioner()

    @cache
    def told(language: str) -> Texts:
        sides = zip(*pairs(language, AGREED, tier=wanted.tier, seed=wanted.seed, split="held-out"), strict=True)
        return Texts(**dict(zip(("source", "target"), sides, strict=True)))

    @cache
    def bank() -> Queries:  # the English side is the same for every language
        return questions(alone, told(wanted.languages[0]), seed=wanted.seed)

    def measured(cell: Cell) -> dict[str, float]:
        texts = told(cell.language)
        student = conditioners.read(kept(cell), cell.language, dtype="float32").conditioner
        modules, nothing = {"text": student.encoder, "unet": alone.unet}, torch.Generator()
        with torch.no_grad():
            rows = TextPairs(
                ids=torch.tensor(student.tokenizer.encode(texts.target, long_prompt="cut").ids),
                teacher_ids=torch.tensor(teacher.tokenizer.encode(texts.source, long_prompt="cut").ids),
                teacher=teacher.encode(texts.source, long_prompt="cut").states,
            )
            losses = {"pooled": pooled(eos=teacher.tokenizer.eos), "read": reader(bank())}
            return {name: float(loss(modules, rows, nothing)[0]) for name, loss in losses.items()}

    def kept(cell: Cell) -> Path:
        return out / "cells" / cell.name / "conditioner"

    for cell in map(_cell, _done(out, wanted.n)):
        if kept(cell).exists():
            file = kept(cell).with_name("agreement.json")
            found[cell.name] = _kept(file, lambda cell=cell: measured(cell))  # type: ignore[misc]
    return found


def _flops(asked: Localizing, alone: Bundle, student: Conditioner, texts: Texts, captions: Captions | None) -> int:
    """Of a mean step, forward, backward and the teacher's. Every plan's work grows with its rows, so few are counted;
    one step in SELDOM of `distil-behind`, the first too, is longer."""
    reading = Reading(seed=0, batch=COUNTED, dropout=0.05, long_prompt="cut", device=torch.device("cpu"))
    what: Task = task(asked.plan, alone, student, reading, pairs=texts, captions=captions)
    student.encoder.requires_grad_(True)
    each = []
    for step in range(2):
        with FlopCounterMode(display=False) as counter:
            loss, _ = what.loss(what.modules, what.batches(step), torch.Generator().manual_seed(0))
            loss.backward()
        each.append(counter.get_total_flops())
    student.encoder.requires_grad_(False)
    student.encoder.zero_grad(set_to_none=True)
    return (each[0] + (SELDOM - 1) * each[1]) * (ROWS // COUNTED) // SELDOM


@lru_cache(maxsize=1)
def _texts(language: str, count: int, tier: str, seed: int) -> dict[str, tuple[str, ...]]:
    source, target = zip(*pairs(language, count, tier=tier, seed=seed), strict=True)
    return {"source": source, "target": target}


def _captions(language: str, wanted: Studying, channels: int) -> Captions:
    """The same scenes as the pairs are of, captions and latents."""
    world = atlas(wanted.tier)
    shown = [scene(wanted.seed, i, world.glyphs, pairs=TWO) for i in range(wanted.count)]
    texts = [
        caption(s, language, random.Random(f"{wanted.seed}:{i}:target"), tier=wanted.tier) for i, s in enumerate(shown)
    ]
    return Captions(texts=texts, latents=_latents(wanted.tier, channels, wanted.count, wanted.seed))


@lru_cache(maxsize=1)
def _latents(tier: str, channels: int, count: int, seed: int) -> torch.Tensor:
    world, base = atlas(tier), basis(tier, channels)
    shown = [scene(seed, i, world.glyphs, pairs=TWO) for i in range(count)]
    parts = []
    for first in range(0, count, 256):
        rendered = world.render(shown[first : first + 256])
        parts.append(base.encode(rendered.float() / 127.5 - 1).half())
    return torch.cat(parts)
