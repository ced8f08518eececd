"""The autoencoder against its formulas, and its Task against loops over images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from methods.sparse_autoencoder import method as pure
from reproduce import models, tasks
from reproduce.data import ImageData, Images
from reproduce.errors import UserError
from reproduce.experiment.dataset_card import DatasetCard
from reproduce.experiment.recipe import Recipe
from reproduce.experiment.schema import TaskSpec
from reproduce.method import Method, Role, Unregularized
from reproduce.method.rng import Generators
from reproduce.method.sites import sites_of, watch
from reproduce.models import Sizes
from reproduce.tasks._sparsity import CodeStatistics, ReconstructionStatistics
from reproduce.training.loop import Interrupted, train

CPU = torch.device("cpu")


def autoencoder(**options: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    return models.build("autoencoder", {"d_sae": 9, **options}, Sizes((1, 2, 3), 10), generator, None)


def images(n: int = 8, seed: int = 0) -> Tensor:
    return torch.rand(n, 1, 2, 3, generator=torch.Generator().manual_seed(seed))


def test_relu_autoencoder_is_its_formula() -> None:
    model, x = autoencoder(), images()
    with torch.no_grad():
        model.b_dec.uniform_(-1, 1, generator=torch.Generator().manual_seed(1))
        model.b_enc.uniform_(-1, 1, generator=torch.Generator().manual_seed(2))
    flat = x.flatten(1)
    code = torch.relu((flat - model.b_dec) @ model.W_enc + model.b_enc)
    torch.testing.assert_close(model.encode(x), code)
    torch.testing.assert_close(model(x), (code @ model.W_dec + model.b_dec).reshape(8, 1, 2, 3))
    state = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert state == {"W_enc": (6, 9), "b_enc": (9,), "W_dec": (9, 6), "b_dec": (6,)}


def test_the_start_is_transposed_with_rows_of_the_asked_norm() -> None:
    model = autoencoder(initial_norm=0.1)
    torch.testing.assert_close(model.W_dec.norm(dim=1), torch.full((9,), 0.1))
    assert torch.equal(model.W_enc, model.W_dec.t())
    assert not model.b_enc.any()
    assert not model.b_dec.any()
    wide = models.build("autoencoder", {"d_sae": 500, "initial_std": 0.01}, Sizes((784,), 1), torch.Generator(), None)
    assert wide.W_dec.std().item() == pytest.approx(0.01, rel=0.01)


def test_unit_rows_stay_unit_and_no_gradient_runs_along_them() -> None:
    model, x = autoencoder(decoder="unit_norm").double(), images().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        (model(x) - x).square().sum().backward()
        stored = model.parametrizations.W_dec.original
        assert stored.grad.abs().max() > 1e-3
        along = (stored.grad * stored).sum(1) / stored.norm(dim=1)
        torch.testing.assert_close(along, torch.zeros(9).double(), atol=1e-12, rtol=0)
        optimizer.step()
        torch.testing.assert_close(model.W_dec.norm(dim=1), torch.ones(9).double())


def test_tied_has_one_matrix() -> None:
    model, x = autoencoder(tied=True, decoder="unit_norm", decoder_bias=False, centred=False), images()
    assert {name for name, _ in model.named_parameters()} == {"b_enc", "parametrizations.W_dec.original"}
    code = torch.relu(x.flatten(1) @ model.W_dec.t())
    torch.testing.assert_close(model(x).flatten(1), code @ model.W_dec)


def test_topk_keeps_exactly_the_k_largest() -> None:
    model, x = autoencoder(activation="topk", k=2, alpha=2.0, tied=True, centred=False), images()
    before = x.flatten(1) @ model.W_dec.t()
    for kept, found in ((2, model.encode(x)), (4, model.features(x))):
        for row, values in zip(found.tolist(), before.tolist(), strict=True):
            largest = sorted(range(9), key=lambda unit: -values[unit])[:kept]
            assert row == [pytest.approx(values[unit]) if unit in largest else 0.0 for unit in range(9)]


def test_k_falls_linearly_over_the_first_half() -> None:
    model, x = autoencoder(activation="topk", k=2, initial_k=8), images()
    for progress, k in ((0.0, 8), (0.25, 5), (0.5, 2), (0.9, 2)):
        model.anneal(progress)
        assert (model.encode(x) != 0).sum(1).tolist() == [k] * 8


def test_sigmoid_code_and_dropout() -> None:
    model, x = autoencoder(activation="sigmoid"), images()
    torch.testing.assert_close(model.encode(x), torch.sigmoid(x.flatten(1) @ model.W_enc))
    dropout = torch.Generator().manual_seed(0)
    options = {"d_sae": 9, "input_dropout": 0.2, "code_dropout": 0.5}
    noisy = models.build("autoencoder", options, Sizes((1, 2, 3), 10), torch.Generator(), dropout)
    assert not torch.equal(noisy(x), noisy(x))
    noisy.eval()
    assert torch.equal(noisy(x), noisy(x))


def test_the_code_site_records_the_code() -> None:
    model, x = autoencoder(), images()
    trace = watch(model.train())
    model(x)
    (record,) = trace.select("code")
    assert record.site.name == "code"
    torch.testing.assert_close(record.activation, model.encode(x))
    assert [site.role for site in sites_of(model)] == ["code"]


@pytest.mark.parametrize("hidden", [None, 4])
@pytest.mark.parametrize("output_activation", ["linear", "sigmoid"])
def test_layered_autoencoder_is_its_formula(hidden: int | None, output_activation: str) -> None:
    options = {"d_sae": 9, "hidden": hidden, "output_activation": output_activation}
    model: Any = models.build("layered_autoencoder", options, Sizes((1, 2, 3), 1), torch.Generator(), None)
    x = images().flatten(1)
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter, -1, 1, generator=torch.Generator().manual_seed(4))
    weight = dict(model.named_parameters())
    value = x
    if hidden is not None:
        value = (value @ weight["before.layer.weight"].t() + weight["before.layer.bias"]).clamp_min(0)
    code = 1 / (1 + torch.exp(-(value @ weight["encoder.weight"].t() + weight["encoder.bias"])))
    value = code
    if hidden is not None:
        value = (value @ weight["behind.layer.weight"].t() + weight["behind.layer.bias"]).clamp_min(0)
    value = value @ weight["decoder.weight"].t() + weight["decoder.bias"]
    if output_activation == "sigmoid":
        value = 1 / (1 + torch.exp(-value))
    torch.testing.assert_close(model.features(images()), code)
    torch.testing.assert_close(model(images()), value.reshape(8, 1, 2, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_sae": 0}, "d_sae: Input should be greater than or equal to 1, found 0"),
        ({"d_sae": 4, "activation": "topk"}, "takes option 'k'"),
        ({"d_sae": 4, "k": 2}, "takes option 'k'"),
        ({"d_sae": 4, "activation": "topk", "k": 5}, "needs k <= initial_k <= d_sae, got 5, None, 4"),
        ({"d_sae": 4, "alpha": 2.0}, "for activation 'topk'"),
        ({"d_sae": 4, "decoder_bias": False}, "needs option 'decoder_bias'|need option 'decoder_bias'"),
    ],
)
def test_unusable_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        models.check_options("autoencoder", options)


def test_sums_over_batches_are_the_pure_functions_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(50, 4, generator=generator) + 30
    output = inputs + torch.randn(50, 4, generator=generator)
    code = torch.relu(torch.randn(50, 7, generator=generator) - torch.arange(7.0))
    codes, reconstructions = CodeStatistics(), ReconstructionStatistics()
    for start in (0, 20, 40):
        codes.add(code[start : start + 20])
        reconstructions.add(inputs[start : start + 20], output[start : start + 20])
    found = codes.metrics() | reconstructions.metrics()
    expected = {
        "l0": pure.l0(code),
        "dead_fraction": pure.dead_fraction(code),
        "fvu": pure.fvu(inputs, output),
        "relative_reconstruction_bias": pure.relative_reconstruction_bias(inputs, output),
    }
    assert found == {name: pytest.approx(value.item(), rel=1e-9) for name, value in expected.items()}


def test_nothing_to_measure_is_an_error() -> None:
    constant, zero = ReconstructionStatistics(), ReconstructionStatistics()
    constant.add(torch.ones(3, 2), torch.ones(3, 2))
    zero.add(torch.eye(3), torch.zeros(3, 3))
    assert zero.metrics()["relative_reconstruction_bias"] == 0.0
    with pytest.raises(ValueError, match="all 3 inputs are equal"):
        constant.metrics()
    with pytest.raises(ValueError, match="no reconstruction was added"):
        ReconstructionStatistics().metrics()
    with pytest.raises(ValueError, match="no code was added"):
        CodeStatistics().metrics()


def image_data() -> ImageData:
    generator = torch.Generator().manual_seed(0)

    def split(size: int) -> Images:
        labels = torch.arange(size) % 3
        pixels = torch.randint(0, 200, (size, 1, 3, 4), generator=generator) + 25 * labels.view(-1, 1, 1, 1)
        return Images(pixels.to(torch.uint8), labels)

    card = DatasetCard.model_construct(name="tiny", statistics=None)
    return ImageData(card=card, train=split(60), validation=None, test=split(23), classes=3, origin="here")


def task_of(task: dict[str, Any] | None = None, **recipe: Any) -> Any:
    usual = {"kind": "autoencoding", "dataset": "tiny", "model": "autoencoder", "normalise": "unit"}
    spec = TaskSpec.model_validate({**usual, "model_options": {"d_sae": 5}, **(task or {})})
    content = {"epochs": 4, "batch_size": 20, "learning_rate": 0.01, "eval_batch_size": 10, **recipe}
    chosen = Recipe.model_validate(content)
    return tasks.build(spec, chosen, image_data(), Generators.seeded(0, CPU), CPU), chosen


@pytest.mark.parametrize(("reconstruction", "divisor"), [(None, 1), ("pixel_mean", 12)])
def test_loss_is_the_loop_over_pixels(reconstruction: str | None, divisor: int) -> None:
    task, _ = task_of({"reconstruction": reconstruction})
    task.start_epoch()
    found = task.loss(torch.tensor(1)).item()
    total = 0.0
    for example in task.order[20:40].tolist():
        image = image_data().train.images[example].flatten() / 255
        output = task.model(image.view(1, 1, 3, 4)).flatten()
        total += sum((a - b) ** 2 for a, b in zip(image.tolist(), output.tolist(), strict=True))
    assert found == pytest.approx(total / divisor / 20, rel=1e-5)


def test_evaluation_is_that_of_the_whole_split() -> None:
    task, _ = task_of()
    found = task.evaluate()["test"]
    x = image_data().test.images.float() / 255
    code = task.model.encode(x)
    output = task.model.decode(code)
    assert found == {
        "loss": pytest.approx((x.flatten(1) - output).square().sum(1).mean().item(), rel=1e-5),
        "fvu": pytest.approx(pure.fvu(x.flatten(1), output).item(), rel=1e-5),
        "relative_reconstruction_bias": pytest.approx(
            pure.relative_reconstruction_bias(x.flatten(1), output).item(), rel=1e-5
        ),
        "l0": pytest.approx(pure.l0(code).item()),
        "dead_fraction": pytest.approx(pure.dead_fraction(code).item()),
        "decoder_norm": pytest.approx(1.0),
    }
    assert task.metric.name == "fvu"


@pytest.mark.parametrize("kl", [0.0, 0.5])
def test_the_objective_is_loss_plus_penalty_in_batches(tmp_path: Path, kl: float) -> None:
    """Of L1 the mean over images, of the divergence the mean over batches by their size: 20 and 3 images here."""
    spec = {"objective": "with_penalty", "model": "layered_autoencoder", "model_options": {"d_sae": 5}}
    task, recipe = task_of(spec, epochs=1)
    method = pure.SparseAutoencoder(l1_coefficient=0.25, kl_coefficient=kl, target_density=0.1)
    outcome = train("o", recipe, task, method, task.generators, CPU, tmp_path)
    test = image_data().test.images.double().flatten(1) / 255
    model = task.model.double().eval()
    expected = 0.0
    for batch in (test[:20], test[20:]):
        code = model.encode(batch)
        total = (model.decode(code) - batch).square().sum() / len(batch) + 0.25 * code.sum() / len(batch)
        for mean in code.mean(0).tolist():
            total = total + kl * (0.1 * math.log(0.1 / mean) + 0.9 * math.log(0.9 / (1 - mean)))
        expected += total.item() * len(batch) / len(test)
    found = outcome.epochs[-1].test
    assert found["objective"] == pytest.approx(expected, rel=1e-5)
    assert found["objective"] > found["loss"] + 0.1


def test_a_run_with_objectives_equals_one_without(tmp_path: Path) -> None:
    ends = []
    for name, objective in (("with", "with_penalty"), ("without", None)):
        (tmp_path / name).mkdir()
        options = {"d_sae": 5, "input_dropout": 0.3}
        task, recipe = task_of({"objective": objective, "model_options": options}, epochs=3)
        method = pure.SparseAutoencoder(l1_coefficient=0.1)
        outcome = train("o", recipe, task, method, task.generators, CPU, tmp_path / name)
        assert ("objective" in outcome.epochs[0].test) == (objective is not None)
        ends.append(task.model.state_dict())
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_the_classifier_reads_features_of_a_frozen_code() -> None:
    task, _ = task_of({"classifier_iterations": 50, "model_options": {"d_sae": 5, "activation": "topk", "k": 2}})
    found = task.evaluate()["test"]["classifier_error"]
    data = image_data()
    train_features, test_features = (
        task.model.features(split.images.float() / 255).detach().numpy() for split in (data.train, data.test)
    )
    classifier = LogisticRegression(max_iter=50).fit(train_features, data.train.labels.numpy())
    wrong = classifier.predict(test_features) != data.test.labels.numpy()
    assert found == pytest.approx(100 * wrong.mean())
    assert 0 < found < 100
    assert task.metric.name == "classifier_error"


def test_the_strength_of_the_classifier_is_chosen_on_validation() -> None:
    strengths = (0.001, 0.01, 0.1, 1.0, 10.0)
    changed = {"classifier_iterations": 50, "classifier_strength": "chosen", "model": "pixels", "model_options": {}}
    task, _ = task_of({**changed, "validation": 15})
    found = task.evaluate()
    data = image_data()
    x, y = data.train.images.float().flatten(1).numpy() / 255, data.train.labels.numpy()
    test_x, test_y = data.test.images.float().flatten(1).numpy() / 255, data.test.labels.numpy()
    errors = {}
    for strength in strengths:
        classifier = LogisticRegression(C=strength, max_iter=50).fit(x[:45], y[:45])
        errors[strength] = [100 * (classifier.predict(a) != b).mean() for a, b in ((x[45:], y[45:]), (test_x, test_y))]
    best = min(sorted(strengths), key=lambda strength: errors[strength][0])
    assert len({validation for validation, _ in errors.values()}) > 1
    assert found["validation"]["classifier_error"] == pytest.approx(errors[best][0])
    assert found["test"]["classifier_error"] == pytest.approx(errors[best][1])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"classifier_iterations": 5, "classifier_strength": "chosen"}, "'tiny' has no validation split"),
        ({"classifier_strength": "chosen", "validation": 15}, "needs option 'classifier_iterations'"),
    ],
)
def test_strengths_need_a_classifier_and_validation(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        task_of(changed)


def test_pixels_are_their_own_features() -> None:
    task, _ = task_of({"classifier_iterations": 200, "model": "pixels", "model_options": {}})
    task.start_epoch()
    assert task.loss(torch.tensor(0)).item() == 0.0
    found = task.evaluate()["test"]
    assert found["fvu"] == 0.0
    assert found["classifier_error"] < 100 * 2 / 3
    assert "decoder_norm" not in found


def test_k_goes_on_falling_after_an_interruption(tmp_path: Path) -> None:
    options = {"d_sae": 8, "activation": "topk", "k": 2, "initial_k": 8}
    ends = []
    for name, stop_after in (("whole", 0), ("cut", 4)):
        (tmp_path / name).mkdir()
        stops = iter([False] * (stop_after - 1) + [True]) if stop_after else iter([])
        while True:
            task, recipe = task_of({"model_options": options}, epochs=6)
            try:
                generators = task.generators
                stop = lambda stops=stops: next(stops, False)  # noqa: E731
                outcome = train("k", recipe, task, Unregularized(), generators, CPU, tmp_path / name, should_stop=stop)
            except Interrupted:
                continue
            break
        ends.append((outcome, task.model.state_dict()))
    assert ends[1][0].resumed == 1
    assert ends[0][1]["k_now"].item() == 2
    assert [epoch.test["l0"] for epoch in ends[0][0].epochs] == [8, 6, 4, 2, 2, 2]
    for name, value in ends[0][1].items():
        assert torch.equal(value, ends[1][1][name])
    assert [e.test for e in ends[0][0].epochs] == [e.test for e in ends[1][0].epochs]


@pytest.mark.parametrize(
    ("task", "recipe", "message"),
    [
        ({"model": "mlp", "model_options": {"width": 4, "depth": 1}}, {}, "needs an autoencoder; model 'mlp' has no"),
        ({}, {"mixup": 0.4}, "this task has none"),
        ({}, {"augment": "crop_flip"}, "this task has none"),
    ],
)
def test_what_cannot_be_autoencoded_is_refused(task: dict[str, Any], recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        task_of(task, **recipe)


def test_an_empty_hook_after_the_step_changes_nothing(tmp_path: Path) -> None:
    """And one that is filled sees the model after the optimiser moved it, with the step's progress."""
    seen = []

    class Watching(Method):
        sites: Role = "code"

        def after_step(self, model: nn.Module, optimizer: Any, progress: Tensor, generator: torch.Generator) -> None:
            (record,) = next(sites_of(model)).trace.records
            seen.append((progress.item(), record.activation.shape, len(optimizer.state)))

    ends = []
    for name, method in (("plain", Unregularized()), ("watching", Watching())):
        (tmp_path / name).mkdir()
        task, recipe = task_of(momentum=0.9)
        train(name, recipe, task, method, task.generators, CPU, tmp_path / name)
        ends.append(task.model.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    assert len(seen) == 12
    assert math.isclose(seen[6][0], 6 / 12)
    assert seen[0][1] == (20, 5)
    assert seen[0][2] == 4  # the optimiser has stepped: it has momenta of all four parameters
