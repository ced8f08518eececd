"""The first screen of a method's page: does it hold, by how much, can it be trusted; then how to repeat and cite it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from reproduce.report import repeat
from reproduce.report.counts import Tally, tallies
from reproduce.report.forest import Forest, forest
from reproduce.report.method_card import MethodCard
from reproduce.report.sentences import budget_sentence, tally_sentence
from reproduce.report.trust import trust
from reproduce.results.evaluate import Finding, MethodFindings


@dataclass(frozen=True)
class FirstScreen:
    """Everything that it says."""

    idea: str
    more: str  # of the idea, in Markdown: what follows that sentence, where it is a paragraph of its own
    tallies: tuple[tuple[Tally, str], ...]  # of the papers' claims and of ours, each with its sentence
    budget: str  # of the matrix; "" where the method is in none of its columns
    forest: Forest | None
    trust: list[tuple[str, str]]
    commands: tuple[str, ...]
    citations: tuple[str, ...]  # BibTeX, the method's own paper first


def first_screen(
    method: MethodFindings,
    card: MethodCard,
    others: Sequence[Finding],
    columns: Sequence[Finding],
    problems: Sequence[str],
) -> FirstScreen:
    """What the experiments of a method come to, columns of the matrix and others."""
    findings = (*others, *columns)
    return FirstScreen(
        idea=(idea := first_sentence(card.sections["Idea"])),
        more=_after(idea, card.sections["Idea"]),
        tallies=tuple((one, tally_sentence(one)) for one in tallies(findings)),
        budget=budget_sentence(columns),
        forest=forest(method, others, columns),
        trust=trust(findings, problems),
        commands=repeat.of_method(method.folder, findings),
        citations=tuple(entry.bibtex for entry in card.citations) if "Citation" in card.sections else (),
    )


def first_sentence(text: str) -> str:
    """Of the first paragraph, on one line; dots inside formulas, names and numbers end nothing."""
    paragraph = " ".join(text.split("\n\n")[0].split())
    found = re.match(r"(?:\$[^$]*\$|[^$])*?(?<![A-Z])(?<!\bal)(?<!\be\.g)(?<!\bi\.e)[.!?](?=\s+[A-Z“\"$])", paragraph)
    return found.group() if found else paragraph


def _after(sentence: str, text: str) -> str:
    paragraph, _, rest = text.partition("\n\n")
    return rest.strip() if " ".join(paragraph.split()) == sentence else text
