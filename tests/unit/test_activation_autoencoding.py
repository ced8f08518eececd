"""Codes in and beside a language model: what is spliced, what is counted, what is shared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.sparse_autoencoder import method as pure
from methods.sparse_autoencoder.method import SparseAutoencoder
from reproduce import models
from reproduce.data import WordData
from reproduce.errors import UserError
from reproduce.experiment.dataset_card import DatasetCard
from reproduce.experiment.recipe import Recipe
from reproduce.experiment.schema import TaskSpec
from reproduce.method import Unregularized
from reproduce.method.rng import Generators
from reproduce.method.sites import watch
from reproduce.models import Sizes
from reproduce.tasks.activation_autoencoding import Ablation
from reproduce.training.host import build_task
from reproduce.training.loop import train

CPU = torch.device("cpu")
HOST = {
    "model": "lstm",
    "model_options": {"hidden": 6, "layers": 2},
    "site": "layers.0.post",
    "recipe": {
        "epochs": 15,
        "batch_size": 4,
        "window": 5,
        "eval_batch_size": 2,
        "optimizer": "adam",
        "learning_rate": 3e-2,
        "evaluate_every": 15,
    },
}


def words() -> WordData:
    tokens = torch.arange(203) ** 2 % 7
    card = DatasetCard.model_construct(name="tiny")
    return WordData(
        card=card, train=tokens, validation=tokens[:60], test=tokens[:80], vocabulary=tuple("abcdefg"), origin="here"
    )


WORDS = words()


def built(task: dict[str, Any], seed: int = 0, data: WordData = WORDS, **recipe: Any) -> Any:
    usual = {"epochs": 2, "batch_size": 20, "optimizer": "adam", "learning_rate": 1e-2}
    chosen = Recipe.model_validate(usual | recipe)
    spec = TaskSpec.model_validate({"dataset": "tiny", **task})
    return build_task(spec, chosen, data, Generators.seeded(seed, CPU), CPU), chosen


def splicing(seed: int = 0, data: WordData = WORDS, host: dict[str, Any] | None = None, **options: Any) -> Any:
    task = {"kind": "activation_autoencoding", "model": "autoencoder", "model_options": {"d_sae": 12, **options}}
    return built({**task, "host": HOST if host is None else host}, seed, data)


class Through(nn.Module):
    def forward(self, activation: Tensor) -> Tensor:
        return activation.clone()


def test_a_splice_that_changes_nothing_costs_nothing() -> None:
    task, _ = splicing()
    host = task.host
    clean = {name: found["clean"] for name, found in host.references.items()}
    assert host.losses() == clean
    with host.spliced(Through()):
        assert host.losses() == clean
    with host.spliced(Ablation(torch.full((6,), 0.3))):
        assert host.losses() != clean
    assert host.losses() == clean


def test_a_perfect_autoencoder_recovers_everything() -> None:
    """12 latents read each of 6 centred numbers and its negative."""
    task, _ = splicing()
    with torch.no_grad():
        task.model.W_enc.copy_(torch.cat([torch.eye(6), -torch.eye(6)], 1))
        task.model.W_dec.copy_(task.model.W_enc.t())
    found = task.evaluate()["test"]
    assert found["ce_loss_increase"] == pytest.approx(0, abs=1e-6)
    assert found["ce_loss_score"] == pytest.approx(1, abs=1e-4)
    assert found["fvu"] == pytest.approx(0, abs=1e-9)
    assert found["l0"] == pytest.approx(6, abs=0.2)


def test_a_silent_code_is_the_mean_ablation() -> None:
    task, _ = splicing()
    with torch.no_grad():
        task.model.b_enc.fill_(-1e4)
    found = task.evaluate()["test"]
    assert found["ce_loss_with_sae"] == pytest.approx(found["ce_loss_with_mean_ablation"], rel=1e-6)
    assert found["ce_loss_score_mean"] == pytest.approx(0, abs=1e-4)
    assert found["dead_fraction"] == 1.0
    clean, sae, zero = (found[f"ce_loss_{name}"] for name in ("without_sae", "with_sae", "with_zero_ablation"))
    assert found["ce_loss_score"] == pytest.approx(pure.ce_loss_score(clean, sae, zero))


def test_inputs_are_the_layer_below_centred_and_scaled() -> None:
    task, _ = splicing()
    host = task.host.task
    outputs = []
    state = host.model.initial_state(4)
    for start in range(0, len(host.train) - 1, 5):
        tokens = host.train[start : min(start + 5, len(host.train) - 1)]
        embedded = host.model.embedding(tokens)
        output, (hidden, cell) = host.model.layers[0].lstm(embedded, state[:2])
        state = (hidden, cell)
        outputs.append(output.flatten(0, 1))
    activations = torch.cat(outputs)
    centred = activations - activations.mean(0)
    torch.testing.assert_close(task.inputs, centred * (6**0.5 / centred.norm(dim=1).mean()))
    assert task.inputs.norm(dim=1).mean().item() == pytest.approx(6**0.5, rel=1e-5)


def test_a_host_is_shared_by_arms_and_not_by_seeds_and_is_frozen(tmp_path: Path) -> None:
    first, recipe = splicing()
    again, _ = splicing(decoder="unit_norm")
    assert again.host is first.host
    before = {name: value.clone() for name, value in first.host.task.model.state_dict().items()}
    train("sae", recipe, first, SparseAutoencoder(l1_coefficient=0.1), first.generators, CPU, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in first.host.task.model.state_dict().items())
    other, _ = splicing(seed=1)
    assert other.host is not first.host
    anew, _ = splicing(data=words())  # trained again, to the same numbers
    assert anew.host is not first.host
    assert anew.host.references == first.host.references


def test_training_the_autoencoder_recovers_more(tmp_path: Path) -> None:
    task, recipe = splicing()
    before = task.evaluate()["test"]
    longer = recipe.model_copy(update={"epochs": 40, "evaluate_every": 40})
    outcome = train("sae", longer, task, Unregularized(), task.generators, CPU, tmp_path)
    assert outcome.epochs[-1].test["fvu"] < 0.3 * before["fvu"]
    after = outcome.epochs[-1].test
    assert after["ce_loss_increase"] < 0.5 * before["ce_loss_increase"]
    assert after["ce_loss_with_zero_ablation"] > after["ce_loss_without_sae"] + 0.1


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ({**HOST, "site": "layers.7.post"}, "model 'lstm' has no such Site"),
        ({**HOST, "site": "embedding"}, "model 'lstm' has no such Site"),
    ],
)
def test_an_unusable_host_is_refused(host: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        splicing(host=host)


def test_what_the_task_needs_is_said() -> None:
    task = {"kind": "activation_autoencoding", "model": "autoencoder", "model_options": {"d_sae": 3}}
    with pytest.raises(UserError, match=r"host: missing key$"):
        built(task)
    with pytest.raises(UserError, match=r"window belongs to task\.host"):
        built({**task, "host": HOST}, window=5)


def code_task(**options: Any) -> Any:
    model = {"hidden": 6, "layers": 1, "d_sae": 8, **options}
    task = {"kind": "code_language_modeling", "model": "code_lstm", "model_options": model}
    return built(task, batch_size=4, window=5, eval_batch_size=2)


def test_the_code_of_a_language_model_is_counted_over_every_token() -> None:
    task, _ = code_task()
    found = task.evaluate()["test"]
    codes: list[Tensor] = []
    handle = task.model.decoder.code.register_forward_hook(lambda module, inputs, output: codes.append(output))
    task.evaluate()
    handle.remove()
    tokens = task.splits["test"]
    seen = torch.cat([code.flatten(0, 1) for code in codes])[-(len(tokens) - 1) * tokens.shape[1] :]
    assert found["l0"] == pytest.approx(pure.l0(seen).item())
    assert found["dead_fraction"] == pytest.approx(pure.dead_fraction(seen).item())
    assert 0 < found["l0"] < 8


def test_the_penalty_reads_the_code_of_a_language_model() -> None:
    task, _ = code_task()
    trace = watch(task.model.train())
    task.start_epoch()
    task.loss(torch.tensor(0))
    (record,) = trace.select("code")
    assert record.activation.shape == (5, 4, 8)
    generator = torch.Generator()
    plain = SparseAutoencoder(l1_coefficient=0.5).penalty(trace, torch.tensor(1.0), generator)
    torch.testing.assert_close(plain, 0.5 * record.activation.sum(-1).mean())
    weighted = SparseAutoencoder(l1_coefficient=0.5, norm_weighted=True).penalty(trace, torch.tensor(1.0), generator)
    norms = task.model.decoder.output.weight.norm(dim=0)
    torch.testing.assert_close(weighted, 0.5 * (record.activation * norms).sum(-1).mean())


def test_a_model_without_a_code_and_a_tied_one_are_refused() -> None:
    task = {"kind": "code_language_modeling", "model": "lstm", "model_options": {"hidden": 6}}
    with pytest.raises(UserError, match="needs a model with one code Site; 'lstm' has 0"):
        built(task, batch_size=4, window=5, eval_batch_size=2)
    with pytest.raises(UserError, match="option 'tied' is for a decoder that reads the LSTM"):
        models.build("code_lstm", {"hidden": 4, "d_sae": 3, "tied": True}, Sizes((), 7), torch.Generator(), None)
