"""An experiment spelled out: each task, arm, point of its grid and seed is a cell, and each cell is one Run."""

from __future__ import annotations

from typing import Any

from reproduce.errors import UserError, shown
from reproduce.experiment.recipe import Recipe
from reproduce.experiment.schema import IN_RECIPE, Experiment, TaskSpec
from reproduce.experiment.toml import Strict

MOST_SEEDS = 10_000
MOST_CELLS = 100_000  # of one experiment: more would eat the memory before anything is said


class Cell(Strict):
    """One training that an experiment asks for, before the method's own defaults are filled in."""

    task_name: str
    arm_name: str
    task: TaskSpec
    recipe: Recipe
    method: str
    params: dict[str, Any]  # as given
    start: str | None = None
    seed: int
    point: dict[str, Any] = {}  # of the arm's points the one that it belongs to


def cells(experiment: Experiment, seeds: tuple[int, ...] | None = None) -> list[Cell]:
    """All trainings of an experiment: seeds outermost, so that a cut leaves complete comparisons.

    Where arms choose on seeds of their own, these come first; of the others, all that may be chosen is here.

    Args:
        seeds: of every arm, in place of the experiment's own.

    Raises:
        UserError: more than `MOST_CELLS`.
    """
    n_seeds, n_points = len(seeds or experiment.all_seeds), sum(len(arm.points()) for arm in experiment.arms.values())
    if n_seeds * n_points * len(experiment.tasks) > MOST_CELLS:
        raise UserError(
            f"{experiment.title}: {n_seeds} seeds of {n_points} points on {len(experiment.tasks)} tasks are more than "
            f"{MOST_CELLS} runs: ask for fewer seeds"
        )
    found = []
    recipes = {
        name: [experiment.recipe_of(arm, point) for point in arm.points()] for name, arm in experiment.arms.items()
    }
    asked = {name: {*experiment.seeds_of(name), *experiment.choosing_seeds_of(name)} for name in experiment.arms}
    for seed in seeds or experiment.all_seeds:
        for task_name, task in experiment.tasks.items():
            for arm_name, arm in experiment.arms.items():
                if arm.pending or (arm.tasks is not None and task_name not in arm.tasks):
                    continue
                if not seeds and seed not in asked[arm_name]:
                    continue
                changed = {"model_options": {**task.model_options, **arm.model_options}}
                arm_task = task.model_copy(update={**changed, "model": arm.model or task.model})
                for point, recipe in zip(arm.points(), recipes[arm_name], strict=True):
                    found.append(
                        Cell(
                            task_name=task_name,
                            arm_name=arm_name,
                            task=arm_task,
                            recipe=recipe,
                            method=arm.method,
                            params={name: value for name, value in point.items() if not name.startswith(IN_RECIPE)},
                            start=arm.start,
                            seed=seed,
                            point=point,
                        )
                    )
    return found


def parse_seeds(text: str) -> tuple[int, ...] | None:
    """'0,1,2', or '3,' for one seed, as it stands; a single number n as the first n seeds; nothing as None.

    Raises:
        UserError: neither, a seed that is negative or of more than 63 bits, or too many.
    """
    if not text:
        return None
    asked = f"--seeds {shown(text)}"
    try:
        numbers = tuple(int(part) for part in text.removesuffix(",").split(","))
    except ValueError:
        raise UserError(f"{asked}: expected '0,1,2' or a number of seeds") from None
    count = len(numbers) if "," in text else numbers[0]
    if count > MOST_SEEDS:
        raise UserError(f"{asked}: {shown(count)} seeds, expected at most {MOST_SEEDS}")
    found = numbers if "," in text else tuple(range(numbers[0]))
    if not found or min(found) < 0:
        hint = ": a single number is how many, and '0,' is seed 0 alone" if numbers == (0,) else ", none negative"
        raise UserError(f"{asked}: expected at least one seed{hint}")
    if max(found) >= 2**63:
        raise UserError(f"{asked}: expected seeds below 2**63")
    return found
