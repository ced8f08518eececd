"""The index in a real browser: it sorts by keyboard and without a script, becomes cards, and is read by all."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from reproduce.experiment.folder import ROOT, MethodFolder, all_methods
from reproduce.experiment.schema import Experiment
from reproduce.report.drawings import complete
from reproduce.report.index import index_pages
from reproduce.results.columns import find_all
from reproduce.results.match import ResultIndex
from reproduce.results.store import read_results

WIDE, NARROW, LAPTOP = ({"width": w, "height": h} for w, h in ((1280, 800), (390, 844), (900, 700)))
ALL = {"rules": {"region": {"enabled": False}}}
CONTRAST = {"runOnly": ["color-contrast"]}
SCRIPT = "<script>alert(1)</script><img src=http://127.0.0.1:9/x onerror=alert(2)>"
LABELS = (SCRIPT, "التطبيع الدفعي", "x" * 200, "正規化 🎲", r"$\frac{1$ & <b>bold</b>")
EXPERIMENTS = ("matrix_images", "matrix_tables", "reduced_two_units")  # experiments that this index is made of
EVIDENCE = ("fashion_mnist-mlp", "uci_molec_biol_splice-mlp", "mnist-rectified_mlp")  # and its Results

# Titles of the rows from top to bottom as they are seen, and where the rows begin.
SEEN = """() => [...document.querySelectorAll('.overview tbody tr')].map(row => [
    row.getBoundingClientRect().top, row.querySelector('a').getAttribute('href')]
).sort((one, other) => one[0] - other[0]).map(pair => pair[1])"""
# Marks whose zero line is not where the other rows of their column have it.
CROOKED = """() => [2, 3].flatMap(place => {
    const lines = [...document.querySelectorAll(`.overview tbody tr > :nth-child(${place + 1}) svg.gap`)];
    const left = lines[0].getBoundingClientRect().left;
    return lines.filter(one => Math.abs(one.getBoundingClientRect().left - left) > 0.6).map(one => one.textContent);
})"""
# Arms whose name and mark are not on one line.
APART = """() => [...document.querySelectorAll('.overview tbody tr')].flatMap(row => {
    const names = [...row.querySelectorAll('th .line')].map(one => one.getBoundingClientRect().top);
    return [...row.querySelectorAll('td.marks')].flatMap(cell => [...cell.querySelectorAll('.line:has(.gap-text)')]
        .map((one, place) => one.getBoundingClientRect().top - names[place]).filter(gap => Math.abs(gap) > 2));
})"""


HOSTILE = {"per": LABELS[:2], "vcreg": LABELS[2:4], "vcl": LABELS[4:]}  # what the arms of these are called


def hostile(experiment: Experiment, labels: tuple[str, ...]) -> Experiment:
    names = [name for name in experiment.arms if name != experiment.baseline]
    new = dict(zip(names, labels, strict=False))
    arms = {name: arm.model_copy(update={"label": new.get(name, arm.label)}) for name, arm in experiment.arms.items()}
    return experiment.model_copy(update={"arms": arms})


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two columns of the matrix with all their arms, where one method's names attack whoever shows them."""
    folder = tmp_path_factory.mktemp("index")
    (folder / "card.md").write_text(f"# {LABELS[1]} {SCRIPT}\n\n## Idea\n{SCRIPT} $\\text{{</math>{SCRIPT}}}$", "utf-8")
    methods: dict[MethodFolder, dict[str, Experiment]] = {}
    for name, method in all_methods().items():
        mine = {key: one for key, one in method.experiments().items() if key in EXPERIMENTS}
        if name in HOSTILE:
            mine = {key: hostile(one, HOSTILE[name]) for key, one in mine.items()}
        methods[MethodFolder(name, folder) if name == "per" else method] = mine
    evidence = ROOT / "reports" / "evidence"
    results, problems = read_results([path for kind in EVIDENCE for path in evidence.glob(f"{kind}-*.json")])
    assert (len(results) > 100, problems) == (True, [])
    known = {method.name: experiments for method, experiments in methods.items()}
    pages = index_pages(*find_all(methods, known, ResultIndex(results)), problems)
    complete([drawing for page in pages for drawing in page.drawings])
    return [page.write(folder) for page in pages][-1]


def test_rows_are_sorted_by_keyboard(index: Path, window: Any) -> None:
    window.show(index, WIDE)
    by_name = window.page.evaluate(SEEN)
    assert len(by_name) == len(all_methods())
    window.page.locator("input[name=sort]").first.focus()
    orders = {}
    for key in ("published claims", "images", "tables"):
        window.page.keyboard.press("ArrowRight")
        chosen = window.page.locator("input[name=sort]:checked")
        assert chosen.evaluate("one => one.parentElement.textContent.trim()") == key
        assert chosen.evaluate("one => one === document.activeElement")
        orders[key] = window.page.evaluate(SEEN)
    assert all(sorted(order) == sorted(by_name) for order in orders.values())
    assert orders["images"] != by_name
    assert orders["images"] != orders["tables"]
    window.page.keyboard.press("ArrowRight")  # around, to the first
    assert window.page.evaluate(SEEN) == by_name
    assert window.page.evaluate("document.scripts.length") == 0


