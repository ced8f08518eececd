"""How long Runs will take yet, and what is printed of it: on a simulated clock, and once in a training."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from reproduce.cli import progress
from reproduce.cli.durations import duration, time_text
from reproduce.cli.estimates import Timer
from reproduce.cli.remaining import Remaining
from reproduce.experiment.recipe import Recipe
from reproduce.experiment.schema import Arm, Experiment, TaskSpec
from reproduce.results.record import device_kind
from reproduce.training.estimate import Estimates, StepTime, Work
from reproduce.training.loop import Event, Interrupted
from reproduce.training.plan import PlannedRun, plan
from reproduce.training.run import RunSettings, device_name, execute, torch_device

DIGITS = TaskSpec(
    kind="image_classification",
    dataset="digits",
    model="mlp",
    model_options={"width": 4, "depth": 1},
    train_examples=50,
)
OTHER = DIGITS.model_copy(update={"train_examples": 60})
RECIPE = Recipe(epochs=4, batch_size=10, learning_rate=0.1, probe_examples=20)
ARMS = {"vanilla": Arm(), "batchnorm": Arm(method="batchnorm")}


def planned(n_seeds: int = 3, arms: Any = None, **tasks: TaskSpec) -> list[PlannedRun]:
    experiment = Experiment(
        title="t",
        scale="quick",
        source="s",
        seeds=tuple(range(n_seeds)),
        tasks=tasks or {"digits": DIGITS},
        recipe=RECIPE,
        arms=arms or {"vanilla": Arm()},
    )
    return plan({"table1": experiment}, None)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Watched:
    """Remaining time of these runs, on a clock that the test moves."""

    def __init__(self, runs: list[PlannedRun], places: int = 1, end: float | None = None, **known: float) -> None:
        self.clock = Clock()
        settings = RunSettings(runs=Path("runs"), root=None, cache=Path("data"), device="cpu", threads=1)
        self.times = Estimates()
        for run in runs:
            if run.config.method in known:
                work = Work.of(run.config)
                step = StepTime(
                    problem=work.problem, way=work.way, seconds=known[run.config.method], steps_per_epoch=100
                )
                self.times.add(device_kind(device_name(torch_device("cpu"))), step)
        self.remaining = Remaining(runs, Timer(self.times, settings), lambda: places, end, self.clock)

    def after(self, seconds: float) -> None:
        self.clock.now += seconds

    def hear(self, run: PlannedRun, step: int, seconds: float, total: int = 400, began_at: int = 0) -> None:
        self.remaining.advanced(run, Event(step, total, 1.0, None, seconds, began_at))

    def ends(self, run: PlannedRun, seconds: float, resumed: int = 0) -> None:
        environment = SimpleNamespace(wall_seconds=seconds, resumed=resumed)
        self.remaining.finished(run, SimpleNamespace(final="final", environment=environment))  # type: ignore[arg-type]

    @property
    def left(self) -> float | None:
        return self.remaining.seconds()


def test_the_first_steps_of_the_first_run_say_how_long_all_take() -> None:
    first, second, third = planned()
    watched = Watched([first, second, third])
    assert watched.left is None
    watched.remaining.started(first)
    watched.after(5)  # data are loaded
    assert watched.left is None
    watched.after(2)
    watched.hear(first, step=20, seconds=2.0)  # 0.1 s a step: 40 s each
    assert watched.left == pytest.approx(38 + 40 + 40)
    assert watched.remaining.of(first) == pytest.approx(38)
    watched.after(8)
    assert watched.left == pytest.approx(30 + 40 + 40)  # the clock counts between events


def test_later_steps_leave_the_start_out() -> None:
    """As a graph is captured, or caches warm up: 20 steps take 10 s, and then they take 0.05 s each."""
    run, *others = planned()
    watched = Watched([run, *others])
    watched.remaining.started(run)
    watched.hear(run, step=20, seconds=10.0)
    assert watched.remaining.of(run) == pytest.approx(380 * 0.5)
    watched.hear(run, step=60, seconds=12.0)
    assert watched.remaining.of(run) == pytest.approx(340 * 0.05)
    assert watched.left == pytest.approx(340 * 0.05 + 2 * 20)


def test_runs_side_by_side_share_what_waits() -> None:
    first, second, third, fourth = planned(4)
    watched = Watched([first, second, third, fourth], places=2)
    for run in (first, second):
        watched.remaining.started(run)
    watched.hear(first, step=100, seconds=10.0)  # 30 s left
    assert watched.left == pytest.approx(40 + 40)  # the second as the first, and then the others
    watched.hear(second, step=300, seconds=30.0)  # 10 s left: the third follows it, the fourth the first
    assert watched.left == pytest.approx(30 + 40)


def test_a_resumed_run_is_timed_by_the_steps_that_it_takes_here() -> None:
    first, second, third = planned()
    watched = Watched([first, second, third])
    watched.remaining.started(first)
    watched.hear(first, step=320, seconds=2.0, began_at=300)
    assert watched.left == pytest.approx(80 * 0.1 + 2 * 40)
    watched.after(8)
    watched.ends(first, seconds=60.0, resumed=1)  # of both processes
    assert watched.left == pytest.approx(2 * 60)


def test_runs_that_ended_say_it_best_and_their_start_counts() -> None:
    first, second, third = planned()
    watched = Watched([first, second, third])
    watched.remaining.started(first)
    watched.after(48)
    watched.ends(first, seconds=40.0)
    assert watched.left == pytest.approx(2 * 48)
    watched.remaining.failed(second)
    assert watched.left == pytest.approx(48)
    watched.remaining.started(third)
    watched.after(40)
    watched.ends(third, seconds=40.0)
    assert watched.left == 0.0


def test_what_was_known_before_is_corrected_by_what_is_seen() -> None:
    runs = planned(1, ARMS, digits=DIGITS, other=OTHER)
    vanilla, batchnorm, vanilla_other, batchnorm_other = runs
    watched = Watched(runs, vanilla=0.1, batchnorm=0.2)
    assert watched.left == pytest.approx(40 + 80 + 40 + 80)  # before anything runs
    watched.remaining.started(vanilla)
    watched.hear(vanilla, step=100, seconds=5.0)  # twice as fast here
    assert watched.left == pytest.approx(15 + 40 + 20 + 40)
    assert {run.config.method for run in (batchnorm, batchnorm_other)} == {"batchnorm"}
    assert vanilla_other.config.task == OTHER


def test_another_method_on_the_problem_is_the_next_best_guess() -> None:
    runs = planned(1, ARMS, digits=DIGITS, other=OTHER)
    vanilla, _, vanilla_other, _ = runs
    watched = Watched(runs)
    watched.remaining.started(vanilla)
    watched.after(40)
    watched.ends(vanilla, seconds=40.0)
    watched.remaining.started(vanilla_other)
    watched.after(80)
    watched.ends(vanilla_other, seconds=80.0)
    assert watched.left == pytest.approx(40 + 80)  # BN, on either problem as vanilla there


def test_a_budget_ends_it() -> None:
    first, *others = planned()
    watched = Watched([first, *others], end=1060.0)
    watched.remaining.started(first)
    watched.hear(first, step=4, seconds=2.0)
    assert watched.left == pytest.approx(60)


def test_a_run_that_begins_again_is_timed_anew() -> None:
    """It ran out of memory beside others."""
    first, *others = planned()
    watched = Watched([first, *others])
    watched.remaining.started(first)
    watched.hear(first, step=4, seconds=2.0)
    watched.remaining.started(first)
    assert watched.left is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "under 1 s"),
        (45.4, "45 s"),
        (119, "119 s"),
        (180, "3 min"),
        (7000, "117 min"),
        (8640, "2.4 h"),
        (7200, "2 h"),
        (36 * 3600, "36 h"),
        (5 * 86400, "5 days"),
        (2.5 * 86400, "2.5 days"),
    ],
)
def test_times_are_said_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_what_is_unknown_is_said() -> None:
    assert time_text([]) == ""
    assert time_text([None, None]) == "unknown"
    assert time_text([None, 3600.0, 3600.0, 3600.0]) == "3 h (3 of 4)"


def reported(make: Any, watched: Watched, **console: Any) -> tuple[Any, Console]:
    screen = Console(record=True, file=io.StringIO(), **console)
    return make(3, screen, watched.remaining), screen


def test_without_a_terminal_a_line_for_each_run_that_ends(settings: RunSettings) -> None:
    """With what has passed and what is left; a thousand steps add one line a minute, and not one each."""
    first, second, third = planned()
    watched = Watched([first, second, third])
    lines, screen = reported(progress.Lines, watched, width=80)
    result = execute(first, settings)
    with lines:
        lines.started(first)
        for step in range(1, 400):
            lines.advanced(first, Event(step, 400, 1.0, None, step / 100, 0))
        watched.after(300)
        lines.finished(first, result)
        lines.failed(second, "table1 / vanilla / seed 1: OSError: full")
        lines.started(third)
        lines.finished(third, result)
    printed = screen.export_text().splitlines()
    assert len(printed) == 3
    assert printed[0].startswith("[1/3] table1 / vanilla / seed 0: error ")
    assert printed[0].endswith("; 5 min so far, about 10 min left")
    assert printed[1] == "[2/3] failed table1 / vanilla / seed 1: OSError: full; 5 min so far, about 5 min left"
    assert printed[2].startswith("[3/3] table1 / vanilla / seed 2: error ")
    assert printed[2].endswith("; 5 min so far")


@pytest.mark.parametrize("width", [80, 120])
def test_on_a_terminal_a_bar_for_each_run_that_trains_and_the_time_that_all_take(width: int) -> None:
    runs = planned()
    long = replace(runs[0], label="per / table3_wikitext2 / re_vd_lstm / per_exact (strength=0.0003) / seed 2")
    watched = Watched(runs)
    bars, screen = reported(progress.Bars, watched, width=width, force_terminal=True, height=24)
    bars.started(long)
    bars.advanced(long, Event(200_000, 400_000, 11.123, 123.45, 7500.0, 0))
    rows = [
        line.rstrip()
        for line in screen.render_lines(bars.progress.get_renderable(), pad=False)
        for line in ["".join(part.text for part in line)]
    ]
    every, one = (row for row in rows if row.strip())
    assert max(map(len, rows)) <= width
    assert "0/3" in every
    assert every.endswith("about 10 h left")
    assert "200000/400000" in one
    assert one.endswith("2.1 h left")
    assert "seed 2 " in one


def test_reporters_print_any_text(settings: RunSettings) -> None:
    """Labels and reasons may hold brackets, which rich would take for markup."""
    run, *others = planned()
    bracketed = replace(run, label="[bold] / arm / seed 0")
    reason = "table1 / arm: OSError: [/tmp/x] is full"
    result = execute(run, settings)
    for make in (progress.Bars, progress.Lines):
        reporter, screen = reported(make, Watched([run, *others]), width=200, force_terminal=True)
        with reporter:
            reporter.started(bracketed)
            reporter.failed(bracketed, reason)
            reporter.finished(bracketed, result)
        text = screen.export_text()
        assert f"failed {reason}" in text
        assert "[bold] / arm / seed 0: error " in text


@pytest.fixture
def settings(tmp_path: Path) -> RunSettings:
    return RunSettings(runs=tmp_path / "runs", root=None, cache=tmp_path / "cache", device="cpu", threads=1)


def test_a_training_says_its_seconds_and_where_it_took_over(settings: RunSettings) -> None:
    (run,) = planned(1)
    steps = iter(range(100))
    events: list[Event] = []
    with pytest.raises(Interrupted):
        execute(run, settings, events.append, lambda: next(steps) == 12)
    assert events
    assert {event.began_at for event in events} == {0}
    taken_over: list[Event] = []
    execute(run, settings, taken_over.append)
    assert {event.began_at for event in taken_over} == {13}
    assert [event.step for event in taken_over] == sorted(event.step for event in taken_over)
    seconds = [event.seconds for event in taken_over]
    assert 0 < seconds[0] <= seconds[-1] < 60
    assert seconds == sorted(seconds)


def test_a_timer_knows_what_a_pilot_found(settings: RunSettings) -> None:
    run, *_ = planned()
    timer = Timer(Estimates(), settings)
    assert timer.seconds_of(run) is None
    work = timer.work(run)
    timer.learn(StepTime(problem=work.problem, way=work.way, seconds=0.1, steps_per_epoch=100))
    assert timer.seconds_of(run) == pytest.approx(40)
    assert len(list((settings.runs / "pilots").glob("*.json"))) == 1
