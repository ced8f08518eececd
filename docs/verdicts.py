"""How often the rule of verdicts errs, on draws whose truth is known: `make soak` writes docs/verdicts.md.

Everything is judged by the suite's own code; what the rule replaced, and what was considered, is written out here.
"""

from __future__ import annotations

import argparse
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import integrate, special, stats

from reproduce.experiment.schema import Claim
from reproduce.results import judge, scatter
from reproduce.results import stats as estimates
from reproduce.results.scatter import SeedScatter, seed_scatter
from reproduce.results.stats import Estimate, difference, holm, mean_estimate

PAGE = Path(__file__).with_suffix(".md")
TEMPLATE = Path(__file__).with_name("verdicts_template.md")
JUDGING = (Path(scatter.__file__), Path(estimates.__file__), Path(judge.__file__), Path(__file__), TEMPLATE)
# Of the code that judges and of this file, as they are loaded: the page says of which it is.
FINGERPRINT = hashlib.sha256(b"".join(path.read_bytes() for path in JUDGING)).hexdigest()[:16]
WORDS = ("reproduced", "partly", "not reproduced", "inconclusive")
POINTS = 20  # of a table: arms, and the grid points of arms that choose
UNEVEN = 0.3  # deviation of the logarithm of the points' deviations
DRAWS = 2000
LEVEL = 100.0  # of values, so that they stay inside their bounds

Generator = np.random.Generator
Rule = Callable[["Draw"], str]


@dataclass(frozen=True)
class Case:
    """A claim whose truth is known."""

    name: str
    published: float  # what the paper prints, or the mean of what it prints where its number is one honest run
    truth: float
    tolerance: float
    deviation: float  # of seeds, ours and the paper's
    gap: bool = True
    honest: bool = False  # the paper's number is drawn: one run, or one run minus one run, around the truth
    paper_runs: int = 1
    points: int = POINTS


@dataclass(frozen=True)
class Draw:
    """A table of runs, of which the first two points are the arm and what it is compared with."""

    claim: Claim
    points: tuple[dict[int, float], ...]
    seeds: SeedScatter


def draws(case: Case, n: int, count: int, generator: Generator) -> Iterator[Draw]:
    """So many tables with n seeds a point."""
    for _ in range(count):
        spreads = case.deviation * np.exp(UNEVEN * generator.standard_normal(case.points))
        spreads[:2] = case.deviation
        values = LEVEL + spreads[:, None] * generator.standard_normal((case.points, n))
        values[0] += case.truth
        printed = case.published
        if case.honest:
            noise = case.deviation * math.sqrt((2 if case.gap else 1) / case.paper_runs)
            printed = case.truth + noise * generator.standard_normal()
        claim = Claim(
            task="t",
            arm="a",
            over="b" if case.gap else None,
            metric="test.perplexity",
            value=printed + (0 if case.gap else LEVEL),
            tolerance=case.tolerance,
            paper_runs=case.paper_runs,
            source="simulated",
        )
        points = tuple(dict(enumerate(row.tolist())) for row in values)
        yield Draw(claim, points, seed_scatter(points))


def today(draw: Draw) -> str:
    """The rule of this suite."""
    return judge.decide(draw.claim, _moderated(draw))[0]


def earlier(draw: Draw) -> str:
    """What it replaced: t intervals from a point's own seeds, gaps paired, the paper's number exact."""
    arm, over = draw.points[:2]
    values = list(arm.values()) if draw.claim.over is None else [arm[s] - over[s] for s in arm]
    return _exact_number(draw.claim, mean_estimate(values))


def moderated(draw: Draw) -> str:
    """M: the same with moderated variances, gaps of means."""
    return _exact_number(draw.claim, _moderated(draw))


def excluding(draw: Draw) -> str:
    """Q, of gaps: and "not reproduced" wherever the interval holds zero and excludes the printed gap."""
    ours = _moderated(draw)
    word = _exact_number(draw.claim, ours)
    excludes = ours.interval is not None and not ours.interval.contains(draw.claim.value or 0.0)
    return "not reproduced" if word == "inconclusive" and excludes else word


