"""What the verbs of the command line do. Nothing heavy is imported before a verb needs it.

Nothing half-written stays behind, and what was finished before Ctrl-C is kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import inspect as inspection
import json
import sys
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from kotoe import __version__, builtin
from kotoe.config import Record, Request, dumps, from_json, to_json
from kotoe.console import (
    INTERRUPTED,
    Adding,
    Bar,
    Checking,
    Common,
    Converting,
    Drawing,
    Evaluating,
    Inspecting,
    Pairing,
    Removing,
    Training,
    Values,
    finish,
    part_of,
    say,
    show_config,
)
from kotoe.errors import UserError, nearest, unknown
from kotoe.localize.settings import Localizing, Studying
from kotoe.runs import atomic, write_atomic

MOST_THREADS = 1024


# --- generate -------------------------------------------------------------------------------------


def generate(common: Common, values: Values) -> int:
    """Draw a request's pictures, or one picture's again."""
    drawing: Drawing = part_of(values, Drawing)
    out = Path(drawing.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file", allowed="a folder, there or not")
    if drawing.replay is not None:
        return _replay(common, drawing, values)
    request: Request = part_of({"prompt": [], **values}, Request)
    bundle = _load(drawing.model, request.dtype, drawing.device, drawing.low_memory)

    from kotoe.generate import draw, plan, read_prompts, resolve

    resolved = resolve(bundle, request)
    jobs = plan(bundle, resolved)
    for job in {job.prompt: job for job in jobs if job.language_source == "unsure"}.values():
        say(f"the language of {job.prompt!r} is unsure, it is read as {job.language}; --language TAG settles it")
    if resolved.punctuation == "kept":
        for text in dict.fromkeys(job.prompt for job in jobs if bundle.conditioner(job.language).warns_of(job.prompt)):
            say(
                f"note: {text!r} has full-width punctuation, which gets watermarks from models trained as Taiyi was; "
                "--punctuation ascii reads it as , and ."
            )
    config = {**to_json(resolved), **to_json(drawing)}
    show_config("generate", config)
    labels = _labels_wanted(drawing, [job.prompt for job in jobs], [job.language for job in jobs])
    if common.dry_run:
        read_prompts(bundle, resolved, jobs)  # over the token limit?
        finish(common, {"dry_run": True, "config": config, "pictures": []}, [])
        return 0
    pictures: list[Any] = []
    entries: list[dict[str, Any]] = []
    document: dict[str, Any] = {"pictures": entries, "config": config, "grid": None, "interrupted": False}
    code = 0
    try:
        with Bar(common, "drawing") as bar:
            for picture in draw(bundle, resolved, jobs=jobs, on_step=lambda p: bar(p.done, p.total)):
                if not pictures:
                    _save_config(out, config)
                path = _save_picture(out, picture, "")
                pictures.append(picture)
                entries.append({"path": str(path), "seed": picture.record.seed, "record": to_json(picture.record)})
                if not common.json:
                    finish(common, {}, [str(path)])
        if labels:
            document["grid"] = str(_save_grid(out, pictures))
    except KeyboardInterrupt:
        say(f"kotoe: interrupted; {len(entries)} of {len(jobs)} pictures are done and kept")
        document["interrupted"], code = True, INTERRUPTED
    finish(common, document, [] if document["grid"] is None else [str(document["grid"])])
    return code


def _load(model: str, dtype: Any, device: str | None = None, low_memory: bool = False) -> Any:
    """The Bundle of a model. dtype: as `load` takes it, "auto" for its own choice."""
    from kotoe.checkpoints import load

    return load(model, dtype=None if dtype == "auto" else dtype, device=device, low_memory=low_memory)


def _labels_wanted(drawing: Drawing, prompts: Sequence[str], languages: Sequence[str]) -> bool:
    """Whether to write a grid. Asked for, missing glyphs are an error; by default they are said, and no grid drawn."""
    if drawing.grid_image is False or (drawing.grid_image is None and len(prompts) < 2):
        return False
    from kotoe.labels import check_labels

    try:
        check_labels(prompts, languages)
    except UserError as error:
        if drawing.grid_image:
            raise
        say(f"no grid.png: {error}")
        return False
    return True


def _save_config(out: Path, config: Mapping[str, Any]) -> Path:
    text = dumps({k: v for k, v in config.items() if v is not None}, indent=2) + "\n"
    with _writing(out):
        return write_atomic(out / f"generate-{_short_hash(text)}.json", text)


def _save_picture(out: Path, picture: Any, suffix: str) -> Path:
    from kotoe.images import save_png

    record = dumps(picture.record)
    path = out / f"{picture_name(picture.record)}{suffix}.png"
    with _writing(out), atomic(path) as temp:
        save_png(picture.image, temp, record)
    return path


def _save_grid(out: Path, pictures: Sequence[Any]) -> Path:
    from kotoe.labels import labelled_grid

    records = [picture.record for picture in pictures]
    grid = labelled_grid(
        [picture.image for picture in pictures],
        [record.prompt for record in records],
        [record.conditioner.language for record in records],
    )
    path = out / "grid.png"
    with _writing(out), atomic(path) as temp:
        grid.save(temp, format="PNG")
    return path


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"can't write in {out}: {error.strerror or error}", allowed="a writable folder") from error


def picture_name(record: Record) -> str:
    """`<prompt, shortened>-s<seed>-<hash of the record>`: one name per picture, readable in any script."""
    words = "".join(c if c.isalnum() or unicodedata.category(c).startswith("M") else " " for c in record.prompt)
    slug = "-".join(unicodedata.normalize("NFC", words).split())
    while len(slug.encode()) > 90:  # file names hold 255 bytes, and a character of CJK takes three
        slug = slug[:-1]
    incidental = ("seconds", "batch", "threads", "device", "low_memory")
    same = {k: v for k, v in to_json(record).items() if k not in incidental}
    return "-".join(filter(None, (slug.strip("-"), f"s{record.seed}", _short_hash(dumps(same)))))


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


# --- generate --replay ----------------------------------------------------------------------------


def read_picture_record(path: str) -> Record:
    """The Record inside a picture, which is untrusted: every field is checked as if it were typed."""
    from kotoe.images import read_record

    try:
        document = json.loads(read_record(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"the record in {path} is no JSON document", allowed="a picture that Kotoe drew") from error
    record: Record = from_json(Record, document, f"the record in {path}")
    record.request()  # its own checks: sizes, ranges, names
    return record


def _replay(common: Common, drawing: Drawing, values: Values) -> int:
    asked = sorted(set(values) - {f.name for f in dataclasses.fields(Drawing)})
    if asked:
        raise UserError(
            f"--replay together with {', '.join(asked)}",
            allowed="--replay with --model, --out, --device and --low-memory",
            hint="A replay draws the picture as it was; without --replay you can change it",
        )
    assert drawing.replay is not None
    record = read_picture_record(drawing.replay)
    name = record.model.name
    if "model" not in values and name not in builtin.NAMES:
        raise UserError(f"{drawing.replay} was drawn by {name!r}", hint="Say where that model is: --model FOLDER")
    source = drawing.model if "model" in values else name
    dtypes = {"unet": record.dtype, "vae": record.vae_dtype, "text_encoder": record.text_dtype}
    bundle = _load(source, dtypes, drawing.device, drawing.low_memory or record.low_memory)

    import torch

    from kotoe.generate import check_same, replay
    from kotoe.images import differences, open_picture

    check_same(bundle, record)
    show_config("replay", {**to_json(record), **to_json(drawing)})
    for what, then, here in (("torch", record.torch, torch.__version__), ("kotoe", record.kotoe, __version__)):
        if then != here:
            say(f"drawn with {what} {then}, here is {here}: the last bits may differ")
    if common.dry_run:
        finish(common, {"dry_run": True, "pictures": [], "config": to_json(drawing)}, [])
        return 0
    if record.threads <= MOST_THREADS:
        torch.set_num_threads(record.threads)  # sums are split among them: another number rounds differently
    with Bar(common, "drawing") as bar:
        picture = replay(bundle, record, on_step=lambda p: bar(p.done, p.total))
    changed, largest = differences(picture.image, open_picture(drawing.replay))
    path = _save_picture(Path(drawing.out), picture, "-replay")
    say("identical pixels" if not changed else f"{changed} pixels differ, by up to {largest} of 255")
    entry = {"path": str(path), "seed": record.seed, "record": to_json(picture.record)}
    finish(common, {"pictures": [entry], "replayed": drawing.replay, "identical": not changed}, [str(path)])
    return 0


# --- inspect --------------------------------------------------------------------------------------


def inspect(common: Common, values: Values) -> int:
    """Describe a model from its configurations and file heads."""
    wanted: Inspecting = part_of(values, Inspecting)
    if common.dry_run:
        show_config("inspect", to_json(wanted))
        builtin.resolve(wanted.model)
        finish(common, {"dry_run": True, "config": to_json(wanted)}, [])
        return 0
    from kotoe.checkpoints.inspect import describe

    found = describe(wanted.model)
    lines = [
        f"{found['name']}: {found['family']}, {found['size_px']} x {found['size_px']} pixels, "
        f"languages {', '.join(found['languages']) or 'not stated'}, licence {found['licence'] or 'not stated'}",
        f"folder {found['folder']}",
        f"defaults {dumps(found['defaults'])}",
    ]
    for part, size in found["sizes"].items():
        lines.append(f"{part}: {size['parameters']:,} parameters, {size['bytes']:,} bytes")
    lines += [f"{part}: {dumps(component)}" for part, component in found["components"].items()]
    lines += [f"{part} sha256 {value}" for part, value in found["hashes"].items()]
    lines += [f"note: {note}" for note in found["notes"]]
    finish(common, found, lines)
    return 0


# --- conditioner ----------------------------------------------------------------------------------


def add_conditioner(common: Common, values: Values) -> int:
    """Put a conditioner beside the others of a folder."""
    wanted: Adding = part_of(values, Adding)
    config = to_json(wanted)
    show_config("conditioner add", config)
    from kotoe.checkpoints import conditioners

    place = conditioners.add(
        wanted.bundle,
        wanted.language,
        wanted.from_,
        source_language=wanted.source_language,
        overwrite=wanted.overwrite,
        dry_run=common.dry_run,
    )
    _say_languages(common, wanted.bundle, config, f"{wanted.language} is in {place}")
    return 0


def remove_conditioner(common: Common, values: Values) -> int:
    """Take a conditioner out of a folder."""
    wanted: Removing = part_of(values, Removing)
    config = to_json(wanted)
    show_config("conditioner remove", config)
    from kotoe.checkpoints import conditioners

    conditioners.remove(wanted.bundle, wanted.language, dry_run=common.dry_run)
    _say_languages(common, wanted.bundle, config, f"{wanted.language} is gone from {wanted.bundle}")
    return 0


def _say_languages(common: Common, bundle: str, config: Mapping[str, Any], done: str) -> None:
    from kotoe.checkpoints.conditioners import languages

    document = {"dry_run": common.dry_run, "config": config, "languages": languages(bundle)}
    finish(common, document, [] if common.dry_run else [done])


# --- convert --------------------------------------------------------------------------------------


def convert(common: Common, values: Values) -> int:
    """Read a model in any format and write it in another."""
    wanted: Converting = part_of(values, Converting)
    show_config("convert", to_json(wanted))
    source, out = builtin.resolve(wanted.source), Path(wanted.out)

    from kotoe.checkpoints import FORMATS, load, save

    if wanted.to not in FORMATS:
        raise unknown("format", wanted.to, FORMATS)
    if out.exists() and not wanted.overwrite:
        raise UserError(f"{out} is there already", allowed="a name that isn't taken, or --overwrite")
    bundle = load(
        source,
        dtype="stored",
        allow_pickle=wanted.allow_pickle,
        tokenizer=wanted.tokenizer,
        ema=wanted.ema,
        prediction_type=wanted.prediction_type,
    )
    if wanted.language is not None:
        one = {wanted.language: bundle.conditioner(wanted.language)}
        bundle = bundle.changed(conditioners=one, default_language=wanted.language)
    for note in bundle.notes:
        say(f"note: {note}")
    document = {"out": str(out), "to": wanted.to, "notes": list(bundle.notes), "config": to_json(wanted)}
    if common.dry_run:
        finish(common, {"dry_run": True, **document}, [])
        return 0
    with _writing(out.parent):
        save(bundle, out, to=wanted.to, dtype=wanted.dtype, overwrite=wanted.overwrite)
    finish(common, document, [str(out)])
    return 0


# --- evaluate -------------------------------------------------------------------------------------


def evaluate(common: Common, values: Values) -> int:
    """Run a suite and print its figures."""
    wanted: Evaluating = part_of(values, Evaluating)
    show_config("evaluate", to_json(wanted))
    folder = builtin.resolve(wanted.model)
    if common.dry_run:
        finish(common, {"dry_run": True, "config": to_json(wanted), "folder": str(folder)}, [])
        return 0
    bundle = _load(wanted.model, "auto")

    from kotoe.data.languages import LANGUAGES
    from kotoe.evaluate import report, suites

    if wanted.out is not None:  # now, not after an hour of drawing
        chosen = wanted.languages or [x for x in bundle.languages if x in LANGUAGES]
        report.check(Path(wanted.out), [i for x in chosen for i in suites.items(x, tier=wanted.tier, n=wanted.n)])
    with Bar(common, "evaluating") as bar, redirect_stdout(sys.stderr):
        evaluation = suites.evaluate(
            bundle,
            suite=wanted.suite,
            languages=wanted.languages,
            tier=wanted.tier,
            n=wanted.n,
            controls=wanted.controls,
            batch=wanted.batch_size,
            steps=wanted.steps,
            progress=bar,
        )
        if wanted.out is not None:
            for path in report.write(evaluation, Path(wanted.out)).values():
                say(str(path))
    finish(common, evaluation.results, report.text(evaluation).splitlines())
    return 0


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
    with _writing(out.parent), atomic(out) as temp, temp.open("w", encoding="utf-8", newline="\n") as file:
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
    if sizes is not None and wanted.size not in sizes:
        raise unknown(f"size of {path.name}", wanted.size, sizes)
    asked = {"size": wanted.size, "device": wanted.device, "seed": wanted.seed}
    taken = inspection.signature(recipe.main).parameters
    for name in asked.keys() & values.keys():
        if name not in taken:
            raise UserError(f"{path.name} takes no {name}", allowed=", ".join(taken))
    passed = {k: v for k, v in asked.items() if k in taken and v is not None}
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


def _recipe(path: Path) -> Any:
    """The module in a recipe's file. Its neighbours can be imported by name, as when it is run itself."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.resolve().parent))
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
    if wanted.threads is not None:
        import torch

        torch.set_num_threads(wanted.threads)
    from kotoe.localize.spread import joined

    with joined(wanted.device) as processes:
        return _localized(common, dataclasses.replace(wanted, device=processes.device), processes)


