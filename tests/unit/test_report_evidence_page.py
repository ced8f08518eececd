"""Every number is two clicks from its sealed Result, and each row has a command that the command line takes."""

import html
import json
import re
import shlex

import pytest
import typer
from typer.testing import CliRunner

from reproduce.cli.commands import app
from reproduce.experiment.cells import cells
from reproduce.experiment.folder import ROOT, MethodFolder, find_method
from reproduce.experiment.schema import TaskSpec
from reproduce.report.evidence import beside_pages, found_in, in_runs
from reproduce.report.page import write_page
from reproduce.report.repeat import of_arm, of_experiment, of_method, seeds_option
from reproduce.results.evaluate import MethodFindings, evaluate
from reproduce.results.match import ResultIndex
from reproduce.results.store import copy_result


@pytest.fixture
def pages(make_experiment, make_results, per_findings, tmp_path):
    """The method's page, the page of its evidence, and the Results."""

    def make(**changes):
        experiment = make_experiment(**changes)
        results = make_results(experiment)
        path = write_page(per_findings({"table9": experiment}, results), [], tmp_path, in_runs)
        return path.read_text("utf-8"), (tmp_path / "per.evidence.html").read_text("utf-8"), results

    return make


def test_every_result_is_there_with_its_numbers_and_its_file(pages):
    _, evidence, results = pages()
    rows = re.findall(r"<tr><th scope=\"row\">.*?</tr>", evidence)
    assert len(rows) == len(results) == 12
    for result in results:
        (row,) = (row for row in rows if f">{result.id}</a>" in row)
        assert f'href="../{result.config.folder}/result.json"' in row
        assert f'<th scope="row">{result.config.seed}</th>' in row
        assert "2026-01-01" in row
        if result.final is None:
            assert "not chosen; diverged" in row
        else:
            shown = [float(text) for text in re.findall(r"<td>([\d.]+)</td>", row)]
            assert shown == pytest.approx([result.final.test["error"], result.final.validation["error"]], rel=1e-5)
    assert sum(">counts<" in row for row in rows) == 9


def test_ours_leads_to_the_runs_that_it_is_the_mean_of(pages):
    page, evidence, _ = pages()
    table = page[page.index("test error (%)</th></tr>") : page.index("validation error (%)</th></tr>")]
    links = re.findall(r'<td><a href="per\.evidence\.html#([^"]+)">([\d.]+) <i>', table)
    assert [anchor for anchor, _ in links] == [f"table9-digits-{name}" for name in ("vanilla", "batchnorm", "per")]
    for anchor, mean in links:
        (body,) = re.findall(rf'<tbody id="{anchor}">(.*?)</tbody>', evidence, re.S)
        counting = re.findall(r"<td>([\d.]+)</td><td>[\d.]+</td><td class=\"text\">counts<", body)
        assert len(counting) == 3
        assert sum(map(float, counting)) / 3 == pytest.approx(float(mean), abs=0.006)
    everywhere = re.findall(r'per\.evidence\.html#([^"]+)"', page)
    assert len(everywhere) > 10
    assert all(evidence.count(f'id="{anchor}"') == 1 for anchor in everywhere)
    assert "table9-digits-vcl" not in page + evidence  # which has not run


def test_claims_have_their_adjusted_p_and_lead_to_their_runs(pages, make_experiment, make_results):
    page, _, results = pages()
    verdicts = evaluate("table9", make_experiment(), ResultIndex(results)).verdicts
    table = re.search(r'<table class="verdicts">(.*?)</table>', page, re.S).group(1)
    rows = re.findall(r"<tr><th scope=\"row\">.*?</tr>", table, re.S)
    assert '<th scope="col" class="number">p, adjusted</th>' in table
    for verdict, row in zip(verdicts, rows, strict=True):
        cells = [re.sub("<[^>]*>", "", cell) for cell in re.findall(r"<td>(.*?)</td>", row)]
        expected = "–" if verdict.p_adjusted is None else f"{verdict.p_adjusted:.3f}".replace("0.000", "< 0.001")
        assert html.unescape(cells[3]) == expected
        assert (f"#table9-digits-{verdict.claim.arm}" in row) == (verdict.ours is not None)


