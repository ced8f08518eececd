"""The page: complete, self-contained, repeatable, safe against what cards hold, and made without torch."""

import html
import io
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from rich.console import Console

from reproduce.errors import UserError
from reproduce.experiment.cells import cells
from reproduce.experiment.folder import ROOT, MethodFolder
from reproduce.experiment.recipe import Recipe, StepRate
from reproduce.experiment.schema import TaskSpec
from reproduce.report import style
from reproduce.report.method_card import MethodCard, inline, to_html
from reproduce.report.numbers import with_interval
from reproduce.report.own_figures import colors_of_results, own_drawings
from reproduce.report.page import write_page
from reproduce.report.render import isolated
from reproduce.report.terminal import notes_by_arm, terminal_summary
from reproduce.results.evaluate import MethodFindings, evaluate
from reproduce.results.match import ResultIndex, match
from reproduce.results.store import read_results, write_result

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Balance(HTMLParser):
    """Collects what is opened and not closed, ids, links, and addresses that would be fetched."""

    def __init__(self):
        super().__init__()
        self.open, self.wrong, self.ids, self.links, self.fetched = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [attributes["href"]] if tag == "a" else []
        self.fetched += [tag] if tag in ("script", "link", "img", "iframe") or "src" in attributes else []

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


@pytest.fixture(scope="module")
def page(make_experiment, make_results, write_card, tmp_path_factory):
    experiment = make_experiment()
    folder = tmp_path_factory.mktemp("page")
    finding = evaluate("table9", experiment, ResultIndex(make_results(experiment)))
    method = MethodFindings(MethodFolder("per", write_card(folder / "per")), (finding,))
    path = write_page(method, ["x.json: truncated"], folder)
    return path.read_text("utf-8")


def test_the_page_is_well_formed_and_fetches_nothing(page):
    parsed = Balance()
    parsed.feed(page)
    assert (parsed.open, parsed.wrong, parsed.fetched) == ([], [], [])
    inside = [link[1:] for link in parsed.links if link.startswith("#")]
    assert inside
    assert set(inside) <= set(parsed.ids)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert "url(http" not in page
    assert "@import" not in page


def interval_of(make_experiment, make_results, metric):
    """PER's, as the statistics have it, which have tests of their own."""
    experiment = make_experiment()
    finding = evaluate("table9", experiment, ResultIndex(make_results(experiment)))
    return finding.tasks["digits"].row(metric, "per").mean.interval


def test_what_was_asked_found_and_how_sure_stand_on_the_page(page, make_experiment, make_results):
    interval = interval_of(make_experiment, make_results, "test.error")
    assert 6.3 < interval.low < 6.63 < interval.high < 6.95
    for text in (
        "Does the penalty lower the test error?",
        "“<bdi>PER</bdi>” has the lowest mean test error",
        f"6.63 <i>[{interval.low:.2f}, {interval.high:.2f}]</i>",
        "3</b>reproduced",
        "not run: the method is not built yet",
        "strength = 0.001",
        "The data are smaller.",
        "x.json: truncated",
        "12 runs, 1 of them diverged",
        "commit 0123456789ab",
        "epochs 8, batch_size 32, learning_rate 0.1, selection last",
        "method per, grid (strength {0.001, 0.0001})",
        "<strong>A gap.</strong>",
    ):
        assert text in page, text
    assert page.count("<figure>") == 4
    assert not re.search(r"\bnan\b|None(?! fails)|Undefined", page)


def test_mathematics_is_mathml_and_markup_in_a_card_is_text(page):
    assert page.count('display="block"') >= 1
    assert "<msqrt>" in page
    assert "A &lt;title&gt;" in page
    assert "<script>" not in to_html("<script>alert(1)</script>")
    assert "<math" in inline("error of $O(1/d)$")