def _localized(common: Common, wanted: Localizing, processes: Any) -> int:
    from kotoe.data.texts import read_columns
    from kotoe.localize import localize as workbench
    from kotoe.localize.plans import Texts

    pairs = None
    if wanted.pairs is not None:
        rows = [row.texts for row in read_columns(wanted.pairs, ("source", "target"))]
        empty = sum(not source.strip() or not target.strip() for source, target in rows)
        if empty:
            raise UserError(
                f"{wanted.pairs}: {empty} of {len(rows)} pairs have nothing on one side",
                allowed="a text in both columns of every row",
            )
        pairs = Texts(source=[source for source, _ in rows], target=[target for _, target in rows])
    bundle = _load(wanted.base, "float32", wanted.device)
    if common.dry_run:
        cost = workbench.forecast(bundle, wanted, pairs=pairs, processes=processes)
        plain = [f"{key}: {value}" for key, value in cost.items()]
        finish(common, {"dry_run": True, "config": to_json(wanted), "forecast": cost}, plain)
        return 0
    try:
        found = workbench.localize(
            bundle,
            wanted,
            pairs=pairs,
            progress=not common.json,
            on_finding=lambda finding: say(str(finding)),
            processes=processes,
        )
    except KeyboardInterrupt:
        say(f"kotoe: interrupted; the same command goes on from {wanted.run}")
        return INTERRUPTED
    if processes.leads:
        with _writing(Path(wanted.run)):
            out = workbench.write(found, wanted, overwrite=wanted.overwrite)
        finish(common, {"out": str(out), **found.report, "config": to_json(wanted)}, [str(out)])
    processes.wait()  # an error in writing ends all
    return 0


