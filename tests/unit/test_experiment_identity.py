"""Which Runs a cell asks for agrees with what a Run is: for one seed and version, keys are equal as ids are."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from reproduce.experiment.cells import Cell
from reproduce.experiment.cells import cells as cells_of
from reproduce.experiment.identity import RunConfig, cell_key, run_key
from reproduce.experiment.recipe import Recipe, StepRate
from reproduce.experiment.schema import TaskSpec


class Parameters(BaseModel):
    """Hyperparameters as methods have them: an experiment's file may write 1 for a strength of 1.0."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    strength: float = 0.5
    n_slices: int = 2
    mode: str = "exact"
    centred: bool = True
    targets: tuple[float, ...] = (0.0, 1.0)
    tail: float | None = None


DEFAULTS = Parameters().model_dump(mode="json")

# Few values, so that cells are often equal, and some that are equal but for their spelling.
NUMBERS = st.sampled_from([0, 0.0, -0.0, 1, 1.0, 2, 0.5, 1e-4, 10**15, 1e15])
PARAMETERS = {
    "strength": NUMBERS,
    "n_slices": st.integers(0, 2),
    "mode": st.sampled_from(["exact", "sliced", "1"]),
    "centred": st.booleans(),
    "targets": st.lists(NUMBERS, max_size=2),
    "tail": st.none() | NUMBERS,
}
WIDTHS = (1, 2, True, 1.5, 2.0, "2")  # an id tells a width of 2 from one of 2.0
given_parameters = st.fixed_dictionaries({}, optional=PARAMETERS)
recipes = st.builds(
    Recipe,
    epochs=st.integers(1, 2),
    batch_size=st.just(8),
    learning_rate=st.sampled_from([1, 1.0, 0.1]),
    weight_decay=st.sampled_from([0, 0.0, 1e-4]),
    schedule=st.sampled_from([{"kind": "constant"}, StepRate(kind="step", milestones=(3, 5), factor=(1, 0.5))]),
)
tasks = st.builds(
    TaskSpec,
    kind=st.just("image_classification"),
    dataset=st.sampled_from(["digits", "mnist"]),
    model=st.just("mlp"),
    model_options=st.fixed_dictionaries({}, optional={"width": st.sampled_from(WIDTHS)}),
    validation=st.none() | st.just(100),
)
cells = st.builds(
    Cell,
    task_name=st.just("digits"),
    arm_name=st.sampled_from(["a", "b"]),
    task=tasks,
    recipe=recipes,
    method=st.sampled_from(["one", "two"]),
    params=given_parameters,
    seed=st.just(0),
)


def planned(cell: Cell, defaults: dict[str, Any]) -> RunConfig:
    """What planning makes of a cell for a method with these defaults."""
    params = Parameters.model_validate_json(json.dumps({**defaults, **cell.params})).model_dump(mode="json")
    return RunConfig(
        task=cell.task,
        dataset_checksum="c0ffee",
        recipe=cell.recipe,
        method=cell.method,
        method_version=1,
        params=params,
        seed=cell.seed,
    )


@given(cells, given_parameters)
def test_a_cell_asks_for_the_run_that_is_planned_of_it(cell: Cell, defaults: dict[str, Any]) -> None:
    complete = Parameters.model_validate_json(json.dumps(defaults)).model_dump(mode="json")
    sealed = RunConfig.model_validate_json(planned(cell, complete).model_dump_json())
    assert cell_key(cell, complete) == run_key(sealed)


@given(cells, cells, given_parameters)
def test_two_cells_ask_for_one_run_exactly_if_its_id_is_the_same(one: Cell, other: Cell, given: dict[str, Any]) -> None:
    defaults = Parameters.model_validate_json(json.dumps(given)).model_dump(mode="json")
    first, second = planned(one, defaults), planned(other, defaults)
    assert (cell_key(other, defaults) == run_key(first)) == (first.id == second.id)


@given(cells, given_parameters, st.sampled_from(sorted(PARAMETERS)), st.data())
def test_one_other_parameter_is_another_run_exactly_if_the_id_changes(
    cell: Cell, given: dict[str, Any], name: str, data: st.DataObject
) -> None:
    """Two cells drawn apart are seldom equal in all but one thing."""
    defaults = Parameters.model_validate_json(json.dumps(given)).model_dump(mode="json")
    other = cell.model_copy(update={"params": {**cell.params, name: data.draw(PARAMETERS[name])}})
    first, second = planned(cell, defaults), planned(other, defaults)
    assert (cell_key(other, defaults) == run_key(first)) == (first.id == second.id)


@pytest.mark.parametrize(("one", "other"), [*itertools.product(WIDTHS, repeat=2)])
def test_a_model_is_spelled_as_its_id_spells_it(make_experiment: Any, one: Any, other: Any) -> None:
    (cell, *_) = cells_of(make_experiment())
    options = [cell.task.model_copy(update={"model_options": {"width": width}}) for width in (one, other)]
    first, second = (cell.model_copy(update={"task": task, "params": {}}) for task in options)
    is_same_id = planned(first, DEFAULTS).id == planned(second, DEFAULTS).id
    assert (cell_key(second, DEFAULTS) == run_key(planned(first, DEFAULTS))) == is_same_id
