"""The table of the index: each method's published claims as a tally, and its arms' gaps in every column as marks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from reproduce.report import tables
from reproduce.report.answer import differing
from reproduce.report.counts import NOT_RUN, Tally, total
from reproduce.report.evidence import link_of_column
from reproduce.report.numbers import NOTHING, decimals_of, metric_text, number, p_equals, with_interval, with_unit
from reproduce.report.reach import ends_of, reach
from reproduce.report.tables import TextTable
from reproduce.results.columns import Column
from reproduce.results.evaluate import ArmRow
from reproduce.results.match import higher_is_better
from reproduce.results.stats import Estimate

WIDTH, HEIGHT = 112, 22  # CSS pixels of a mark; the page's style repeats them


@dataclass(frozen=True)
class Mark:
    """One arm in one column: its gap as a picture and as text, or why there is none."""

    label: str
    picture: Markup
    text: str
    significant: bool = False
    gap: str = ""  # with its interval
    evidence: str = ""  # the address of the arm's runs


@dataclass(frozen=True)
class OverviewRow:
    """One method: the tally of its papers' claims, and for each column a mark for each arm."""

    name: str
    title: str
    tally: Tally
    arms: tuple[str, ...]
    cells: tuple[tuple[Mark, ...], ...]
    baseline: tuple[tuple[str, str], ...]  # a column's mean and its runs, where this method is what others are over
    places: tuple[int, ...]  # by each of `Overview.sorts`


@dataclass(frozen=True)
class OverviewColumn:
    """What stands above and below the marks of one column."""

    key: str
    name: str
    metric: str
    left: str
    right: str
    over: str
    differing: str
    caveat: str


@dataclass(frozen=True)
class Overview:
    """The whole table; rows stand in the order of the first of ``sorts``."""

    columns: tuple[OverviewColumn, ...]
    rows: tuple[OverviewRow, ...]
    total: Tally
    sorts: tuple[str, ...]

    @property
    def layout(self) -> str:
        """The widths of its columns, as CSS has them."""
        return " ".join(
            ["minmax(11.5rem, 1.4fr)", "minmax(5.5rem, .6fr)", *["minmax(10.8rem, 1fr)"] * len(self.columns)]
        )

    @property
    def rules(self) -> Markup:
        """CSS that orders the rows by what is chosen: pages have no script."""
        return Markup("\n").join(
            Markup(":root:has(#by-{0}:checked) .overview tbody tr {{ order: var(--by-{0}); }}").format(place)
            for place in range(len(self.sorts))
        )

    @property
    def table(self) -> TextTable:
        """As Markdown has it: an arm's name before its gap."""
        headings = [f"{column.name}: {column.metric}, minus {column.over}" for column in self.columns]
        rows = [
            (
                f"[{row.title}]({row.name}.md)",
                row.tally.listed or NOTHING,
                *(
                    f"baseline, {text}" if text else _listed(marks)
                    for (text, _), marks in zip(row.baseline, row.cells, strict=True)
                ),
            )
            for row in self.rows
        ]
        last = ("All", self.total.listed or NOTHING, *(column.differing or NOTHING for column in self.columns))
        return TextTable(("Method", "Published claims", *headings), (*rows, last))


def _listed(marks: Sequence[Mark]) -> str:
    gaps = [f"**{mark.gap}**" if mark.significant else mark.gap or mark.text for mark in marks]
    return "; ".join(f"{mark.label}: {gap}" for mark, gap in zip(marks, gaps, strict=True)) or NOTHING


def overview(titles: Mapping[str, str], tallies: Mapping[str, Tally], columns: Sequence[Column]) -> Overview:
    """All methods.

    Args:
        titles: by the name of a method's folder.
        tallies: of its papers' claims.
    """
    marks = [_marks(column) for column in columns]
    sorts: list[Callable[[str], tuple[float, ...]]] = [
        lambda name: (),
        lambda name: _claims_order(tallies[name]),
        *(_gain_order(column) for column in columns),
    ]
    by_title = sorted(titles, key=lambda name: (titles[name].casefold(), name))
    orders = [sorted(by_title, key=sort) for sort in sorts]
    return Overview(
        columns=tuple(_column(column) for column in columns),
        rows=tuple(
            OverviewRow(
                name=name,
                title=titles[name],
                tally=tallies[name],
                arms=(arms := _labels(name, columns)),
                cells=tuple(
                    tuple(of_column.get((name, label), Mark(label, Markup(), NOTHING)) for label in arms)
                    for of_column in marks
                ),
                baseline=tuple(_baseline(name, column) for column in columns),
                places=tuple(order.index(name) for order in orders),
            )
            for name in by_title
        ),
        total=total(tallies.values(), ours=False),
        sorts=("name", "published claims", *(column.task.name for column in columns)),
    )


def _labels(method: str, columns: Sequence[Column]) -> tuple[str, ...]:
    """Those of a method's arms, each once, whatever the column."""
    found = [column.rows[arm].label for column in columns for arm, owner in column.methods.items() if owner == method]
    return tuple(dict.fromkeys(found))


