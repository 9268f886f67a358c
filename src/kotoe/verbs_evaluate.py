"""The verb that measures a model's pictures."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path

from kotoe import builtin
from kotoe.config import to_json
from kotoe.consent import agree
from kotoe.console import (
    Adapting,
    Bar,
    Common,
    Evaluating,
    Loading,
    Values,
    adapted,
    bundle_of,
    finish,
    part_of,
    say,
    show_config,
)


def evaluate(common: Common, values: Values) -> int:
    """Run a suite and print its figures."""
    wanted: Evaluating = part_of(values, Evaluating)
    loading: Loading = part_of(values, Loading)
    adapting: Adapting = part_of(values, Adapting)
    config = {**to_json(wanted), **to_json(adapting), **to_json(loading)}
    show_config("evaluate", config)
    agree(values, wanted.model, dry_run=common.dry_run)
    folder = builtin.resolve(wanted.model, allow_pickle=loading.allow_pickle)
    if common.dry_run:
        finish(common, {"dry_run": True, "config": config, "folder": str(folder)}, [])
        return 0
    bundle = adapted(bundle_of(wanted.model, wanted.dtype, loading), adapting, loading)

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
            progress=bar,
            **{name: getattr(wanted, name) for name in ("steps", "guidance_scale", *suites.APPROXIMATE)},
        )
        if wanted.out is not None:
            for path in report.write(evaluation, Path(wanted.out)).values():
                say(str(path))
    finish(common, evaluation.results, report.text(evaluation).splitlines())
    return 0
