"""Markdown that people browse in a repository: names from cards and experiments begin no HTML and break no table."""

from __future__ import annotations

import re

from reproduce.experiment.folder import MethodFolder
from reproduce.experiment.schema import Arm
from reproduce.report.index import write_index
from reproduce.report.page import write_page
from reproduce.results.evaluate import MethodFindings, evaluate
from reproduce.results.match import ResultIndex

HOSTILE = 'a | b <script>alert(1)</script> <img src="x" onerror="y">'


def test_hostile_names_stay_text(make_experiment, make_results, write_card, tmp_path):
    folder = write_card(tmp_path / "methods" / "per")
    card = folder / "card.md"
    card.write_text(re.sub("^# .*", f"# {HOSTILE}", card.read_text("utf-8"), count=1), "utf-8")
    arms = {"vanilla": Arm(label="none"), "per": Arm(method="per", label=HOSTILE)}
    experiment = make_experiment(title=HOSTILE, arms=arms, claims=(), question=HOSTILE)
    found = MethodFindings(MethodFolder("per", folder), (evaluate("t", experiment, ResultIndex()),))
    write_page(found, [], tmp_path / "out")
    write_index([found], [], tmp_path / "out")
    for path in sorted((tmp_path / "out").glob("*.md")):
        text = path.read_text("utf-8")
        assert "&lt;script>" in text or "script" not in text, path.name
        assert not re.search(r"<(script|img)", text), path.name
        for table in re.findall(r"(?m)(?:^\|.*\n)+", text):
            cells = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
            assert len(cells) == 1, (path.name, table)
