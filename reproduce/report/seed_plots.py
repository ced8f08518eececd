"""All seeds of a row as points in a table cell, on one axis for the whole column."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from markupsafe import Markup, escape

from reproduce.results.evaluate import ArmRow

WIDTH, HEIGHT, MARGIN = 132, 18, 6  # CSS pixels; the page's style repeats them, and how large a seed's circle is


def seed_plots(rows: Sequence[ArmRow], colors: Sequence[str]) -> list[Markup]:
    """One small SVG per row: seeds as points, mean as a bar, the paper's number as a diamond.

    Args:
        rows: of one metric.
        colors: a CSS color per row.
    """
    everything = [value for row in rows for value in (*row.values.values(), row.paper) if value is not None]
    if not everything:
        return [Markup("")] * len(rows)
    low, high = min(everything), max(everything)
    scale = (WIDTH - 2 * MARGIN) / (high - low) if high > low else 0.0

    def place(value: float) -> float:
        return round(MARGIN + (value - low) * scale, 1) if scale else WIDTH / 2

    return [_seed_plot(row, color, place) for row, color in zip(rows, colors, strict=True)]


def _seed_plot(row: ArmRow, color: str, place: Callable[[float], float]) -> Markup:
    middle = HEIGHT / 2
    circles = [f'<circle cx="{place(value):g}"/>' for value in row.values.values()]
    parts = circles
    if row.mean is not None:
        parts.append(f'<rect x="{place(row.mean.mean) - 1:g}" y="2" width="2" height="{HEIGHT - 4}"/>')
    parts = [f'<path d="M0 {middle:g}h{WIDTH}" class="axis"/>', f'<g fill="{color}">{"".join(parts)}</g>']
    if row.paper is not None:
        x = place(row.paper)
        parts.append(f'<path d="M{x:g} {middle - 4.5:g}l4.5 4.5-4.5 4.5-4.5-4.5z" class="paper"/>')
    title = ", ".join(f"seed {seed}: {value:.6g}" for seed, value in row.values.items())
    return Markup(
        f'<svg class="strip" role="img" viewBox="0 0 {WIDTH} {HEIGHT}">'
        f"<title>{escape(title or 'no seeds')}</title>{''.join(parts)}</svg>"
    )