def equivalence(draw: Draw) -> str:
    """Two one-sided tests (Schuirmann 1987): reproduced where the 90 % interval lies wholly in the band, not reproduced
    where it lies wholly outside of it."""
    ours, claim = _moderated(draw), draw.claim
    interval = ours.within(0.9)
    low, high = (claim.value or 0.0) - (claim.tolerance or 0.0), (claim.value or 0.0) + (claim.tolerance or 0.0)
    if interval is None or (claim.over is not None and interval.contains(0.0) and low <= 0 <= high):
        return "inconclusive"
    if low <= interval.low and interval.high <= high:
        return "reproduced"
    return "inconclusive" if interval.meets(low, high) else "not reproduced"


def _moderated(draw: Draw) -> Estimate:
    arm, over = draw.points[:2]
    if draw.claim.over is None:
        return mean_estimate(list(arm.values()), draw.seeds)
    found = difference(arm, over, draw.seeds)
    if found is None:
        raise AssertionError("both points have values")
    return found.estimate


def _exact_number(claim: Claim, ours: Estimate) -> str:
    interval, value, tolerance = ours.interval, claim.value or 0.0, claim.tolerance or 0.0
    low, high = value - tolerance, value + tolerance
    if interval is None:
        return "inconclusive"
    if claim.over is None:
        if not interval.meets(low, high):
            return "not reproduced"
        if interval.half_width > tolerance:
            return "inconclusive"
        return "reproduced" if low <= ours.mean <= high else "partly"
    if not interval.contains(0.0):
        if (ours.mean > 0) != (value > 0):
            return "not reproduced"
        return "reproduced" if low <= ours.mean <= high else "partly"
    return "inconclusive" if interval.meets(low, high) else "not reproduced"


def shares(case: Case, n: int, rules: Sequence[Rule], count: int, seed: int) -> list[dict[str, float]]:
    """How often each rule says each word, all on the same draws."""
    counted: list[Counter[str]] = [Counter() for _ in rules]
    for draw in draws(case, n, count, np.random.default_rng([seed, n])):
        for counter, rule in zip(counted, rules, strict=True):
            counter[rule(draw)] += 1
    return [{word: counter[word] / count for word in WORDS} for counter in counted]


Law = Callable[[Generator, tuple[int, ...]], np.ndarray]


def _normal(generator: Generator, shape: tuple[int, ...]) -> np.ndarray:
    return generator.standard_normal(shape)


def _exponential(generator: Generator, shape: tuple[int, ...]) -> np.ndarray:
    return generator.standard_exponential(shape)


