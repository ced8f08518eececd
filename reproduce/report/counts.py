"""How many claims were judged, and how: those of papers apart from our own, and what was not run apart from both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from reproduce.results.evaluate import Finding
from reproduce.results.judge import DIRECTIONS, WORDS, Verdict
from reproduce.results.stats import SIGNIFICANCE

NOT_RUN = "not run"
# A verdict at reduced scale is known by where it points; one of a value points nowhere.
KINDS: tuple[str, ...] = (*WORDS[: WORDS.index("reduced scale")], *DIRECTIONS, "reduced scale", NOT_RUN)
LABELS = {kind: f"reduced scale: {kind}" for kind in DIRECTIONS} | {"reduced scale": "reduced scale: a value"}
WHOSE = {False: "The papers' claims", True: "Our own claims"}


def kind_of(verdict: Verdict) -> str:
    """Its word; at reduced scale its direction, where it has one."""
    return verdict.direction or verdict.word


def points(verdict: Verdict) -> bool:
    """Whether it says of a gap which way it points: the interval of that gap alone excludes zero."""
    interval = verdict.ours.interval if verdict.ours and verdict.claim.over is not None else None
    return interval is not None and not interval.contains(0.0) and kind_of(verdict) not in ("undecided", "inconclusive")


def only_alone(verdict: Verdict) -> bool:
    """Whether it points one way taken by itself, and not after adjustment over its table."""
    return points(verdict) and verdict.p_adjusted is not None and verdict.p_adjusted >= SIGNIFICANCE


def label(kind: str) -> str:
    return LABELS.get(kind, kind)


@dataclass(frozen=True)
class Tally:
    """Claims of one origin, by what came out of them; kinds that do not occur are left out."""

    ours: bool
    kinds: dict[str, int]

    @property
    def whose(self) -> str:
        return WHOSE[self.ours]

    @property
    def judged(self) -> int:
        return self.claims - self.waiting

    @property
    def waiting(self) -> int:
        return self.kinds.get(NOT_RUN, 0)

    @property
    def claims(self) -> int:
        return sum(self.kinds.values())

    @property
    def reduced(self) -> bool:
        return not self.kinds.keys().isdisjoint(LABELS)

    @property
    def text(self) -> str:
        """Like `12 judged, 3 not run`."""
        return f"{self.judged} judged" + (f", {self.waiting} {NOT_RUN}" if self.waiting else "")

    @property
    def listed(self) -> str:
        """Like `2 reproduced, 1 not run`."""
        return ", ".join(f"{count} {label(kind)}" for kind, count in self.kinds.items())


def tally(findings: Iterable[Finding], ours: bool) -> Tally:
    verdicts = [verdict for finding in findings for verdict in finding.verdicts if verdict.claim.ours == ours]
    counted = Counter(map(kind_of, verdicts))
    return Tally(ours, {kind: counted[kind] for kind in KINDS if counted[kind]})


def tallies(findings: Sequence[Finding]) -> tuple[Tally, ...]:
    """The papers' claims, then ours; without those that there are none of."""
    both = (tally(findings, ours) for ours in WHOSE)
    return tuple(one for one in both if one.kinds)


def total(several: Iterable[Tally], ours: bool) -> Tally:
    """The sum of tallies of one origin."""
    counted: Counter[str] = Counter()
    for one in several:
        counted.update(one.kinds)
    return Tally(ours, {kind: counted[kind] for kind in KINDS if counted[kind]})


def judged_text(findings: Sequence[Finding]) -> str:
    """One line for all: `The papers' claims: 12 judged, 3 not run. Our own claims: 2 judged.`"""
    return " ".join(f"{one.whose}: {one.text}." for one in tallies(findings))