SCRIPT = "<script>alert(1)</script><img src=x>"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (rf"$\text{{</math>{SCRIPT}}}$", "<mtext>&lt;/math&gt;&lt;script&gt;"),
        (r"$\href{javascript:alert(1)}{x} \style{color:red}{y}$", "<mi>x</mi>"),
        ("$&#60;script&#62;$", "<mi>&amp;</mi>"),
        (r"$\left( <b>x$", r'<code class="formula">\left( &lt;b&gt;x</code>'),
        (f"$$\\left( {SCRIPT}$$", f'<code class="formula">\\left( {html.escape(SCRIPT)}</code>'),
        ("![what it *is*](http://x/y.png)", "<p>what it is</p>"),
        ("[a](javascript:alert(1))", "<p>[a](javascript:alert(1))</p>"),
        ("[a](//evil.org) [b](data:text/html,x)", "<p>[a](//evil.org) [b](data:text/html,x)</p>"),
        ("[a](https://x.org/a:b) [b](vcl.html#c) [d](#e)", '<a href="vcl.html#c">b</a>'),
        (f"```\n{SCRIPT}\n```", '<pre tabindex="0"><code>&lt;script&gt;'),
    ],
)
def test_nothing_in_a_card_runs_or_fetches(text, shown):
    made = to_html(text)
    assert shown in made
    assert not re.search(r"<(script|img|b|/math>&)|javascript:[^<]*\">|href=\"(?!https://|vcl.html|#)|style=", made)


def test_signs_of_mathematics_are_what_they_were():
    made = inline(r"$\hat{\mathbb{E}} \le a\;b \text{two words} \lVert x \rVert$")
    for part in ("<mi>𝔼</mi>", "<mo>≤</mo>", "two\xa0words", "‖", r"\hat{\mathbb{E}} \le"):
        assert part in made
    assert "&amp;#" not in made


def test_names_from_right_to_left_stand_apart():
    arabic = "التطبيع"
    assert isolated(f"“{arabic}” has 5 < 6") == f"“<bdi>{arabic}</bdi>” has 5 &lt; 6"
    assert isolated(f"{arabic} ({arabic}): 5") == f"<bdi>{arabic} ({arabic}</bdi>): 5"
    assert isolated("plain") == "plain"


def test_signs_that_turn_what_follows_are_on_no_page(make_experiment, make_results, per_findings, tmp_path):
    """A right-to-left override in any text of an experiment would turn the numbers after it."""
    turning = "\u202e\u202b\u2067"
    experiment = make_experiment()
    claims = tuple(one.model_copy(update={"source": f"Table{turning} 9"}) for one in experiment.claims)
    turned = experiment.model_copy(update={"claims": claims, "title": f"Title{turning} 9", "source": f"By{turning} us"})
    path = write_page(per_findings({"t": turned}, make_results(turned)), [f"x{turning}.json: broken"], tmp_path)
    for text in (path.read_text("utf-8"), path.with_suffix(".md").read_text("utf-8")):
        assert not set(turning) & set(text)
        assert "Table 9" in text
        assert "Title 9" in text


def test_the_same_results_give_the_same_bytes_in_any_order(make_experiment, make_results, per_findings, tmp_path):
    experiment = make_experiment(figures=("seeds", "unit_quantiles"))
    results = make_results(experiment)
    for folder, order in (("a", results), ("b", results[::-1])):
        write_page(per_findings({"table9": experiment}, order), [], tmp_path / folder)
    for suffix in ("html", "md", "csv"):
        assert (tmp_path / f"a/per.{suffix}").read_bytes() == (tmp_path / f"b/per.{suffix}").read_bytes()


