"""Which modules `attach` chooses by default, and what it says where that is a part of the model alone."""

from __future__ import annotations

import warnings

import pytest
from torch import nn

from reproduce import attach, load_method
from reproduce.integrations.transformers import PenaltyTrainer


class Own(nn.Module):
    """An activation that torch does not have."""


def block() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), Own(), nn.Linear(4, 4))


class Model(nn.Module):
    """Six kernels below `body`, whose activations are not torch's, and two in a head."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(block(), block(), block())
        self.head = head


def warned(model: nn.Module, method: str = "activity_norm", **options: str) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        attach(method, model, **options).remove()  # type: ignore[arg-type]
    return [str(one.message) for one in caught]


def head() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


@pytest.mark.parametrize("options", [{}, {"sites": "post"}, {"sites": "pre"}])
def test_a_model_with_most_kernels_where_no_activation_is_found_is_warned_of_once(options: dict[str, str]) -> None:
    (said,) = warned(Model(head()), **options)
    assert "finds head.1 alone, and nothing in 'body', which holds 6 of the model's 8 kernels" in said
    assert said.endswith("name modules in sites, of: body.*, body.*.*")


def test_names_are_patterns_and_those_called_like_an_activation_come_first() -> None:
    model = nn.ModuleDict(
        {"layers": nn.ModuleList([nn.ModuleDict({"dense": nn.Linear(2, 2), "act_fn": Own()}) for _ in range(3)])}
    )
    with pytest.raises(ValueError, match=r"of: layers\.\*\.act_fn, layers, layers\.\*, layers\.\*\.dense$"):
        attach("activity_norm", model)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(*[part for _ in range(6) for part in (nn.Linear(4, 4), nn.ReLU())], nn.Linear(4, 4)),
        nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4)) for _ in range(4)]),
        Model(nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)], *head())),  # six of twelve kernels
        nn.Sequential(nn.Embedding(9, 4), nn.LSTM(4, 4, 2)),
    ],
    ids=["mlp", "blocks", "half", "recurrent"],
)
def test_a_model_with_activations_in_most_of_it_is_not_warned_of(model: nn.Module) -> None:
    assert warned(model) == []


def test_modules_that_are_named_and_methods_of_weights_are_not_warned_of() -> None:
    model = Model(head())
    assert warned(model, sites=["body.*.1"]) == []  # type: ignore[arg-type]
    assert warned(model, "orthogonal") == []


def test_a_trainer_without_sites_warns_of_bert() -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8
        )
    )
    with pytest.warns(UserWarning, match=r"bert\.pooler\.activation alone, and nothing in 'bert\.encoder', which") as w:
        trainer = PenaltyTrainer(
            model, transformers.TrainingArguments(use_cpu=True, report_to="none"), method=load_method("activity_norm")
        )
    trainer.handle.remove()
    (said,) = (str(one.message) for one in w if "sites =" in str(one.message))
    assert "bert.encoder.layer.*.intermediate" in said
