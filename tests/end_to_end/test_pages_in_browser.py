"""The pages as a browser shows them: Chromium, headless, one for all tests.

Where it or Playwright is missing these tests are skipped; in continuous integration (CI=true) they fail.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from reproduce.experiment.folder import ROOT, MethodFolder, all_methods, find_method
from reproduce.report.figures import FIGURES
from reproduce.report.page import write_page
from reproduce.results.evaluate import MethodFindings, evaluate
from reproduce.results.match import ResultIndex
from reproduce.results.store import read_result, read_results

REPORTS = ROOT / "reports"
PAGES = [*sorted(REPORTS.glob("*.html")), *sorted(REPORTS.glob("data/*.html"))]
# Pages of methods are alike: continuous integration takes a third of them, and each of the others.
SAMPLED = [
    pytest.param(path, marks=pytest.mark.sampled(3)) if path.stem.removesuffix(".evidence") in all_methods() else path
    for path in PAGES
]
LARGEST = sorted(PAGES, key=lambda path: path.stat().st_size)[-3:]
METHOD_PAGES = [path for path in PAGES if path.stem in all_methods()]
EVIDENCE_PAGES = [path for path in PAGES if path.stem.endswith(".evidence")]
MOST_BYTES = 400_000
WIDE, NARROW, PAPER = ({"width": width, "height": height} for width, height in ((1200, 900), (390, 844), (790, 1120)))

# What scrolls sideways in its own container and cannot be reached, or is not named.
UNREACHABLE = """() => [...document.querySelectorAll('*')].filter(one =>
    one.scrollWidth > one.clientWidth + 1 && ['auto', 'scroll'].includes(getComputedStyle(one).overflowX)
    && !(one.tabIndex === 0 && (one.tagName === 'PRE' || one.getAttribute('aria-label')))
).map(one => one.outerHTML.slice(0, 90))"""
LINKS = "() => [...document.links].map(one => one.href)"
# What stands in closed details and is not shown.
HIDDEN = """() => [...document.querySelectorAll('details:not([open]) > :not(summary)')].filter(one =>
    !one.checkVisibility({contentVisibilityAuto: true}) || one.getBoundingClientRect().height === 0
).map(one => one.outerHTML.slice(0, 90))"""
# What follows a name from right to left on its line, and stands left of it.
TURNED = """() => [...document.querySelectorAll('bdi')].filter(one => {
    const next = one.nextSibling;
    if (!/[\\u0590-\\u08ff]/.test(one.textContent) || !next?.textContent.trim()) return false;
    const range = document.createRange();
    range.setStart(next, 0);
    range.setEnd(next, 1);
    const [name, after] = [[...one.getClientRects()].at(-1), range.getBoundingClientRect()];
    return name && Math.abs(name.bottom - after.bottom) < 4 && after.left < name.right - 1;
}).map(one => one.textContent)"""


Window = Any  # of conftest.py
ALL = {"rules": {"region": {"enabled": False}}}  # that one takes a second, and all is in <main>
CONTRAST = {"runOnly": ["color-contrast"]}  # what a theme changes


@pytest.mark.parametrize("path", SAMPLED, ids=lambda path: path.stem)
def test_a_page_is_quiet_fits_and_can_be_read_by_all(path: Path, window: Window) -> None:
    assert path.stat().st_size < MOST_BYTES
    window.show(path, NARROW)
    assert window.page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
    assert window.page.evaluate(UNREACHABLE) == []
    assert window.page.evaluate("document.scripts.length") == 0  # nothing that sorts or moves
    if path in LARGEST:
        assert window.page.evaluate(HIDDEN) != []
        window.page.emulate_media(media="print")
        window.page.evaluate("() => new Promise(requestAnimationFrame)")
        assert window.page.evaluate(HIDDEN) == []
        window.page.emulate_media(media="screen")
    assert window.faults(**ALL) == []
    if path in LARGEST:
        window.page.emulate_media(color_scheme="dark")
        assert window.faults(**CONTRAST) == []
    assert (window.requests, window.errors) == ([path.as_uri()], [])


def test_every_link_and_anchor_resolves() -> None:
    texts = {path: path.read_text("utf-8") for path in PAGES}
    ids = {path: set(re.findall(r' id="([^"]+)"', text)) for path, text in texts.items()}
    links = [(path, link) for path, text in texts.items() for link in re.findall(r'<a [^>]*?href="([^"]+)"', text)]
    broken = []
    for path, link in links:
        parts = urlsplit(html.unescape(link))
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        known = not parts.fragment or parts.fragment in ids.get(target, ())
        fits = parts.scheme in ("http", "https") or (target.exists() and known and target.suffix != ".md")
        broken += [] if fits or path.with_suffix(".md") == target or target.name == "README.md" else [(path.name, link)]
    assert broken == []
    assert len(links) > 100


def test_every_run_leads_to_its_sealed_result() -> None:
    """That these addresses are of files says the test above; here, that they are all, and of the ids beside them."""
    assert EVIDENCE_PAGES
    for path in EVIDENCE_PAGES:
        page = path.read_text("utf-8")
        links = re.findall(r'<a href="evidence/([^"]+)\.json">(\w+)</a>', page)
        (runs,) = re.findall(r'<p class="lead">(\d+) runs?\.', page)
        assert all(file.endswith(f"-{run}") for file, run in links)
        assert len(set(links)) == int(runs) > 0


@pytest.mark.sampled(3)
@pytest.mark.parametrize("path", METHOD_PAGES, ids=lambda path: path.stem)
def test_the_answers_stand_in_the_first_screen(path: Path, window: Window) -> None:
    """Does it hold, by how much, can it be trusted: in 800 pixels at 1280; the first one in 1,000 of a telephone."""
    for viewport, most, headings in (
        ({"width": 1280, "height": 800}, 800, ("#holds", "#how-much", "#trust")),
        (NARROW, 1000, ("#holds",)),
    ):
        window.show(path, viewport)
        for heading in headings:
            answer = window.page.locator(heading).locator("xpath=following-sibling::*").first.bounding_box()
            assert answer["y"] < most, heading
        verdict = window.page.locator("#holds ~ * .counts li, #holds ~ p").first.bounding_box()
        assert verdict["y"] + verdict["height"] < most


def test_every_mean_of_the_matrix_leads_to_the_runs_that_it_is_the_mean_of() -> None:
    page = (REPORTS / "matrix.html").read_text("utf-8")
    shown = re.findall(r'<td><a href="([^"#]+)#([^"]+)">([\d.]+)</a><small>n = (\d+)', page)
    for name, anchor, mean, n in shown:
        (part,) = re.findall(
            rf'<tbody id="{re.escape(anchor)}">(.*?)</tbody>', (REPORTS / name).read_text("utf-8"), re.S
        )
        rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", part, re.S)]
        values = [float(next(text for text in row if re.fullmatch(r"[\d.]+", text))) for row in rows if "counts" in row]
        assert len(values) == int(n)
        assert sum(values) / len(values) == pytest.approx(float(mean), abs=0.51 * 10.0 ** -len(mean.partition(".")[2]))
    assert len(shown) > 20
    assert len(re.findall(r"<td>\(?[\d.]+\)?<small>", page)) == 0  # none without its runs


NUMBERS = {"per": "table.verdicts td a", "matrix": "#matrix ~ .wide td a", "index": ".overview .gap-text a"}


@pytest.mark.parametrize("name", NUMBERS)
def test_from_a_number_to_its_sealed_result_in_two_clicks(window: Window, name: str) -> None:
    window.show(REPORTS / f"{name}.html", WIDE)
    link = window.page.locator(NUMBERS[name]).first
    link.click()
    assert ".evidence.html#" in window.page.url
    rows = window.page.locator("tbody:target tr:has(td)")
    assert rows.count() >= 3
    row = rows.first
    assert row.is_visible()
    result = read_result(Path(unquote(urlsplit(row.locator("a").evaluate("one => one.href")).path)))
    assert result.final is not None
    assert row.locator("th").inner_text() == str(result.config.seed)
    shown = [float(text) for text in row.locator("td:not(.text)").all_inner_texts()]
    assert shown[0] == pytest.approx(result.final.test[result.metric], rel=1e-5)


def test_all_that_is_folded_is_printed(window: Window) -> None:
    """Curves, protocols, claims that wait: all have a height on paper, and nothing is wider than that."""
    window.show(REPORTS / "per.html", PAPER, media="print")
    window.page.evaluate("() => new Promise(requestAnimationFrame)")
    assert window.page.locator("details:not([open]) figure svg").count() > 4
    flat = window.page.evaluate(
        """() => [...document.querySelectorAll('details figure svg, details table tr, details dd, pre')].filter(
            one => one.getBoundingClientRect().height === 0 || !one.checkVisibility()
        ).map(one => one.outerHTML.slice(0, 90))"""
    )
    assert flat == []
    assert window.page.evaluate("document.documentElement.scrollWidth") <= PAPER["width"]


SCRIPT = "<script>alert(1)</script><img src=http://127.0.0.1:9/x onerror=alert(2)>"
CARD = rf"""# A card {SCRIPT}