def test_a_page_without_results_says_so(make_experiment, per_findings, tmp_path):
    page = write_page(per_findings({"t": make_experiment()}, []), [], tmp_path).read_text("utf-8")
    assert "Nothing has run yet." in page
    assert "4</b>not run" in page
    assert "Of the paper's 4 claims none has been tested yet." in html.unescape(page)
    assert "<figure>" not in page
    assert "Not possible yet: “VCL” (the method is not built yet)." in re.sub("</?bdi>", "", page)
    assert '<td class="text">3 arms × 1 task × 3 seeds, grids of up to 2</td><td>12</td>' in page
    assert page.count("<table") == 2  # the claims and what has not run: no rows of nothing
    assert page.count("7.21 ± 0.50") == 1
    assert not re.search(r"<section[^>]*>\s*<h[23][^>]*>[^<]*</h[23]>\s*</section>", page)


def test_what_ran_comes_before_what_did_not(make_experiment, make_results, per_findings, tmp_path):
    ran = make_experiment(title="Ran")
    waiting = make_experiment(title="Waiting", recipe=ran.recipe.model_copy(update={"epochs": 99}))
    for files in ({"a": waiting, "b": ran}, {"a": ran, "b": waiting}):
        page = write_page(per_findings(files, make_results(ran)), [], tmp_path).read_text("utf-8")
        assert re.findall("Ran|Waiting", page)[0] == "Ran"
        assert page.index(">Ran<") < page.index(">Waiting<")


def test_a_task_of_which_nothing_has_run_is_one_line(make_experiment, make_results, per_findings, tmp_path):
    task = TaskSpec(kind="image_classification", dataset="digits", model="mlp")
    many = {"digits": task} | {f"fold_{n}": task.model_copy(update={"fold": n}) for n in range(4)}
    experiment = make_experiment(tasks=many, figures=("seeds",))
    results = [r for r in make_results(experiment) if r.config.task.fold is None]
    path = write_page(per_findings({"t": experiment}, results), [], tmp_path)
    for suffix in ("html", "md"):
        page = path.with_suffix(f".{suffix}").read_text("utf-8")
        assert "Nothing has run yet of fold_0, fold_1, fold_2, fold_3: 48 runs planned." in page
        assert not re.search(r"<h3>fold|### fold", page)
    assert path.with_suffix(".csv").read_text("utf-8").count("fold_3,vcl") == 0
    assert "all 5 tasks" in path.read_text("utf-8")


def test_many_tasks_are_one_table_with_the_best_marked(make_experiment, make_results, per_findings, tmp_path):
    task = TaskSpec(kind="image_classification", dataset="digits", model="mlp")
    many = {f"set_{n}": task.model_copy(update={"train_examples": 10 * n}) for n in range(1, 7)}
    experiment = make_experiment(tasks=many, claims=(), figures=(), seeds=(0, 1))
    method = per_findings({"t": experiment}, make_results(experiment))
    path = write_page(method, [], tmp_path)
    page = path.read_text("utf-8")
    parsed = Balance()
    parsed.feed(page)
    assert (parsed.open, parsed.wrong, parsed.fetched) == ([], [], [])
    assert page.count("<strong>6.67</strong>") == 6
    assert page.count("Dolan &amp; Moré") == 1
    assert page.count("<details><summary>set_") == 6
    markdown = path.with_suffix(".md").read_text("utf-8")
    assert "| set_1 | 7.26 | 6.98 | **6.67** | 6 |" in markdown
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(terminal_summary(method.findings))
    assert "**6.67**" in console.export_text()


def test_further_metrics_are_on_the_page(make_experiment, make_results, per_findings, tmp_path):
    experiment = make_experiment(metrics=("test.error", "validation.error"), figures=())
    path = write_page(per_findings({"t": experiment}, make_results(experiment)), [], tmp_path)
    page = path.read_text("utf-8")
    test, validation = (
        f"± {interval_of(make_experiment, make_results, metric).half_width:.2f}" for metric in experiment.metrics
    )
    assert f"6.63 <i>{test}</i>" in page
    assert "<details><summary>validation error (%), seed by seed</summary>" in page
    assert f"| PER | 6.63 {test} | 6.93 {validation} |" in path.with_suffix(".md").read_text("utf-8")


def test_data_that_stand_in_are_said_and_judged_as_such(make_experiment, make_results, per_findings, tmp_path):
    task = TaskSpec(kind="image_classification", dataset="cifar10_jpeg75", model="mlp")
    experiment = make_experiment(tasks={"digits": task}, figures=())
    page = write_page(per_findings({"t": experiment}, make_results(experiment)), [], tmp_path).read_text("utf-8")
    assert "JPEG quality 75" in page
    assert "1</b>reduced scale: a value" in page
    assert "2</b>reduced scale: same direction" in page


def test_a_method_draws_its_own_figures(make_experiment, card_folder, per_findings, tmp_path):
    (card_folder / "figures.py").write_text(
        "from matplotlib.figure import Figure\n\n"
        "def counts(results):\n    figure = Figure()\n"
        "    figure.subplots().plot([len(results)], 'o')\n    return figure\n\n"
        "FIGURES = {'counts': ('How many Results there are.', counts)}\n",
        "utf-8",
    )
    page = write_page(per_findings({"t": make_experiment()}, []), [], tmp_path).read_text("utf-8")
    assert "<figcaption>How many Results there are.</figcaption>" in page


def test_a_methods_own_figure_has_the_colors_of_the_page(make_experiment, make_results, card_folder, per_findings):
    experiment = make_experiment(figures=("seeds",))
    results = make_results(experiment)
    finding = per_findings({"t": experiment}, results).findings[0]
    colors = style.arm_colors([experiment])
    found = colors_of_results([finding], colors)
    assert {found[result.id] for result in results if result.config.method == "vanilla"} == {style.ARMS[0]}
    assert {found[result.id] for result in results if result.config.method == "per"} == {colors.color("per")}
    assert set(found) == {result.id for result in results}
    (card_folder / "figures.py").write_text(
        "from matplotlib.figure import Figure\n\n"
        "def plain(results):\n    return Figure()\n\n"
        "def lines(results, colors):\n    figure = Figure()\n    axis = figure.subplots()\n"
        "    for result in results:\n        axis.plot([1], color=colors[result.id])\n    return figure\n\n"
        "FIGURES = {'plain': ('Plain.', plain), 'lines': ('Lines.', lines)}\n",
        "utf-8",
    )
    one, other = own_drawings(MethodFolder("per", card_folder), results, found)
    drawn = [line.get_color() for line in other.draw().axes[0].lines]
    assert drawn == [found[result.id] for result in results]
    again = own_drawings(MethodFolder("per", card_folder), results, dict.fromkeys(found, style.ARMS[1]))
    assert (again[0].key == one.key, again[1].key == other.key) == (True, False)


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "cannot be read"), ("Idea\n", "its first line"), ("# PER\n\n## Mathematics\nx\n", "## Idea")],
)
def test_an_unusable_card_is_named(tmp_path, text, message):
    if text is not None:
        (tmp_path / "card.md").write_text(text, "utf-8")
    with pytest.raises(UserError, match=message) as caught:
        MethodCard(tmp_path)
    assert "card.md" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_dataset_without_a_card_and_an_output_that_is_a_file(make_experiment, per_findings, tmp_path):
    task = TaskSpec(kind="image_classification", dataset="nowhere", model="mlp")
    with pytest.raises(UserError, match="nowhere"):
        write_page(per_findings({"t": make_experiment(tasks={"digits": task})}, []), [], tmp_path)
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_page(per_findings({"t": make_experiment()}, []), [], tmp_path / "taken")


def test_a_note_of_all_arms_is_said_once() -> None:
    one = "one run gives no interval"
    assert notes_by_arm({"a": (one,), "b": (one, "chosen"), "c": (one,)}) == [f"all arms: {one}", "b: chosen"]
    assert notes_by_arm({"a": (one,), "b": ()}) == [f"a: {one}"]
    assert notes_by_arm({"a": (one,)}) == [f"a: {one}"]
    assert notes_by_arm({}) == []


