"""A study as tables, one a question: what its document says, in Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

SHARES = (0.25, 0.5, 0.75, 0.9, 0.98)  # of English's R@1, whose cost is asked for


def name_of(cell: Mapping[str, Any]) -> str:
    """A cell's, in the document's tables and as the folder that keeps it."""
    return f"{cell['plan']}-{cell['start']}-{cell['language']}-{cell['steps']}"


def share(cell: Mapping[str, Any], document: Mapping[str, Any]) -> float:
    """A cell's R@1 as a share of English's."""
    return float(cell["figures"]["r1"]["value"] / document["english"]["figures"]["r1"]["value"])


def best(document: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """By language the cell that recognises most, of equal ones the cheaper; best languages first."""
    ordered = sorted(document["cells"], key=lambda c: (-share(c, document), c["flop"], c["language"]))
    found: dict[str, Mapping[str, Any]] = {}
    for cell in ordered:
        found.setdefault(cell["language"], cell)
    return found


def report(document: Mapping[str, Any]) -> Iterator[str]:
    """Markdown, a table a question."""
    english = document["english"]["figures"]
    r1, relation = _percent(english["r1"]), _percent(english["relation"])
    yield f"English, the teacher: R@1 {r1}, held out {_percent(english['r1_held_out'])}, relation {relation}."
    yield from _table("What does each plan reach, and for what?", COLUMNS, _cells(document))
    yield from _table("What does it cost to get there?", ("share of English", *_plans(document)), _costs(document))
    yield from _table("Is a pooled vector enough?", AGREEMENT, _agreements(document))
    yield from _table("Which languages are learnt how well?", COLUMNS, _languages(document))
    yield from _table("And without any of it?", ("language", "read by the English encoder, R@1 %"), _controls(document))


COLUMNS = (
    "language", "plan", "start", "steps", "texts", "seconds", "TFLOP", "R@1 %", "of English", "R@5 %", "held out %",
    "relation %",
)  # fmt: skip


AGREEMENT = (
    "plan", "start", "language", "steps", "unexplained of the pooled vector", "of what the UNet reads",
    "R@1 of English",
)  # fmt: skip


def _agreements(document: Mapping[str, Any]) -> list[list[str]]:
    """The dearest cell of every plan and language."""
    dearest: dict[tuple[str, str, str], Mapping[str, Any]] = {}
    for cell in sorted(document["cells"], key=lambda c: c["steps"]):
        if name_of(cell) in document["agreement"]:
            dearest[cell["plan"], cell["start"], cell["language"]] = cell
    plans = {plan for plan, _, _ in dearest}
    if len(plans) < 2:
        return []
    rows = []
    for (plan, start, language), cell in sorted(dearest.items()):
        left = document["agreement"][name_of(cell)]
        said = [plan, start, language, f"{cell['steps']:,}", f"{left['pooled']:.3f}", f"{left['read']:.3f}"]
        rows.append([*said, f"{share(cell, document):.3f}"])
    return rows


def _table(question: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    if rows:
        yield from ("", f"## {question}", "", f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads))
        yield from (f"| {' | '.join(row)} |" for row in rows)


def _row(cell: Mapping[str, Any], document: Mapping[str, Any]) -> list[str]:
    f = cell["figures"]
    said = [cell["language"], cell["plan"], cell["start"], f"{cell['steps']:,}", f"{cell['texts']:,}"]
    said += [f"{cell['seconds']:.0f}", f"{cell['flop'] / 1e12:.1f}", _percent(f["r1"]), f"{share(cell, document):.3f}"]
    return [*said, *(_percent(f[name]) for name in ("r5", "r1_held_out", "relation"))]


def _cells(document: Mapping[str, Any]) -> list[list[str]]:
    """Languages that more than one plan or budget was tried on."""
    counts = Counter(cell["language"] for cell in document["cells"])
    ordered = sorted(document["cells"], key=lambda c: (c["plan"], c["start"], c["language"], c["steps"]))
    return [_row(cell, document) for cell in ordered if counts[cell["language"]] > 1]


def _languages(document: Mapping[str, Any]) -> list[list[str]]:
    return [_row(cell, document) for cell in best(document).values()]


def _plans(document: Mapping[str, Any]) -> list[str]:
    return sorted({f"{cell['plan']}, {cell['start']}" for cell in document["cells"]})


def _costs(document: Mapping[str, Any]) -> list[list[str]]:
    """TFLOP of the cheapest cell that reaches a share, by plan, the mean over its languages; what wasn't reached in all
    of them says how far the dearest cells came."""
    rows = []
    for wanted in SHARES:
        row = [f"{wanted:.0%}"]
        for plan in _plans(document):
            own: dict[str, list[Mapping[str, Any]]] = {}
            for cell in document["cells"]:
                if f"{cell['plan']}, {cell['start']}" == plan:
                    own.setdefault(cell["language"], []).append(cell)
            costs = [
                min((cell["flop"] for cell in cells if share(cell, document) >= wanted), default=None)
                for cells in own.values()
            ]
            if None in costs:
                most = max(cell["flop"] for cells in own.values() for cell in cells)
                row.append(f"over {most / 1e12:.1f} ({len(costs) - costs.count(None)} of {len(costs)} languages)")
            else:
                row.append(f"{sum(c for c in costs if c is not None) / len(costs) / 1e12:.1f}")
        rows.append(row)
    return rows


def _controls(document: Mapping[str, Any]) -> list[list[str]]:
    return [[control["language"], _percent(control["figures"]["r1"])] for control in document["controls"]]


def _percent(score: Mapping[str, float]) -> str:
    return f"{100 * score['value']:.1f} [{100 * score['low']:.1f}, {100 * score['high']:.1f}]"
