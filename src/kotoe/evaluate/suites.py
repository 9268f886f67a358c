"""The `emoji` suite: fixed prompts and seeds in every language, looked up by the matcher, with controls beside them.

400 scenes of one object (every second one an object and colour never trained on together) and 200 of two objects that
were never trained on together. Every language gets the same scenes and the same noise, so that languages are compared
pair by pair; the words differ. Half of the captions use template 0, the rest go through the others in turn.

Controls: the true renders (ceiling: the matcher's own faults), each language's pictures held against other prompts
(chance), and the prompts of the other languages read by the English encoder.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kotoe import __version__, images
from kotoe.checkpoints import Bundle
from kotoe.checkpoints.files import tensors_sha256
from kotoe.config import Request
from kotoe.data.captions import COLOURS, LANGUAGES, caption, equivalents, templates
from kotoe.data.emoji import PIXELS, RELATIONS, Scene, atlas, scene
from kotoe.drawing import draw, resolve
from kotoe.errors import UserError, unknown
from kotoe.evaluate import metrics
from kotoe.evaluate.match import Match, Matcher, border_colour
from kotoe.evaluate.metrics import Score
from kotoe.reading import Job

SUITES = {"emoji": 1}  # name: version; a version's prompts and seeds never change
SINGLES, PAIRS = 400, 200
FOREIGN = 100  # single-object prompts of each language for the English encoder: far from 0 needs no more
SCENE_SEED = 20_261_120  # training never draws scenes from it
PICTURE_SEED = 7_000_000
APPROXIMATE = {  # what figures are told with, where it is otherwise
    "engine": "fast", "decoder": "full", "guidance_start": 0.0, "guidance_stop": 1.0, "cache_interval": 1,
    "token_merging_ratio": 0.0,
}  # fmt: skip

OnProgress = Callable[[int, int, str], None]  # pictures drawn, pictures in all, what is being drawn


@dataclass(frozen=True, kw_only=True)
class Item:
    """One prompt of the suite: scene, caption, seed of the picture, whether its combination is held out."""

    language: str
    scene: Scene
    prompt: str
    seed: int
    held_out: bool


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the matcher saw, whatever was asked: singles whole, pairs half by half, and every background's name."""

    singles: Match | None
    first: Match | None
    second: Match | None
    colours: list[str]

    @property
    def best(self) -> list[tuple[int, ...]]:
        """The best glyph of each single, and of both halves of each pair."""
        one: list[tuple[int, ...]] = []
        if self.singles is not None:
            one += [(g,) for g in self.singles.glyphs[:, 0].tolist()]
        if self.first is None or self.second is None:
            return one
        return one + list(zip(self.first.glyphs[:, 0].tolist(), self.second.glyphs[:, 0].tolist()))


