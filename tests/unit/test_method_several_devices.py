"""Two processes on the CPU train every method, and its card says what of it belongs to one device's own batch."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reproduce import attach
from reproduce.errors import UserError
from reproduce.report.method_card import MethodCard
from tests.unit.ranks import DDP_OPTIONS, SHARDED, batch, convolutional, images, penalty_of, stepped
from tests.unit.ranks import attached as attached_vcl
from tests.unit.ranks_battery import (
    ACCUMULATED,
    CONFIGURATIONS,
    FOLDERS,
    IN_SHARDS,
    ORDERS,
    RANKS,
    SHARDINGS,
    accumulated,
    attached,
    made,
    passed,
    trained,
)

pytestmark = pytest.mark.slow


def is_alike(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_process_has_the_same_model(ranks: list[dict[str, Any]], name: str) -> None:
    first, second = (found[name][ORDERS[0]] for found in ranks)
    assert is_alike(first, second)
    before = made(CONFIGURATIONS[name]).state_dict()
    assert not torch.equal(first["decoder.weight"], before["decoder.weight"])


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_attaching_after_wrapping_is_right_or_refused(ranks: list[dict[str, Any]], name: str) -> None:
    method = CONFIGURATIONS[name]
    orders = [order for order in ORDERS[1:] if order in ranks[0][name]]
    assert orders
    model = made(method)
    known = set(model.parameters())
    attached(method, model)
    is_refused = not known.issuperset(model.parameters())
    for order in orders:
        first, second = (found[name][order] for found in ranks)
        if is_refused:
            assert re.fullmatch(
                r"the method adds the parameter '[\w.]+', and DistributedDataParallel was there before it, .*: "
                r"attach\(\) to the model first, and then DistributedDataParallel\(model\)",
                first,
            )
            assert first == second
        else:
            assert is_alike(first, second)
            for key in made(method).state_dict():  # a buffer may be the wrapper's
                assert torch.equal(first[key], ranks[0][name][ORDERS[0]][key])


def test_what_is_resampled_is_resampled_in_every_process(ranks: list[dict[str, Any]]) -> None:
    name = next(name for name, method in CONFIGURATIONS.items() if getattr(method, "resample_until", 0) == 1)
    for found in ranks:
        assert (found[name][ORDERS[0]]["encoder.0.bias"] > -1).all()


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_card_says_whether_the_split_matters(ranks: list[dict[str, Any]], name: str) -> None:
    method = CONFIGURATIONS[name]
    output, penalty = passed(method, slice(0, RANKS))
    outputs, penalties = zip(*(found[name]["pass"] for found in ranks), strict=True)
    is_same = torch.allclose(torch.stack(penalties).mean(), penalty, rtol=1e-5, atol=0)
    is_same = is_same and torch.allclose(torch.cat(outputs), output, rtol=1e-5, atol=1e-6)
    alone = trained(method, None) if is_same and not method.acts_after_step else {}
    together = ranks[0][name][ORDERS[0]]
    own = dict(made(method).named_parameters())
    for key in [key for key in alone if key not in own and not key.startswith("moment")]:  # remembered for later
        is_same = is_same and torch.allclose(together[key].double(), alone[key].double(), rtol=1e-4, atol=1e-5)
    said = MethodCard(FOLDERS[name.partition("-")[0]].path).batch_of(method.model_dump(mode="json"))
    assert said == ("any split" if is_same else "own batch"), (penalties, penalty)
    if is_same:
        for key, value in alone.items():
            torch.testing.assert_close(together[key], value, rtol=1e-4, atol=1e-5)


def test_batches_that_are_not_sent_count(ranks: list[dict[str, Any]]) -> None:
    for key, value in accumulated(ACCUMULATED, None).items():
        for found in ranks:
            torch.testing.assert_close(found["accumulated"][key], value, rtol=1e-5, atol=1e-6)


WHOLE = "this penalty multiplies activations by weights of a layer that FSDP2 has cut into shards"
REWRITES = "this method rewrites weights and the optimiser's state after a step, and they are cut into shards"
ADDS = r"the method adds the parameter '[\w.]+', and fully_shard was there before it"
REFUSED = {
    "attached": {"norms of the decoder, layers": WHOLE, "vcl, layers": WHOLE, "resampled, one part": REWRITES},
    "cut": {
        "norms of the decoder, layers": WHOLE,
        "resampled, one part": REWRITES,
        "batchnorm, layers": ADDS,
        **{f"vcl, {sharding}": ADDS for sharding in SHARDINGS},
    },
}


@pytest.mark.parametrize("first", REFUSED)
@pytest.mark.parametrize("name", IN_SHARDS)
def test_a_model_in_shards_is_trained_as_a_whole_one_or_refused(
    ranks: list[dict[str, Any]], name: str, first: str
) -> None:
    keys = [key for key in ranks[0]["in shards"] if key.startswith(f"{name}, ") and key.endswith(f"{first} first")]
    assert keys
    for found in ranks:
        for key in keys:
            outcome, refusal = found["in shards"][key], REFUSED[first].get(key.removesuffix(f", {first} first"))
            if refusal is not None:
                assert re.match(refusal, outcome)
                continue
            assert not isinstance(outcome, str), outcome
            for place, value in outcome.items():
                torch.testing.assert_close(value, found[f"of {name}"][place], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("axes", ["nc", "nhwc"])
def test_batch_normalization_is_converted_to_that_of_all_devices(axes: Any) -> None:
    """Torch has that on GPUs alone; without other processes it is the plain one, on a CPU too."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    rows = torch.randn(*(6, 4, 4)[: len(axes) - 1], 4, generator=torch.Generator().manual_seed(0))
    attach("batchnorm", model, ["0"], rows, axes)
    wanted = model(rows).detach()
    known = list(model.parameters())
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert sum(isinstance(part, nn.SyncBatchNorm) for part in converted.modules()) == 1
    assert all(one is other for one, other in zip(known, converted.parameters(), strict=True))
    torch.testing.assert_close(converted(rows), wanted)
    unit = converted[0](rows).flatten(0, -2)
    torch.testing.assert_close(unit.mean(0), torch.zeros(4), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "text", ["", "**Several devices.** Some split.", "**Several devices.** Any split; own batch.x"]
)
def test_a_card_that_does_not_say_it_is_refused(tmp_path: Any, text: str) -> None:
    (tmp_path / "card.md").write_text(f"# One\n\n## Idea\nOne.\n\n## Mathematics\n{text}\n", "utf-8")
    with pytest.raises(UserError, match=r"card.md: Mathematics needs a paragraph '\*\*Several devices"):
        MethodCard(tmp_path).batch_of({})