## Idea
An idea of $\text{{</math>{SCRIPT}}}$, $\frac{{1$ and $\left( x$, with ![a picture](http://127.0.0.1:9/a.png)
and [a link](javascript:alert(3)) {SCRIPT}

## Mathematics
$$\mathrm{{</annotation></semantics></math>{SCRIPT}}} + \href{{javascript:alert(4)}}{{x}}$$

| one | two |
|:----|----:|
| {"wide" * 40} | 2 |

```
{SCRIPT} {"code " * 60}
```
"""
LABELS = (SCRIPT, r"$\frac{1$ and $\bad$", "التطبيع الدفعي", "正規化 🎲 活性化", "x" * 200, "$5 & <b>bold</b>")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of an experiment that ran, under a card and names that attack whoever shows them."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "card.md").write_text(CARD, "utf-8")
    experiment = find_method("activity_prior").experiments()["reduced_two_units"]
    arms = {
        name: arm.model_copy(update={"label": LABELS[place % len(LABELS)]})
        for place, (name, arm) in enumerate(experiment.arms.items())
    }
    formula = rf"$\text{{</math>{SCRIPT}}}$"
    texts = {
        name: f"{name} {SCRIPT} {LABELS[2]} 12.5 % {formula}" for name in ("title", "question", "source", "caveat")
    }
    deviations = (f"A deviation: {SCRIPT} ![a second picture](http://127.0.0.1:9/b.png)",)
    changed = experiment.model_copy(update={**texts, "arms": arms, "deviations": deviations, "figures": tuple(FIGURES)})
    results, problems = read_results((ROOT / "reports" / "evidence").glob("mnist-rectified_mlp-*.json"))
    assert results
    finding = evaluate("t", changed, ResultIndex(results))
    damaged = [f"{ROOT}/reports/evidence/{SCRIPT.replace('/', '')}.json: its seal is broken", *problems]
    return write_page(MethodFindings(MethodFolder("hostile", folder), (finding,)), damaged, folder)


def test_hostile_cards_and_names_are_text(hostile: Path, window: Window) -> None:
    for viewport, theme in ((NARROW, "light"), (WIDE, "dark")):
        window.show(hostile, viewport, theme)
        assert window.page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        assert window.page.evaluate(UNREACHABLE) == []
        assert window.page.evaluate(TURNED) == []
        shown = window.page.evaluate("document.body.textContent")  # before axe is spared rows like others
        assert window.faults(**ALL) == []
        assert (window.requests, window.errors) == ([hostile.as_uri()], [])
    for text in (*LABELS, "a picture", "a second picture", "[a link](javascript:alert(3))", r"\left( x"):
        assert text in shown, text
    for element in ("script", "img", "b:not(.counts b)", "link", "iframe", "[onerror]"):
        assert window.page.locator(element).count() == 0, element
    assert window.page.evaluate(LINKS)  # and none that runs
    assert {urlsplit(link).scheme for link in window.page.evaluate(LINKS)} == {"file"}


def test_what_cannot_be_read_is_named_in_the_first_screen(hostile: Path, window: Window) -> None:
    window.show(hostile, WIDE)
    place = window.page.get_by_text("its seal is broken").first.bounding_box()
    assert place["y"] + place["height"] < WIDE["height"]
    text = window.page.get_by_text("its seal is broken").first.inner_text()
    assert text.startswith("reports/evidence/")


def test_a_script_that_gets_into_a_page_does_not_run(hostile: Path, window: Window) -> None:
    """What escaping should ever miss, the page's policy forbids."""
    attacked = hostile.with_name("attacked.html")
    attack = "<script>alert(1)</script><img src='http://127.0.0.1:9/x.png' onerror='alert(2)'>"
    attacked.write_text(hostile.read_text("utf-8").replace("</h1>", f"</h1>{attack}", 1), "utf-8")
    window.show(attacked, WIDE)
    assert window.page.locator("img").count() == 1
    assert not [error for error in window.errors if error.startswith("dialog")]
    blocked = [error for error in window.errors if "Content Security Policy" in error]
    assert any("script" in error for error in blocked)
    assert any("x.png" in error for error in blocked)
