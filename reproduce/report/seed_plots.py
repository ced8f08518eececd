"""All seeds of a row as points in a table cell, on one axis for the whole column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup, escape

WIDTH, HEIGHT, MARGIN = 132, 18, 6  # CSS pixels


def strips(rows: Sequence[dict[Any, Any]], shades: Sequence[str]) -> list[Markup]:
    """One small SVG per row: seeds as points, mean as a bar, the paper's number as a diamond.

    Args:
        rows: rows of one metric of `tables.table_of`.
        shades: a CSS colour per row.
    """
    marks = [[*row["values"].values()] + [row["paper"]] * (row["paper"] is not None) for row in rows]
    everything = [value for row in marks for value in row]
    if not everything:
        return [Markup("")] * len(rows)
    low, high = min(everything), max(everything)
    scale = (WIDTH - 2 * MARGIN) / (high - low) if high > low else 0.0

    def place(value: float) -> float:
        return round(MARGIN + (value - low) * scale, 1) if scale else WIDTH / 2

    return [_strip(row, shade, place) for row, shade in zip(rows, shades, strict=True)]


def _strip(row: dict[Any, Any], shade: str, place: Any) -> Markup:
    middle = HEIGHT / 2
    parts = [f'<line x1="0" x2="{WIDTH}" y1="{middle}" y2="{middle}" class="axis"/>']
    for value in row["values"].values():
        parts.append(f'<circle cx="{place(value)}" cy="{middle}" r="3" fill="{shade}" fill-opacity=".6"/>')
    if row["mean"] is not None:
        parts.append(f'<rect x="{place(row["mean"]) - 1}" y="2" width="2" height="{HEIGHT - 4}" fill="{shade}"/>')
    if row["paper"] is not None:
        x = place(row["paper"])
        parts.append(f'<path d="M{x} {middle - 4.5}l4.5 4.5-4.5 4.5-4.5-4.5z" class="paper"/>')
    title = ", ".join(f"seed {seed}: {value:.6g}" for seed, value in row["values"].items())
    return Markup(
        f'<svg class="strip" role="img" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}">'
        f"<title>{escape(title or 'no seeds')}</title>{''.join(parts)}</svg>"
    )
