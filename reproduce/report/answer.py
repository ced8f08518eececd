"""The answer in a few sentences: what became of the published claims, and which arms differ under one budget."""

from __future__ import annotations

from collections.abc import Sequence

from reproduce.report.counts import Tally, tally, total
from reproduce.results.columns import Column
from reproduce.results.evaluate import MethodFindings
from reproduce.results.judge import DIRECTIONS, WORDS
from reproduce.results.match import higher_is_better

AT_PAPER_SCALE: tuple[str, ...] = WORDS[: WORDS.index("reduced scale")]
REDUCED = (*DIRECTIONS, "reduced scale")  # kinds of verdicts at reduced scale, as `counts` has them
NAMED = 3  # arms that differ: more are only counted
POINTS = {"same direction": "{} the same way", "opposite": "{} the opposite way", "undecided": "{} undecided"}


def answer(methods: Sequence[MethodFindings], columns: Sequence[Column]) -> str:
    """The papers' claims by verdict, then for each column how many arms differ from its baseline, and its caveat."""
    claims = total((tally(method.findings, ours=False) for method in methods), ours=False)
    return " ".join(filter(None, (claims_answer(claims), columns_answer(columns), *caveats(columns))))


def claims_answer(claims: Tally) -> str:
    """Like `3 of 4 published claims tested: 1 reproduced, 2 at reduced scale (2 undecided).`; "" without claims."""
    if not claims.claims:
        return ""
    published = f"{claims.claims} published claim{_s(claims.claims)}"
    if not claims.judged:
        return f"None of {published} tested yet." if claims.claims > 1 else "The one published claim is not tested yet."
    parts = [f"{count} {kind}" for kind, count in claims.kinds.items() if kind in AT_PAPER_SCALE]
    reduced = {kind: count for kind, count in claims.kinds.items() if kind in REDUCED}
    if reduced:
        points = [text.format(reduced[kind]) for kind, text in POINTS.items() if kind in reduced]
        values = reduced.get("reduced scale", 0)
        points += [f"{values} value{_s(values)} that {'is' if values == 1 else 'are'} not compared"] if values else []
        parts.append(f"{sum(reduced.values())} at reduced scale ({', '.join(points)})")
    return f"{claims.judged} of {published} tested: {', '.join(parts)}."


def columns_answer(columns: Sequence[Column]) -> str:
    """Like `Under one budget, 2 of 9 arms on images and 0 of 3 on words differ from “vanilla”.`; "" without columns."""
    texts: list[str] = []
    for column in columns:
        better, worse, tested = differing(column)
        if tested:
            noun = f" arm{_s(tested)}" if not texts else ""
            sides = [_side(column, count, sign) for count, sign in ((better, 1), (worse, -1)) if count]
            sides_text = f" ({'; '.join(sides)})" if sides else ""
            texts.append(f"{better + worse} of {tested}{noun} on {column.task.name}{sides_text}")
    if not texts:
        return ""
    baselines = {column.baseline.label for column in columns}
    baseline = f"“{baselines.pop()}”" if len(baselines) == 1 else "the baseline"
    singular = len(texts) == 1 and texts[0].startswith("1 ")
    return f"Under one budget, {listed(texts)} differ{'s' if singular else ''} from {baseline}."


def caveats(columns: Sequence[Column]) -> list[str]:
    """What a column says against its own numbers, for each that does."""
    return [f"On {column.task.name}: {column.experiment.caveat}" for column in columns if column.experiment.caveat]


def differing(column: Column) -> tuple[int, int, int]:
    """How many arms differ from the baseline for the better and for the worse, and how many were compared with it."""
    compared = [row for row in column.rows.values() if row.p_holm is not None and row.difference is not None]
    sign = 1.0 if compared and higher_is_better(column.metric) else -1.0
    gains = [sign * row.difference.estimate.mean for row in compared if row.difference and row.significant]
    return sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains), len(compared)


def _side(column: Column, count: int, sign: int) -> str:
    """Like `2 better: kernel L2, VCL`, with the names where they are few."""
    better = sign if higher_is_better(column.metric) else -sign
    names = [
        row.label
        for row in column.rows.values()
        if row.significant and row.difference is not None and better * row.difference.estimate.mean > 0
    ]
    text = f"{count} {'better' if sign > 0 else 'worse'}"
    return f"{text}: {', '.join(names)}" if count <= NAMED else text


def listed(texts: Sequence[str]) -> str:
    """Like `a, b and c`."""
    return " and ".join(filter(None, (", ".join(texts[:-1]), texts[-1])))


def _s(count: int) -> str:
    return "" if count == 1 else "s"
