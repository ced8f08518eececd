"""Tables of a method for a paper: LaTeX with booktabs."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from reproduce.report.counts import kind_of
from reproduce.report.numbers import MINUS, NOTHING, metric_text
from reproduce.report.tables import ADJUSTED, TO_THE_LEFT, TextTable, claim_texts, difference_heading, row_texts
from reproduce.results.evaluate import Finding, MethodFindings, TaskFinding

SIGNS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "{''}",
    "[": "{[}",  # after `\\` it would begin a length
    "]": "{]}",
    "*": "{*}",  # after `\\` it would forbid a page break
    MINUS: "$-$",
    NOTHING: "--",
    "×": r"$\times$",
    "±": r"$\pm$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "→": r"$\to$",
    "·": r"$\cdot$",
    "∞": r"$\infty$",
}
for letter in "αβγδεζηθικλμνξπρστφχψωΓΔΘΛΞΠΣΦΨΩ":
    name = unicodedata.name(letter).rpartition(" ")[2].replace("LAMDA", "LAMBDA")
    SIGNS[letter] = rf"$\{name.capitalize() if letter.isupper() else name.lower()}$"
PLACES = dict.fromkeys(("Chosen", "Note", "Claim", "Why", "Address"), r"p{.2\linewidth}")  # of long texts
HEAD = r"""% Tables of {method}, written by `python -m reproduce report`. In the preamble: \usepackage{{booktabs}}
% Arms without a run are left out. Letters that are neither Latin nor Greek need LuaLaTeX. References: references.bib"""


def escaped(text: str) -> str:
    """A text that LaTeX shows to the letter, in one line."""
    return "".join(SIGNS.get(sign, sign) for sign in " ".join(text.split()))


def latex_tables(method: MethodFindings) -> str:
    """A table for each task of each experiment that ran, and one for the claims of an experiment that were judged."""
    parts = [HEAD.format(method=method.folder.name)]
    for finding in method.findings:
        parts += [_table(*table) for table in _arms(method.folder.name, finding)]
        parts += [_table(*table) for table in _claims(method.folder.name, finding)]
    if len(parts) == 1:
        parts.append("% Nothing has run yet.")
    return "\n\n".join(parts) + "\n"


def _arms(method: str, finding: Finding) -> Iterator[tuple[TextTable, str, str]]:
    for task in finding.tasks.values():
        table = _of_task(task)
        if table.rows:
            place = f", {task.name}" if len(finding.tasks) > 1 else ""
            metric = metric_text(task.metrics[0])
            caption = f"{finding.experiment.title}{place}: {metric}, mean with its 95 % interval over n seeds."
            yield table, caption, f"{method}-{finding.name}-{task.name}"


def _of_task(task: TaskFinding) -> TextTable:
    """The arms that ran under the task's first metric; columns in which nothing is known are left out."""
    rows = task.tables[task.metrics[0]]
    texts = [text for text, row in zip(row_texts(rows), rows, strict=True) if row.ran]
    diverged = [bool(row.diverged and not row.n) for row in rows if row.ran]
    columns = {
        "Arm": [text.arm for text in texts],
        "Paper": [text.paper for text in texts],
        "Ours": ["diverged" if lost else text.ours for text, lost in zip(texts, diverged, strict=True)],
        "n": [text.n for text in texts],
        difference_heading(task): [text.difference for text in texts],
        "p (Holm)": [text.p_value for text in texts],
        "Chosen": [text.chosen or NOTHING for text in texts],
        "Note": [text.note or NOTHING for text in texts],
    }
    known = {name: column for name, column in columns.items() if not set(column) <= {NOTHING}}
    return TextTable(tuple(known), tuple(zip(*known.values(), strict=True)))


def _claims(method: str, finding: Finding) -> Iterator[tuple[TextTable, str, str]]:
    kinds = [kind_of(verdict) for verdict in finding.verdicts]
    rows = tuple(
        (text.claim, text.claimed, text.ours, text.n, text.p_value, text.verdict, text.reason, text.address)
        for text, kind in zip(claim_texts(finding), kinds, strict=True)
        if kind != "not run"
    )
    if rows:
        table = TextTable(("Claim", "Claimed", "Ours", "n", ADJUSTED, "Verdict", "Why", "Address"), rows)
        yield table, f"{finding.experiment.title}: claims that were judged.", f"{method}-{finding.name}-claims"


def _table(table: TextTable, caption: str, label: str) -> str:
    places = "".join(PLACES.get(column, "l" if column in TO_THE_LEFT else "r") for column in table.columns)
    body = [" & ".join(map(escaped, row)) + r" \\" for row in table.rows]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escaped(caption)}}}",
            rf"\label{{tab:{re.sub(r'[^A-Za-z0-9:-]+', '-', label)}}}",
            rf"\begin{{tabular}}{{{places}}}",
            r"\toprule",
            " & ".join(map(escaped, table.columns)) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )
