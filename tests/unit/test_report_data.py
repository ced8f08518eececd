"""The tables behind the pages: what Results say, cell by cell, the same bytes each time, and safe in a spreadsheet."""

import csv
import io
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from pyarrow import parquet

from reproduce.experiment.cells import cells
from reproduce.experiment.folder import MethodFolder
from reproduce.experiment.schema import Arm
from reproduce.report.csv_text import computed, csv_text
from reproduce.report.data import data_tables
from reproduce.report.data_files import write_data, write_parquet
from reproduce.results.evaluate import MethodFindings, evaluate
from reproduce.results.match import ResultIndex
from reproduce.results.store import write_result

HOSTILE = ('=cmd|"/C calc"!A0', "a, b;\n\rc", "-5 & 100 %", "@x", "التطبيع", "")


def address(result):
    return f"evidence/{result.config.folder}.json"


def found(experiment, results, folder, name="table9"):
    return [MethodFindings(MethodFolder("per", folder), (evaluate(name, experiment, ResultIndex(results)),))]


@pytest.fixture
def experiment(make_experiment):
    return make_experiment()


@pytest.fixture
def results(experiment, make_results):
    return make_results(experiment)


def written(methods, results, output):
    write_data(methods, results, output, address)
    return {path.name: path for path in (output / "data").iterdir()}


def records(path):
    return list(csv.DictReader(io.StringIO(path.read_text("utf-8"))))


def test_runs_hold_what_the_sealed_files_say(experiment, results, card_folder, tmp_path):
    sealed = [write_result(result, tmp_path / address(result)) for result in results]
    rows = records(written(found(experiment, sealed, card_folder), sealed, tmp_path)["runs.csv"])
    assert [row["id"] for row in rows] == sorted(result.id for result in sealed)
    for row in rows:
        said = json.loads((tmp_path / row["evidence"]).read_text("utf-8"))
        assert (row["id"], row["status"], row["method"]) == (said["id"], said["status"], said["config"]["method"])
        assert json.loads(row["params"]) == said["config"]["params"]
        assert json.loads(row["recipe"])["epochs"] == said["config"]["recipe"]["epochs"]
        assert int(row["seed"]) == said["config"]["seed"]
        final = said["final"]
        assert row["test.error"] == ("" if final is None else repr(final["test"]["error"]))
        assert row["epoch"] == ("" if final is None else str(final["epoch"]))
        assert float(row["wall_seconds"]) == said["environment"]["wall_seconds"]
        assert (row["torch"], row["dirty"], row["counts"]) == ("2.15.0", "false", "true")


def test_a_run_says_where_it_stands_and_whether_it_is_judged_there(experiment, results, card_folder, tmp_path):
    twice = [*found(experiment, results, card_folder), *found(experiment, results, card_folder, "again")]
    rows = {row["id"]: row for row in records(written(twice, results, tmp_path)["runs.csv"])}
    for result in results:
        row, params = rows[result.id], result.config.params
        assert row["experiments"] == "per/again;per/table9"
        assert row["arms"].split(";") == [result.config.method] * 2
        use = "not judged" if params.get("strength") == 1e-4 else "judged"  # the grid's weaker point is not chosen
        assert row["uses"] == f"{use};{use}"


def test_what_no_experiment_asks_for_and_what_is_superseded_does_not_count(
    experiment, results, make_result, card_folder, tmp_path
):
    first = cells(experiment)[0]
    old = make_result(first, 9.0, loop_version=0)
    stranger = make_result(first.model_copy(update={"recipe": first.recipe.model_copy(update={"batch_size": 7})}), 9.0)
    every = [*results, old, stranger]
    rows = {
        row["id"]: row for row in records(written(found(experiment, every, card_folder), every, tmp_path)["runs.csv"])
    }
    assert (rows[old.id]["counts"], rows[old.id]["uses"], rows[old.id]["arms"]) == ("false", "superseded", "")
    assert (rows[stranger.id]["counts"], rows[stranger.id]["experiments"]) == ("false", "")
    assert sum(row["counts"] == "true" for row in rows.values()) == len(results)


def test_epochs_hold_every_number_of_every_evaluation(experiment, results, card_folder, tmp_path):
    rows = records(written(found(experiment, results, card_folder), results, tmp_path)["epochs.csv"])
    by_key = {(r["id"], int(r["epoch"]), r["split"], r["metric"]): r["value"] for r in rows}
    assert len(by_key) == len(rows) == sum(2 + len(e.test) + len(e.validation) for r in results for e in r.epochs)
    for result in results:
        for record in result.epochs:
            place = result.id, record.epoch
            assert by_key[(*place, "test", "error")] == repr(record.test["error"])
            assert by_key[(*place, "train", "penalty")] == repr(record.penalty)
            assert by_key[(*place, "train", "train_loss")] == repr(record.train_loss)
    assert "nan" in by_key.values()  # of the run that diverged


