"""An evaluation as files for people: results.json, report.md, failures.json and pictures beside their true renders."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from kotoe import labels
from kotoe.errors import UserError
from kotoe.evaluate.suites import Drawn, Evaluation, Item

SHOWN = 16  # pictures of each language in the grid: 12 of one object, 4 of two
COLUMNS = ("r1", "r5", "background", "relation", "ssim", "r1_seen", "r1_held_out", "gap")
HEADINGS = {
    "r1": "R@1 %",
    "r5": "R@5 %",
    "background": "background %",
    "relation": "relation %",
    "ssim": "median SSIM",
    "r1_seen": "R@1 % seen",
    "r1_held_out": "R@1 % held out",
    "gap": "R@1 ÷ English",
}
RATIOS = ("ssim", "gap")  # shown as they are; the others are shares, shown in percent


def check(out: Path, items: Sequence[Item]) -> None:
    """Raise a UserError now, not after an hour of drawing, when `out` can't be written into or no font here has the
    characters of the prompts, which label the pictures. Makes the folder if it is missing."""
    _folder(out)
    labels.check_labels([item.prompt for item in items], [item.language for item in items])


def _folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".kotoe-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"can't write a report into {out}: {error.strerror}", allowed="a folder one may write to"
        ) from error


def write(evaluation: Evaluation, out: Path) -> dict[str, Path]:
    """Write the report into the folder `out`. Returns the files by name: results, report, failures, pictures."""
    _folder(out)
    files = {
        "results": out / "results.json",
        "report": out / "report.md",
        "failures": out / "failures.json",
        "pictures": out / "pictures.png",
    }
    failed = list(failures(evaluation))
    _save(files["results"], json.dumps(evaluation.results, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    _save(files["failures"], json.dumps(failed, indent=1, ensure_ascii=False) + "\n")
    _save(files["report"], markdown(evaluation.results, failed))
    part = files["pictures"].with_suffix(".part.png")
    grid(evaluation).save(part)
    part.replace(files["pictures"])
    return files


def _save(path: Path, text: str) -> None:
    part = path.with_suffix(path.suffix + ".part")  # a killed run leaves no half file
    part.write_text(text, encoding="utf-8")
    part.replace(path)


# ---- the table ------------------------------------------------------------------------------------------------------


def markdown(results: Mapping[str, Any], failed: list[dict[str, Any]]) -> str:
    """The figures as a table, then the controls, then what went wrong."""
    lines = _tables(results)
    lines += ["", f"## Failures ({len(failed)})", ""]
    lines += [f"- {_sentence(failure)}" for failure in failed] or ["None."]
    return "\n".join(lines) + "\n"


def text(evaluation: Evaluation) -> str:
    """The tables alone, for a terminal."""
    return "\n".join(_tables(evaluation.results)) + "\n"


def _tables(results: Mapping[str, Any]) -> list[str]:
    settings = results["settings"]
    used = ", ".join(f"{name} {value}" for name, value in settings.items())
    lines = [
        f"# {results['model']}: suite {results['suite']} version {results['version']}, tier {results['tier']}",
        "",
        f"{results['prompts']['single']} prompts of one object and {results['prompts']['pair']} of two per language,"
        f" looked up among {results['glyphs']} glyphs. In brackets: bootstrap 95 % interval.",
        f"Drawn with {used}; {results['pictures_per_second']} pictures/s. Kotoe {results['kotoe']}, model sha256"
        f" {results['model_sha256'][:12]}.",
        "",
        *_table("language", results["languages"], COLUMNS),
    ]
    if controls := results.get("controls"):
        rows = {"true renders (ceiling)": controls["true_renders"]}
        rows |= {f"{language}, shuffled prompts (chance)": row for language, row in controls["shuffled"].items()}
        rows |= {
            f"{language} read by the English encoder": row for language, row in controls["english_encoder"].items()
        }
        lines += ["", "## Controls", "", *_table("control", rows, COLUMNS[:4])]
    return lines


def _table(first: str, rows: Mapping[str, Mapping[str, Any]], columns: tuple[str, ...]) -> Iterator[str]:
    some = [c for c in columns if any(c in row for row in rows.values())]
    yield "| " + " | ".join([first, *(HEADINGS[c] for c in some)]) + " |"
    yield "| " + " | ".join(["---"] * (len(some) + 1)) + " |"
    for name, row in rows.items():
        yield "| " + " | ".join([name, *(_cell(c, row.get(c)) for c in some)]) + " |"


def _cell(column: str, figure: Mapping[str, float] | None) -> str:
    if figure is None:
        return ""
    if column in RATIOS:
        return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
    value, low, high = (100 * figure[key] for key in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


# ---- what went wrong ------------------------------------------------------------------------------------------------


def failures(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    """Every prompt whose object, relation or background was not found: asked and found, by English names."""
    names = evaluation.names
    for language, drawn in evaluation.drawn.items():
        one = len(drawn.found.r1)
        for i, item in enumerate(drawn.items):
            right = drawn.found.r1[i] if i < one else drawn.found.relation[i - one]
            if right and drawn.found.background[i]:
                continue
            yield {
                "language": language,
                "prompt": item.prompt,
                "seed": item.seed,
                "held_out": item.held_out,
                "asked": [names[k] for k in item.scene.objects],
                "found": [names[k] for k in drawn.seen.best[i]],
                "objects_right": bool(right),
                "background": item.scene.background,
                "background_found": drawn.seen.colours[i],
            }


def _sentence(failure: Mapping[str, Any]) -> str:
    wrong = []
    if not failure["objects_right"]:
        wrong.append(f"asked {' and '.join(failure['asked'])}, found {' and '.join(failure['found'])}")
    if failure["background"] != failure["background_found"]:
        wrong.append(f"background {failure['background']}, found {failure['background_found']}")
    return f"{failure['language']} “{failure['prompt']}” (seed {failure['seed']}): {'; '.join(wrong)}"


# ---- pictures -------------------------------------------------------------------------------------------------------


def grid(evaluation: Evaluation, shown: int = SHOWN) -> Image.Image:
    """The first pictures of each language, each to the left of its true render."""
    pictures: list[Image.Image] = []
    items: list[Item] = []
    for language, drawn in evaluation.drawn.items():
        for i in _some(drawn, shown):
            pictures.append(_beside(drawn.pictures[i], evaluation.renders[language][i]))
            items.append(drawn.items[i])
    return labels.labelled_grid(pictures, [i.prompt for i in items], [i.language for i in items], columns=4)


def _some(drawn: Drawn, shown: int) -> list[int]:
    one, count = len(drawn.found.r1), len(drawn.items)
    pairs = list(range(one, count))[: shown // 4]
    return list(range(one))[: shown - len(pairs)] + pairs


def _beside(left: Tensor, right: Tensor) -> Image.Image:
    height, width = left.shape[-2:]
    both = Image.new("RGB", (2 * width + 2, height), "white")
    for x, picture in ((0, left), (width + 2, right)):
        data = picture.permute(1, 2, 0).contiguous()  # (H, W, 3)
        both.paste(Image.frombytes("RGB", (width, height), data.numpy().tobytes()), (x, 0))
    return both
