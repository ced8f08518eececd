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
class Citation:
    """What a reader copies: the first entry, and the others."""

    first: str
    others: str
    n_others: int


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
    citation: Citation | None


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
        citation=citation(card.sections.get("Citation", "")),
    )


def first_sentence(text: str) -> str:
    """Of the first paragraph, on one line; dots inside formulas, names and numbers end nothing."""
    paragraph = " ".join(text.split("\n\n")[0].split())
    found = re.match(r"(?:\$[^$]*\$|[^$])*?(?<![A-Z])(?<!\bal)(?<!\be\.g)(?<!\bi\.e)[.!?](?=\s+[A-Z“\"$])", paragraph)
    return found.group() if found else paragraph


def _after(sentence: str, text: str) -> str:
    paragraph, _, rest = text.partition("\n\n")
    return rest.strip() if " ".join(paragraph.split()) == sentence else text


def citation(section: str) -> Citation | None:
    """The BibTeX entries of a card, or its paragraphs without marks; None where it cites nothing."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", section, flags=re.M | re.S)
    text = "\n".join(fenced).strip() if fenced else re.sub(r"(?<!\w)[*_]|[*_](?!\w)", "", section).strip()
    if not text or text.lower().startswith("none"):
        return None
    entries = re.split(r"\n+(?=@)", text) if fenced else [" ".join(one.split()) for one in re.split(r"\n\s*\n", text)]
    first, *others = (entry.strip() for entry in entries)
    return Citation(first, "\n\n".join(others), len(others))