def test_the_terminal_summary_fits_100_columns(make_experiment, make_results):
    experiment = make_experiment()
    finding = evaluate("table9", experiment, ResultIndex(make_results(experiment)))
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(terminal_summary([finding], ["x.json: truncated"]))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 100
    assert with_interval(finding.tasks["digits"].row("test.error", "per").mean, 2) in text
    assert "PER minus Vanilla: test error (%)" in text
    assert "VCL: not run: the method is not built yet" in text
    assert "unreadable: x.json: truncated" in text


def test_a_page_from_sealed_files_needs_no_torch(make_experiment, make_results, card_folder, tmp_path):
    experiment = make_experiment()
    for result in make_results(experiment):
        write_result(result, tmp_path / "evidence" / f"{result.id}.json")
    (tmp_path / "evidence" / "broken.json").write_text("{")
    (tmp_path / "experiment.json").write_text(experiment.model_dump_json(), "utf-8")
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from reproduce.experiment.folder import MethodFolder\nfrom reproduce.experiment.schema import Experiment\n"
        "from reproduce.report.page import write_page\nfrom reproduce.results.store import read_results\n"
        "from reproduce.results.evaluate import MethodFindings, evaluate\n"
        "from reproduce.results.match import ResultIndex\n"
        "folder, card = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "experiment = Experiment.model_validate_json((folder / 'experiment.json').read_text())\n"
        "results, problems = read_results((folder / 'evidence').glob('*.json'))\n"
        "finding = evaluate('t', experiment, ResultIndex(results))\n"
        "write_page(MethodFindings(MethodFolder('per', card), (finding,)), problems, folder / 'out')\n"
        "print(len(results), len(problems), 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), str(card_folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,  # of importing, on a machine that has other work
        check=False,
    )
    assert done.stdout.split() == ["12", "1", "False"], done.stderr
    assert "broken.json" in (tmp_path / "out" / "per.html").read_text("utf-8")


@pytest.mark.slow
def test_pages_are_the_same_without_docstrings(tmp_path):
    """`python -OO` removes them: nothing that a page shows may be one."""
    (tmp_path / "evidence").mkdir()
    for path in (ROOT / "reports" / "evidence").glob("mnist-mlp-*-seed[01]-*.json"):
        shutil.copy(path, tmp_path / "evidence")
    for folder, flags in (("plain", []), ("optimized", ["-OO"])):
        command = ["-m", "reproduce", "report", "weight_norm_penalty", "--results", tmp_path / "evidence"]
        done = subprocess.run(
            [sys.executable, *flags, *command, "--output", tmp_path / folder],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,  # of importing, on a machine that has other work
            check=False,
        )
        assert done.returncode == 0, done.stderr
    for suffix in ("html", "md", "csv"):
        plain, optimized = (
            (tmp_path / f / f"weight_norm_penalty.{suffix}").read_bytes() for f in ("plain", "optimized")
        )
        assert plain == optimized
    page = (tmp_path / "optimized" / "weight_norm_penalty.html").read_text("utf-8")
    assert "<strong>A gap.</strong>" in page
    assert len(re.findall(r"<figcaption>[A-Z][^<]{30,}</figcaption>", page)) == page.count("<figcaption>") >= 3


def test_sealed_results_still_match_after_a_round_trip(make_experiment, make_results, tmp_path):
    schedule = StepRate(kind="step", milestones=(3, 5))
    experiment = make_experiment(recipe=Recipe(epochs=8, batch_size=32, learning_rate=1, schedule=schedule))
    results = make_results(experiment)
    for result in results:
        write_result(result, tmp_path / f"{result.id}.json")
    back, problems = read_results(tmp_path.glob("*.json"))
    assert problems == []
    assert len(match(experiment, ResultIndex(back))["digits"].results) == len(cells(experiment))
