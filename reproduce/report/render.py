"""Templates filled, and files written in one step each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from reproduce.errors import UserError
from reproduce.report import counts, tables
from reproduce.report.drawings import Drawing
from reproduce.report.kept import replace_text
from reproduce.report.method_card import inline, to_html
from reproduce.report.numbers import metric_text
from reproduce.report.svg import rules_once

HTML_AND_MD = (".html", ".md")
RIGHT_TO_LEFT = r"[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff]"
# Signs that turn what follows them, until another one or the paragraph ends: in no text of a page are they needed.
OVERRIDES = dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)])
TAG = re.compile(r"<(?=[A-Za-z/])")
APART = re.compile(rf"“(?P<name>[^”]+)”|(?P<words>{RIGHT_TO_LEFT}+(?:[\W_]+{RIGHT_TO_LEFT}+)*)")


@dataclass(frozen=True)
class Page:
    """A page that is ready to be written: as HTML, as Markdown, and as CSV where it has numbers of its own."""

    name: str
    template: str
    content: Mapping[str, Any]
    drawings: tuple[Drawing, ...] = ()
    csv: str | None = None

    def write(self, output: Path) -> Path:
        """Write `<output>/<name>.html` and the files beside it, and return the path of the first.

        Raises:
            UserError: no permission to write.
        """
        texts = self.texts()
        for name, text in texts.items():
            write(output / name, text)
        return output / next(iter(texts))

    def texts(self) -> dict[str, str]:
        """What is to be written, by the names of files; that of the HTML is the first."""
        texts = {f"{self.name}{suffix}": filled(f"{self.template}{suffix}.j2", self.content) for suffix in HTML_AND_MD}
        return texts if self.csv is None else {**texts, f"{self.name}.csv": self.csv}


def write(path: Path, text: str) -> None:
    try:
        replace_text(path, text)
    except OSError as error:
        raise UserError(f"{path}: the page cannot be written ({error.strerror})") from error


def filled(template: str, content: Mapping[str, Any]) -> str:
    """A filled template without trailing spaces, runs of empty lines, and signs that turn text around."""
    text = rules_once(_environment(template.endswith(".md.j2")).get_template(template).render(content))
    text = text.translate(OVERRIDES)
    lines = [line.rstrip() for line in text.splitlines()]
    kept = [line for index, line in enumerate(lines) if line or (index and lines[index - 1])]
    return "\n".join(kept).strip() + "\n"


def isolated(text: str) -> Markup:
    """Text with each name that it quotes, and what is written from right to left, apart: neither turns numbers over."""
    return Markup(APART.sub(_apart, str(escape(text))))


def _apart(found: re.Match[str]) -> str:
    return f"“<bdi>{found['name']}</bdi>”" if found["name"] else f"<bdi>{found['words']}</bdi>"


def _without_tags(value: Any) -> Any:
    """What is put into Markdown begins no HTML; a card's own Markdown is put in `as_written`."""
    return TAG.sub("&lt;", value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def _environment(is_markdown: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        finalize=_without_tags if is_markdown else None,
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["markdown"] = lambda text: Markup(to_html(text))
    environment.filters["inline"] = lambda text: Markup(inline(text))
    environment.filters["isolated"] = isolated
    environment.filters["as_written"] = Markup
    environment.filters["cell"] = tables.pipe_safe
    environment.filters["label"] = counts.label
    environment.filters["metric"] = metric_text
    environment.filters["pipes"] = tables.markdown
    environment.filters["slug"] = lambda text: "-".join(str(text).lower().split())
    return environment
