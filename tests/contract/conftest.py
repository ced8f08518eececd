"""What the battery runs over: every discovered method in its configurations, and the tiny tasks of the bench."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch import Tensor

from reproduce.bench import tiny_tasks
from reproduce.bench.tiny_tasks import CPU, STEPS, configurations
from reproduce.bench.variants import read_variants
from reproduce.experiment.folder import METHODS, MethodFolder, all_methods
from reproduce.method import Method
from reproduce.method.rng import Generators
from reproduce.results.record import EpochRecord
from reproduce.training.loop import Interrupted, train


class Subject:
    """A method's folder, its class, and its configurations: the defaults and those of variants.toml, each once."""

    def __init__(self, folder: MethodFolder) -> None:
        self.folder, self.name, self.path = folder, folder.name, folder.path
        self.method_class = folder.load()
        self.variants = read_variants(folder).variants
        self.configurations = configurations(folder)
        # The fields that weight the penalty.
        self.strengths = self.method_class.strengths()
        self.adds_a_penalty = self.method_class.penalty is not Method.penalty
        hooks = ("prepare", "penalty", "after_step")
        self.changes_something = any(getattr(self.method_class, hook) is not getattr(Method, hook) for hook in hooks)


TEMPLATE = MethodFolder("_template", METHODS / "_template")
SUBJECTS = {name: Subject(folder) for name, folder in {**all_methods(), TEMPLATE.name: TEMPLATE}.items()}
CONFIGURATIONS = {
    f"{subject.name}-{name}": (subject, method)
    for subject in SUBJECTS.values()
    for name, method in subject.configurations.items()
}


@dataclass(frozen=True)
class Trained:
    """What a Run leaves: the model's tensors, and the records without their wall time."""

    state: dict[str, Tensor]
    epochs: list[EpochRecord]


class Problem(tiny_tasks.Problem):
    """A tiny task that is trained in the one loop, too."""

    @functools.cache  # noqa: B019
    def trained_once(self, method: Method, steps: int = STEPS) -> Trained:
        """As `trained`; several checks compare with the same undisturbed Run."""
        return self.trained(method, steps)

    def trained(self, method: Method, steps: int = STEPS, stop_after: int = 0) -> Trained:
        """Train in the one loop; with ``stop_after``, interrupted there and gone on from the checkpoint."""
        with tempfile.TemporaryDirectory() as folder:
            if stop_after:
                stops = iter([False] * (stop_after - 1) + [True])
                with pytest.raises(Interrupted):
                    self._train(method, steps, Path(folder), lambda: next(stops))
            return self._train(method, steps, Path(folder), lambda: False)

    def _train(self, method: Method, steps: int, folder: Path, should_stop: Callable[[], bool]) -> Trained:
        generators = Generators.seeded(0, CPU)
        task = self.build(generators)
        recipe = self.recipe.model_copy(update={"steps": steps})
        outcome = train("battery", recipe, task, method, generators, CPU, folder, should_stop=should_stop)
        assert outcome.diverged_step is None
        epochs = [epoch.model_copy(update={"seconds_per_step": 0.0}) for epoch in outcome.epochs]
        return Trained(dict(task.model.state_dict()), epochs)


PROBLEMS = tuple(Problem(**vars(problem)) for problem in tiny_tasks.PROBLEMS)


@pytest.fixture(params=PROBLEMS, ids=[problem.name for problem in PROBLEMS])
def problem(request: pytest.FixtureRequest) -> Problem:
    return request.param


@pytest.fixture(params=SUBJECTS)
def subject(request: pytest.FixtureRequest) -> Subject:
    return SUBJECTS[request.param]


@pytest.fixture
def subjects() -> dict[str, Subject]:
    return SUBJECTS


@pytest.fixture(params=CONFIGURATIONS)
def configured(request: pytest.FixtureRequest) -> tuple[Subject, Method]:
    """A method in one of its configurations."""
    return CONFIGURATIONS[request.param]


@pytest.fixture
def problems() -> tuple[Problem, ...]:
    return PROBLEMS
