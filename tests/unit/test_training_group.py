"""Two processes on the CPU train a Run together, and it is the Run that one process trains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reproduce.bench.tiny_tasks import CPU, PROBLEMS
from reproduce.errors import UserError
from reproduce.experiment.schema import Arm
from reproduce.method import Site
from reproduce.method.parts import Part, current_part, passing, read_whole_batches
from reproduce.method.rng import Generators
from reproduce.report.method_card import MethodCard
from reproduce.training.group import ALONE, Group, _buckets
from reproduce.training.run import _check_parts
from tests.unit.ranks_group import (
    CONFIGURATIONS,
    FOLDERS,
    NORMALIZED,
    PROBLEMS_IN_PARTS,
    RANKS,
    UNITS,
    can_read_maps,
    normalized,
    pairs,
    trained,
    trained_on_maps,
)
from tests.unit.small_runs import planned

TRAINED = {name: (problem, method) for name, problem, method in pairs()}
ELSEWHERE = [name for name in TRAINED if name.startswith("recurrent_batchnorm-")]  # it normalizes within an LSTM


def compare(found: list[dict[str, Any]], wanted: dict[str, Any], tolerance: float) -> None:
    """Losses, penalties, weights and buffers after some steps; and what was drawn, to the bit."""
    for own in found:
        torch.testing.assert_close(own["losses"], wanted["losses"], rtol=tolerance, atol=tolerance)
        assert own["state"].keys() == wanted["state"].keys()
        for name, value in wanted["state"].items():
            torch.testing.assert_close(own["state"][name], value, rtol=tolerance, atol=tolerance, msg=name)
            assert torch.equal(own["state"][name], found[0]["state"][name])
        for name, state in wanted["generators"].items():
            assert torch.equal(own["generators"][name], state)


def test_every_method_and_every_task_is_tried() -> None:
    tried = {name.partition("-")[0] for name in TRAINED}
    on_maps = {name.partition("-")[0] for name, method in CONFIGURATIONS.items() if can_read_maps(method)}
    assert FOLDERS.keys() - tried == {"sparse_autoencoder", "kl_domain_adaptation"}  # on tasks that are refused
    assert {"batchnorm", "vcl", "sigreg", "energy_distance", "per"} <= on_maps
    assert {name.rpartition(" on ")[2] for name in TRAINED} == PROBLEMS_IN_PARTS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TRAINED if name not in ELSEWHERE])
def test_two_processes_train_what_one_trains(grouped: list[dict[str, Any]], name: str) -> None:
    """Of whole batches: also where a method looks at other samples, and where a task or a network draws."""
    problem, method = TRAINED[name]
    compare([found[name] for found in grouped], trained(problem, method), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_maps_in_double_precision(grouped: list[dict[str, Any]], name: str) -> None:
    if can_read_maps(CONFIGURATIONS[name]):
        found = [found[f"{name} on maps"] for found in grouped]
        compare(found, trained_on_maps(CONFIGURATIONS[name]), 1e-8)
    else:
        assert f"{name} on maps" not in grouped[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ELSEWHERE)
def test_modules_outside_of_sites_are_refused(grouped: list[dict[str, Any]], name: str) -> None:
    for found in grouped:
        assert found[name].startswith("the method puts ModuleList at 'recurrent.normalizations', which is no Site")


@pytest.mark.slow
def test_the_mean_of_parts_is_another_penalty_where_the_card_says_so(grouped: list[dict[str, Any]]) -> None:
    """And is the whole batch's for each method that is not given the whole."""
    told_apart = set()
    for key, method in CONFIGURATIONS.items():
        name = f"{key} on {UNITS.name}"
        if name not in TRAINED or not method.recorded_roles:
            continue
        session = UNITS.session(method)
        session.forward()
        whole, of_parts = session.penalty().item(), grouped[0][name]["penalties"]
        is_same = not isinstance(of_parts, str) and of_parts == pytest.approx(whole, rel=1e-5, abs=1e-9)
        card = MethodCard(FOLDERS[key.partition("-")[0]].path).batch_of(method.model_dump(mode="json"))
        assert is_same or not method.is_mean_over_samples
        assert not method.is_mean_over_samples or card == "any split"
        assert is_same or card == "own batch"
        told_apart.add((key.partition("-")[0], method.is_mean_over_samples, is_same))
    assert {("per", True, True), ("vcl", False, False), ("sigreg", False, False)} <= told_apart
    assert ("energy_distance", False, False) in told_apart