def _lognormal(generator: Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.exp(generator.standard_normal(shape))


def _collapsing(generator: Generator, shape: tuple[int, ...]) -> np.ndarray:
    return generator.standard_normal(shape) + 20 * (generator.random(shape) < 0.1)


def _coarse(total: int, steps: float) -> Law:
    """Errors of a test set: whole examples wrong of ``total``, with a deviation of so many examples."""

    def draw(generator: Generator, shape: tuple[int, ...]) -> np.ndarray:
        return 100 / total * np.round(0.2 * total + steps * generator.standard_normal(shape))

    return draw


def _mean_of_rounded(mean: float, deviation: float) -> float:
    """Of a normal law, rounded to whole numbers."""
    whole = np.arange(math.floor(mean) - 10, math.ceil(mean) + 11)
    chances = np.diff(special.ndtr((np.append(whole, whole[-1] + 1) - 0.5 - mean) / deviation))
    return float(whole @ chances)


LAWS: dict[str, tuple[Law, float]] = {  # and their means
    "normal": (_normal, 0.0),
    "exponential": (_exponential, 1.0),
    "log-normal": (_lognormal, math.exp(0.5)),
    "one run in ten collapses": (_collapsing, 2.0),
    "k of 400, 2 examples deviation": (_coarse(400, 2.0), 20.0),
    "k of 259, a third of an example": (_coarse(259, 1 / 3), 100 / 259 * _mean_of_rounded(0.2 * 259, 1 / 3)),
}


def coverage(name: str, n: int, count: int, seed: int) -> dict[str, float]:
    """How often 95 % intervals hold the truth: of a value by its own seeds, moderated, and of a moderated gap."""
    law, truth = LAWS[name]
    generator = np.random.default_rng([seed, n])
    held: Counter[str] = Counter()
    for _ in range(count):
        table = tuple(dict(enumerate(row.tolist())) for row in law(generator, (POINTS, n)))
        seeds = seed_scatter(table)
        between = difference(table[0], table[1], seeds)
        found = {
            "own": mean_estimate(list(table[0].values())).interval,
            "moderated": mean_estimate(list(table[0].values()), seeds).interval,
            "gap": between.estimate.interval if between else None,
        }
        for kind, interval in found.items():
            held[kind] += interval is not None and interval.contains(0.0 if kind == "gap" else truth)
    return {kind: held[kind] / count for kind in ("own", "moderated", "gap")}


@dataclass(frozen=True)
class Column:
    """A table in which many arms are held against one baseline, as in the matrix."""

    arms: int = 19
    seeds: int = 3
    baseline_seeds: int = 3
    correlation: float = 0.0  # of points over seeds
    grid: int = 2  # further points of each arm


def families(column: Column, size: float, count: int, seed: int) -> dict[str, float]:
    """How often an arm without a gap is told apart, and how often the first arm, ``size`` deviations off, is."""
    generator = np.random.default_rng(seed)
    most = max(column.seeds, column.baseline_seeds)
    hits: Counter[str] = Counter()
    for _ in range(count):
        shared = math.sqrt(column.correlation) * generator.standard_normal(most)
        own = math.sqrt(1 - column.correlation)
        spreads = np.exp(UNEVEN * generator.standard_normal((column.arms * column.grid + 1, 1)))
        table = spreads * (shared + own * generator.standard_normal((len(spreads), most)))
        table[1] += size * spreads[1]
        points = [dict(enumerate(row[: column.seeds].tolist())) for row in table]
        points[0] = dict(enumerate(table[0, : column.baseline_seeds].tolist()))
        seeds = seed_scatter(points)
        arms = points[1 : column.arms + 1]
        paired = [stats.ttest_rel(list(a.values()), [points[0][s] for s in a]).pvalue for a in arms]
        gaps = [difference(arm, points[0], seeds) for arm in arms]
        p_values = [one.p_value if one else None for one in gaps]
        adjusted = {
            "paired, Holm": holm(paired),
            "moderated, Holm": holm(p_values),
            "moderated, Dunnett": dunnett(gaps),
        }
        for name, values in adjusted.items():
            told = [p is not None and p < estimates.SIGNIFICANCE for p in values]
            hits[f"{name}: false"] += any(told[1:])
            hits[f"{name}: found"] += told[0]
    return {name: number / count for name, number in sorted(hits.items())}


def dunnett(gaps: Sequence[estimates.Difference | None]) -> list[float | None]:
    """Dunnett's step-down adjustment for many arms against one baseline (1955; Dunnett & Tamhane 1991), with one
    correlation of one half for all and the median degrees of freedom: what Holm's is compared with."""
    known = [(p, place) for place, one in enumerate(gaps) if one and (p := one.p_value) is not None]
    found: list[float | None] = [None] * len(gaps)
    degrees = float(np.median([one.estimate.error.degrees for one in gaps if one and one.estimate.error] or [1.0]))
    largest = 0.0
    for smaller, (p, place) in enumerate(sorted(known)):
        t = -float(special.stdtrit(min(degrees, 1e6), p / 2))
        largest = max(largest, _beyond(round(t, 2), len(known) - smaller, round(degrees)))
        found[place] = largest
    return found


_TABLE: dict[tuple[float, int, int], float] = {}


def _beyond(t: float, arms: int, degrees: int) -> float:
    """P(max |T_i| >= t) of equally correlated t statistics: the integral over the shared part and the deviation."""
    key = t, arms, degrees
    if key not in _TABLE:
        z = np.linspace(-8, 8, 161)
        u = np.sqrt(stats.chi2.ppf((np.arange(80) + 0.5) / 80, max(degrees, 1)) / max(degrees, 1))
        root = math.sqrt(0.5)
        upper = special.ndtr((t * u[:, None] - root * z) / root)
        lower = special.ndtr((-t * u[:, None] - root * z) / root)
        inside = integrate.simpson((upper - lower) ** arms * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi), x=z)
        _TABLE[key] = float(1 - inside.mean())
    return _TABLE[key]


