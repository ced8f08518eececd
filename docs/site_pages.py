"""What the site has beside docs/: the README and its like, a page for each method, the API, and the pages of reports/.

A hook of MkDocs. Links stay as they are read where the repository lies, from file to file; here they are turned to the
pages that the files became. A file that is linked and is no page becomes one, with its text.
"""

from __future__ import annotations

import ast
import html
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from reproduce.experiment.folder import METHODS, MethodFolder, all_methods
from reproduce.report.method_card import MethodCard, mathml

DOCS = Path(__file__).parent
ROOT = DOCS.parent
MOVED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "reports/README.md": "reports/index.html",
    "reports/data/README.md": "reports/data/index.md",
    "reproduce/models": "api/models.md",
    "reproduce/tasks": "api/tasks.md",
}
SHOWN = {".py", ".toml", ".json", ".cff", ".sh", ".yml", ""}  # text that becomes a page where it is linked
FENCED = re.compile(r"^(?P<fence>```+|~~~+).*?^(?P=fence)\s*$", re.M | re.S)
LINK = re.compile(r"\]\((?P<path>[^)#\s:]+)(?P<anchor>#[^)\s]*)?\)")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S)
MERMAID = re.compile(r"^```mermaid\n(.*?)^```\n", re.M | re.S)
PICTURE = re.compile(
    r'<picture>\s*<source [^>]*srcset="(?P<dark>[^"]+)">\s*<img src="(?P<light>[^"]+)"(?P<rest>[^>]*)>\s*</picture>'
)
QUESTIONS = re.compile(r"^\| My question \|.*\n\|[:\-| ]+\|\n(?P<rows>(?:\|.*\|\n)+)", re.M)
LAYER = re.compile(r'subgraph layer\d+\[" "\]\n(.*?)\n\s*end', re.S)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Every method into the navigation, and anchors as repository hosts make them."""
    config.mdx_configs["toc"]["slugify"] = _anchor
    for entry in config.nav:
        if "Methods" in entry:
            entry["Methods"] = [entry["Methods"], *(f"methods/{name}.md" for name in _of_the_repository())]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The pages that lie elsewhere, those that are made, and what they link to."""
    for origin, page in MOVED.items():
        if (ROOT / origin).is_file() and page.endswith(".md"):
            files.append(_page(config, page, (ROOT / origin).read_text("utf-8"), origin))
    for folder in _of_the_repository().values():
        files.append(_page(config, f"methods/{folder.name}.md", _method(folder), f"methods/{folder.name}/card.md"))
    files.append(_page(config, "methods/index.md", _methods(), "methods/index.md"))
    for name, text in _api():
        files.append(_page(config, f"api/{name}.md", text, f"api/{name}.md"))
    for path in sorted((ROOT / "reports").rglob("*.*")):
        if path.suffix != ".md":
            files.append(_as_it_is(config, path))
    for page in list(files.documentation_pages()):
        for target, _ in _links(page.content_string, _origin(page)):
            place = _place(target)
            if files.get_file_from_path(place) is not None:
                continue
            if place.startswith("source/"):
                files.append(_page(config, place, _source(target), target))
            elif (ROOT / target).is_file() and not target.startswith("docs/"):
                files.append(_as_it_is(config, ROOT / target))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to the pages that files became; the layers of the house without a script."""
    origin = _origin(page.file)
    here = os.path.dirname(page.file.src_uri)

    def turned(found: re.Match[str]) -> str:
        target = _target(found["path"], origin)
        if target is None:
            return found[0]
        return f"]({os.path.relpath(_place(target), here or '.')}{found['anchor'] or ''})"

    markdown = QUESTIONS.sub(_questions, PICTURE.sub(_two_images, MERMAID.sub(_layers, markdown)))
    return _outside_fences(markdown, lambda text: LINK.sub(turned, text))


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Mathematics as MathML, by what makes it on the pages of the report; tables that a keyboard reaches."""

    def formula(found: re.Match[str]) -> str:
        return mathml(html.unescape(found[2]).strip(), "inline" if found[1] == "span" else "block")

    content = content.replace("<table>", '<table tabindex="0">')  # a wide one is scrolled, with the keyboard too
    return FORMULA.sub(formula, content)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """A name for the theme's dialog of search, which has none."""
    return output.replace(
        'data-md-component="search" role="dialog"', 'data-md-component="search" role="dialog" aria-label="Search"'
    )


