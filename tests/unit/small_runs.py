"""Runs of a moment that several files of tests train, and what hears of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self

from reproduce.experiment.identity import canonical_json
from reproduce.experiment.recipe import Recipe
from reproduce.experiment.schema import Arm, Experiment, TaskSpec
from reproduce.results.record import Result
from reproduce.results.spelling import content_of
from reproduce.training.loop import Event, Interrupted
from reproduce.training.plan import PlannedRun, plan
from reproduce.training.run import RunSettings
from reproduce.training.workers import News, Work

RECIPE = Recipe(steps=6, batch_size=20, learning_rate=0.1, probe_examples=10)
DIGITS = TaskSpec(
    kind="image_classification",
    dataset="digits",
    model="mlp",
    model_options={"width": 4, "depth": 2, "dropout": 0.2},
    train_examples=60,
)
ARMS = {
    "vanilla": Arm(),
    "batchnorm": Arm(method="batchnorm"),
    "per": Arm(method="per", params={"mode": "sliced", "strength": 0.1}),  # draws, and keeps constants
    "bfloat16": Arm(method="vcl", recipe={"precision": "bfloat16"}),
}


def planned(arms: dict[str, Arm], recipe: Recipe = RECIPE, seeds: tuple[int, ...] = (0,)) -> list[PlannedRun]:
    experiment = Experiment(
        title="t", scale="quick", source="s", seeds=seeds, recipe=recipe, tasks={"digits": DIGITS}, arms=arms
    )
    return plan({"table1": experiment}, None)


class Told:
    """A reporter that remembers, and may do something at what it is told."""

    def __init__(
        self,
        when_started: Callable[[], object] = lambda: None,
        when_advanced: Callable[[], object] = lambda: None,
        when_finished: Callable[[], object] = lambda: None,
    ) -> None:
        self.lines: list[tuple[str, ...]] = []
        self._when_started, self._when_advanced, self._when_finished = when_started, when_advanced, when_finished

    def started(self, run: PlannedRun) -> None:
        self.lines.append(("started", run.id))
        self._when_started()

    def advanced(self, run: PlannedRun, event: Event) -> None:
        self.lines.append(("advanced", run.id))
        self._when_advanced()

    def finished(self, run: PlannedRun, result: Result) -> None:
        self.lines.append(("finished", run.id))
        self._when_finished()

    def failed(self, run: PlannedRun, reason: str) -> None:
        self.lines.append(("failed", run.id))

    def noted(self, line: str) -> None:
        self.lines.append(("noted", line))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        return

    def of(self, kind: str) -> list[str]:
        return [words[0] for what, *words in self.lines if what == kind]


def numbers(result: Result) -> dict[str, Any]:
    """All of a Result but when, how long, and with whom."""
    kept = result.model_dump(exclude={"environment", "seal"})
    for record in kept["epochs"]:
        del record["seconds_per_step"]
    return kept


class Staged:
    """An engine without workers: what is started ends when the test's script comes to it."""

    def __init__(self, script: Callable[[list[str]], tuple[str, Any] | None]) -> None:
        self.script = script
        self.running: dict[str, Future[Any]] = {}
        self.most = 0
        self.starts: list[str] = []

    def start(self, work: Work[Any], run: PlannedRun, settings: RunSettings) -> Future[Any]:
        future = self.running[run.id] = Future()
        self.starts.append(run.id)
        self.most = max(self.most, len(self.running))
        self._turn()
        return future

    def _turn(self) -> None:
        if (step := self.script([*self.running])) is not None:
            run_id, outcome = step
            future = self.running.pop(run_id)
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    def news(self) -> Iterator[News]:
        yield from [(run_id, "settled") for run_id in self.running][:1]
        self._turn()

    def stop(self) -> None:
        for future in self.running.values():
            future.set_exception(Interrupted())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        return


def resealed(path: Path, **changes: Any) -> bytes:
    """A sealed file with other content and the seal of that, in its place: what a careful forger would write."""
    content = {**content_of(path.read_text("utf-8")), **changes}
    content.pop("seal")
    content["seal"] = hashlib.sha256(canonical_json(content).encode()).hexdigest()
    path.write_text(json.dumps(content), "utf-8")
    return path.read_bytes()