@dataclass(frozen=True, kw_only=True)
class Found:
    """Which of it is what was asked: bool arrays, r1 and r5 of singles, relations of pairs, background of both."""

    r1: np.ndarray
    r5: np.ndarray
    background: np.ndarray
    relation: np.ndarray
    relation5: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A language's items, their pictures (B, 3, E, E) uint8 and what was found: singles first, then pairs."""

    language: str
    items: list[Item]
    pictures: Tensor
    seen: Seen
    found: Found
    likeness: np.ndarray  # SSIM of the singles to their true renders


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The figures (JSON-able) and, for a report, what they were counted on."""

    results: dict[str, Any]
    drawn: dict[str, Drawn] = field(default_factory=dict)
    renders: dict[str, Tensor] = field(default_factory=dict)
    names: tuple[str, ...] = ()  # English name of each glyph of the tier


# ---- the prompts ----------------------------------------------------------------------------------------------------


def _singles(glyphs: Sequence[Any]) -> Iterator[tuple[Scene, bool]]:
    """Scenes of one object with its colour said, seen and held out by turns, no object twice until most had a turn."""
    used: set[int] = set()
    i = 0
    while True:
        for held_out in (False, True):
            if len(used) > 0.8 * len(glyphs):  # not all of them: some have no colour that is held out
                used.clear()
            while True:
                drawn = scene(SCENE_SEED, i, glyphs, pairs=0.0, held_out=held_out)
                i += 1
                if drawn.objects[0] not in used:
                    break
            used.add(drawn.objects[0])
            yield replace(drawn, background_said=True), held_out


def _pairs(glyphs: Sequence[Any]) -> Iterator[tuple[Scene, bool]]:
    """Scenes of two objects never trained on together, their colour said, the relations by turns."""
    relations = list(RELATIONS)
    i = 0
    while True:
        drawn = scene(SCENE_SEED + 1, i, glyphs, pairs=1.0, held_out=True)
        yield replace(drawn, relation=relations[i % len(relations)], background_said=True), True
        i += 1


@lru_cache(maxsize=8)
def _scenes(tier: str, singles: int, pairs: int) -> tuple[tuple[Scene, bool], ...]:
    glyphs = atlas(tier).glyphs
    one, two = _singles(glyphs), _pairs(glyphs)
    return tuple(s for s, _ in zip(one, range(singles))) + tuple(s for s, _ in zip(two, range(pairs)))


def items(language: str, *, tier: str = "everyday", n: int | None = None) -> list[Item]:
    """The suite's prompts in a language: the first n singles and n / 2 pairs (None: all 400 and 200).

    Raises UserError for a language without captions, an unknown tier, or n outside 1 to 400.
    """
    singles, pairs = _counts(n)
    if language not in LANGUAGES:
        raise unknown("evaluation language", language, LANGUAGES)
    first = atlas(tier).glyphs[0].index
    made = []
    for k, (shown, held_out) in enumerate(_scenes(tier, singles, pairs)):
        i = k if k < singles else SINGLES + k - singles  # its place in the whole suite, which words and noise go by
        in_all = replace(shown, objects=tuple(first + k for k in shown.objects))  # captions count from `everyday` on
        options = len(templates(in_all, language))
        turn = i // 2  # not i: seen and held out take turns too
        template = 0 if turn % 2 == 0 or options == 1 else 1 + turn // 2 % (options - 1)
        prompt = caption(in_all, language, template, tier=tier)
        made.append(Item(language=language, scene=shown, prompt=prompt, seed=PICTURE_SEED + i, held_out=held_out))
    return made


def _counts(n: int | None) -> tuple[int, int]:
    if n is None:
        return SINGLES, PAIRS
    if isinstance(n, bool) or not 1 <= n <= SINGLES:
        raise UserError(f"n = {n} prompts of one object", allowed=f"1 to {SINGLES}")
    return n, (n + 1) // 2


# ---- what pictures show ---------------------------------------------------------------------------------------------


def look(matcher: Matcher, pictures: Tensor, scenes: Sequence[Scene]) -> Seen:
    """Look at pictures (B, 3, E, E), uint8 or 0 to 1, singles first, then pairs. Of the scenes only the relations
    are read: they say which half to call the first."""
    one = sum(len(s.objects) == 1 for s in scenes)
    measured = border_colour(pictures)
    singles = first = second = None
    if one:
        singles = matcher.match(pictures[:one], background=measured[:one])
    if len(scenes) > one:
        regions = [metrics.halves(s.relation or "", pictures.shape[-1]) for s in scenes[one:]]
        first, second = (
            matcher.match(pictures[one:], background=measured[one:], regions=torch.stack(half))
            for half in zip(*regions)
        )
    colours = metrics.nearest_colour(measured, {name: c.rgb for name, c in COLOURS.items()})
    return Seen(singles=singles, first=first, second=second, colours=colours)


def judge(seen: Seen, scenes: Sequence[Scene], right: Callable[[int], set[int]]) -> Found:
    """What was seen against the scenes asked for. right: all glyphs that a glyph's word may mean, itself too."""
    none = np.zeros(0, dtype=bool)
    r1 = r5 = relation = relation5 = none
    if seen.singles is not None:
        wanted = [right(s.objects[0]) for s in scenes if len(s.objects) == 1]
        r1, r5 = (metrics.recall(seen.singles, wanted, k) for k in (1, 5))
    if seen.first is not None and seen.second is not None:
        both = [(right(s.objects[0]), right(s.objects[1])) for s in scenes if len(s.objects) == 2]
        relation, relation5 = (metrics.related(seen.first, seen.second, both, k) for k in (1, 5))
    background = np.array([found == s.background for found, s in zip(seen.colours, scenes)])
    return Found(r1=r1, r5=r5, background=background, relation=relation, relation5=relation5)