def _anchor(heading: str, separator: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower().strip()).replace(" ", separator)


def _page(config: MkDocsConfig, uri: str, text: str, origin: str) -> File:
    file = File.generated(config, uri, content=text)
    file.origin = origin  # type: ignore[attr-defined]
    return file


def _as_it_is(config: MkDocsConfig, path: Path) -> File:
    uri = path.relative_to(ROOT).as_posix()
    return File(uri, str(ROOT), config.site_dir, config.use_directory_urls)


def _origin(file: File) -> str:
    """The file of the repository that a page is made from."""
    return getattr(file, "origin", f"docs/{file.src_uri}")


def _target(link: str, origin: str) -> str | None:
    """The file or folder of the repository that a link in a file leads to, if it is one."""
    target = os.path.normpath(os.path.join(os.path.dirname(origin), link))
    return target if not target.startswith("..") and (ROOT / target).exists() else None


def _links(markdown: str, origin: str) -> Iterator[tuple[str, str]]:
    for found in LINK.finditer(FENCED.sub("", markdown)):
        target = _target(found["path"], origin)
        if target is not None:
            yield target, found["anchor"] or ""


def _place(target: str) -> str:
    """Where on the site a file of the repository stands."""
    path = Path(target)
    if target in MOVED:
        return MOVED[target]
    if path.parts[0] == "docs" and path.suffix != ".py":
        return path.relative_to("docs").as_posix()
    if path.parts[0] == "methods" and path.name == "card.md":
        return f"methods/{path.parent.name}.md"
    if path.parts[0] == "reports":
        page = path.with_suffix(".html")
        return page.as_posix() if path.suffix == ".md" and (ROOT / page).is_file() else target
    return f"source/{target}.md" if path.suffix in SHOWN else target


def _source(target: str) -> str:
    """A page with the text of a file, or the names of what a folder holds."""
    path = ROOT / target
    names = sorted(f"{one.name}/" if one.is_dir() else one.name for one in path.iterdir()) if path.is_dir() else []
    text = "\n".join(name for name in names if not name.startswith((".", "__"))) or path.read_text("utf-8").rstrip()
    language = {".py": "python", ".toml": "toml", ".json": "json", ".sh": "bash"}.get(Path(target).suffix, "yaml")
    return f"---\nsearch: {{ exclude: true }}\n---\n# `{target}`\n\n~~~~{language}\n{text}\n~~~~\n"


def _method(folder: MethodFolder) -> str:
    """The card, and all that the method's files offer."""
    results = f"Its page of results: [{folder.title}](../../reports/{folder.name}.md)."
    if not (ROOT / "reports" / f"{folder.name}.md").is_file():  # new here
        results = "It has no page of results yet: `make reports` writes it."
    parts = [(folder.path / "card.md").read_text("utf-8"), f"## In Python\n\n{results}\n"]
    for path in sorted(folder.path.glob("*.py"), key=lambda path: path.stem != "method"):
        if path.stem != "figures" and not path.stem.startswith("test_"):
            module = f"methods.{folder.name}.{path.stem}"
            parts.append(f"### `{module}`\n\n{_described(module, heading_level=4)}")
    return "\n\n".join(parts)


def _of_the_repository() -> dict[str, MethodFolder]:
    """Its own methods, without those of ``REPRODUCE_METHODS``."""
    return {name: folder for name, folder in all_methods().items() if folder.path.parent == METHODS}


