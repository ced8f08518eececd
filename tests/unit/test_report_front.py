"""The front page: the answer's table from the evidence, its figure in light and dark, its block in a README."""

import re

import numpy as np
import pytest

from reproduce.errors import UserError
from reproduce.experiment.cells import cells
from reproduce.experiment.folder import MethodFolder
from reproduce.experiment.schema import Arm
from reproduce.report import front
from reproduce.report.block import BEGIN, CHOICE, END, marks, refresh, refreshed
from reproduce.report.choice import choice
from reproduce.report.drawings import complete
from reproduce.report.matrix import matrix
from reproduce.report.render import write
from reproduce.results.columns import find_all
from reproduce.results.match import ResultIndex

FILE = "matrix_digits"


@pytest.fixture
def found(make_experiment, make_result, write_card, tmp_path):
    """Two methods in one column: one arm far better than vanilla, one with two arms like it; and a paper's table."""
    vanilla = Arm(label="vanilla")
    labels = {
        "per": {"per": Arm(method="per", label="PER | exact <!-- /answer -->")},
        "batchnorm": {"batchnorm": Arm(method="batchnorm", label="BN"), "twice": Arm(method="per", label="both")},
    }
    labels["batchnorm"]["twice"] = Arm(method="batchnorm", label="both", params={"eps": 1e-3})
    parts = {
        name: make_experiment(arms={"vanilla": vanilla, **arms}, claims=(), scale="reduced", caveat="", figures=())
        for name, arms in labels.items()
    }
    methods = {MethodFolder(name, write_card(tmp_path / name)): {FILE: part} for name, part in parts.items()}
    methods[next(iter(methods))]["table9"] = make_experiment()
    levels = {"vanilla": 9.0, "per": 5.0, "batchnorm": 9.01, "twice": 9.02}
    asked = {(c.arm_name, c.seed): c for part in parts.values() for c in cells(part)}
    noise = np.random.default_rng(0).normal(0, 0.2, len(asked))
    results = [
        make_result(cell, levels[arm] + float(chance), 9.0)
        for ((arm, _), cell), chance in zip(asked.items(), noise, strict=True)
    ]
    known = {folder.name: dict(experiments) for folder, experiments in methods.items()}
    return find_all(methods, known, ResultIndex(results))


def gap(columns, arm):
    """By hand, from the Results."""

    def mean(name):
        results = columns[0].task.runs.arms[name].chosen.results.values()
        return sum(result.final.test["error"] for result in results) / len(results)

    return f"{mean(arm) - mean('vanilla'):+.2f}".replace("-", "−")


