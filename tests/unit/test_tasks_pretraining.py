"""A classifier that begins as an autoencoder: what it takes over, what it computes, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from reproduce import models, tasks
from reproduce.data import ImageData, Images
from reproduce.errors import UserError
from reproduce.experiment.dataset_card import DatasetCard
from reproduce.experiment.recipe import Recipe
from reproduce.experiment.schema import TaskSpec
from reproduce.method import Unregularized
from reproduce.method.rng import Generators, derived_seed
from reproduce.method.sites import watch
from reproduce.models import Sizes
from reproduce.training.host import build_task
from reproduce.training.loop import train

CPU = torch.device("cpu")
CODE = {"d_sae": 6, "activation": "topk", "k": 2, "initial_k": 5, "alpha": 2.0, "tied": True, "centred": False}
HOST = {
    "model": "autoencoder",
    "model_options": CODE,
    "site": "code",
    "recipe": {"epochs": 3, "batch_size": 20, "learning_rate": 0.01, "momentum": 0.9},
}


def image_data() -> ImageData:
    generator = torch.Generator().manual_seed(0)

    def split(size: int) -> Images:
        labels = torch.arange(size) % 3
        pixels = torch.randint(0, 200, (size, 1, 3, 4), generator=generator) + 25 * labels.view(-1, 1, 1, 1)
        return Images(pixels.to(torch.uint8), labels)

    card = DatasetCard.model_construct(name="tiny", statistics=None)
    return ImageData(card=card, train=split(60), validation=None, test=split(23), classes=3, origin="here")


def spec_of(**changed: Any) -> TaskSpec:
    usual = {"kind": "image_classification", "dataset": "tiny", "model": "code_classifier", "normalise": "unit"}
    return TaskSpec.model_validate({**usual, "model_options": CODE, "host": HOST, **changed})


def built(spec: TaskSpec) -> Any:
    recipe = Recipe(epochs=2, batch_size=20, learning_rate=0.1)
    return build_task(spec, recipe, image_data(), Generators.seeded(0, CPU), CPU)


def test_it_begins_with_the_trained_encoder(tmp_path: Path) -> None:
    """The same autoencoding, trained here by the loop from the host's seed, has the same weights to the bit."""
    found = built(spec_of()).model.autoencoder.state_dict()
    spec = TaskSpec(kind="autoencoding", dataset="tiny", model="autoencoder", normalise="unit", model_options=CODE)
    recipe = Recipe.model_validate(HOST["recipe"])
    seed = Generators.seeded(0, CPU).initialisation.initial_seed()
    generators = Generators.seeded(derived_seed(seed, "host"), CPU)
    alone = tasks.build(spec, recipe, image_data(), generators, CPU)
    train("alone", recipe, alone, Unregularized(), generators, CPU, tmp_path)
    expected = alone.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not torch.equal(found["W_dec"], built(spec_of(host=None)).model.autoencoder.W_dec)


def test_runs_of_one_host_do_not_write_into_it() -> None:
    first, second = built(spec_of()).model, built(spec_of()).model
    with torch.no_grad():
        first.autoencoder.W_dec.zero_()
    assert second.autoencoder.W_dec.any()
    assert built(spec_of()).model.autoencoder.W_dec.any()


def test_logits_are_those_of_the_largest_units() -> None:
    """alpha * k = 4 of 6 units stay, those of the largest pre-activations, in training as in evaluation."""
    model: Any = models.build("code_classifier", CODE, Sizes((1, 3, 4), 3), torch.Generator().manual_seed(0), None)
    x: Tensor = torch.rand(5, 1, 3, 4, generator=torch.Generator().manual_seed(1))
    before = (x.flatten(1) @ model.autoencoder.W_dec.t()).tolist()
    kept = [[value if value in sorted(row)[2:] else 0.0 for value in row] for row in before]
    weight, bias = model.classifier.weight, model.classifier.bias
    trace = watch(model.train())
    torch.testing.assert_close(model(x), torch.tensor(kept) @ weight.t() + bias)
    (record,) = trace.select("code")
    torch.testing.assert_close(record.activation, torch.tensor(kept))
    model(x).sum().backward()
    assert model.autoencoder.W_dec.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"host": {**HOST, "site": "layers.0.post"}}, "task.host.site: expected 'code'"),
        ({"model": "mlp", "model_options": {"width": 4, "depth": 1}}, "expected model code_classifier"),
        ({"model_options": {**CODE, "d_sae": 7}}, "another autoencoder than the task's: size mismatch"),
    ],
)
def test_what_does_not_fit_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        built(spec_of(**changed))