LOOKS = (3, 6, 12, 24)


def looks(case: Case, count: int, seed: int, later: float) -> dict[str, float]:
    """What `--until-decided` comes to: it stops at the first look that is not inconclusive; and the mean of seeds."""
    said: Counter[str] = Counter()
    used = 0
    for whole in draws(case, LOOKS[-1], count, np.random.default_rng(seed)):
        for number, n in enumerate(LOOKS):
            points = tuple({seed: point[seed] for seed in range(n)} for point in whole.points)
            draw = replace(whole, points=points, seeds=seed_scatter(points))
            word = judge.decide(draw.claim, _moderated(draw), later if number else estimates.CONFIDENCE)[0]
            if word != "inconclusive":
                break
        said[word] += 1
        used += n
    return {word: said[word] / count for word in WORDS} | {"seeds": used / count}


def honest(case: Case) -> Case:
    return replace(case, name=f"{case.name}, the paper's number one honest run", honest=True)


def value(name: str, truth: float, deviation: float) -> Case:
    return Case(f"value ± .3, sd {deviation}: {name}", 0.0, truth, 0.3, deviation, gap=False)


def gap(name: str, published: float, truth: float, tolerance: float, deviation: float, points: int = POINTS) -> Case:
    told = f"gap {published} ± {tolerance}, sd {deviation}: {name}"
    return Case(told, published, truth, tolerance, deviation, points=points)


CASES = (
    honest(value("true", 0.0, 0.15)),
    value("off by two tolerances", 0.6, 0.15),
    honest(value("true", 0.0, 0.3)),
    gap("true", -0.49, -0.49, 0.3, 0.15),
    gap("true, a table of 5 points", -0.49, -0.49, 0.3, 0.15, points=5),
    gap("true, a table of 2 points", -0.49, -0.49, 0.3, 0.15, points=2),
    gap("zero", -0.49, 0.0, 0.3, 0.15),
    gap("zero, a table of 2 points", -0.49, 0.0, 0.3, 0.15, points=2),
    gap("zero", -0.23, 0.0, 0.3, 0.15),
    gap("zero", -0.8, 0.0, 1.0, 0.5),
    honest(gap("true", -0.49, -0.49, 0.3, 0.15)),
    honest(gap("true", -0.49, -0.49, 0.3, 0.3)),
    honest(gap("true", -0.23, -0.23, 0.3, 0.15)),
    honest(gap("true", -0.8, -0.8, 1.0, 0.5)),
)
WEAK = tuple(honest(gap("true", -g, -g, 0.3, 0.15)) for g in (0.2, 0.1, 0.05))
LOOKED_AT = (
    gap("true", -0.49, -0.49, 0.3, 0.15),
    gap("zero", -0.49, 0.0, 0.3, 0.15),
    gap("zero", -0.23, 0.0, 0.3, 0.15),
    honest(gap("true", -0.49, -0.49, 0.3, 0.3)),
    honest(value("true", 0.0, 0.3)),
)
COLUMNS = (
    Column(),
    Column(correlation=0.49),
    Column(seeds=6, baseline_seeds=13),
    Column(seeds=6, baseline_seeds=13, correlation=0.49),
)
SEEDS = (3, 10, 30)
REQUIRED = (  # of the rule, by the name of a case: the word, at which n, and whether at most or at least how much
    *((case.name, "reproduced", n, "at most", 0.03) for case in CASES if "zero" in case.name for n in SEEDS),
    *((case.name, "not reproduced", n, "at most", 0.05) for case in CASES if case.honest for n in SEEDS),
    (CASES[3].name, "reproduced", 3, "at least", 0.8),
)


