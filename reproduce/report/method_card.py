"""A method's card: its sections, and Markdown with mathematics as HTML."""

from __future__ import annotations

import html
import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal
from xml.etree.ElementTree import SubElement, tostring

from latex2mathml.converter import Converter
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from mdit_py_plugins.dollarmath import dollarmath_plugin

from reproduce.errors import UserError
from reproduce.experiment.bounded import read_bounded
from reproduce.experiment.toml import LARGEST
from reproduce.report.citation import Citation, citations

SECTIONS = ("Idea", "Mathematics", "Experiments", "Deviations", "Ambiguities", "Citation")
LONG = 25  # signs of a formula in a line, which is not broken: on a telephone it may have to scroll
# What mathematics may be made of: MathML that shows, and attributes that neither link nor name nor style.
ELEMENTS = re.compile(
    "math|semantics|annotation|mrow|mi|mn|mo|ms|mtext|mspace|mfrac|msqrt|mroot|mstyle|merror|mpadded|mphantom|menclose|"
    "msub|msup|msubsup|munder|mover|munderover|mmultiscripts|mprescripts|none|mtable|mtr|mlabeledtr|mtd"
)
ATTRIBUTES = re.compile(
    "display|displaystyle|scriptlevel|mathvariant|mathcolor|mathbackground|mathsize|stretchy|fence|separator|form|"
    "lspace|rspace|minsize|maxsize|symmetric|largeop|movablelimits|accent|accentunder|width|height|depth|voffset|"
    "linethickness|bevelled|numalign|denomalign|notation|columnalign|columnlines|columnspacing|rowlines|rowspacing|"
    "rowalign|frame|framespacing|side|linebreak"
)


Batch = Literal["any split", "own batch"]
_CONDITION = re.compile(r"`(\w+) ([=>]) ([^`]+)`")
_CLAUSE = re.compile(
    rf"(?P<batch>any split|own batch)(?: with (?P<condition>{_CONDITION.pattern}(?: and {_CONDITION.pattern})*))?", re.I
)


class MethodCard:
    """The card of one method folder: ``title``, and the Markdown of each ``## section``.

    Raises:
        UserError: no card, no title, no Idea, or a citation that is no usable BibTeX.
    """

    def __init__(self, folder: Path) -> None:
        self.path = path = folder / "card.md"
        try:
            text = read_bounded(path, LARGEST).decode("utf-8").replace("\r\n", "\n")
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise UserError(f"{path}: not readable as UTF-8 text: {error}") from error
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
        if "Citation" in self.sections:
            citations(self.sections["Citation"], str(path))  # what is wrong is said when the card is read

    def batch_of(self, parameters: Mapping[str, Any]) -> Batch:
        """What its samples are where a batch is split over several devices, for a method with these parameters.

        "any split": the mean over devices of what each computes is what one device computes of the whole batch. "own
        batch": each device's own part counts. The card says it under Mathematics in a paragraph that begins with
        ``**Several devices.**``: ``Any split`` or ``Own batch``, then, each after a semicolon, exceptions of which the
        last that fits holds, as ``own batch with `reduction = "sum"```.

        Raises:
            UserError: no such paragraph, one of another form, or an exception for a parameter that there is not.
        """
        mathematics = self.sections.get("Mathematics", "") + "\n"
        paragraph = re.search(r"^\*\*Several devices\.\*\* (.+?)\.\s", mathematics, re.M | re.S)
        clauses = " ".join(paragraph[1].split()).split("; ") if paragraph else [""]
        found = [_CLAUSE.fullmatch(clause) for clause in clauses]
        if not found[0] or found[0]["condition"] or None in found:
            raise UserError(
                f"{self.path}: Mathematics needs a paragraph '**Several devices.** Any split.' or '... Own batch.', "
                "with exceptions before its first full stop as '; own batch with `name = value` and `name > 0`'"
            )
        try:
            fitting = [clause for clause in found if clause and _fits(clause["condition"] or "", parameters)]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.path}: 'Several devices' names no parameter and value of the method: {error}"
            ) from error
        return "own batch" if fitting[-1]["batch"].lower() == "own batch" else "any split"

    @property
    def citations(self) -> tuple[Citation, ...]:
        """The entries of the section Citation, the method's own paper first; none where it says "None".

        Raises:
            UserError: no such section.
        """
        return citations(self.sections.get("Citation", ""), str(self.path))


