"""Regression on the lower half of images: what the targets are, that they have their laws, and the metrics."""

import dataclasses

import numpy as np
import pytest
import scipy.stats
import torch

from reproduce import tasks
from reproduce.data import ImageData, Images, WordData
from reproduce.errors import UserError
from reproduce.experiment.dataset_card import DatasetCard, Statistics
from reproduce.experiment.folder import find_method
from reproduce.experiment.recipe import Recipe
from reproduce.experiment.schema import Experiment, TaskSpec
from reproduce.method.rng import Generators
from reproduce.method.sites import watch
from reproduce.models import Sizes, build
from reproduce.tasks.regression import BINS, HUMP_COUNTS, HUMP_EDGES, quantile, wanted

CPU = torch.device("cpu")
SPEC = TaskSpec(
    kind="regression",
    dataset="noise",
    model="rectified_mlp",
    model_options={"width": 16, "depth": 1, "activation": "tanh"},
)


def images(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, 1, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def data(n: int = 120) -> ImageData:
    card = DatasetCard.model_construct(name="noise", statistics=Statistics(mean=(0.5,), std=(0.3,), source="noise"))
    parts = [Images(images(n, seed), torch.zeros(n, dtype=torch.int64)) for seed in range(3)]
    return ImageData(card=card, train=parts[0], validation=parts[1], test=parts[2], classes=10, origin="made here")


def task(recipe: dict | None = None, found: object | None = None, spec: TaskSpec = SPEC):
    chosen = Recipe(epochs=1, learning_rate=0.1, eval_batch_size=50, **{"batch_size": 16, **(recipe or {})})
    return tasks.build(spec, chosen, found or data(), Generators.seeded(0, CPU), CPU)


def test_targets_of_the_training_images_have_the_two_laws():
    train = images(2000)
    targets = wanted(train, train).double().numpy()
    assert scipy.stats.kstest(targets[:, 0], scipy.stats.expon.cdf).statistic < 0.02
    humps = scipy.stats.rv_histogram(([1.0, 4.0, 1.0, 4.0], [0.0, 0.5, 1.0, 1.5, 2.0]), density=False)
    assert scipy.stats.kstest(targets[:, 1], humps.cdf).statistic < 0.02
    level = np.array([0.05, 0.3, 0.62, 0.99])
    np.testing.assert_allclose(quantile(0, level), scipy.stats.expon.ppf(level))
    np.testing.assert_allclose(quantile(1, level), humps.ppf(level))


def test_experiments_ask_for_the_laws_of_the_task():
    """Their files spell the laws out, since a method knows no task: here both must be the same."""
    experiments = [one for one in find_method("activity_prior").experiments().values() if _is_regression(one)]
    arms = [arm for one in experiments for arm in one.arms.values() if "prior" in arm.params]
    assert len(experiments) >= 2
    assert len(arms) >= 2 * len(experiments)
    for arm in arms:
        exponential, humps = arm.params["prior"]
        assert exponential == {"kind": "exponential", "rate": 1.0}
        assert humps == {"kind": "histogram", "edges": HUMP_EDGES, "counts": HUMP_COUNTS}


def _is_regression(experiment: Experiment) -> bool:
    return any(task.kind == "regression" for task in experiment.tasks.values())


def test_targets_grow_with_the_ink_of_their_own_lower_quarter_and_see_nothing_else():
    train = images(200)
    lower_left = train[:, :, 4:, :4].double().sum((1, 2, 3))
    lower_right = train[:, :, 4:, 4:].double().sum((1, 2, 3))
    targets = wanted(train, train)
    assert scipy.stats.spearmanr(lower_left, targets[:, 0]).statistic == pytest.approx(1)
    assert scipy.stats.spearmanr(lower_right, targets[:, 1]).statistic == pytest.approx(1)
    other = train.clone()
    other[:, :, :4] = 0
    assert torch.equal(wanted(other, train), targets)
    darkest = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    np.testing.assert_allclose(wanted(darkest, train)[0, 0].item(), -np.log1p(-0.5 / 200), rtol=1e-6)


def test_the_network_sees_the_upper_quarter_alone():
    built = task()
    assert built.train.inputs.shape == (120, 1, 2, 8)
    assert torch.equal(built.train.inputs, data().train.images[:, :, :2])
    assert built.train.labels.shape == (120, 2)


def test_loss_and_metrics_against_numpy():
    built = task()
    built.start_epoch()
    chosen = built.order[:16]
    with torch.no_grad():
        outputs = built.model(built.read(built.train.inputs[chosen]))
        expected = ((outputs - built.train.labels[chosen]) ** 2).mean()
        assert built.loss(torch.tensor(0)).item() == pytest.approx(expected.item())
        every = built.model(built.read(built.splits["test"].inputs)).double().numpy()
    found = built.evaluate()["test"]
    targets = wanted(data().test.images, data().train.images).numpy()
    assert found["mse"] == pytest.approx(((every - targets) ** 2).mean(), rel=1e-5)
    level = (np.arange(120) + 0.5) / 120
    gaps = [np.abs(np.sort(every[:, unit]) - quantile(unit, level)).mean() for unit in range(2)]
    assert found["histogram_distance"] == pytest.approx(np.mean(gaps), rel=1e-6)
    shares = [found[f"output_1_bin_{place}"] for place in range(len(BINS) - 1)]
    assert sum(shares) == pytest.approx(1)
    assert shares[3] == pytest.approx(np.mean((every[:, 1] >= BINS[3]) & (every[:, 1] < BINS[4])))
    assert built.metric.name == "mse"


def test_outputs_that_are_not_finite_have_no_distance():
    built = task()
    torch.nn.init.constant_(built.model.output.layer.bias, float("nan"))
    assert np.isnan(built.evaluate()["test"]["histogram_distance"])


def test_what_it_cannot_use_is_refused():
    with pytest.raises(UserError, match="this task has none"):
        task({"mixup": 0.5})
    whole = data()
    row = dataclasses.replace(whole, train=Images(whole.train.images[:, :, :1], whole.train.labels))
    with pytest.raises(UserError, match="at least 4x2"):
        task(found=row)
    tokens = torch.arange(9)
    words = WordData(DatasetCard.model_construct(name="w"), tokens, tokens, tokens, tuple("abcdefghi"), "made here")
    with pytest.raises(UserError, match="needs images; dataset 'noise' holds words"):
        task(found=words)


def test_outputs_of_the_rectified_network_pass_a_relu_between_two_sites():
    network = build(
        "rectified_mlp",
        {"width": 5, "depth": 2, "activation": "relu"},
        Sizes((1, 4, 8), 2),
        torch.Generator().manual_seed(0),
        None,
    )
    trace = watch(network.train())
    outputs = network(30 * torch.randn(500, 1, 4, 8, generator=torch.Generator().manual_seed(1)))
    names = [record.site.name for record in trace.records]
    assert names[-2:] == ["output.pre", "output.post"]
    assert len(names) == 6
    assert torch.equal(outputs, trace.records[-2].activation.clamp_min(0))
    assert torch.equal(outputs, trace.records[-1].activation)
    assert outputs.min() == 0
