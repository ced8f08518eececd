"""Run ids never move: every planned Run of every method at every scale, against a committed list.

What is planned no more, as when an experiment takes other seeds, keeps its id where it has run: a sealed Result is read
only under the id of its own config (`test_committed_evidence_reads`).
The list is made with each dataset's name in place of its checksum, which depends on the files at hand and on Python's
version. ``python tests/unit/test_experiment_golden_ids.py`` adds the Runs of new experiments, and never removes one.
"""

from __future__ import annotations

from pathlib import Path

from reproduce.experiment.folder import all_methods
from reproduce.experiment.identity import RunConfig
from reproduce.results.store import read_results
from reproduce.training.plan import plan

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "run_ids.txt"


def planned() -> dict[str, str]:
    """What is trained, by the id of its Run."""
    configs: list[RunConfig] = [
        run.config for folder in all_methods().values() for run in plan(folder.experiments(), None)
    ]
    named = [config.model_copy(update={"dataset_checksum": config.task.dataset}) for config in configs]
    return {config.id: f"{config.task.dataset} {config.task.model} {config.method}" for config in named}


def sealed() -> set[str]:
    """The ids of the committed Results, as `planned` has them."""
    results, _ = read_results((ROOT / "reports" / "evidence").glob("*.json"))
    return {result.config.model_copy(update={"dataset_checksum": result.config.task.dataset}).id for result in results}


def golden() -> dict[str, str]:
    """The committed list: a line for each dataset, model and method, with its ids."""
    lines = [line.partition(": ") for line in GOLDEN.read_text("utf-8").splitlines()] if GOLDEN.exists() else []
    return {run_id: what for what, _, ids in lines for run_id in ids.split()}


def write(ids: dict[str, str]) -> None:
    GOLDEN.parent.mkdir(exist_ok=True)
    lines = [f"{what}: {' '.join(sorted(key for key in ids if ids[key] == what))}" for what in sorted({*ids.values()})]
    GOLDEN.write_text("\n".join(lines) + "\n", "utf-8")


def test_no_run_id_moved() -> None:
    expected, found = golden(), planned()
    stand = found.keys() | sealed()
    moved = sorted({what for run_id, what in expected.items() if run_id not in stand})
    assert not moved, f"Runs whose ids are neither planned nor sealed: {moved}"


def test_every_planned_run_is_in_the_list() -> None:
    expected = golden()
    new = sorted({what for run_id, what in planned().items() if run_id not in expected})
    assert not new, f"new Runs, to be added by 'python tests/unit/test_experiment_golden_ids.py': {new}"
    assert len(expected) > 4900


if __name__ == "__main__":
    write({**golden(), **planned()})