def _figures(found: Found, held_out: np.ndarray, likeness: np.ndarray | None = None) -> dict[str, Score]:
    """The figures of a language or control. held_out: (B,) bool of the singles."""
    one = len(found.r1)
    figures = {
        "r1": metrics.score(found.r1),
        "r5": metrics.score(found.r5),
        "background": metrics.score(found.background),
    }
    if len(found.relation):
        figures["relation"] = metrics.score(found.relation)
        figures["relation_r5"] = metrics.score(found.relation5)
    if likeness is not None:
        figures["ssim"] = metrics.score(likeness, of="median")
    for name, some in (("seen", ~held_out), ("held_out", held_out)):
        if some.any():
            figures[f"r1_{name}"] = metrics.score(found.r1[some])
            figures[f"background_{name}"] = metrics.score(found.background[:one][some])
    return figures


# ---- the run --------------------------------------------------------------------------------------------------------


def evaluate(
    bundle: Bundle,
    *,
    suite: str = "emoji",
    languages: Sequence[str] | None = None,
    tier: str = "everyday",
    n: int | None = None,
    controls: bool = True,
    batch: int | None = None,
    progress: OnProgress | None = None,
    **how: Any,
) -> Evaluation:
    """Draw the suite's prompts and look up what the pictures show.

    languages: None is all that the bundle and the captions both have. n: singles per language (1 to 400) and half as
    many pairs; None is all. batch: pictures drawn together; None is 16, with engine int8 1. how: fields of the Request
    that pictures are drawn by, the model's defaults otherwise: steps, guidance_scale, sampler, decoder, cache_interval,
    ... Raises UserError for anything the model, the suite or the machine's Unicode data doesn't have, before a picture
    is drawn.
    """
    if suite not in SUITES:
        raise unknown("suite", suite, SUITES)
    chosen = spoken(bundle, languages)
    asked = {language: items(language, tier=tier, n=n) for language in chosen}
    batch = (1 if how.get("engine") == "int8" else 16) if batch is None else batch
    settings = resolve(bundle, Request(prompt=("-",), emphasis="none", batch_size=batch, **how))
    world = atlas(tier)
    if (settings.width, settings.height) != (PIXELS, PIXELS):
        raise UserError(
            f"{bundle.name} draws {settings.width} x {settings.height} pixels",
            allowed=f"{PIXELS} x {PIXELS} for the suite {suite}",
        )
    bundle = _with_hashes(bundle)
    matcher = Matcher(world.sprites)
    foreign = _foreign(chosen, bundle, asked) if controls else {}
    watch = _Watch(sum(map(len, asked.values())) + sum(map(len, foreign.values())), progress)

    drawn, renders = {}, {}
    right = {language: _right(language, tier) for language in [*chosen, "en"]}
    for language, todo in asked.items():
        scenes = [item.scene for item in todo]
        renders[language] = world.render(scenes)
        pictures = watch.draw(bundle, settings, todo, language, language)
        with watch.looking_on():
            seen = look(matcher, pictures, scenes)
            found = judge(seen, scenes, right[language])
            one = len(found.r1)
            likeness = _likeness(pictures[:one], renders[language][:one])
        drawn[language] = Drawn(
            language=language, items=todo, pictures=pictures, seen=seen, found=found, likeness=likeness
        )

    results: dict[str, Any] = {
        "suite": suite,
        "version": SUITES[suite],
        "kotoe": __version__,
        "model": bundle.name,
        "model_sha256": bundle.sha256,
        "tier": tier,
        "glyphs": matcher.count,
        "prompts": {"single": _counts(n)[0], "pair": _counts(n)[1]},
        "prompts_sha256": {language: _digest(todo) for language, todo in asked.items()},
        "settings": {
            "steps": settings.steps,
            "sampler": settings.sampler,
            "grid": settings.grid,
            "guidance_scale": settings.guidance_scale,
            "dtype": settings.dtype,
            "batch": batch,
            **{k: getattr(settings, k) for k, usual in APPROXIMATE.items() if getattr(settings, k) != usual},
            **({"adapters": _named(bundle)} if bundle.adapters else {}),
            "threads": torch.get_num_threads(),
        },
        "languages": {
            language: _json(_figures(d.found, _held_out(d.items), d.likeness)) for language, d in drawn.items()
        },
    }
    if "en" in drawn:
        for language, d in drawn.items():
            if language != "en" and (gap := metrics.ratio(d.found.r1, drawn["en"].found.r1)) is not None:
                results["languages"][language]["gap"] = gap.to_json()  # R@1 as a share of English's
    if controls:
        results["controls"] = _controls(matcher, drawn, renders, right, watch, bundle, settings, foreign)
    results["seconds"] = {"drawing": round(watch.drawing, 2), "looking": round(watch.looking, 2)}
    results["pictures_per_second"] = round(watch.done / watch.drawing, 3) if watch.drawing > 0 else None
    return Evaluation(
        results=results, drawn=drawn, renders=renders, names=tuple(glyph.name_en for glyph in world.glyphs)
    )


