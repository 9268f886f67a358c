"""How good a model is: `run` draws a suite's prompts and counts what the pictures show. See docs/evaluation.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kotoe.checkpoints import Bundle

__all__ = ["run"]


def run(
    bundle: Bundle,
    *,
    suite: str = "emoji",
    languages: Sequence[str] | None = None,
    tier: str = "everyday",
    n: int | None = None,
    controls: bool = True,
    batch: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    out: str | Path | None = None,
    **how: Any,
) -> dict[str, Any]:
    """The figures of a suite: `suite, version, languages: {en: {r1, r5, background, relation, ssim, ...}}`, each
    `{value, n, low, high}`, and `controls`. The arguments are those of `suites.evaluate`.

    out: a folder for results.json, report.md, failures.json and a grid of pictures; it is made if missing.
    Raises UserError for what the model, the suite or the machine doesn't have, before a picture is drawn.
    """
    from kotoe.evaluate import report, suites

    if out is not None:
        prompts = [i for spoken in suites.spoken(bundle, languages) for i in suites.items(spoken, tier=tier, n=n)]
        report.check(Path(out), prompts)
    evaluation = suites.evaluate(
        bundle,
        suite=suite,
        languages=languages,
        tier=tier,
        n=n,
        controls=controls,
        batch=batch,
        progress=progress,
        **how,
    )
    if out is not None:
        report.write(evaluation, Path(out))
    return evaluation.results