def test_a_choice_on_the_test_set_says_what_choosing_alone_gives(make_experiment, make_result, per_findings, tmp_path):
    experiment = make_experiment()
    results = [
        make_result(cell, 7 + 0.1 * (cell.seed * len(cell.arm_name) % 5) + (cell.params.get("strength") == 1e-4))
        for cell in cells(experiment)
    ]
    method = per_findings({"t": experiment}, results)
    row = method.findings[0].tasks["digits"].row("test.error", "per")
    error = row.estimate.error.variance**0.5
    assert row.luck == pytest.approx(0.5642 * error, rel=1e-3)  # 1 / sqrt(pi): the mean of the larger of two
    said = f"the best of 2 points that do not differ lies {row.luck:.2g} off by chance alone"
    assert said in write_page(method, [], tmp_path).read_text("utf-8")
    assert method.findings[0].tasks["digits"].row("test.error", "vanilla").luck is None


def planned(command):
    """What `plan` says of the same words; `run` takes them too."""
    words = shlex.split(command)
    assert words[:2] == ["reproduce", "run"]
    typer.main.get_command(app).commands["run"].make_context("run", words[2:])
    done = CliRunner().invoke(app, ["plan", *words[2:], "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.usefixtures("no_evidence")
def test_the_command_of_a_row_plans_its_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = find_method("per")
    experiment = folder.experiments()["quick_digits"]
    finding = evaluate("quick_digits", experiment, ResultIndex([]))
    (task,) = finding.tasks.values()
    every = {run["id"] for run in planned(of_experiment("per", finding))}
    found = set()
    for arm in task.runs.arms.values():
        ids = {run["id"] for run in planned(of_arm("per", finding, task, arm))}
        assert len(ids) == len(arm.points) * len(experiment.seeds_of(arm.name))
        found |= ids
    assert found == every


def test_one_seed_has_a_comma_and_tasks_are_named_where_they_are_several(make_experiment, make_results):
    task = TaskSpec(kind="image_classification", dataset="digits", model="mlp")
    experiment = make_experiment(seeds=(4,), claims=(), tasks={"a": task, "b b": task.model_copy(update={"fold": 1})})
    finding = evaluate("t", experiment, ResultIndex(make_results(experiment)))
    arms = finding.tasks["b b"].runs.arms
    command = of_arm("per", finding, finding.tasks["b b"], arms["per"])
    assert command == "reproduce run per --only t --arms per --tasks 'b b' --seeds 4,"
    assert of_arm("per", finding, finding.tasks["a"], arms["vcl"]) == ""
    assert seeds_option((0, 2)) == "0,2"


def test_a_method_of_the_repository_has_its_make_target(make_experiment, make_results, tmp_path):
    finding = evaluate("t", make_experiment(scale="reduced"), ResultIndex(make_results(make_experiment())))
    assert of_method(find_method("per"), [finding]) == (
        "make reproduce-per",
        ".venv/bin/reproduce run per --scale reduced",
    )
    assert of_method(MethodFolder("x", tmp_path / "x"), []) == ("reproduce run x --scale quick",)


def test_evidence_is_found_wherever_it_lies(make_experiment, make_results, tmp_path):
    result = make_results(make_experiment())[0]
    folder = result.config.folder
    assert beside_pages(result) == f"evidence/{folder}.json"
    assert in_runs(result) == f"../{folder}/result.json"
    for path in (tmp_path / "x" / f"{folder}.json", tmp_path / "runs" / folder / "result.json"):
        address = found_in([path], tmp_path / "out" / "pages")(result)
        assert (tmp_path / "out" / "pages" / address).resolve() == path


def test_pages_of_evidence_are_made_anew_when_they_are_gone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = next((ROOT / "reports" / "evidence").glob("mnist-rectified_mlp-*.json"))
    copy_result(source, tmp_path / "runs" / source.stem / "result.json")
    command = ["report", "activity_prior", "--results", str(tmp_path / "runs"), "--output", str(tmp_path / "out")]
    for _ in range(2):
        done = CliRunner().invoke(app, command)
        assert (done.exit_code, done.output) == (0, f"1 Results, 0 unreadable; 1 pages in {tmp_path / 'out'}\n")
        page = tmp_path / "out" / "activity_prior.evidence.html"
        assert f'href="../runs/{source.stem}/result.json"' in page.read_text("utf-8")
        page.unlink()


def test_methods_without_results_have_no_links_into_nothing(make_experiment, per_findings, tmp_path):
    method = per_findings({"t": make_experiment()}, [])
    page = write_page(MethodFindings(method.folder, method.findings), [], tmp_path).read_text("utf-8")
    assert not (tmp_path / "per.evidence.html").exists()
    assert not [link for link in re.findall(r'href="([^"]*)"', page) if "evidence" in link]