def _fits(condition: str, parameters: Mapping[str, Any]) -> bool:
    for name, sign, text in _CONDITION.findall(condition):
        wanted, own = tomllib.loads(f"value = {text}")["value"], parameters[name]
        if not (own == wanted if sign == "=" else own > wanted):
            return False
    return True


def to_html(text: str) -> str:
    """CommonMark with tables, `$...$` and `$$...$$` as MathML. Nothing in it can run or fetch: HTML and addresses other
    than of the web or of the folder are shown as text, an image is its description."""
    return _parser().render(text)


def inline(text: str) -> str:
    """One line of Markdown without its paragraph."""
    return _parser().renderInline(text)


@cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.use(dollarmath_plugin, allow_digits=False, double_inline=True)
    parser.validateLink = _is_harmless  # type: ignore[method-assign, assignment]
    for name in ("math_inline", "math_inline_double", "math_block"):
        parser.add_render_rule(name, _math)
    parser.add_render_rule("image", _description)
    parser.add_render_rule("fence", _code)
    parser.add_render_rule("code_block", _code)
    parser.add_render_rule("table_open", _table)
    parser.add_render_rule("table_close", lambda *_: "</table></div>\n")
    parser.add_render_rule("th_open", _heading)
    return parser


def _is_harmless(address: str) -> bool:
    """Of the web, in the same folder, or on the same page."""
    return re.match(r"https?://|(?!//)(?![^/?#]*:)", address, re.I) is not None


def _description(renderer: RendererHTML, tokens: Sequence[Token], place: int, options: Any, environment: Any) -> str:
    """An image as its description: to show it would be a request."""
    return html.escape(renderer.renderInlineAsText(tokens[place].children or [], options, environment))


def _code(renderer: RendererHTML, tokens: Sequence[Token], place: int, options: Any, environment: Any) -> str:
    """Lines that may be wider than the page, and so can be scrolled with the keyboard."""
    return f'<pre tabindex="0"><code>{html.escape(tokens[place].content)}</code></pre>\n'


def _table(renderer: RendererHTML, tokens: Sequence[Token], place: int, options: Any, environment: Any) -> str:
    caption = '<caption class="unseen">A table of the text</caption>'
    return f'<div class="wide" role="group" aria-label="Table" tabindex="0"><table>{caption}\n'


def _heading(renderer: RendererHTML, tokens: Sequence[Token], place: int, options: Any, environment: Any) -> str:
    tokens[place].attrSet("scope", "col")
    return renderer.renderToken(tokens, place, options, environment)


def _math(renderer: RendererHTML, tokens: Sequence[Token], place: int, options: Any, environment: Any) -> str:
    formula, kind = tokens[place].content.strip(), tokens[place].type
    if kind == "math_inline":
        shown = mathml(formula, "inline")
        is_long = len(re.sub("<annotation.*|<[^>]*>", "", shown)) > LONG
        return f'<span class="long" role="group" aria-label="Formula" tabindex="0">{shown}</span>' if is_long else shown
    block = f'<div class="math block" role="group" aria-label="Formula" tabindex="0">{mathml(formula, "block")}</div>'
    return f"{block}\n" if kind == "math_block" else mathml(formula, "block")


def mathml(formula: str, display: str) -> str:
    """A formula in LaTeX as MathML that only shows; what cannot be read as one is shown as it is written."""
    try:
        math = Converter(display=display).convert_to_element(formula)
    except Exception:  # the library has a dozen of its own, and lets IndexError, ValueError and others through
        return f'<code class="formula">{html.escape(formula)}</code>'
    for element in math.iter():
        if not ELEMENTS.fullmatch(element.tag):
            element.tag = "mrow"
        element.text = html.unescape(element.text or "")  # the library spells signs so; what was typed is escaped below
        element.attrib = {name: value for name, value in element.attrib.items() if ATTRIBUTES.fullmatch(name)}
    content = [*math]
    math[:] = []
    shown = SubElement(math, "semantics")
    shown.extend(content)
    SubElement(shown, "annotation", encoding="application/x-tex").text = formula
    return tostring(math, encoding="unicode")
