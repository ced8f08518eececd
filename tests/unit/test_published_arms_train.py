"""Every arm of language models that a published number is claimed of takes two steps, with its widths made small."""

from __future__ import annotations

import functools
import math

import pytest
import torch

from reproduce.data import WordData
from reproduce.experiment.dataset_card import DatasetCard
from reproduce.experiment.folder import all_methods
from reproduce.experiment.metrics import place_of_metric
from reproduce.experiment.schema import Experiment
from reproduce.method.rng import Generators
from reproduce.tasks import Metrics
from reproduce.training.host import build_task
from reproduce.training.plan import PlannedRun, plan
from reproduce.training.step import Step

CPU = torch.device("cpu")
SMALL = {"hidden": 6, "embedding": 6, "depth": 2}
SHORT = {"batch_size": 3, "window": 5, "eval_batch_size": 2}


def of_words(experiment: Experiment) -> bool:
    kinds = {task.kind for task in experiment.tasks.values()}
    return experiment.scale == "paper" and kinds == {"language_modeling"} and bool(claims_of(experiment))


def claims_of(experiment: Experiment) -> set[tuple[str, str]]:
    """Arms, and the metrics that a number of theirs is claimed of."""
    counted = (claim for claim in experiment.claims if claim.value is not None and claim.over is None)
    return {(claim.arm, claim.metric) for claim in counted if not claim.ours}


EXPERIMENTS = {
    (folder.name, name): experiment
    for folder in all_methods().values()
    for name, experiment in folder.experiments().items()
    if of_words(experiment)
}


@functools.cache
def text(card_format: str | None) -> WordData:
    tokens = torch.arange(120) ** 2 % 7
    card = DatasetCard.model_construct(name="tiny", format=card_format)
    return WordData(card=card, train=tokens, validation=tokens, test=tokens, vocabulary=tuple("abcdefg"), origin="here")


def first_of_each_arm(experiment: Experiment) -> dict[str, PlannedRun]:
    """One planned Run of each arm, of its first task and the first point of its grid."""
    runs: dict[str, PlannedRun] = {}
    for run in plan({"table": experiment}, None, experiment.seeds[:1]):
        for place in run.places:
            runs.setdefault(place.arm, run)
    return runs


def after_two_steps(run: PlannedRun) -> Metrics:
    """With widths of six units, and a text of seven words."""
    config = run.config
    options = {name: SMALL.get(name, value) for name, value in config.task.model_options.items()}
    samples = 2 if config.task.dropout_samples else None
    spec = config.task.model_copy(update={"model_options": options, "dropout_samples": samples})
    recipe = config.recipe.model_copy(update=SHORT)
    generators = Generators.seeded(0, CPU)
    task = build_task(spec, recipe, text("characters" if spec.symbols else None), generators, CPU)
    step = Step(task, run.method(), recipe, generators, CPU, None, None)
    task.start_epoch()
    before = {name: parameter.detach().clone() for name, parameter in task.model.named_parameters()}
    for _ in range(2):
        step()
    stayed = [name for name, value in task.model.named_parameters() if torch.equal(value, before[name])]
    assert not stayed, f"two steps left {stayed} as they were"
    return task.evaluate()


@pytest.mark.parametrize(("method", "name"), EXPERIMENTS)
def test_arms_train_and_measure_what_is_claimed(method: str, name: str) -> None:
    experiment = EXPERIMENTS[method, name]
    measured = {arm: after_two_steps(run) for arm, run in first_of_each_arm(experiment).items()}
    claims = [(arm, metric) for arm, metric in claims_of(experiment) if not experiment.arms[arm].pending]
    for arm, metric in claims:
        place = place_of_metric(metric)
        assert math.isfinite(measured[arm][place.split][place.name]), (arm, metric)
    assert claims


def test_there_are_such_experiments() -> None:
    assert {"inan_table1", "press_wolf_tying", "recurrent_highway", "character_ptb"} <= {
        name for _, name in EXPERIMENTS
    }
    assert len(EXPERIMENTS) >= 14
