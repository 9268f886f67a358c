"""What the verbs of the command line do. Nothing heavy is imported before a verb needs it.

Nothing half-written stays behind, and what was finished before Ctrl-C is kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kotoe import __version__, builtin, hub, licences
from kotoe.config import Request, dumps, foreign_json, from_json, to_json
from kotoe.consent import Agreeing, agree
from kotoe.console import (
    INTERRUPTED,
    Adapting,
    Adding,
    Bar,
    Checking,
    Common,
    Converting,
    Drawing,
    Inspecting,
    Loading,
    Removing,
    Values,
    adapted,
    bundle_of,
    finish,
    part_of,
    say,
    show_config,
    writing,
)
from kotoe.errors import UserError, unknown
from kotoe.provenance.marking import Marking, check_size, signer
from kotoe.record import Record
from kotoe.runs import atomic, write_atomic
from kotoe.safety.checks import Checks
from kotoe.verbs_safety import BLOCKED, Guard, as_recorded, prompt_verdict

if TYPE_CHECKING:
    from kotoe.checkpoints import Bundle
    from kotoe.config import Resolved
    from kotoe.provenance.c2pa import Signer
    from kotoe.reading import Job


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
    loading: Loading = part_of(values, Loading)
    adapting: Adapting = part_of(values, Adapting)
    checks: Checks = part_of(values, Checks)
    marking: Marking = part_of(values, Marking)
    signs = signer(marking, say)
    models = (drawing.model, drawing.translator, drawing.detector, checks.safety_checker)
    agree(values, *models, dry_run=common.dry_run)
    bundle = bundle_of(drawing.model, request.dtype, loading, drawing.device, drawing.low_memory)
    guard = Guard(checks, bundle, loading.allow_pickle)  # now: a bundle that is changed has no folder
    bundle = adapted(bundle, adapting, loading)

    from kotoe.drawing import draw, plan, resolve
    from kotoe.provenance.encode import marked
    from kotoe.reading import read_prompts
    from kotoe.starting import picture_size
    from kotoe.translate import with_translator

    if drawing.translator is not None:
        bundle = with_translator(bundle, drawing.translator, detector=drawing.detector)

    resolved = resolve(bundle, request)
    check_size(marking, *picture_size(resolved))
    jobs = plan(bundle, resolved)
    translations: list[dict[str, Any]] = []
    for job in {job.prompt: job for job in jobs}.values():
        if job.language_source == "unsure":
            tag = job.prompt_language
            say(f"the language of {job.prompt!r} is unsure, it is read as {tag}; --language TAG settles it")
        if job.translation is not None:
            other = job.translation
            translations.append({"given": job.prompt, "translation": to_json(other)})
            say(f"translated: {job.prompt!r} ({other.source}) is read as {other.prompt!r} ({other.target})")
            if resolved.negative_prompt:
                say(f"translated: {resolved.negative_prompt!r} is read as {other.negative_prompt!r}")
    _notes(bundle, resolved, jobs)
    config = {**to_json(resolved), **to_json(drawing), **to_json(loading)}
    config |= to_json(adapting) | guard.config | to_json(marking)
    show_config("generate", config)
    if guard.blocks(resolved, jobs):
        refused = {"pictures": [], "config": config, "translations": translations, "blocked": guard.entries}
        finish(common, {"dry_run": common.dry_run, **refused}, [])
        return guard.code()
    labels = _labels_wanted(drawing, [job.prompt for job in jobs], [job.prompt_language for job in jobs])
    if common.dry_run:
        read_prompts(bundle, resolved, jobs)  # over the token limit?
        finish(common, {"dry_run": True, "config": config, "pictures": [], "translations": translations}, [])
        return 0
    _only_draw(bundle, resolved.engine, resolved.numerics)
    pictures: list[Any] = []
    entries: list[dict[str, Any]] = []
    document: dict[str, Any] = {"pictures": entries, "config": config, "grid": None, "interrupted": False}
    document |= {"translations": translations, "blocked": guard.entries}
    code = 0
    try:
        with Bar(common, "drawing") as bar:
            for drawn in draw(bundle, resolved, jobs=jobs, on_step=lambda p: bar(p.done, p.total)):
                picture = guard.let(drawn)
                if picture is None:
                    continue
                picture = marked(picture, marking.watermark)
                if not pictures:
                    _save_config(out, config)
                path = _path_of(out, picture, "")  # listed before it is there: Ctrl-C may come right after saving
                entries.append({"path": str(path), "seed": picture.record.seed, "record": to_json(picture.record)})
                _save_picture(picture, path, signs)
                pictures.append(picture)
                if not common.json:
                    finish(common, {}, [str(path)])
        code = guard.code()
        if labels and pictures:
            document["grid"] = str(_save_grid(out, pictures))
            if signs is not None or marking.watermark is not None:
                say("note: grid.png itself is not signed and not marked")
    except KeyboardInterrupt:
        entries[:] = [entry for entry in entries if Path(entry["path"]).is_file()]
        say(f"kotoe: interrupted; {len(entries)} of {len(jobs)} pictures are done and kept")
        document["interrupted"], code = True, INTERRUPTED
    finish(common, document, [] if document["grid"] is None else [str(document["grid"])])
    return code


def _only_draw(bundle: Bundle, engine_name: str, numerics: str) -> None:
    """Have this process do nothing but draw from now on: it keeps its memory, and no weight twice."""
    from kotoe import engine
    from kotoe.drawing import has_engine
    from kotoe.memory import keep_memory

    if engine_name in ("fast", "int8") and has_engine(bundle):
        if numerics == "exact" and {"unet", "vae"} <= set(bundle.hashes):  # else they are hashed as they are
            engine.of(bundle.unet, release=True, int8=engine_name == "int8")
            engine.of(bundle.vae, release=True)
        keep_memory()  # from here on: what the weights were before they were laid out is given back


def _notes(bundle: Bundle, request: Resolved, jobs: Sequence[Job]) -> None:
    """Say, before anything is drawn, what of the prompts is not read, and what is known to be read badly."""
    from kotoe.language import written_in
    from kotoe.reading import said

    if request.guidance_scale == 0.0:
        say(
            "note: at guidance_scale 0 the negative prompt alone is drawn, and the prompt has no effect; "
            "1 is without guidance"
        )
    prompts = [said(request, job.prompt).words.casefold() for job in jobs]
    for adapter in bundle.adapters:
        if adapter.token is not None and not any(adapter.token.casefold() in prompt for prompt in prompts):
            say(f"note: no prompt has the word {adapter.token!r} of the embedding {adapter.name}")
    for language, given in dict.fromkeys(job.reading for job in jobs):
        conditioner = bundle.conditioner(language)
        texts = (given, request.negative_prompt) if isinstance(given, str) else (given.prompt, given.negative_prompt)
        for text in dict.fromkeys(texts):
            prompt = said(request, text, translated=not isinstance(given, str))
            if any(conditioner.warns_of(part.text) for part in prompt.parts):
                say(
                    f"note: {text!r} has full-width punctuation, which gets watermarks from models trained as Taiyi "
                    "was; --punctuation ascii reads it as , and ."
                )
            if text == request.negative_prompt and not written_in(prompt.words, language):
                say(f"note: the negative prompt {text!r} is read as {language}, the language of the prompt")
            if request.long_prompt == "cut":
                over = conditioner.tokenizer.encode([prompt], long_prompt="cut").overflow[0]
                if over:
                    say(f"note: the end of {text!r} is not read, {len(over)} pieces: {' | '.join(over)}")


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
    with writing(out):
        return write_atomic(out / f"generate-{_short_hash(text)}.json", text)


def _path_of(out: Path, picture: Any, suffix: str) -> Path:
    return out / f"{picture_name(picture.record)}{suffix}.png"


def _save_picture(picture: Any, path: Path, signs: Signer | None) -> Path:
    from kotoe.provenance.encode import encode

    content = encode(picture, signer=signs)
    with writing(path.parent), atomic(path) as temp:
        temp.write_bytes(content)
    return path


def _save_grid(out: Path, pictures: Sequence[Any]) -> Path:
    from kotoe.labels import labelled_grid

    records = [picture.record for picture in pictures]
    grid = labelled_grid(
        [picture.image for picture in pictures],
        [record.prompt for record in records],
        [record.prompt_language for record in records],
    )
    path = out / "grid.png"
    with writing(out), atomic(path) as temp:
        grid.save(temp, format="PNG")
    return path


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
        document = foreign_json(read_record(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"the record in {path} is no JSON document", allowed="a picture that Kotoe drew") from error
    record: Record = from_json(Record, document, f"the record in {path}")
    record.request()  # its own checks: sizes, ranges, names
    return record


def _replay(common: Common, drawing: Drawing, values: Values) -> int:
    loading: Loading = part_of(values, Loading)
    adapting: Adapting = part_of(values, Adapting)
    marking: Marking = part_of(values, Marking)
    own = {f.name for part in (drawing, adapting, loading, Agreeing, Marking) for f in dataclasses.fields(part)}
    own.add("prompt_check")  # a record may be anybody's
    own.remove("watermark")  # it has its own
    asked = sorted(set(values) - own | set(values) & {"translator", "detector"})  # a record has its translation
    if asked:
        raise UserError(
            f"--replay together with {', '.join(asked)}",
            allowed="--replay with --out, --device, --low-memory, and --model with what it needs to be loaded and what "
            "was put into it (--lora, --embedding), --prompt-check, --c2pa",
            hint="A replay draws the picture as it was; without --replay you can change it",
        )
    assert drawing.replay is not None
    record = read_picture_record(drawing.replay)
    name = record.model.name
    if "model" not in values and name not in builtin.NAMES and not hub.pinned(name):
        raise UserError(f"{drawing.replay} was drawn by {name!r}", hint="Say where that model is: --model FOLDER")
    signs = signer(marking, say)
    source = drawing.model if "model" in values else name
    agree(values, source, dry_run=common.dry_run)
    dtypes = {"unet": record.dtype, "vae": record.vae_dtype, "text_encoder": record.text_dtype}
    bundle = bundle_of(source, dtypes, loading, drawing.device, drawing.low_memory or record.low_memory)

    from kotoe.checkpoints.fast import drew

    if bundle.fast is not None and drew(bundle.fast, record):  # the model has it: it needn't be given
        adapting = dataclasses.replace(adapting, fast=True)
    bundle = adapted(bundle, adapting, loading)

    import torch

    from kotoe.drawing import has_engine, replay
    from kotoe.images import differences, open_picture
    from kotoe.provenance.encode import marked
    from kotoe.recording import check_same

    check_same(bundle, record)
    there = open_picture(drawing.replay)  # before anything is drawn: it may be damaged
    show_config("replay", {**to_json(record), **to_json(drawing), **to_json(adapting), **to_json(loading)})
    now = {"torch": torch.__version__, "kotoe": __version__, "device": str(bundle.device)}
    now["engine"] = record.engine if record.engine == "compiled" or has_engine(bundle) else "plain"
    for what, here in now.items():
        then = getattr(record, what)
        if then != here:
            say(f"drawn with {what} {then}, here is {here}: the last bits may differ")
    checks: Checks = part_of(values, Checks)
    if checks.prompt_check != "off":
        verdict = prompt_verdict(checks, record.request(), record.prompt, record.prompt_language, record.translation)
        if not verdict.allowed and verdict.action == "block":
            blocked = [{"prompt": record.prompt, "seed": record.seed, "verdict": to_json(verdict)}]
            finish(common, {"pictures": [], "replayed": drawing.replay, "blocked": blocked}, [])
            return BLOCKED
    if common.dry_run:
        finish(common, {"dry_run": True, "pictures": [], "config": to_json(drawing)}, [])
        return 0
    _only_draw(bundle, record.engine, record.numerics)
    with Bar(common, "drawing") as bar:
        picture = as_recorded(replay(bundle, record, on_step=lambda p: bar(p.done, p.total)), record)
    picture = marked(picture, record.watermark)
    changed, largest = differences(picture.image, there)
    path = _save_picture(picture, _path_of(Path(drawing.out), picture, "-replay"), signs)
    if there.size != picture.image.size:
        width, height = there.size
        say(f"the file's picture is {width}x{height}, its record's {record.width}x{record.height}: it was resized")
    else:
        say("identical pixels" if not changed else f"{changed} pixels differ, by up to {largest} of 255")
    entry = {"path": str(path), "seed": record.seed, "record": to_json(picture.record)}
    finish(common, {"pictures": [entry], "replayed": drawing.replay, "identical": not changed}, [str(path)])
    return 0


# --- inspect --------------------------------------------------------------------------------------


def inspect(common: Common, values: Values) -> int:
    """Describe a model or an adapter from its configurations and file heads, a picture by its record."""
    wanted: Inspecting = part_of(values, Inspecting)
    if common.dry_run:
        show_config("inspect", to_json(wanted))
        builtin.resolve(wanted.model)
        finish(common, {"dry_run": True, "config": to_json(wanted)}, [])
        return 0
    if Path(wanted.model).suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"):
        record = to_json(read_picture_record(wanted.model))
        lines = [f"{name}: {dumps(value)}" for name, value in record.items()]
        finish(common, {"picture": wanted.model, "record": record}, lines)
        return 0
    if (licensed := licences.of(wanted.model)) is not None and licensed.from_hub:  # it is downloaded
        agree(values, wanted.model)
    from kotoe.checkpoints.inspect import describe

    found = describe(wanted.model, allow_pickle=wanted.allow_pickle)
    if "adapter" in found:
        from kotoe.checkpoints.adapters import lines as adapter_lines

        finish(common, found, adapter_lines(found))
        return 0
    lines = [
        f"{found['name']}: {found['family']}, {found['size_px']} x {found['size_px']} pixels, "
        f"languages {', '.join(found['languages']) or 'not stated'}, licence {found['licence'] or 'not stated'}",
        *licences.shown(found["terms"]),
        *_others(found),
        f"folder {found['folder']}",
        f"defaults {dumps(found['defaults'])}",
        *([f"fast {dumps(found['fast'])}"] if found["fast"] else []),
    ]
    for part, size in found["sizes"].items():
        lines.append(f"{part}: {size['parameters']:,} parameters, {size['bytes']:,} bytes")
    lines += [f"{part}: {dumps(component)}" for part, component in found["components"].items()]
    lines += [f"{part} sha256 {value}" for part, value in found["hashes"].items()]
    lines += [f"note: {note}" for note in found["notes"]]
    finish(common, found, lines)
    return 0


def _others(found: Mapping[str, Any]) -> list[str]:
    """What the model's card says of languages, where that isn't what its files say; and conditioners' licences."""
    card = found["card"] or {"languages": []}
    lines = [f"its card says languages {', '.join(card['languages'])}"] if card["languages"] else []
    lines = [] if set(card["languages"]) == set(found["languages"]) else lines
    for name, part in found["licences"].items():
        lines.append(f"conditioner {name}: licence {part['licence'] or 'not stated'}, beside the model's")
        lines += licences.shown(part["terms"], f"the licence of conditioner {name}")
    return lines