def test_the_last_exception_that_fits_holds(tmp_path: Any) -> None:
    said = 'Any split; own batch with `share > 0.5` and `kind = "sum"`;\nany split with `kept = true`. More.'
    (tmp_path / "card.md").write_text(f"# One\n\n## Idea\nOne.\n\n## Mathematics\n**Several devices.** {said}", "utf-8")
    card = MethodCard(tmp_path)
    assert card.batch_of({"share": 0.5, "kind": "sum", "kept": False}) == "any split"
    assert card.batch_of({"share": 0.6, "kind": "sum", "kept": False}) == "own batch"
    assert card.batch_of({"share": 0.6, "kind": "mean", "kept": False}) == "any split"
    assert card.batch_of({"share": 0.6, "kind": "sum", "kept": True}) == "any split"
    with pytest.raises(UserError, match="names no parameter and value of the method: 'kept'"):
        card.batch_of({"share": 0.6, "kind": "sum"})


# What every rank computes is what one process would, with the mean of their losses.


@pytest.mark.parametrize("options", DDP_OPTIONS)
def test_vcl_is_trained_alike_on_every_rank(ranks: list[dict[str, Any]], options: str) -> None:
    """Whose statistic is that of each rank's own batch: the loss is the mean of their losses."""
    own = [attached_vcl() for _ in range(RANKS)]
    shared = own[0][0]
    for model, _ in own[1:]:
        for one, other in zip(model.modules(), shared.modules(), strict=True):
            one._parameters.update(other._parameters)

    def loss(step: int) -> Tensor:
        return sum(m(batch(step, rank)).square().mean() + handle.penalty() for rank, (m, handle) in enumerate(own)) / 2

    wanted = stepped(shared, loss)
    assert any("beta" in name for name in wanted)
    for found in ranks:
        for name, value in wanted.items():
            torch.testing.assert_close(found[options][name], value, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(value, ranks[1][options][name]) for name, value in ranks[0][options].items())


@pytest.mark.parametrize("name", SHARDED)
def test_penalties_on_sharded_weights_are_those_on_whole_ones(ranks: list[dict[str, Any]], name: str) -> None:
    model, method = convolutional(), SHARDED[name]
    penalty = penalty_of(method, model)
    for rank in range(RANKS):
        (copy.copy(model)(images(rank)).square().mean() / RANKS).backward()
    penalty.backward()
    for found in ranks:
        assert found[name]["before"] == pytest.approx(penalty.item(), rel=1e-6)
        assert found[name]["penalty"] == pytest.approx(penalty.item(), rel=1e-6)
        for place, parameter in model.named_parameters():
            torch.testing.assert_close(found[name]["gradients"][place], parameter.grad, rtol=1e-5, atol=1e-6)
