"""What `kotoe bench` does. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import dataclasses
import shlex
import time
from pathlib import Path
from typing import Any

from kotoe.config import Request, to_json
from kotoe.consent import agree
from kotoe.console import Bar, Benching, Common, Loading, Values, bundle_of, finish, part_of, show_config, writing
from kotoe.errors import UserError
from kotoe.runs import write_atomic

CARD = "# Bench of "  # bench.CARD, which is told before torch is loaded


def bench(common: Common, values: Values) -> int:
    """Measure a model on this machine; the card is written when all is measured, or not at all."""
    wanted: Benching = part_of(values, Benching)
    loading: Loading = part_of(values, Loading)
    _check_card(wanted.card)
    sizes = {name: getattr(wanted, name) for name in ("width", "height", "steps", "batch_size")}
    Request(prompt="a", **sizes)  # wrong numbers are told before a model is looked for
    agree(values, wanted.model, dry_run=common.dry_run)
    bundle = bundle_of(wanted.model, wanted.dtype, loading)

    from kotoe import bench as measuring

    request = measuring.asked(bundle, engine_name=wanted.engine, **sizes)
    names = ("width", "height", "steps", "sampler", "grid", "guidance_scale", "dtype", "engine", "batch_size")
    asked = {name: getattr(request, name) for name in names}
    config = {**to_json(wanted), **to_json(loading), **{name: asked[name] for name in (*sizes, "dtype", "engine")}}
    show_config("bench", config)
    if common.dry_run:
        finish(common, {"dry_run": True, "config": config, "request": asked}, [])
        return 0
    document: dict[str, Any] = {
        "model": bundle.name,
        "request": {"prompt": measuring.PROMPT, **asked},
        "rounds": wanted.rounds,
        "command": _command(wanted, loading),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": measuring.machine(),
    }
    cold = []
    with Bar(common, "cold starts") as bar:
        for turn in range(wanted.rounds + 1):
            bar(turn, wanted.rounds + 1)
            found = measuring.cold_start(wanted.model, request, dataclasses.asdict(loading))
            cold += [found] if turn else []  # the first one reads the files into the system's cache
    measuring.settle(bundle, request.engine)
    with Bar(common, "measuring") as bar:
        measured = measuring.measure(bundle, request, rounds=wanted.rounds, progress=bar)
    for name in ("load", "first_step"):
        measured["seconds"][name] = measuring.spread([each[f"{name}_s"] for each in cold])
    peaks = [each["peak_bytes"] for each in cold]
    measured["peak_bytes"] = {"picture": None if None in peaks else max(peaks), "run": measured["peak_bytes"]}
    document |= {**measured, "config": config, "card": wanted.card}
    if wanted.card is not None:
        path = Path(wanted.card)
        with writing(path.parent):
            write_atomic(path, measuring.card(document))
    finish(common, document, [*measuring.table(document), *([] if wanted.card is None else [wanted.card])])
    return 0


def _check_card(card: str | None) -> None:
    """Before minutes of measuring: whether the card can stand there, and what it would replace."""
    if card is None:
        return
    path = Path(card)
    if path.suffix != ".md" or path.is_dir():
        raise UserError(f"--card {card}", allowed="the name of a file that ends in .md")
    try:
        foreign = path.exists() and not path.read_text("utf-8", errors="replace").startswith(CARD)
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}", allowed="a new file, or an earlier card") from error
    if foreign:
        raise UserError(
            f"{path} is there already and is no card of kotoe bench",
            allowed="a name that isn't taken, or an earlier card, which is replaced",
        )


def _command(wanted: Benching, loading: Loading) -> str:
    """The command that was given, as far as its options differ from the defaults; without --json and the like."""
    words = ["kotoe", "bench"]
    for part in (wanted, loading):
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            if value == field.default or field.name == "card":
                continue
            flag = field.name.replace("_", "-")
            words += [f"--{flag}" if value is not False else f"--no-{flag}"] + (
                [] if isinstance(value, bool) else [str(value)]
            )
    return shlex.join(words)
