"""Tables for a paper: the numbers of the pages, escaped, without what has not run."""

import re

import pytest

from reproduce.experiment.cells import cells
from reproduce.experiment.folder import MethodFolder
from reproduce.experiment.schema import Arm
from reproduce.report.latex import escaped, latex_tables
from reproduce.results.evaluate import MethodFindings, evaluate
from reproduce.results.match import ResultIndex

UNESCAPED = re.compile(r"(?<!\\)[#%_&]|\^(?!\{\})|~")


def made(experiment, results, folder):
    finding = evaluate("table_9", experiment, ResultIndex(results))
    return latex_tables(MethodFindings(MethodFolder("per", folder), (finding,)))


def rows(text, label):
    """The cells of one table, by row."""
    (body,) = re.findall(rf"\\label\{{tab:{label}\}}.*?\\midrule\n(.*?)\\bottomrule", text, re.S)
    return [line.removesuffix(r" \\").split(" & ") for line in body.splitlines()]


def test_arms_that_ran_and_claims_that_were_judged(make_experiment, make_results, card_folder):
    experiment = make_experiment()
    text = made(experiment, make_results(experiment), card_folder)
    arms = rows(text, "per-table-9-digits")
    assert [row[0] for row in arms] == ["Vanilla", "BN", "PER"]  # VCL is pending
    assert arms[0][:4] == ["Vanilla", "7.21", "7.25 {[}7.13, 7.37{]}", "3"]
    assert arms[2][4] == "$-$0.61 {[}$-$0.66, $-$0.56{]}"
    assert "VCL" not in text
    assert [row[0].partition(":")[0] for row in rows(text, "per-table-9-claims")] == [
        "Vanilla",
        "PER minus Vanilla",
        "BN minus Vanilla",
    ]
    for name in ("table", "tabular"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 2
    for places, body in re.findall(r"\\begin\{tabular\}\{(.*?)\}\n(.*?)\\end\{tabular\}", text, re.S):
        columns = len(re.sub(r"p\{[^}]*\}", "p", places))
        lines = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert {len(line.split(" & ")) for line in lines} == {columns}


def test_nothing_run_is_no_table(make_experiment, card_folder):
    text = made(make_experiment(), [], card_folder)
    assert text.endswith("% Nothing has run yet.\n")
    assert r"\begin" not in text


def test_an_arm_that_diverged_every_time_is_said(make_experiment, make_result, card_folder):
    experiment = make_experiment()
    results = [make_result(cell, 7.0, diverged=cell.arm_name == "batchnorm") for cell in cells(experiment)]
    assert rows(made(experiment, results, card_folder), "per-table-9-digits")[1][:4] == [
        "BN",
        "--",
        "diverged",
        "0 of 3",
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (r"\input{/etc/passwd}", r"\textbackslash{}input\{/etc/passwd\}"),
        ("a_b & 5 % of #1, x^2 ~ $y$", r"a\_b \& 5 \% of \#1, x\textasciicircum{}2 \textasciitilde{} \$y\$"),
        ("[3pt] *", "{[}3pt{]} {*}"),
        ("two\nlines\t|", r"two lines \textbar{}"),
        ("λ, Σ − 1 × “a”", r"$\lambda$, $\Sigma$ $-$ 1 $\times$ “a”"),
    ],
)
def test_signs_are_shown_to_the_letter(text, shown):
    assert escaped(text) == shown


def test_hostile_labels_stay_in_their_cells(make_experiment, make_result, card_folder):
    label = "a & b \\\\ \\end{tabular} %\n\\write18{x} _^~#$"
    experiment = make_experiment(
        title=label, arms={"vanilla": Arm(label=label), "batchnorm": Arm(method="batchnorm")}, claims=(), figures=()
    )
    text = made(experiment, [make_result(cell, 7.0 + cell.seed) for cell in cells(experiment)], card_folder)
    (first, second) = rows(text.replace(r"\&", "AND"), "per-table-9-digits")
    assert len(first) == len(second) + 0 == 5
    assert text.count(r"\end{tabular}") == 1
    body = text.partition(r"\begin{table}")[2]
    assert UNESCAPED.search(body.replace(" & ", " ").replace("\\label{tab:per-table-9-digits}", "")) is None
    assert r"\write18" not in text.replace(r"\textbackslash{}write18", "")