def test_the_table_counts_claims_and_shows_gaps(found):
    evaluated, columns = found
    table = front.answer_table(evaluated, columns)
    assert table.columns[0] == "Method"
    assert table.columns[-1] == "digits: test error (%)"
    rows = {row[0].partition("](")[2]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    per, other, total = rows["per.md)"], rows["batchnorm.md)"], rows[""]
    verdicts = [verdict.word for method in evaluated for finding in method.findings for verdict in finding.verdicts]
    for name in table.columns[1:-1]:
        word = name.removeprefix("Claims ")
        count = verdicts.count("reduced scale" if word == front.REDUCED else word)
        assert (per[name], total[name], other[name]) == (str(count) if count else "–", str(count), "–")
    assert sum(int(total[name]) for name in table.columns[1:-1]) == len(verdicts) == 4
    assert per[table.columns[-1]] == f"**{gap(columns, 'per.per')}**"
    both = sorted(gap(columns, arm) for arm in ("batchnorm.batchnorm", "batchnorm.twice"))
    assert set(other[table.columns[-1]].split(" to ")) == set(both)
    assert total[table.columns[-1]] == "1 of 3 arms told apart"


def written(found, output):
    evaluated, columns = found
    overview = matrix({method.folder.name: {} for method in evaluated}, columns).overview
    page = front.front(evaluated, columns, overview)
    complete(page.drawings)
    for name, text in page.texts().items():
        write(output / name, text)
    return (output / "README.md").read_text("utf-8")


def test_the_page_holds_the_answer_the_matrix_and_links(found, tmp_path):
    text = written(found, tmp_path / "reports")
    assert text.startswith("# ")
    assert text.index(BEGIN) < text.index("1 of 3 arms on digits (1 better: ") < text.index(END)
    assert "| PER \\| exact &lt;!-- /answer --> | [per](per.md) |" in text
    assert text.count(END) == 1
    assert "[LaTeX](data/per.tex)" in text
    described = re.search(r'alt="([^"]+)"', text)[1]
    least = gap(found[1], "per.per")
    assert (
        f"3 arms, 1 told better and 0 told worse; gaps from {least} % (PER | exact &lt;!-- /answer --&gt;)" in described
    )
    assert "{" not in text


def test_the_figure_is_the_same_in_other_colors_by_night(found, tmp_path):
    written(found, tmp_path)
    light, dark = ((tmp_path / name).read_text("utf-8") for name in ("answer.svg", "answer-dark.svg"))
    assert "--ink:#" in dark
    assert "--ink:#" not in light
    assert "font-family:" in light
    assert re.sub(r"svg\{.*?\}", "", light) == re.sub(r"svg\{.*?\}", "", dark)
    assert re.search(r"<svg|<script|<image|href=.[^#]|url.[^#]", light.replace("<svg", "", 1)) is None
    assert re.search(r'<svg [^>]*width="[\d.]+" height="[\d.]+" viewBox=', light)


def test_without_columns_there_is_no_figure(found):
    evaluated, _ = found
    page = front.front(evaluated, [], None)
    assert page.drawings == ()
    (text,) = page.texts().values()
    assert "picture" not in text
    assert "Matrix" not in text


PAGE = f'{BEGIN}\nNew [a](a.md) [b](https://x.org/y) <img src="answer.svg"> [c](#c)\n{END}\nrest'


def test_a_readme_gets_the_block_with_addresses_of_its_own_place(tmp_path):
    readme = f"# Title\n{BEGIN}\nold\n{END}\n[z](z.md)\n"
    expected = (
        f'# Title\n{BEGIN}\nNew [a](reports/a.md) [b](https://x.org/y) <img src="reports/answer.svg"> [c](#c)\n{END}\n'
        "[z](z.md)\n"
    )
    assert refreshed(readme, PAGE, "reports") == expected
    assert refreshed(expected, PAGE, "reports") == expected
    (tmp_path / "reports").mkdir()
    page, path = tmp_path / "reports" / "README.md", tmp_path / "README.md"
    path.write_text(readme, "utf-8")
    refresh(path, page)  # no page yet
    assert path.read_text("utf-8") == readme
    page.write_text(PAGE, "utf-8")
    refresh(path, page)
    assert path.read_text("utf-8") == expected
    path.write_text("no block", "utf-8")
    refresh(path, page)
    assert path.read_text("utf-8") == "no block"


def test_a_block_that_does_not_end_is_said():
    with pytest.raises(UserError, match=r"README.md: expected one block between .*; found 0"):
        refreshed(f"{BEGIN} for ever", PAGE, "reports")


def test_the_choice_ranks_methods_by_what_the_seeds_tell(found):
    """PER is far better, the other method's two arms are like vanilla; the words are those of the numbers."""
    evaluated, columns = found
    chosen = choice(evaluated, columns)
    names = [row[0].partition("](")[2] for row in chosen.table.rows]
    assert names == ["per.md)", "batchnorm.md)"]
    per, other = (dict(zip(chosen.table.columns, row, strict=True)) for row in chosen.table.rows)
    heading = "[digits: test error (%)](matrix.md)"
    assert per[heading] == f"**better**: {gap(columns, 'per.per')} (PER | exact <!-- /answer -->)"
    assert other[heading] == "no difference told (2 arms)"
    assert chosen.advice == (
        "On digits, try “PER | exact <!-- /answer -->” first, and no difference is told of the other 2."
    )
    verdicts = [verdict for method in evaluated for finding in method.findings for verdict in finding.verdicts]
    judged = sum(verdict.word != "not run" for verdict in verdicts)
    assert sum(map(int, re.findall(r"\d+", per["Claims judged"]))) == judged > 0
    assert other["Claims judged"] == "–"


def test_the_choice_puts_what_is_worse_last(make_experiment, make_result, write_card, tmp_path):
    """The same gap with the other sign, and an arm that has not run."""
    arms = {"a": Arm(method="a", label="A"), "b": Arm(method="b", label="B")}
    vanilla = Arm(label="vanilla")
    parts = {
        name: make_experiment(arms={"vanilla": vanilla, name: arm}, claims=(), scale="reduced", figures=())
        for name, arm in arms.items()
    }
    methods = {MethodFolder(name, write_card(tmp_path / name)): {FILE: part} for name, part in parts.items()}
    results = [
        make_result(cell, level + 0.1 * (cell.seed % 2), 9.0)
        for cell in cells(parts["a"])
        for level in [{"vanilla": 5.0, "a": 9.0}[cell.arm_name]]
    ]
    known = {folder.name: dict(experiments) for folder, experiments in methods.items()}
    chosen = choice(*find_all(methods, known, ResultIndex(results)))
    assert [row[2].partition(":")[0] for row in chosen.table.rows] == ["not run", "**worse**"]
    assert chosen.advice.startswith("On digits, no arm is told to be better than the baseline, leave “A”")


def test_a_page_elsewhere_gets_its_own_block_with_addresses_from_there(found, tmp_path):
    begin, end = marks(CHOICE)
    (tmp_path / "docs").mkdir()
    shown = tmp_path / "docs" / "cookbook.md"
    shown.write_text(f"# Title\n{begin}\n{end}\n", "utf-8")
    page = written(found, tmp_path / "reports")
    refresh(shown, tmp_path / "reports" / "README.md", CHOICE)
    text = shown.read_text("utf-8")
    assert text.count(begin) == text.count(end) == page.count(begin) == 1
    assert "](../reports/per.md)" in text
    assert "](../reports/matrix.md)" in text
    assert "<!-- /answer -->" not in text
