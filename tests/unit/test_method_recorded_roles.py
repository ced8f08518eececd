"""What a Trace records: the roles that the method reads, found from its fields, and every role for the statistics."""

from __future__ import annotations

import weakref
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn

from reproduce import load_method
from reproduce.experiment.metrics import METRICS
from reproduce.experiment.recipe import Recipe
from reproduce.method import Method, NonNegative, Role, Trace, Unregularized
from reproduce.method.rng import Generators
from reproduce.method.sites import ROLES, Site, watch
from reproduce.training.site_statistics import site_statistics
from reproduce.training.step import Step

CPU = torch.device("cpu")


class Reading(Method):
    strength: NonNegative = 0.5
    sites: Role = "post"
    where: Literal["pre", "post"] = "pre"
    kind: Literal["mean", "sum"] = "mean"

    def penalty(self, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
        return self.strength * torch.stack([record.samples.sum() for record in trace.select(self.sites)]).sum()


class AlsoAfterSteps(Reading):
    def after_step(self, model: Any, optimizer: Any, progress: Tensor, generator: torch.Generator) -> None:
        return


class SaysOtherwise(Reading):
    recorded_roles: ClassVar[frozenset[Role]] = frozenset({"code"})


class ReadsAllRecords(Reading):
    """Of Sites of one role, by what its fields say."""

    where: Literal["post"] = "post"

    def penalty(self, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
        return self.strength * torch.stack([record.samples.sum() for record in trace.records]).sum()


class SaysNothing(Method):
    strength: NonNegative = 0.5

    def penalty(self, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
        return self.strength * torch.stack([record.samples.sum() for record in trace.records]).sum()


class Prepares(Method):
    sites: Role = "pre"


@pytest.mark.parametrize(
    ("method", "roles"),
    [
        (Unregularized(), set()),
        (Prepares(), set()),
        (Reading(), {"pre", "post"}),
        (Reading(sites="code", where="post"), {"code", "post"}),
        (Reading(strength=0.0), set()),
        (AlsoAfterSteps(strength=0.0), {"pre", "post"}),
        (SaysOtherwise(), {"code"}),
        (SaysNothing(), set(ROLES)),
        (load_method("per"), {"post"}),
        (load_method("per", sites="pre"), {"pre"}),
        (load_method("per", strength=0.0), set()),
        (load_method("batchnorm"), set()),
        (load_method("orthogonal"), set()),
        (load_method("activity_norm", kind="ar_tar", strength=1.0), {"dropped"}),
        (load_method("activity_norm", kind="ar_tar", strength=0.0, temporal_strength=1.0), {"post"}),
    ],
    ids=lambda value: "+".join(sorted(value)) if isinstance(value, set) else repr(value),
)
def test_the_roles_are_those_of_the_fields(method: Method, roles: set[Role]) -> None:
    assert method.recorded_roles == roles


class Squares:
    """A Task on one layer with a Site of two roles."""

    metric = METRICS["loss"]
    steps_per_epoch = 2
    source_examples = None

    def __init__(self) -> None:
        self.model: Any = nn.Sequential(nn.Linear(3, 2), Site("pre", "nc", (2,)), nn.Tanh(), Site("post", "nc", (2,)))

    def loss(self, index: Tensor) -> Tensor:
        return self.model(torch.ones(4, 3)).square().mean()

    def forward_site_batch(self) -> None:
        self.model(torch.ones(4, 3))


def step_of(method: Method) -> Step:
    recipe = Recipe.model_validate({"steps": 3, "batch_size": 4, "learning_rate": 0.1})
    return Step(Squares(), method, recipe, Generators.seeded(0, CPU), CPU)  # type: ignore[arg-type]


@pytest.mark.parametrize(("method", "names"), [(Unregularized(), []), (load_method("per", sites="pre"), ["1"])])
def test_training_records_these_and_statistics_read_all(method: Method, names: list[str]) -> None:
    step = step_of(method)
    for _ in range(2):
        step.task.loss(step.index)
        assert [record.site.name for record in step.trace.records] == names
        step.trace.clear()
        assert list(site_statistics(step.task, step.generators, step.trace)) == ["1", "3"]


def test_what_is_not_recorded_is_let_go() -> None:
    """Nothing but the graph holds it."""
    step = step_of(load_method("per", sites="post"))
    held: list[Any] = []
    step.model[1].register_forward_hook(lambda module, inputs, output: held.append(weakref.ref(output)))
    step.model[3].register_forward_hook(lambda module, inputs, output: held.append(weakref.ref(output)))
    with torch.no_grad():
        step.task.loss(step.index)
    before, after = held
    assert before() is None
    assert after() is step.trace.records[0].activation


def test_a_role_that_was_not_declared_is_refused() -> None:
    step = step_of(SaysOtherwise())
    with pytest.raises(ValueError, match=r"^'post' Sites are not recorded, only \['code'\]: .* a field of type Role"):
        step()


def test_a_role_that_the_model_lacks_is_refused_with_those_it_has() -> None:
    with pytest.raises(ValueError, match=r"^the model recorded no 'code' Site \(it has \['post', 'pre'\]\)"):
        step_of(load_method("per", sites="code"))()


def test_every_role_is_recorded_within_and_again_the_chosen_ones_after_an_error() -> None:
    model = Squares().model
    trace = watch(model, frozenset({"post"}))

    def interrupted() -> None:
        with trace.recording_every_role():
            assert trace.roles == ROLES
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert trace.roles == {"post"}


def test_a_penalty_never_takes_some_sites_for_all() -> None:
    """A method from before, which looks at `records`, gets all Sites, or is told what it must say."""
    sites = {role: Site(role, "nc", (2,)) for role in ("pre", "post")}
    generator, progress = torch.Generator(), torch.zeros(())

    def penalty(method: Method) -> Tensor:
        model = nn.Sequential(*sites.values()).train()
        trace = watch(model, method.recorded_roles)
        model(torch.ones(3, 2))
        return method.penalty(trace, progress, generator)

    assert float(penalty(SaysNothing())) == 0.5 * 2 * 6
    with pytest.raises(ValueError, match=r"`records` is not all Sites: only \['post'\] are recorded"):
        penalty(ReadsAllRecords())
    assert float(penalty(ReadsAllRecords(strength=0.0))) == 0