def missed(found: dict[tuple[str, int], dict[str, float]], count: int) -> list[str]:
    """Which requirements the shares of the rule do not meet, beyond what so many draws leave open (3 deviations)."""
    lines = []
    for name, word, n, bound, limit in REQUIRED:
        if (name, n) not in found:
            continue
        share, slack = found[name, n][word], 3 * math.sqrt(limit * (1 - limit) / count)
        if share > limit + slack if bound == "at most" else share < limit - slack:
            lines.append(f"{name}, n = {n}: {word} {share:.1%}, {bound} {limit:.0%}")
    return lines


def percent(share: float) -> str:
    return f"{100 * share:.0f}" if share == 0 or share >= 0.095 else f"{100 * share:.1f}"


def page(count: int, log: Callable[[str], None] = print) -> str:
    """The page, and on the way every number of it."""
    rows, rule_shares = [], {}
    for case in (*CASES, *WEAK):
        rules = (earlier, moderated, excluding if case.gap else equivalence, today)
        for n in SEEDS:
            found = shares(case, n, rules, count, 0)
            rule_shares[case.name, n] = found[-1]
            cells = ["/".join(percent(each[word]) for word in WORDS) for each in found]
            rows.append((case.name, str(n), *cells[:2], f"{'Q' if case.gap else 'TOST'} {cells[2]}", f"**{cells[3]}**"))
        log(f"{case.name}: done")
    headings = ("claim", "n", "earlier rule", "M", "considered", "the rule")
    told = len(CASES) * len(SEEDS)
    return TEMPLATE.read_text("utf-8").format(
        fingerprint=FINGERPRINT,
        draws=f"{count:,}",
        points=POINTS,
        uneven=UNEVEN,
        claims=_pipe(headings, rows[:told]),
        required=_required(rule_shares, count),
        weak=_pipe(headings, rows[told:]),
        coverage=_coverage(count),
        families=_families(count),
        looks=_looks(count),
        look_seeds=", ".join(map(str, LOOKS)),
        later=f"{100 * judge.LATER:g}",
    )


def _required(found: dict[tuple[str, int], dict[str, float]], count: int) -> str:
    lines = missed(found, count)
    return "\n".join(("missed:", "", *(f"- {line}" for line in lines))) if lines else "all met."


def _coverage(count: int) -> str:
    rows = []
    for name in LAWS:
        for n in (2, 3, 5, 10):
            held = coverage(name, n, count, 0)
            rows.append((name, str(n), *(f"{100 * held[kind]:.1f}" for kind in ("own", "moderated", "gap"))))
    return _pipe(("law", "n", "value, own", "value, moderated", "gap, moderated"), rows)


def _families(count: int) -> str:
    rows = []
    for column in COLUMNS:
        two, four = (families(column, size, count // 2, 1) for size in (2, 4))
        for name in ("paired, Holm", "moderated, Holm", "moderated, Dunnett"):
            told = [two[f"{name}: false"], two[f"{name}: found"], four[f"{name}: found"]]
            seeds = f"{column.seeds}, baseline {column.baseline_seeds}"
            rows.append((seeds, f"{column.correlation:g}", name, *(f"{100 * share:.1f}" for share in told)))
    return _pipe(("seeds", "correlation", "test", "false", "found at 2", "found at 4"), rows)


def _looks(count: int) -> str:
    rows = []
    for case in LOOKED_AT:
        cells = []
        for later in (estimates.CONFIDENCE, judge.LATER):
            found = looks(case, count // 2, 2, later)
            cells.append(f"{'/'.join(percent(found[word]) for word in WORDS)}, {found['seeds']:.1f}")
        rows.append((case.name, *cells))
    return _pipe(("claim", "95 % at each look", "the rule"), rows)


def _pipe(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [
        "| " + " | ".join(headings) + " |",
        "|" + "|".join([":---"] + ["---:"] * (len(headings) - 1)) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=DRAWS)
    count = parser.parse_args().draws
    PAGE.write_text(page(count), "utf-8")
    print(f"{PAGE.name}: written")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