def _methods() -> str:
    """A table of all methods."""
    rows = []
    for folder in _of_the_repository().values():
        card = MethodCard(folder.path)
        rows.append(f"| [{card.title}]({folder.name}/card.md) | {card.sections['Idea'].splitlines()[0]} |")
    return "\n".join(["# Methods", "", "| Method | Idea |", "|:---|:---|", *rows, ""])


def _api() -> Iterator[tuple[str, str]]:
    """The pages of the API: name and text."""
    face = _described("reproduce", members=["attach", "load_method"])
    handle = _described("reproduce.method.attach.Handle", show_root_heading=True, show_root_toc_entry=True)
    ratio = _described("reproduce.training.calibrate.gradient_ratio", show_root_heading=True, show_root_toc_entry=True)
    yield "reproduce", f"# The public face: `reproduce`\n\n{face}\n{ratio}\n{handle}"
    interface = _described("reproduce.method", members=_offered(ROOT / "reproduce" / "method" / "__init__.py"))
    yield "method", f"# What a method is made of: `reproduce.method`\n\n{interface}"
    integrations = [
        f"## `{module}`\n\n{_described(module, heading_level=3)}"
        for path in sorted((ROOT / "reproduce" / "integrations").glob("[a-z]*.py"))
        for module in [f"reproduce.integrations.{path.stem}"]
    ]
    yield "integrations", "# Methods in other training loops: `reproduce.integrations`\n\n" + "\n\n".join(integrations)
    for room, title in (("models", "Models"), ("tasks", "Tasks")):
        blocks = [
            f"## {path.stem}\n\n{_described(f'reproduce.{room}.{path.stem}', heading_level=3)}"
            for path in sorted((ROOT / "reproduce" / room).glob("*.py"))
            if "class Options" in path.read_text("utf-8")
        ]
        yield room, f"# {title}\n\nFiles of reproduce/{room}; each has its `Options`.\n\n" + "\n".join(blocks)


def _described(name: str, **options: Any) -> str:
    """Where mkdocstrings puts what a module or class says of itself; JSON is YAML."""
    return f"::: {name}\n    options: {json.dumps(options)}\n"


def _offered(path: Path) -> list[str]:
    """The names in a module's ``__all__``."""
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and any(getattr(name, "id", "") == "__all__" for name in node.targets):
            return ast.literal_eval(node.value)
    raise ValueError(f"{path}: has no __all__")


def _outside_fences(markdown: str, change: Any) -> str:
    """The text with what lies outside fenced code changed."""
    parts, end = [], 0
    for fenced in FENCED.finditer(markdown):
        parts += [change(markdown[end : fenced.start()]), fenced[0]]
        end = fenced.end()
    return "".join([*parts, change(markdown[end:])])


def _layers(found: re.Match[str]) -> str:
    """The layers of docs/architecture.md, which Mermaid draws where the repository lies, as boxes."""
    rows = []
    for layer in LAYER.findall(found[1]):
        rooms = [line.strip().partition(":::") for line in layer.splitlines()]
        rows.append("<div>" + "".join(f'<span class="{kind}">{room}</span>' for room, _, kind in rooms) + "</div>")
    return f'<div class="layers">{"".join(rows)}</div>\n'


def _questions(found: re.Match[str]) -> str:
    """The README's table of questions, which is wider than a page, with the code of each row as a block."""
    parts = []
    for row in found["rows"].splitlines():
        question, imported, code, expected, evidence = (cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1])
        lines = re.findall(r"`([^`]+)`", f"{imported} {code}")
        language = "python" if "`" in imported else ""
        text = f"{expected[:1].upper()}{expected[1:]}. Evidence: {evidence}."
        text = text.replace("Evidence: [how]", "More: [how]").replace("\\|", "|")
        parts.append(
            "\n".join([f"**{question}**".replace("\\|", "|"), "", f"```{language}", *lines, "```", "", text, ""])
        )
    return "\n".join(parts) + "\n"


def _two_images(found: re.Match[str]) -> str:
    """A picture that follows the site's own switch between light and dark."""
    return "".join(f'<img src="{found[kind]}#only-{kind}"{found["rest"]}>' for kind in ("light", "dark"))
