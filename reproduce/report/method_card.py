"""A method's card: its sections, and Markdown with mathematics as HTML."""

from __future__ import annotations

import html
import re
from pathlib import Path

from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin

from reproduce.errors import UserError

SECTIONS = ("Idea", "Mathematics", "Experiments", "Deviations", "Ambiguities", "Citation")


class MethodCard:
    """The card of one method folder: ``title``, and the Markdown of each ``## section``.

    Raises:
        UserError: no card, no title, or no Idea.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "card.md"
        try:
            text = path.read_text("utf-8")
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        parts = re.split(r"^## +(.+?)\s*$", text, flags=re.M)
        heading = re.match(r"# +(.+)", parts[0].lstrip())
        if heading is None:
            raise UserError(f"{path}: its first line is no '# <name of the method>'")
        self.title = heading.group(1).strip()
        self.sections = {
            name: body.strip() for name, body in zip(parts[1::2], parts[2::2], strict=True) if body.strip()
        }
        if "Idea" not in self.sections:
            raise UserError(f"{path}: has no section '## Idea'")


def to_html(text: str) -> str:
    """CommonMark with tables, `$...$` and `$$...$$` as MathML; raw HTML in it is shown as text."""
    return _parser().render(text)


def inline(text: str) -> str:
    """One line of Markdown without its paragraph."""
    return _parser().renderInline(text)


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    return parser.use(dollarmath_plugin, renderer=_math, allow_digits=False, double_inline=True)


def _math(formula: str, options: dict[str, bool]) -> str:
    display = "block" if options.get("display_mode") else "inline"
    mathml = convert(formula, display=display)
    note = f'<annotation encoding="application/x-tex">{html.escape(formula.strip())}</annotation>'
    return re.sub(
        r"(<math[^>]*>)(.*)</math>", rf"\1<semantics>\2{_literal(note)}</semantics></math>", mathml, flags=re.S
    )


def _literal(text: str) -> str:
    return text.replace("\\", "\\\\")