def test_verdicts_hold_every_claim(experiment, results, card_folder, tmp_path):
    methods = found(experiment, results, card_folder)
    rows = records(written(methods, results, tmp_path)["verdicts.csv"])
    assert len(rows) == len(experiment.claims) == 4
    for row, claim, verdict in zip(rows, experiment.claims, methods[0].findings[0].verdicts, strict=True):
        assert (row["arm"], row["over"], row["source"]) == (claim.arm, claim.over or "", claim.source)
        assert row["claimed_value"] == ("" if claim.value is None else repr(claim.value))
        assert (row["verdict"], row["reason"]) == (verdict.word, verdict.reason)
        estimate = verdict.ours
        if estimate is None:
            assert (row["value"], row["low"], row["n"]) == ("", "", "")
        else:
            written_out = [float(row[name]) for name in ("value", "low", "high")]
            exact = [estimate.mean, estimate.interval.low, estimate.interval.high]
            assert written_out == pytest.approx(exact, rel=1e-7)
            assert int(row["n"]) == estimate.n
    assert {row["verdict"] for row in rows} >= {"not run", "reproduced"}
    per = [r.final.test["error"] for r in results if r.config.params.get("strength") == 1e-3]
    vanilla = [r.final.test["error"] for r in results if r.config.method == "vanilla"]
    assert float(rows[2]["value"]) == pytest.approx(sum(per) / 3 - sum(vanilla) / 3)


def test_what_differs_in_the_last_bits_is_written_alike():
    """As the sums of two kinds of processor do."""
    for value in (12.860514707841798, -0.7650375690672786, 3e-9, 1.0, 0.0):
        assert computed(value) == computed(value * (1 + 2**-52)) == computed(value * (1 - 2**-50))
    assert (
        csv_text(["a"], [[computed(12.860514707841798)], [computed(None)], [computed(5.0)]])
        == 'a\n12.860515\n""\n5.0\n'
    )
    assert math.isnan(computed(math.nan))
    assert computed(-math.inf) == -math.inf


def test_parquet_holds_the_same_as_csv_with_types(experiment, results, card_folder, tmp_path):
    files = written(found(experiment, results, card_folder), results, tmp_path)
    for table in data_tables(found(experiment, results, card_folder), results, address):
        arrow = parquet.read_table(files[f"{table.name}.parquet"])
        assert arrow.column_names == list(table.schema.columns)
        rows = [list(row.values()) for row in arrow.to_pylist()]
        assert repr(rows) == repr([list(row) for row in table.rows])
        assert csv_text(table.schema.columns, rows) == files[f"{table.name}.csv"].read_text("utf-8")
        kinds = {"text": "string", "integer": "int64", "number": "double", "boolean": "bool"}
        assert [str(kind) for kind in arrow.schema.types] == [kinds[field.kind] for field in table.schema.fields]


def test_the_same_bytes_in_any_order_and_at_any_time(experiment, results, card_folder, tmp_path):
    one = written(found(experiment, results, card_folder), results, tmp_path / "one")
    other = written(found(experiment, results, card_folder), results[::-1], tmp_path / "other")
    assert {name: path.read_bytes() for name, path in one.items()} == {
        name: path.read_bytes() for name, path in other.items()
    }


def test_a_parquet_of_another_version_that_holds_the_same_is_left(experiment, results, card_folder, tmp_path):
    tables = data_tables(found(experiment, results, card_folder), results, address)
    epochs = next(table for table in tables if table.name == "epochs")
    path = tmp_path / "epochs.parquet"
    write_parquet(epochs, path)
    own = path.read_bytes()
    parquet.write_table(parquet.read_table(path), path, compression="none")
    foreign = path.read_bytes()
    assert foreign != own
    write_parquet(epochs, path)
    assert path.read_bytes() == foreign
    for damaged in (foreign[:-9], b""):
        path.write_bytes(damaged)
        write_parquet(epochs, path)
        assert path.read_bytes() == own


