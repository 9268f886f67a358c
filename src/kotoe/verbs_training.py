"""What the verbs that teach a model do: data, train, localize, study. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect as inspection
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from kotoe.config import dumps, to_json
from kotoe.consent import agree
from kotoe.console import (
    INTERRUPTED,
    Bar,
    Common,
    Loading,
    Pairing,
    Training,
    Values,
    bundle_of,
    finish,
    part_of,
    say,
    show_config,
    writing,
)
from kotoe.errors import UserError, nearest, unknown
from kotoe.localize.settings import Localizing, Studying
from kotoe.runs import atomic

# --- data -----------------------------------------------------------------------------------------


def write_pairs(common: Common, values: Values) -> int:
    """Write parallel text of the emoji world."""
    wanted: Pairing = part_of(values, Pairing)
    config, out = to_json(wanted), Path(wanted.out)
    show_config("data pairs", config)
    if out.suffix not in (".tsv", ".jsonl"):
        raise UserError(f"--out {out}", allowed="a name that ends in .tsv or .jsonl")
    if out.is_dir() or (out.exists() and not wanted.overwrite):
        raise UserError(f"{out} is there already", allowed="a name that isn't taken, or --overwrite of a file")

    from kotoe.data.pairs import pairs

    rows = pairs(wanted.language, wanted.count, tier=wanted.tier, seed=wanted.seed, split=wanted.split)
    document = {"out": str(out), "config": config}
    if common.dry_run:
        finish(common, {"dry_run": True, **document}, [])
        return 0
    with writing(out.parent), atomic(out) as temp, temp.open("w", encoding="utf-8", newline="\n") as file:
        if out.suffix == ".tsv":
            file.write("source\ttarget\n")
        with Bar(common, "writing") as bar:
            for done, (source, target) in enumerate(rows, 1):
                both = {"source": source, "target": target}
                file.write((dumps(both) if out.suffix == ".jsonl" else "\t".join(both.values())) + "\n")
                bar(done, wanted.count)
    finish(common, document, [str(out)])
    return 0


# --- train ----------------------------------------------------------------------------------------


def train(common: Common, values: Values) -> int:
    """Run a recipe's main."""
    wanted: Training = part_of(values, Training)
    path = Path(wanted.recipe)
    if path.suffix != ".py" or not path.is_file():
        there = sorted(str(p) for p in Path("recipes").glob("*.py"))
        near = nearest(wanted.recipe, there)
        raise UserError(
            f"no recipe at {wanted.recipe}",
            allowed=", ".join(there) if there else "a Python file with main(run, size=..., device=..., seed=...)",
            hint=f"Did you mean {near}?" if near else "",
        )
    show_config("train", to_json(wanted))
    recipe = _recipe(path)
    sizes = getattr(recipe, "SIZES", None)
    if sizes is not None and wanted.size is not None and wanted.size not in sizes:
        raise unknown(f"size of {path.name}", wanted.size, sizes)
    asked = {"size": wanted.size, "device": wanted.device, "seed": wanted.seed}
    taken = inspection.signature(recipe.main).parameters
    for name in asked.keys() & values.keys():
        if name not in taken:
            raise UserError(f"{path.name} takes no {name}", allowed=", ".join(taken))
    passed = {k: v for k, v in asked.items() if k in taken and v is not None}
    passed |= _set(wanted.set, [name for name in list(taken)[1:] if name not in asked], path.name)
    if common.dry_run:
        about = (recipe.__doc__ or "").strip()
        say(about)
        sizes_here = None if sizes is None else {k: repr(v) for k, v in sizes.items()}
        finish(common, {"dry_run": True, "config": to_json(wanted), "about": about, "sizes": sizes_here}, [])
        return 0
    try:
        with redirect_stdout(sys.stderr):
            recipe.main(wanted.run, **passed)
    except KeyboardInterrupt:
        say(f"kotoe: interrupted; the same command goes on from {wanted.run}")
        return INTERRUPTED
    finish(common, {"run": wanted.run, "config": to_json(wanted)}, [wanted.run])
    return 0