@pytest.mark.slow
@pytest.mark.parametrize("name", NORMALIZED)
def test_batch_normalization_of_parts_is_torchs_of_the_whole(grouped: list[dict[str, Any]], name: str) -> None:
    wanted = normalized(None, *NORMALIZED[name])
    parts = [found[name] for found in grouped]
    torch.testing.assert_close(torch.cat([part["made"] for part in parts]), wanted["made"], rtol=1e-4, atol=1e-4)
    of_rows, of_weight, of_bias = zip(*(part["gradients"] for part in parts), strict=True)
    found = [torch.cat(of_rows), sum(of_weight), sum(of_bias)]
    for gradient, own in zip(found, wanted["gradients"], strict=True):
        torch.testing.assert_close(gradient, own, rtol=1e-4, atol=1e-4)
    for part in parts:
        for key, value in wanted["state"].items():
            torch.testing.assert_close(part["state"][key], value, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_first_process_decides_and_what_one_cannot_do_none_does(grouped: list[dict[str, Any]]) -> None:
    first, second = (found["told"] for found in grouped)
    for told in (first, second):
        assert told["flags"] == (True, False)
        assert told["value"] == {"rank": 0}
        assert told["none fails"]
    assert first["0 fails"] == "UserError: no data at 0"
    assert first["1 fails"] == "UserError: process 1: no data at 1"
    assert [second["0 fails"], second["1 fails"]] == [
        f"Abandoned: process {rank}: no data at {rank}" for rank in (0, 1)
    ]


# Without other processes.


@pytest.fixture
def part() -> Part:
    return Part(1, RANKS, None)


def test_a_process_has_its_rows_of_a_batch(part: Part) -> None:
    whole = torch.arange(12).view(3, 4)
    assert torch.equal(part.own(whole, 1), whole[:, 2:])
    with pytest.raises(ValueError, match="3 examples cannot be cut into 2 equal parts"):
        part.own(whole)


def test_a_part_passes_only_within(part: Part) -> None:
    assert current_part() is None
    with passing(part):
        assert current_part() is part
    assert current_part() is None


def test_a_batch_of_two_domains_is_refused(part: Part) -> None:
    problem = next(one for one in PROBLEMS if one.spec.options.get("target_domain"))
    task = problem.build(Generators.seeded(0, CPU))
    (run,) = planned({"vanilla": Arm()})
    _check_parts(run, task, ALONE)
    with pytest.raises(UserError, match="a target domain is trained with in one process, not 2"):
        _check_parts(run, task, Group(part))


class Doubled(nn.Module):
    def forward(self, activation: Tensor) -> Tensor:
        return 2 * activation


def test_a_whole_batch_is_left_to_the_modules_as_they_are(part: Part) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), Site("pre", "nc", (3,)))
    model[2].transform = Doubled()
    rows = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    wanted = model(rows).detach()
    names, parameters = list(model.state_dict()), list(model.parameters())
    read_whole_batches(model, part, set(model.modules()))
    assert torch.equal(model(rows), wanted)  # no process is asked
    assert list(model.state_dict()) == names
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    assert torch.equal(model.eval()(rows), model(rows))


def test_a_lost_group_begins_nothing(part: Part) -> None:
    group = Group(part)
    group.lose()
    with pytest.raises(UserError, match="no longer in step: the same command goes on from the checkpoints"):
        group.begin(None)
    ALONE.lose()
    assert not ALONE.is_broken


def test_gradients_travel_together_by_type_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reproduce.training.group.BUCKET_BYTES", 40)
    sizes = [(4, torch.float32), (6, torch.float32), (1, torch.float32), (2, torch.float64), (30, torch.float64)]
    tensors = [torch.zeros(size, dtype=kind) for size, kind in sizes]
    assert [[len(one) for one in bucket] for bucket in _buckets(tensors)] == [[4, 6], [1], [2], [30]]
