"""A study as pictures: a bar a language, as long as its share of English; and what each plan's cells cost and reach."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw

from kotoe import labels
from kotoe.errors import UserError

TEXT_PX, SMALL_PX, ROW_PX, BAR_PX, MARGIN_PX = 22, 18, 34, 20, 32
BARS_PX = 640  # a bar of 100 %
MOST = 1.1  # share of English at the right edge: intervals reach over 100 %
PANEL_PX = (430, 380)  # of a language's curves
INK, RULE, FAINT = (30, 30, 34), (216, 216, 222), (110, 110, 118)
COLOURS = ((66, 113, 174), (222, 143, 68), (86, 152, 100), (151, 105, 171), (120, 120, 120), (176, 85, 100))
LINES = (0.5, 0.9, 1.0)

Cell = Mapping[str, Any]


def drawable(text: str, language: str) -> bool:
    """Whether the fonts here have all of a text's characters."""
    try:
        labels.check_labels([text], [language])
    except UserError:
        return False
    return True


def bars(document: Mapping[str, Any], cells: Sequence[Cell]) -> Image.Image:
    """R@1 of some cells as a share of English's, a colour a plan."""
    english = document["english"]["figures"]["r1"]["value"]
    plans = list(dict.fromkeys(cell["plan"] for cell in cells))
    names = [f"{c['language']}  {c['plan']}, {c['start']}, {c['texts']:,} texts" for c in cells]
    left = MARGIN_PX + round(max(labels.line_width(name, size_px=TEXT_PX) for name in names)) + 24
    width = left + round(MOST * BARS_PX) + 180
    head = MARGIN_PX + 2 * ROW_PX
    image = Image.new("RGB", (width, head + len(cells) * ROW_PX + MARGIN_PX), "white")
    drawing = ImageDraw.Draw(image)
    title = f"Objects recognised first (R@1), as a share of English's {100 * english:.1f} %"
    labels.draw_line(drawing, (MARGIN_PX, MARGIN_PX + TEXT_PX), title, size_px=TEXT_PX, ink=INK)
    for line in LINES:
        x = left + round(line * BARS_PX)
        drawing.line([(x, head - 6), (x, image.height - MARGIN_PX)], RULE, 2)
        labels.draw_line(drawing, (x - 24, head - 12), f"{100 * line:.0f} %", size_px=SMALL_PX, ink=FAINT)
    for k, (cell, name) in enumerate(zip(cells, names, strict=True)):
        base = head + k * ROW_PX + 26
        found = {end: cell["figures"]["r1"][end] / english for end in ("value", "low", "high")}
        labels.draw_line(drawing, (MARGIN_PX, base), name, size_px=TEXT_PX, ink=INK)
        colour = COLOURS[plans.index(cell["plan"]) % len(COLOURS)]
        top = base + 4 - BAR_PX
        drawing.rectangle([left, top, left + max(1, round(found["value"] * BARS_PX)), base + 4], colour)
        low, high = (left + round(found[end] * BARS_PX) for end in ("low", "high"))
        drawing.line([(low, base - 6), (high, base - 6)], INK, 2)
        said = f"{100 * found['value']:.1f} %"
        labels.draw_line(drawing, (left + round(MOST * BARS_PX) + 24, base), said, size_px=TEXT_PX, ink=INK)
    return image


def curves(document: Mapping[str, Any]) -> Image.Image:
    """A panel a language that has several trained cells: share of English over TFLOP, a line a plan."""
    english = document["english"]["figures"]["r1"]["value"]
    lines: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for cell in sorted(document["cells"], key=lambda c: c["flop"]):
        if cell["flop"]:
            point = (math.log10(cell["flop"] / 1e12), cell["figures"]["r1"]["value"] / english)
            lines.setdefault(cell["language"], {}).setdefault(f"{cell['plan']}, {cell['start']}", []).append(point)
    lines = {language: of for language, of in lines.items() if sum(map(len, of.values())) > 1} or lines
    plans = sorted({plan for of in lines.values() for plan in of})
    colour = {plan: COLOURS[k % len(COLOURS)] for k, plan in enumerate(plans)}
    every = [x for of in lines.values() for points in of.values() for x, _ in points] or [0.0]
    first, last = math.floor(min(every)), max(math.ceil(max(every)), math.floor(min(every)) + 1)
    columns = min(3, max(1, len(lines)))
    wide, high = PANEL_PX
    rows = -(-len(lines) // columns)
    head = MARGIN_PX + (1 + len(plans)) * ROW_PX
    size = (max(columns * wide, 2 * wide) + 2 * MARGIN_PX, head + rows * high + MARGIN_PX)
    image = Image.new("RGB", size, "white")
    drawing = ImageDraw.Draw(image)
    title = "R@1 as a share of English's, over the compute of training (TFLOP)"
    labels.draw_line(drawing, (MARGIN_PX, MARGIN_PX + TEXT_PX - 8), title, size_px=TEXT_PX, ink=INK)
    for k, plan in enumerate(plans):
        y = MARGIN_PX + (1 + k) * ROW_PX
        drawing.line([(MARGIN_PX, y + 8), (MARGIN_PX + 40, y + 8)], colour[plan], 5)
        labels.draw_line(drawing, (MARGIN_PX + 56, y + 15), plan, size_px=SMALL_PX, ink=INK)
    for k, (language, of) in enumerate(lines.items()):
        left, top = MARGIN_PX + k % columns * wide + 56, head + k // columns * high + 30
        plot = (left, top, wide - 90, high - 90)
        _panel(drawing, plot, language, (first, last))
        for plan, points in of.items():
            places = [_place(plot, (x - first) / (last - first), y) for x, y in points]
            drawing.line(places, colour[plan], 4)
            for x, y in places:
                drawing.ellipse([x - 5, y - 5, x + 5, y + 5], colour[plan])
    return image


Plot = tuple[int, int, int, int]  # left, top, width, height in pixels


def _place(plot: Plot, x: float, y: float) -> tuple[int, int]:
    """Pixels of a point: x from 0 to 1, y a share of English."""
    left, top, width, height = plot
    return left + round(x * width), top + round((1 - y / MOST) * height)


def _panel(drawing: ImageDraw.ImageDraw, plot: Plot, language: str, decades: tuple[int, int]) -> None:
    first, last = decades
    labels.draw_line(drawing, (plot[0], plot[1] - 10), language, size_px=TEXT_PX, ink=INK)
    for line in (0.0, *LINES):
        y = _place(plot, 0, line)[1]
        drawing.line([(plot[0], y), (plot[0] + plot[2], y)], RULE, 2)
        labels.draw_line(drawing, (plot[0] - 52, y + 6), f"{100 * line:.0f} %", size_px=SMALL_PX - 2, ink=FAINT)
    for decade in range(first, last + 1):
        x, y = _place(plot, (decade - first) / (last - first), 0)
        drawing.line([(x, plot[1]), (x, y)], RULE, 2)
        labels.draw_line(drawing, (x - 12, y + 26), f"{10.0**decade:g}", size_px=SMALL_PX - 2, ink=FAINT)