def _set(given: Sequence[str], taken: Sequence[str], recipe: str) -> dict[str, str]:
    """What --set says, each NAME=VALUE, for a recipe that takes these names."""
    allowed = ", ".join(f"--set {name}={name.upper()}" for name in taken) or "no --set"
    found: dict[str, str] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not (name and equals and value):
            raise UserError(f"--set {one}", allowed="NAME=VALUE")
        if name not in taken:
            near = nearest(name, taken)
            raise UserError(
                f"{recipe} takes no {name} by --set", allowed=allowed, hint=f"Did you mean {near}?" if near else ""
            )
        if name in found:
            raise UserError(f"--set {name} twice", allowed="each name once")
        found[name] = value
    return found


def _recipe(path: Path) -> Any:
    """The module in a recipe's file. Its neighbours can be imported by name, as when it is run itself; and as parts of
    its package, where its folder is one."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    folder = path.resolve().parent
    sys.path[:0] = [str(folder), str(folder.parent)] if (folder / "__init__.py").is_file() else [str(folder)]
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"{path} is no Python file (line {error.lineno}: {error.msg})") from error
    if not callable(getattr(module, "main", None)):
        raise UserError(f"{path} has no main", allowed="main(run, *, size=..., device=..., seed=...)")
    return module


# --- localize -------------------------------------------------------------------------------------


def localize(common: Common, values: Values) -> int:
    """Teach a model a language."""
    wanted: Localizing = part_of(values, Localizing)
    show_config("localize", to_json(wanted))
    agree(values, wanted.base, wanted.student, dry_run=common.dry_run)
    if wanted.threads is not None:
        import torch

        torch.set_num_threads(wanted.threads)
    from kotoe.localize.spread import joined

    with joined(wanted.device) as processes:
        return _localized(common, dataclasses.replace(wanted, device=processes.device), processes)


def _localized(common: Common, wanted: Localizing, processes: Any) -> int:
    from kotoe.data.texts import read_pairs
    from kotoe.localize import localize as workbench
    from kotoe.localize import pictures
    from kotoe.localize.plans import Texts

    pairs = Texts(**read_pairs(*wanted.pairs)) if wanted.pairs else None
    source = None if wanted.images is None else pictures.listed(wanted)
    bundle = bundle_of(wanted.base, "float32", Loading(allow_pickle=wanted.allow_pickle), wanted.device)
    captions = None
    if source is not None:
        captions = pictures.Pictures(
            source=source, wanted=wanted, bundle=bundle, bar=lambda what: Bar(common, what), say=say
        )
    if common.dry_run:
        seen = None if captions is None else captions.looked_through()
        cost = workbench.forecast(
            bundle,
            wanted,
            pairs=pairs,
            captions=seen,
            on_finding=lambda finding: say(str(finding)),
            processes=processes,
        )
        plain = [f"{key}: {value}" for key, value in cost.items() if key != "pictures"]
        plain += [] if seen is None else pictures.lines(seen.about)
        finish(common, {"dry_run": True, "config": to_json(wanted), "forecast": cost}, plain)
        return 0
    try:
        found = workbench.localize(
            bundle,
            wanted,
            pairs=pairs,
            captions=captions,
            progress=not common.json,
            on_finding=lambda finding: say(str(finding)),
            processes=processes,
        )
    except KeyboardInterrupt:
        say(f"kotoe: interrupted; the same command goes on from {wanted.run}")
        return INTERRUPTED
    if processes.leads:
        with writing(Path(wanted.run)):
            out = workbench.write(found, wanted, overwrite=wanted.overwrite)
        finish(common, {"out": str(out), **found.report, "config": to_json(wanted)}, [str(out)])
    processes.wait()  # an error in writing ends all
    return 0


def study(common: Common, values: Values) -> int:
    """Run the cells of a study that are not done yet."""
    wanted: Studying = part_of(values, Studying)
    show_config("study localization", to_json(wanted))
    agree(values, wanted.base, dry_run=common.dry_run)
    from kotoe import study as studies
    from kotoe.study_report import report

    if common.dry_run:
        names = [cell.name for cell in studies.cells(wanted)]
        finish(common, {"dry_run": True, "config": to_json(wanted), "cells": names}, names)
        return 0
    try:
        with redirect_stdout(sys.stderr):
            document = studies.study(wanted, say=say)
    except KeyboardInterrupt:
        say(f"kotoe: interrupted; the same command goes on from {wanted.out}")
        return INTERRUPTED
    finish(common, document, list(report(document)))
    return 0