def _named(bundle: Bundle) -> str:
    return ", ".join(f"{adapter.name} ({adapter.sha256[:12]})" for adapter in bundle.adapters)


def _controls(
    matcher: Matcher,
    drawn: dict[str, Drawn],
    renders: dict[str, Tensor],
    right: dict[str, Callable[[int], set[int]]],
    watch: _Watch,
    bundle: Bundle,
    settings: Request,
    foreign: dict[str, list[Item]],
) -> dict[str, Any]:
    some = next(iter(drawn.values()))
    scenes = [item.scene for item in some.items]  # the same in every language
    alone = {k: {k} for k in range(matcher.count)}.__getitem__  # no synonyms: the ceiling is the matcher's own
    with watch.looking_on():
        ceiling = judge(look(matcher, renders[some.language], scenes), scenes, alone)
    controls: dict[str, Any] = {
        "true_renders": _json(_figures(ceiling, _held_out(some.items))),
        "shuffled": {
            language: _json(_figures(judge(d.seen, _shuffled(scenes), right[language]), _held_out(d.items)))
            for language, d in drawn.items()
        },
        "english_encoder": {},
    }
    for language, todo in foreign.items():
        pictures = watch.draw(bundle, settings, todo, "en", f"{language} read by the English encoder")
        scenes = [item.scene for item in todo]
        with watch.looking_on():
            found = judge(look(matcher, pictures, scenes), scenes, right[language])
        controls["english_encoder"][language] = _json(_figures(found, _held_out(todo)))
    return controls


def _shuffled(scenes: Sequence[Scene]) -> list[Scene]:
    """Every scene's objects and colour replaced by those of another one of its kind; relations stay where they are,
    so that the halves looked at are the same."""
    one = [s for s in scenes if len(s.objects) == 1]
    two = [s for s in scenes if len(s.objects) == 2]
    out: list[Scene] = []
    for kind in (one, two):
        order = list(range(len(kind)))
        random.Random(SCENE_SEED).shuffle(order)
        other = dict(zip(order, order[1:] + order[:1]))  # one cycle: nothing stays where it was
        out += [
            replace(s, objects=kind[other[i]].objects, background=kind[other[i]].background) for i, s in enumerate(kind)
        ]
    return out


