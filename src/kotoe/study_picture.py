"""A study as a picture: a bar a cell, as long as its share of English, with its interval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image, ImageDraw

from kotoe import labels

TEXT_PX, ROW_PX, BAR_PX, MARGIN_PX = 22, 34, 20, 32
BARS_PX = 640  # a bar of 100 %
MOST = 1.1  # share of English at the right edge: intervals reach over 100 %
INK, RULE, FAINT = (30, 30, 34), (216, 216, 222), (110, 110, 118)
COLOURS = ((66, 113, 174), (222, 143, 68), (86, 152, 100), (151, 105, 171), (120, 120, 120), (176, 85, 100))
LINES = (0.5, 0.9, 1.0)


def picture(document: Mapping[str, Any]) -> Image.Image:
    """Bars of R@1 as a share of English's, a colour a plan, best first."""
    english = document["english"]["figures"]["r1"]["value"]
    cells = sorted(document["cells"], key=lambda c: (-c["figures"]["r1"]["value"], c["language"]))
    plans = list(dict.fromkeys(cell["plan"] for cell in cells))
    names = [f"{c['language']}  {c['plan']}, {c['start']}, {c['texts']:,} texts" for c in cells]
    left = MARGIN_PX + round(max(labels.line_width(name, size_px=TEXT_PX) for name in names)) + 24
    width = left + round(MOST * BARS_PX) + 180
    head = MARGIN_PX + 2 * ROW_PX
    image = Image.new("RGB", (width, head + len(cells) * ROW_PX + MARGIN_PX), "white")
    drawing = ImageDraw.Draw(image)
    title = f"Objects recognised first (R@1), as a share of English's {100 * english:.1f} %"
    labels.draw_line(drawing, (MARGIN_PX, MARGIN_PX + TEXT_PX), title, size_px=TEXT_PX, ink=INK)
    for share in LINES:
        x = left + round(share * BARS_PX)
        drawing.line([(x, head - 6), (x, image.height - MARGIN_PX)], RULE, 2)
        labels.draw_line(drawing, (x - 24, head - 12), f"{100 * share:.0f} %", size_px=TEXT_PX - 4, ink=FAINT)
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