# --- conditioner ----------------------------------------------------------------------------------


def add_conditioner(common: Common, values: Values) -> int:
    """Put a conditioner beside the others of a folder."""
    wanted: Adding = part_of(values, Adding)
    config = to_json(wanted)
    show_config("conditioner add", config)
    agree(values, wanted.from_, dry_run=common.dry_run)
    from kotoe.checkpoints import conditioners

    place = conditioners.add(
        wanted.bundle,
        wanted.language,
        wanted.from_,
        serves=wanted.serves,
        source_language=wanted.source_language,
        own_language=wanted.own_language,
        overwrite=wanted.overwrite,
        allow_pickle=wanted.allow_pickle,
        dry_run=common.dry_run,
        on_note=lambda note: say(f"note: {note}"),
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
    loading: Loading = part_of(values, Loading)
    config = {**to_json(wanted), **to_json(loading)}
    show_config("convert", config)
    agree(values, wanted.source, dry_run=common.dry_run)
    source = builtin.resolve(wanted.source, allow_pickle=loading.allow_pickle)
    out = Path(wanted.out)

    from kotoe.checkpoints import FORMATS, save, terms

    if wanted.to not in FORMATS:
        raise unknown("format", wanted.to, FORMATS)
    if out.exists() and not wanted.overwrite:
        raise UserError(f"{out} is there already", allowed="a name that isn't taken, or --overwrite")
    bundle = bundle_of(str(source), "stored", loading)
    if wanted.language is not None:
        one = {wanted.language: bundle.conditioner(wanted.language)}
        bundle = bundle.changed(conditioners=one, default_language=wanted.language)
    if source.is_dir():  # its card, which stands before its kotoe.json
        bundle = dataclasses.replace(bundle, licence=licences.stated(source) or bundle.licence)
    notes = list(bundle.notes)
    if wanted.to != "diffusers" and (bundle.small_decoder is not None or bundle.fast is not None):
        notes.append(f"{wanted.to} has no place for the model's small decoder and its fast way, which stay behind")
    for note in notes:
        say(f"note: {note}")
    document = {"out": str(out), "to": wanted.to, "notes": notes, "config": config}
    if common.dry_run:
        finish(common, {"dry_run": True, **document}, [])
        return 0
    with writing(out.parent):
        save(bundle, out, to=wanted.to, dtype=wanted.dtype, overwrite=wanted.overwrite)
        licence = terms.joined(bundle.licence, [bundle.conditioner(tag).licence for tag in bundle.languages])
        stays = licences.stated(out) if out.is_dir() else None
        if terms.hand_on(source, out, wanted.source, licence) is None and stays not in (None, licence):
            say(f"note: the card in {out}, which stays, says licence {stays}; the model's is {licence or 'not known'}")
    finish(common, document, [str(out)])
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
    loading: Loading = part_of(values, Loading)
    config = {**to_json(wanted), **to_json(loading)}
    if common.dry_run:
        show_config("check", config)
        builtin.resolve(wanted.model, allow_pickle=loading.allow_pickle)
        finish(common, {"dry_run": True, "config": config}, [])
        return 0
    began = time.perf_counter()
    import torch

    from kotoe.checkpoints.files import has_bf16
    from kotoe.drawing import generate as draw_all
    from kotoe.images import to_tensor
    from kotoe.labels import check_labels
    from kotoe.runs import environment

    torch_s = time.perf_counter() - began
    problems: list[str] = []
    agree(values, wanted.model)
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
    bundle = bundle_of(wanted.model, "auto", loading)
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