def test_infinity_and_nothing_stay_apart(experiment, results, card_folder, tmp_path):
    last = results[0].epochs[-1].model_copy(update={"train_loss": math.inf, "penalty": -math.inf})
    changed = results[0].model_copy(update={"epochs": (*results[0].epochs[:-1], last)})
    files = written(found(experiment, [changed], card_folder), [changed], tmp_path)
    for frame in (pd.read_csv(files["epochs.csv"]), pd.read_parquet(files["epochs.parquet"])):
        values = frame.query("epoch == 8").set_index("metric")["value"]
        assert (values["train_loss"], values["penalty"]) == (math.inf, -math.inf)


def test_hostile_labels_stay_one_cell_and_no_formula(make_experiment, make_result, card_folder, tmp_path):
    arms = {"vanilla": Arm(label=HOSTILE[2]), "batchnorm": Arm(method="batchnorm", label=HOSTILE[0])}
    claims = [
        {"task": "digits", "arm": "batchnorm", "over": "vanilla", "metric": "test.error", "direction": "lower"}
        | {"source": source or "text"}
        for source in HOSTILE
    ]
    experiment = make_experiment(arms=arms, claims=tuple(claims), figures=())
    results = [make_result(cell, 5.0 + cell.seed) for cell in cells(experiment)]
    files = written(found(experiment, results, card_folder), results, tmp_path)
    rows = records(files["verdicts.csv"])
    assert [row["source"] for row in rows] == ["'" + HOSTILE[0], "a, b;\n\nc", "'-5 & 100 %", "'@x", "التطبيع", "text"]
    assert {row["arm_label"] for row in rows} == {"'" + HOSTILE[0]}
    assert "\r" not in files["verdicts.csv"].read_bytes().decode()
    assert list(pd.read_csv(files["verdicts.csv"])["source"]) == [row["source"] for row in rows]
    raw = pd.read_parquet(files["verdicts.parquet"])
    assert list(raw["source"]) == [source or "text" for source in HOSTILE]


def test_the_page_names_every_column_and_its_example_gives_the_means(experiment, results, card_folder, tmp_path):
    files = written(found(experiment, results, card_folder), results, tmp_path)
    page = files["README.md"].read_text("utf-8")
    for name in ("runs", "epochs", "verdicts"):
        part = page.partition(f"## {name}\n")[2].partition("\n## ")[0]
        columns = parquet.read_schema(files[f"{name}.parquet"]).names
        assert re.findall(r"^\| `([^`]+)` \|", part, re.M) == columns
    shown = files["index.html"].read_text("utf-8")
    for name in ("runs", "epochs", "verdicts"):
        part = shown.partition(f'<h2 id="{name}">')[2].partition("</section>")[0]
        columns = parquet.read_schema(files[f"{name}.parquet"]).names
        assert re.findall(r'<th scope="row">([^<]+)</th>', part) == columns
    assert f"there are {len(results)}, of which {len(results)} count on the pages" in page
    load, example = re.findall(r"```python\n(.*?)```", page, re.S)
    said = [
        run_in(tmp_path / "data", code) for code in (load + "print(len(runs), len(epochs), len(verdicts))", example)
    ]
    assert said[0].split() == [str(len(results)), str(len(results) * 8 * 4), "4"]
    judged = [r for r in results if r.final and r.config.params.get("strength") != 1e-4]
    for arm in ("vanilla", "batchnorm", "per"):
        values = [r.final.test["error"] for r in judged if r.config.method == arm]
        mean, count = re.search(rf"^{arm} +(\S+) +(\d+)$", said[1], re.M).groups()
        assert float(mean) == pytest.approx(sum(values) / len(values), abs=1e-5)
        assert int(count) == len(values) == 3


def run_in(folder, code):
    return subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True, text=True).stdout


def test_the_examples_of_the_documentation_run(experiment, results, card_folder, tmp_path):
    written(found(experiment, results, card_folder), results, tmp_path / "reports")
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text("utf-8")
    verdicts, curves = (run_in(tmp_path, code) for code in re.findall(r"```python\n(.*?)```", text, re.S))
    assert re.search(r"^per +False +.*reproduced", verdicts, re.M)
    values = [r.epochs[-1].train_loss for r in results if r.config.method == "vanilla"]
    last = float(re.search(r"vanilla(?:.*\n)*? +8 +(\S+)", curves)[1])
    assert last == pytest.approx(sum(values) / len(values), abs=1e-5)


def test_nothing_at_all_is_a_table_without_rows(experiment, card_folder, tmp_path):
    files = written(found(experiment, [], card_folder), [], tmp_path)
    assert len(records(files["runs.csv"])) == 0
    assert parquet.read_table(files["runs.parquet"]).num_rows == 0
    assert "For example" not in files["README.md"].read_text("utf-8")
    shutil.rmtree(tmp_path / "data")
