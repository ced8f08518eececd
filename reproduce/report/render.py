"""Templates filled, figures made part of a page, files written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from reproduce.errors import UserError
from reproduce.report import style, tables
from reproduce.report.method_card import inline, to_html


@dataclass(frozen=True)
class Drawing:
    """A figure inside a page."""

    svg: Markup
    caption: str


def drawing(figure: Figure, key: str, caption: str) -> Drawing:
    """A figure with a key that is unique on the page."""
    return Drawing(Markup(style.svg(figure, key, caption)), caption)


def write_template(path: Path, template: str, content: Mapping[str, Any]) -> None:
    """Fill the HTML and the Markdown template of that name, into ``path`` and the file beside it.

    Raises:
        UserError: no permission to write.
    """
    for suffix in (".html", ".md"):
        write(path.with_suffix(suffix), _filled(f"{template}{suffix}.j2", content))


def write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    except OSError as error:
        raise UserError(f"{path}: the page cannot be written ({error.strerror})") from error


def _filled(template: str, content: Mapping[str, Any]) -> str:
    """A filled template without trailing spaces and without runs of empty lines."""
    lines = [line.rstrip() for line in _environment().get_template(template).render(content).splitlines()]
    kept = [line for index, line in enumerate(lines) if line or (index and lines[index - 1])]
    return "\n".join(kept).strip() + "\n"


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["markdown"] = lambda text: Markup(to_html(text))
    environment.filters["inline"] = lambda text: Markup(inline(text))
    environment.filters["pipes"] = tables.markdown
    environment.filters["slug"] = lambda text: "-".join(str(text).lower().split())
    return environment