def study(common: Common, values: Values) -> int:
    """Run the cells of a study that are not done yet."""
    wanted: Studying = part_of(values, Studying)
    show_config("study localization", to_json(wanted))
    from kotoe import study as studies

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
    finish(common, document, list(studies.report(document)))
    return 0


# --- check ----------------------------------------------------------------------------------------

CHECK_PROMPTS = {
    "en": "a cat on a blue background",
    "ja": "青い背景に猫",
    "zh": "蓝色背景上的猫",
    "ko": "파란 배경의 고양이",
}


def check(common: Common, values: Values) -> int:
    """Look at the machine and draw one picture per language."""
    wanted: Checking = part_of(values, Checking)
    if common.dry_run:
        show_config("check", to_json(wanted))
        builtin.resolve(wanted.model)
        finish(common, {"dry_run": True, "config": to_json(wanted)}, [])
        return 0
    began = time.perf_counter()
    import torch

    from kotoe.checkpoints.files import has_bf16
    from kotoe.generate import generate as draw_all
    from kotoe.images import to_tensor
    from kotoe.labels import check_labels
    from kotoe.runs import environment

    torch_s = time.perf_counter() - began
    problems: list[str] = []
    about = environment()
    machine = {
        **{key: about[key] for key in ("platform", "python", "cpus")},
        "threads": torch.get_num_threads(),
        "bfloat16": has_bf16(torch.device("cpu")),
        "cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
    fonts = {}
    for language, prompt in CHECK_PROMPTS.items():
        try:
            check_labels([prompt], [language])
            fonts[language] = True
        except UserError as error:
            fonts[language] = False
            problems.append(f"labels in {language}: {error}")
    began = time.perf_counter()
    bundle = _load(wanted.model, "auto")
    load_s = time.perf_counter() - began
    drawn = {}
    for language in bundle.languages:
        request = Request(prompt=CHECK_PROMPTS.get(language, "1"), language=language, seed=7)
        began = time.perf_counter()
        picture = draw_all(bundle, request)[0]
        again = draw_all(bundle, request)[0]
        same = picture.image.tobytes() == again.image.tobytes()
        drawn[language] = {"seconds": round((time.perf_counter() - began) / 2, 3), "repeatable": same}
        flat = bool((to_tensor(picture.image).flatten(2).std(2) == 0).all())
        if not same:
            problems.append(f"the same request in {language} drew two different pictures")
        if flat:
            problems.append(f"the picture in {language} is one flat colour")
    document = {
        "ok": not problems,
        "problems": problems,
        "versions": about["packages"],
        "machine": machine,
        "fonts": fonts,
        "model": {"name": bundle.name, "folder": str(bundle.folder), "load_s": round(load_s, 3)},
        "import_s": round(torch_s, 3),
        "pictures": drawn,
    }
    finish(common, document, _check_lines(document))
    return 0 if not problems else 1


def _check_lines(document: Mapping[str, Any]) -> list[str]:
    machine = document["machine"]
    return [
        "versions: " + ", ".join(f"{k} {v}" for k, v in document["versions"].items()),
        f"machine: {machine['platform']}, Python {machine['python']}, {machine['cpus']} processors, "
        f"{machine['threads']} threads, bfloat16 {'yes' if machine['bfloat16'] else 'no'}",
        f"accelerators: {', '.join(machine['cuda']) or 'none'}",
        "label fonts: " + ", ".join(f"{k} {'yes' if v else 'MISSING'}" for k, v in document["fonts"].items()),
        f"model: {document['model']['name']}, loaded in {document['model']['load_s']} s",
        *(f"picture in {k}: {v['seconds']} s" for k, v in document["pictures"].items()),
        *(f"PROBLEM: {problem}" for problem in document["problems"]),
        "all is well" if document["ok"] else f"{len(document['problems'])} problems",
    ]
