"""The site of docs/: built strictly, closed in itself, complete, and searched without a server."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from reproduce.experiment.folder import ROOT, all_methods

pytestmark = pytest.mark.slow
Window = Any  # of conftest.py
WIDE, NARROW = ({"width": width, "height": height} for width, height in ((1280, 900), (390, 844)))
SHOWN = ("index", "how_it_works", "own_model", "experiment_file", "architecture", "methods/per", "api/method")
# The theme's own: every block of code has a navigation of one button, all of one name.
READABLE = {"rules": {"landmark-unique": {"enabled": False}}}


@dataclass
class Read(HTMLParser):
    """What a page links to, fetches by itself, and can be linked at."""

    links: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    tags: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags.add(tag)
        self.names |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and "href" in given:
            self.fetched.append(given["href"])
        elif "src" in given:
            self.fetched.append(given["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr[-3000:]
    assert "WARNING" not in built.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Read]:
    """Every page that is made from docs/, as read; those of reports/ have tests of their own."""
    found = {}
    for path in sorted(site.rglob("*.html")):
        if path.relative_to(site).parts[0] != "reports" or path.parent.name == "data":
            found[path] = Read()
            found[path].feed(path.read_text("utf-8"))
    return found


def test_every_link_and_its_anchor_is_there(site: Path, pages: dict[Path, Read]) -> None:
    broken = []
    n_links = 0
    for path, page in pages.items():
        for address in (*page.links, *page.fetched):
            parts = urlsplit(address)
            if parts.scheme in ("http", "https", "mailto") or path.name == "404.html":
                continue
            assert not parts.scheme, address
            target = Path(os.path.normpath(path.parent / unquote(parts.path))) if parts.path else path
            n_links += 1
            if not target.is_file() or not target.is_relative_to(site):
                broken.append(f"{path.relative_to(site)}: {address}")
            elif target in pages and unquote(parts.fragment) not in pages[target].names | {""}:
                broken.append(f"{path.relative_to(site)}: no {address}")
    assert n_links > 1000
    assert broken == []


def test_nothing_is_fetched_from_another_host(site: Path, pages: dict[Path, Read]) -> None:
    for path, page in pages.items():
        fetched = [address for address in page.fetched if re.match("(https?:)?//", address)]
        assert fetched == [], path
        assert "mermaid" not in re.findall(r'class="(\w+)"', path.read_text("utf-8")), "its script is of another host"
    for path in (*site.rglob("*.css"), site / "assets" / "iframe-worker.js"):
        text = path.read_text("utf-8")
        assert re.findall(r"(?:url\(|@import\s+)[\"']?((?:https?:)?//[^\"')]+)", text) == [], path


def test_every_method_has_its_card_and_its_functions(site: Path, pages: dict[Path, Read]) -> None:
    for folder in all_methods().values():
        page = pages[site / "methods" / f"{folder.name}.html"]
        module = ast.parse((folder.path / "method.py").read_text("utf-8"))
        offered = [
            node.name
            for node in module.body
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        ]
        assert offered
        assert {f"methods.{folder.name}.method.{name}" for name in offered} <= page.names
        assert {"idea", "mathematics", "deviations", "citation"} <= page.names
        text = re.sub(
            "<annotation.*?</annotation>|<code.*?</code>",
            "",
            (site / "methods" / f"{folder.name}.html").read_text("utf-8"),
        )
        assert "$$" not in text
        assert r"\(" not in text
        assert "math" in page.tags or "$" not in (folder.path / "card.md").read_text("utf-8")


def test_the_public_face_is_described(site: Path, pages: dict[Path, Read]) -> None:
    face = (site / "api" / "reproduce.html").read_text("utf-8")
    assert {"reproduce.attach", "reproduce.load_method"} <= pages[site / "api" / "reproduce.html"].names
    assert "its handle gives the penalty" in face  # the function, and not the module that was its former home
    assert "<blockquote>" not in face  # an example of a docstring that was taken for a quotation
    import reproduce.method

    named = pages[site / "api" / "method.html"].names
    described = [name for name in reproduce.method.__all__ if (getattr(reproduce.method, name).__doc__ or "").strip()]
    missing = [name for name in described if not any(place.endswith(f".{name}") for place in named)]
    assert missing == []


def test_a_field_has_its_default_and_its_comment(site: Path) -> None:
    text = re.sub("<[^>]+>", "", (site / "methods" / "per.html").read_text("utf-8"))
    assert re.search(r"strength: *NonNegative *= *0\.0001", text)
    assert "lambda; the paper searches 3e-4, 1e-4, 3e-5, 1e-5" in text


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", SHOWN)
def test_a_page_fits_a_telephone_is_quiet_and_can_be_read_by_all(name: str, site: Path, window: Window) -> None:
    window.show(site / f"{name}.html", NARROW)
    assert window.page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
    assert [address for address in window.requests if not address.startswith("file:")] == []
    assert window.errors == []
    assert window.faults(**READABLE) == []  # after the others: axe itself asks for style sheets


def test_search_works_in_a_folder(site: Path, window: Window) -> None:
    window.show(site / "index.html", WIDE)
    window.page.get_by_placeholder("Search").press_sequentially("orthogonal", delay=50)
    window.page.wait_for_selector(".md-search-result__link", timeout=60_000)
    found = window.page.eval_on_selector_all(".md-search-result__link", "all => all.map(one => one.href)")
    assert any("methods/orthogonal.html" in address for address in found)