def test_the_order_is_that_of_the_best_arms(index: Path, window: Any) -> None:
    """Whatever was measured: from the top down, the best gap of each row does not get worse."""
    window.show(index, WIDE)
    window.page.locator("#by-2").check()
    texts = window.page.evaluate(
        """() => [...document.querySelectorAll('.overview tbody tr')].map(row => [row.getBoundingClientRect().top,
        [...row.querySelectorAll('td:nth-child(3) .gap-text')].map(one => one.textContent)]
        ).sort((one, other) => one[0] - other[0]).map(pair => pair[1])"""
    )
    gaps = [[float(text.replace("−", "-")) for text in row if text[0] in "+−0"] for row in texts]
    best = [min(row) for row in gaps if row]
    assert len(best) > 5
    assert best == sorted(best)


def test_focus_follows_what_is_seen(index: Path, window: Any) -> None:
    window.show(index, WIDE)
    window.page.locator("#by-2").check()
    seen = window.page.evaluate(SEEN)
    window.page.locator("#by-2").focus()
    visited = []
    for _ in range(window.page.locator(".overview a").count()):
        window.page.keyboard.press("Tab")
        visited.append(
            window.page.evaluate(
                "document.activeElement.matches('tbody th a') && document.activeElement.getAttribute('href')"
            )
        )
    assert [link for link in visited if link][: len(seen)] == seen


def test_the_answer_and_the_table_begin_in_the_first_screen(index: Path, window: Any) -> None:
    window.show(index, WIDE)
    first = window.page.locator(".overview tbody tr").first.bounding_box()
    assert first["y"] + first["height"] < WIDE["height"]
    assert window.page.locator(".lead").inner_text().count("Under one budget,") == 1


def test_marks_stand_in_columns_beside_their_arms(index: Path, window: Any) -> None:
    window.show(index, WIDE)
    assert window.page.evaluate(CROOKED) == []
    assert window.page.evaluate(APART) == []


def test_the_method_stays_where_the_table_scrolls(index: Path, window: Any) -> None:
    window.show(index, LAPTOP | {"width": 660})
    box = window.page.locator(".wide:has(.overview)")
    before = window.page.locator(".overview tbody th").first.bounding_box()["x"]
    assert box.evaluate("one => { one.scrollLeft = 300; return one.scrollLeft; }") > 50
    assert window.page.locator(".overview tbody th").first.bounding_box()["x"] == pytest.approx(before, abs=1)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", ["index", "matrix"])
def test_names_that_attack_are_text_and_all_can_read_the_page(index: Path, window: Any, theme: str, name: str) -> None:
    path = index.with_name(f"{name}.html")
    for viewport in (NARROW, WIDE):
        window.show(path, viewport, theme)
        assert window.page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        assert (window.requests, window.errors) == ([path.as_uri()], [])
        assert window.faults(**(ALL if theme == "light" else CONTRAST)) == []
    window.show(path, WIDE)
    shown = window.page.evaluate("document.body.textContent")
    assert [label for label in LABELS if label not in shown] == []
    for element in ("script", "img", "b", "[onerror]"):
        assert window.page.locator(element).count() == 0, element


def test_on_a_telephone_a_method_is_a_card_that_names_its_columns(index: Path, window: Any) -> None:
    window.show(index, NARROW)
    cells = window.page.locator(".overview tbody tr").first.locator("th, td")
    boxes = [cells.nth(place).bounding_box() for place in range(cells.count())]
    assert len(boxes) == 4
    assert all(above["y"] + above["height"] <= below["y"] for above, below in itertools.pairwise(boxes))
    assert all(box["x"] + box["width"] <= NARROW["width"] for box in boxes)
    assert cells.nth(2).locator(".label").first.inner_text().startswith("images: test error (%)")
    assert cells.nth(2).locator(".line .label").first.is_visible()


def test_the_table_is_one_for_who_hears_it(index: Path, window: Any) -> None:
    """Rows that are laid out as a grid would lose what they are, if it were not said."""
    for viewport in (WIDE, NARROW):
        window.show(index, viewport)
        table = window.page.get_by_role("table", name="Each method's published claims by verdict")
        assert table.get_by_role("row").count() == len(all_methods()) + 2
        assert table.get_by_role("columnheader").count() == 4
        assert table.get_by_role("rowheader").count() == len(all_methods()) + 1
        assert table.get_by_role("img").first.evaluate("one => one.querySelector('title').textContent").count("[") == 1


def test_print_keeps_the_order_and_shows_every_column(index: Path, window: Any) -> None:
    window.show(index, {"width": 720, "height": 1000})
    window.page.locator("#by-2").check()
    seen = window.page.evaluate(SEEN)
    window.page.emulate_media(media="print")
    assert window.page.evaluate(SEEN) == seen
    assert not window.page.locator(".sorts").is_visible()
    right = window.page.evaluate(
        """() => Math.max(...[...document.querySelectorAll('.overview td')].map(
        one => one.getBoundingClientRect().right))"""
    )
    assert right <= 720