def spoken(bundle: Bundle, asked: Sequence[str] | None = None) -> tuple[str, ...]:
    """The languages to evaluate: those asked for, or all that the bundle and the captions both have."""
    able = tuple(language for language in bundle.languages if language in LANGUAGES)
    if asked is None:
        chosen = able
    else:
        for language in asked:
            if language not in able:
                raise unknown("evaluation language", language, able)
        chosen = tuple(dict.fromkeys(asked))
    if not chosen:
        raise UserError(
            f"no language to evaluate: {bundle.name} speaks {', '.join(bundle.languages)}",
            allowed=", ".join(LANGUAGES),
        )
    return chosen


def _foreign(chosen: Sequence[str], bundle: Bundle, asked: dict[str, list[Item]]) -> dict[str, list[Item]]:
    if "en" not in bundle.languages:
        return {}
    single = {language: [i for i in asked[language] if len(i.scene.objects) == 1] for language in chosen}
    return {language: todo[:FOREIGN] for language, todo in single.items() if language != "en"}


def _right(language: str, tier: str) -> Callable[[int], set[int]]:
    first = atlas(tier).glyphs[0].index
    groups = equivalents(language, tier)
    return lambda k: {i - first for i in groups.get(first + k, {first + k})}


def _likeness(pictures: Tensor, renders: Tensor) -> np.ndarray:
    parts = [metrics.aligned_ssim(p, r) for p, r in zip(pictures.split(16), renders.split(16))]
    return torch.cat(parts).double().numpy()


def _held_out(todo: Sequence[Item]) -> np.ndarray:
    return np.array([item.held_out for item in todo if len(item.scene.objects) == 1])


def _json(figures: dict[str, Score]) -> dict[str, Any]:
    return {name: figure.to_json() for name, figure in figures.items()}


def _digest(todo: Sequence[Item]) -> str:
    """sha256 over prompts and seeds: two results with the same one answered the same questions."""
    return hashlib.sha256("\n".join(f"{item.seed} {item.prompt}" for item in todo).encode()).hexdigest()


def _with_hashes(bundle: Bundle) -> Bundle:
    """A bundle made in memory gets its hashes once here, not once per picture's record."""
    if {"unet", "vae"} <= set(bundle.hashes):
        return bundle
    known = {part: tensors_sha256(module) for part, module in (("unet", bundle.unet), ("vae", bundle.vae))}
    return replace(bundle, hashes=known)


class _Watch:
    """Draws and looks, counting pictures and seconds."""

    def __init__(self, total: int, progress: OnProgress | None) -> None:
        self.total, self.progress = total, progress
        self.done, self.drawing, self.looking = 0, 0.0, 0.0

    def draw(self, bundle: Bundle, settings: Request, todo: Sequence[Item], language: str, what: str) -> Tensor:
        """Pictures (B, 3, E, E) uint8 of items, their prompts read by the conditioner of `language`."""
        begin = time.perf_counter()
        request = replace(settings, prompt=tuple(item.prompt for item in todo), language=language, long_prompt="chunk")
        jobs = [Job(prompt=i.prompt, language=language, language_source="asked", seed=i.seed) for i in todo]
        pictures = []
        for picture in draw(bundle, request, jobs=jobs):
            pictures.append(((images.to_tensor(picture.image) + 1) * 127.5).round().to(torch.uint8))
            self.done += 1
            if self.progress is not None:
                self.progress(self.done, self.total, what)
        self.drawing += time.perf_counter() - begin
        return torch.cat(pictures)

    @contextmanager
    def looking_on(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.looking += time.perf_counter() - begin
