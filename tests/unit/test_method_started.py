"""A method on a network that another one prepared: both are heard, each in its place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reproduce.errors import UserError
from reproduce.experiment.cells import cells
from reproduce.experiment.folder import find_method
from reproduce.experiment.recipe import Recipe
from reproduce.experiment.schema import Arm, Experiment, TaskSpec
from reproduce.method import Method, Site, Unregularized
from reproduce.method.sites import watch
from reproduce.method.started import Started
from reproduce.training.plan import method_of, plan, resolve

STEPS: list[str] = []


class Doubled(Method):
    """Doubles every weight before training, and says when a step is done."""

    def prepare(self, model: nn.Module, generator: torch.Generator) -> None:
        for parameter in model.parameters():
            parameter.data.mul_(2)

    def after_step(self, *given: Any) -> None:
        STEPS.append("start")


class MeanSquare(Method):
    strength: float = 0.5

    def penalty(self, trace: Any, progress: Tensor, generator: torch.Generator) -> Tensor:
        return self.strength * torch.stack([record.activation.square().mean() for record in trace.records]).sum()

    def after_step(self, *given: Any) -> None:
        STEPS.append("method")


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), Site("pre", "nc", (4,)), nn.ReLU(), Site("post", "nc", (4,)), nn.Linear(4, 2))


def test_the_start_prepares_and_the_method_penalises():
    method = Started(start=Doubled(), method=MeanSquare())
    model, plain = small(), small()
    generator = torch.Generator()
    method.prepare(model, generator)
    for doubled, before in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(doubled, 2 * before)
    trace = watch(model, method.recorded_roles)
    inputs = torch.randn(5, 3)
    model(inputs)
    pre = (inputs.double() @ model[0].weight.double().T + model[0].bias.double()).detach()
    expected = 0.5 * (pre.square().mean() + pre.clamp_min(0).square().mean())
    penalty = method.penalty(trace, torch.tensor(0.0), generator)
    torch.testing.assert_close(penalty.double(), expected, rtol=1e-6, atol=0)
    STEPS.clear()
    method.after_step(model, torch.optim.SGD(model.parameters(), 0.1), torch.tensor(0.0), generator)
    assert STEPS == ["start", "method"]


def test_nothing_is_recorded_that_nobody_reads():
    init = find_method("variance_preserving_init").load()()
    assert Started(start=init, method=Unregularized()).recorded_roles == frozenset()
    assert Started(start=init, method=MeanSquare(strength=0.0)).recorded_roles == MeanSquare().recorded_roles
    post = find_method("per").load()(mode="exact", sites="post")
    assert Started(start=init, method=post).recorded_roles == {"post"}


@pytest.fixture
def experiment() -> Experiment:
    task = TaskSpec(kind="image_classification", dataset="digits", model="mlp", model_options={"width": 8, "depth": 2})
    arms = {
        "vanilla": Arm(),
        "started": Arm(start="variance_preserving_init"),
        "per": Arm(method="per", params={"mode": "exact"}, start="variance_preserving_init"),
    }
    recipe = Recipe(epochs=1, batch_size=100, learning_rate=0.1)
    return Experiment(title="t", scale="quick", source="ours", seeds=(0,), tasks={"t": task}, recipe=recipe, arms=arms)


def test_a_plan_spells_the_start_out_and_leaves_other_ids_alone(experiment):
    runs = {run.config.method + str(run.config.start is not None): run for run in plan({"e": experiment}, None)}
    started, vanilla, per = (runs[key].config for key in ("vanillaTrue", "vanillaFalse", "perTrue"))
    assert started.start is not None
    assert (started.start.method, started.start.params) == ("variance_preserving_init", {"mode": "closed_form"})
    assert started.start == per.start
    assert started.id != vanilla.id
    assert "start" not in vanilla.model_dump()
    assert isinstance(method_of(per, find_method("per")), Started)
    assert runs["perTrue"].method() == method_of(per, find_method("per"))


def test_an_unknown_start_is_said(experiment):
    arm = experiment.arms["per"].model_copy(update={"start": "variance_preserving_start"})
    (cell,) = cells(experiment.model_copy(update={"arms": {"per": arm}}))
    with pytest.raises(UserError, match="variance_preserving_start"):
        resolve(cell, find_method("per"), None)
