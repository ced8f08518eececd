"""The mix-in in the real Trainer: its steps are those by hand, and a resumed training is undisturbed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainingArguments

from reproduce import Method, load_method
from reproduce.integrations.transformers import PenaltyMixin, PenaltyTrainer

RATE = 0.1
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")]


class Tagger(nn.Module):
    """Somebody's model of sentences, which returns its loss as those of transformers do."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 6)
        self.hidden = nn.Linear(6, 8)
        self.act = nn.Tanh()
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(8, 3)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 2

    def forward(self, input_ids: Tensor, labels: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.out(self.dropout(self.act(self.hidden(self.embed(input_ids)))).mean(1))
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class ByItems(Tagger):
    """Its loss is that of all items of an accumulated batch."""

    def forward(  # type: ignore[override]
        self, input_ids: Tensor, labels: Tensor, num_items_in_batch: Any = None, **_: Any
    ) -> dict[str, Tensor]:
        logits = super().forward(input_ids, labels)["logits"]
        total = F.cross_entropy(logits, labels, reduction="sum")
        return {"loss": total / (len(labels) if num_items_in_batch is None else num_items_in_batch), "logits": logits}


def l2(strength: float = 1.0) -> Method:
    return load_method("activity_norm", kind="l2", strength=strength, reduction="mean")


def sentences(n: int = 24, **more: Any) -> list[dict[str, Tensor]]:
    words = torch.randint(0, 20, (n, 5), generator=torch.Generator().manual_seed(1))
    return [
        {"input_ids": words[k], "labels": torch.tensor(k % 3)} | {m: v[k] for m, v in more.items()} for k in range(n)
    ]


def together(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def arguments(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 24,
        "max_steps": 1,
        "optim": "sgd",
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        **changes,
    }


def trainer(folder: Path, model: nn.Module, method: Method, given: dict[str, Any], **changes: Any) -> PenaltyTrainer:
    rows = given.pop("rows", sentences())
    return PenaltyTrainer(
        model, TrainingArguments(**arguments(folder, **changes)), train_dataset=rows, eval_dataset=rows, method=method,
        **given,
    )  # fmt: skip


def hidden(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    return torch.tanh(model.hidden(model.embed(inputs["input_ids"])))


def by_hand(clip: float = 0.0) -> Tagger:
    """A model after one step of gradient descent on all sentences, with the penalty written out."""
    model, inputs = Tagger(), together(sentences())
    (model(**inputs)["loss"] + hidden(model, inputs).square().mean()).backward()
    if clip:
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= RATE * parameter.grad
    return model


@pytest.mark.parametrize("model", [Tagger, ByItems])
@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [({}, 1e-6), ({"max_grad_norm": 0.2}, 1e-6), ({"bf16": True}, 2e-3)],
    ids=["float32", "clipped", "bfloat16"],
)
def test_a_step_is_the_step_by_hand(
    changes: dict[str, Any], tolerance: float, pieces: int, model: type[Tagger], tmp_path: Path
) -> None:
    trained = model()
    trainer(
        tmp_path,
        trained,
        l2(),
        {},
        per_device_train_batch_size=24 // pieces,
        gradient_accumulation_steps=pieces,
        **changes,
    ).train()
    wanted = by_hand(changes.get("max_grad_norm", 0.0))
    moved = 0.0
    for one, other, before in zip(trained.parameters(), wanted.parameters(), Tagger().parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)
        moved = max(moved, (other - before).abs().max().item())
    assert moved > 5 * tolerance


def test_a_loss_function_of_ones_own_is_a_share_of_the_accumulated_batch(tmp_path: Path) -> None:
    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Any) -> Tensor:
        return F.cross_entropy(outputs["logits"], labels, reduction="sum") / 24

    class Unlabelled(Tagger):
        def forward(self, input_ids: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            return {"logits": super().forward(input_ids, torch.zeros(len(input_ids), dtype=torch.long))["logits"]}

    trained = Unlabelled()
    trainer(
        tmp_path, trained, l2(), {"compute_loss_func": loss}, per_device_train_batch_size=8,
        gradient_accumulation_steps=3, remove_unused_columns=False,
    ).train()  # fmt: skip
    for one, other in zip(trained.parameters(), by_hand().parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_the_penalty_is_logged_and_evaluation_has_none(tmp_path: Path) -> None:
    model, inputs = Tagger(), together(sentences())
    expected = 5.0 * hidden(model, inputs).square().mean().item()
    trained = trainer(tmp_path, model, l2(5.0), {}, per_device_train_batch_size=12, gradient_accumulation_steps=2)
    trained.train()
    logged = [entry for entry in trained.state.log_history if "loss" in entry]
    assert [entry["penalty"] for entry in logged] == [pytest.approx(expected, rel=1e-5)]
    plain = Tagger()
    plain.load_state_dict(model.state_dict())
    found = trained.evaluate()
    assert found["eval_loss"] == pytest.approx(plain(**inputs)["loss"].item(), rel=1e-5)
    assert "penalty" not in found
    assert trained.handle.trace.is_empty


def test_it_acts_once_for_each_step_of_the_optimiser_and_sees_all_batches(tmp_path: Path, everything: Method) -> None:
    model = Tagger()
    trained = trainer(
        tmp_path, model, everything, {}, max_steps=6, per_device_train_batch_size=4, gradient_accumulation_steps=2
    )
    trained.train()
    assert model.n_steps == 6
    assert model.n_samples == 2 * 24
    trained.handle.remove()
    assert list(model.state_dict()) == list(Tagger().state_dict())


METHODS: dict[str, Any] = {
    "everything": (None, {}),
    "vcl": (lambda: load_method("vcl", strength=0.3, sample_size=2), {"example": together(sentences(2))}),
    "per": (lambda: load_method("per", strength=0.3, mode="sliced"), {}),
    "sigreg": (lambda: load_method("sigreg", strength=0.3), {}),
}


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_training_has_the_numbers_of_an_undisturbed_one(
    name: str, bf16: bool, tmp_path: Path, everything: Method
) -> None:
    make, given = METHODS[name]
    ends = []
    for checkpoint in (None, str(tmp_path / "checkpoint-2")):  # in the middle of an epoch, with dropout
        model = Tagger(dropout=0.3)
        trained = trainer(
            tmp_path, model, make() if make else everything, dict(given), max_steps=5, optim="adamw_torch", bf16=bf16,
            per_device_train_batch_size=4, gradient_accumulation_steps=2, save_strategy="steps", save_steps=2,
            learning_rate=1e-2,
        )  # fmt: skip
        trained.train(resume_from_checkpoint=checkpoint)
        ends.append((model.state_dict(), trained.handle.state_dict()))
    assert not torch.equal(ends[0][0]["out.weight"], Tagger().state_dict()["out.weight"])
    for one, other in zip(*ends, strict=True):
        assert list(one) == list(other)
        for key, value in one.items():
            assert torch.equal(value, other[key]), key


def test_a_checkpoint_without_the_methods_state_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path, Tagger(), l2(), {}, save_strategy="steps", save_steps=1).train()
    (tmp_path / "checkpoint-1" / "method.pt").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-1 has no method.pt: it was written without this method"):
        trainer(tmp_path, Tagger(), l2(), {}, max_steps=2).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_padding_is_left_out(tmp_path: Path) -> None:
    mask = (torch.arange(5) < 1 + torch.arange(24)[:, None] % 5).long()
    rows = sentences(attention_mask=mask)
    inputs, penalties = together(rows), []
    for key in ("attention_mask", None):
        trained = trainer(tmp_path, Tagger(), l2(), {"rows": rows, "mask_key": key})
        trained.train()
        penalties.append(trained.state.log_history[0]["penalty"])
    squares = hidden(Tagger(), inputs).square()
    assert penalties[0] == pytest.approx(squares[mask.bool()].mean().item(), rel=1e-5)
    assert penalties[1] == pytest.approx(squares.mean().item(), rel=1e-5)
    assert abs(penalties[0] - penalties[1]) > 1e-3


def test_a_mask_that_is_none_of_positions_is_refused(tmp_path: Path) -> None:
    rows = sentences(attention_mask=torch.zeros(24, 1, 5, 5))
    with pytest.raises(ValueError, match=r"'attention_mask' of shape \(24, 1, 5, 5\) is no mask \(n, t\)"):
        trainer(tmp_path, Tagger(), l2(), {"rows": rows}).train()


def test_it_mixes_into_other_trainers(tmp_path: Path) -> None:
    class Trained(PenaltyMixin, Seq2SeqTrainer):
        pass

    model = Tagger()
    Trained(model, Seq2SeqTrainingArguments(**arguments(tmp_path)), train_dataset=sentences(), method=l2()).train()
    for one, other in zip(model.parameters(), by_hand().parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_an_optimiser_made_before_the_method_is_refused_where_it_misses_parameters(
    tmp_path: Path, everything: Method
) -> None:
    model = Tagger()
    optimizers = (torch.optim.SGD(model.parameters(), lr=RATE), None)
    with pytest.raises(ValueError, match=r"^the optimizer in optimizers= was made before the method added 'scale'"):
        trainer(tmp_path, model, everything, {"optimizers": optimizers})
    assert list(model.state_dict()) == list(Tagger().state_dict())
    trainer(tmp_path, model, l2(), {"optimizers": optimizers}).train()
    for one, other in zip(model.parameters(), by_hand().parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_what_trains_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^model_init makes a new model for each training"):
        PenaltyTrainer(
            model_init=lambda: Tagger(),
            args=TrainingArguments(**arguments(tmp_path)),
            train_dataset=sentences(),
            method=l2(),
        )
    several = TrainingArguments(**arguments(tmp_path))
    several._n_gpu = 2
    with pytest.raises(ValueError, match=r"^2 GPUs in one process .* start it by torchrun"):
        PenaltyTrainer(Tagger(), several, train_dataset=sentences(), method=l2())
    with pytest.raises(TypeError, match=r"load_method\('per'\)"):
        trainer(tmp_path, Tagger(), "per", {})  # type: ignore[arg-type]