def _claims_order(tally: Tally) -> tuple[float, ...]:
    """Most judged first; of these, most of what verdicts put first."""
    kinds = [kind for kind in tally.kinds if kind != NOT_RUN]
    return -tally.judged, *(-tally.kinds[kind] for kind in kinds)


def _gain_order(column: Column) -> Callable[[str], tuple[float, ...]]:
    """The method whose best arm gains most first, the baseline at zero, and last what has no gap."""
    gains: dict[str, float] = {_baseline_method(column): 0.0}
    for arm, method in column.methods.items():
        difference = column.rows[arm].difference
        if difference is not None:
            gain = -_toward_worse(column) * difference.estimate.mean
            gains[method] = max(gain, gains.get(method, gain))
    return lambda name: (name not in gains, -gains.get(name, 0.0))


def _toward_worse(column: Column) -> float:
    """The sign of a gap that is worse: in the table it points to the right."""
    return -1.0 if column.task.runs.metric and higher_is_better(column.metric) else 1.0


def _baseline_method(column: Column) -> str:
    return column.baseline.arm.method


def _baseline(method: str, column: Column) -> tuple[str, str]:
    """The mean of the column's baseline and the address of its runs; both empty for another method."""
    row = column.rows[column.baseline.name]
    if method != _baseline_method(column) or row.mean is None:
        return "", ""
    text = with_unit(row.mean.mean, column.metric, decimals_of([row.mean.mean]))
    return text, link_of_column(column, row.arm)


def _column(column: Column) -> OverviewColumn:
    better, worse, compared = differing(column)
    far = _reach(column)
    ends = [number(sign * _toward_worse(column) * far, decimals_of([far]), sign=True) for sign in (-1, 1)]
    return OverviewColumn(
        key=f"{column.file}-{column.task.name}".replace("_", "-"),
        name=column.task.name,
        metric=metric_text(column.metric) if column.task.runs.metric else "nothing has run",
        left=ends[0] if far else "",
        right=ends[1] if far else "",
        over=column.baseline.label,
        differing=f"{better + worse} of {compared} differ" if compared else "",
        caveat=column.experiment.caveat,
    )


def _marks(column: Column) -> dict[tuple[str, str], Mark]:
    """By method and label."""
    far, decimals = _reach(column), tables.decimals_of_rows(column.rows.values())
    return {
        (method, column.rows[arm].label): _mark(column, column.rows[arm], far, decimals)
        for arm, method in column.methods.items()
    }


def _mark(column: Column, row: ArmRow, far: float, decimals: int) -> Mark:
    if row.difference is None:
        why = "not run" if not row.ran else "diverged" if row.diverged else "no gap"
        return Mark(row.label, Markup(), why, evidence=link_of_column(column, row.arm))
    gap = row.difference.estimate
    told = f"{p_equals(row.p_holm)} after Holm's adjustment" if row.p_holm is not None else "not tested"
    text = with_interval(gap, decimals, sign=True)
    description = f"{row.label}, {column.task.name}: {text}, {told}"
    picture = _picture(gap, _toward_worse(column), far, row.significant, description)
    shown = number(gap.mean, decimals, sign=True)
    return Mark(row.label, picture, shown, row.significant, text, link_of_column(column, row.arm))


def _reach(column: Column) -> float:
    """How far the column's axis goes to either side of zero."""
    return reach(row.difference.estimate for row in column.rows.values() if row.difference is not None)


def _picture(gap: Estimate, sign: float, far: float, significant: bool, description: str) -> Markup:
    """Zero as a line, the interval as a line across it, the mean as a dot; an arrow where that lies beyond."""
    middle, level = WIDTH / 2, HEIGHT / 2
    scale = (middle - 6) / far if far else 0.0

    def place(value: float) -> float:
        return round(middle + sign * value * scale, 1)

    low, high = sorted(map(place, ends_of(gap)))
    kind = ("better" if sign * gap.mean < 0 else "worse") if significant else "alike"
    if not 0 <= place(gap.mean) <= WIDTH:
        x, way = (WIDTH - 8, 1) if place(gap.mean) > WIDTH else (8, -1)
        nearer = max(0.0, min(low, x - 14.0)) if way > 0 else min(float(WIDTH), max(high, x + 14.0))
        shape = f'<path d="M{nearer:g} {level:g}H{x:g}m{-5 * way} -4l{6 * way} 4l{-6 * way} 4"/>'
    else:
        low, high = max(low, 0.0), min(high, float(WIDTH))
        shape = f'<path d="M{low:g} {level:g}H{high:g}"/><circle cx="{place(gap.mean):g}" cy="{level:g}" r="3.5"/>'
    return Markup(
        f'<svg class="gap {kind}" role="img" viewBox="0 0 {WIDTH} {HEIGHT}"><title>{escape(description)}</title>'
        f'<path d="M{middle:g} 0v{HEIGHT}" class="axis"/>{shape}</svg>'
    )
