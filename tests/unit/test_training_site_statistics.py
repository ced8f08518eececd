"""Statistics of Sites against numpy, and probing that a run does not notice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kurtosis, norm
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from reproduce import load_method, models
from reproduce.method.records import Record
from reproduce.method.rng import Generators
from reproduce.method.sites import Axes, Site, watch
from reproduce.models import Sizes
from reproduce.results.record import BINS, PROJECTIONS, QUANTILES, SiteStatistics
from reproduce.training.site_statistics import (
    EVALUATIONS,
    LARGEST_BATCH,
    RANK_SAMPLES,
    _directions,
    are_described,
    describe,
    site_statistics,
)


def described(axes: Any, activation: torch.Tensor) -> SiteStatistics:
    """Of one Site alone."""
    (found,) = describe([Record(Site("pre", axes, tuple(activation.shape[1:])), activation)])
    return found


def rank_of(samples: torch.Tensor) -> float:
    return described("nc", samples).effective_rank


def plain(record: Record) -> SiteStatistics:
    """The statistics of one Site as their formulas read, with a wait for each: the oracle of those taken together."""
    samples = record.samples.float()
    norms = samples.norm(dim=1)
    unit = samples[:, samples.shape[1] // 2].double()
    low, high = unit.aminmax()
    position = ((unit - low) / (high - low).clamp_min(1e-300) * BINS).nan_to_num().long().clamp(0, BINS - 1)
    counts = torch.zeros(BINS, dtype=unit.dtype).index_add_(0, position, torch.ones_like(unit))
    return SiteStatistics(
        mean=samples.mean().item(),
        mean_square=samples.square().mean().item(),
        norm_dispersion=(norms.std(correction=0) / norms.mean().clamp_min(1e-12)).item(),
        effective_rank=plain_rank(samples),
        unit_quantiles=tuple(torch.quantile(unit, torch.tensor(QUANTILES, dtype=torch.float64)).tolist()),
        unit_range=(low.item(), high.item()),
        unit_histogram=tuple(int(count) for count in counts.tolist()),
        excess_kurtosis=plain_kurtosis(samples),
        sample_variance=samples.double().var(0, correction=0).mean().float().item(),
        distance_to_normal=plain_distance(samples),
    )


def plain_rank(samples: torch.Tensor) -> float:
    chosen = samples[:: max(1, len(samples) // RANK_SAMPLES)][:RANK_SAMPLES].nan_to_num().double()
    centred = chosen - chosen.mean(0)
    gram = centred @ centred.T if len(centred) < centred.shape[1] else centred.T @ centred
    power = torch.linalg.eigvalsh(gram).clamp_min(0)
    share = power / power.sum().clamp_min(1e-300)
    return (-(share * share.clamp_min(1e-300).log()).sum()).exp().float().item()


def plain_distance(samples: torch.Tensor) -> float:
    """By numpy and scipy: the area between two inverse distribution functions, each a step for a sample."""
    chosen = samples[:: max(1, len(samples) // RANK_SAMPLES)][:RANK_SAMPLES].nan_to_num().double().numpy()
    directions = np.random.default_rng(0).standard_normal((PROJECTIONS, chosen.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    levels = (np.arange(len(chosen)) + 0.5) / len(chosen)
    gaps = np.abs(np.sort(chosen @ directions.T, axis=0) - norm.ppf(levels)[:, None])
    return float(np.float32(gaps.mean()))


def plain_kurtosis(samples: torch.Tensor) -> float:
    centred = samples.double() - samples.double().mean(0)
    variance, fourth = centred.square().mean(0), centred.square().square().mean(0)
    excess = torch.where(variance > 0, fourth / variance.square().clamp_min(1e-300) - 3, 0.0)
    return excess.mean().float().item()


def recorded(
    name: str, options: dict[str, Any], sizes: Sizes, method: str = "vanilla", bfloat16: bool = False, n: int = 8
) -> list[Record]:
    """What the Sites of a network record of random inputs while it trains."""
    generators = Generators.seeded(0, torch.device("cpu"))
    model: Any = models.build(name, options, sizes, generators.initialisation, generators.dropout).train()
    load_method(method).prepare(model, generators.method)
    trace = watch(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        if sizes.input_shape:
            model(torch.randn(n, *sizes.input_shape, generator=generators.method))
        else:
            tokens = torch.randint(0, sizes.outputs, (35, n), generator=generators.method)
            model(tokens, model.initial_state(n))
    return trace.records


IMAGES, ROWS, WORDS = Sizes((3, 16, 16), 10), Sizes((5,), 3), Sizes((), 50)
NETWORKS: dict[str, Callable[[], list[Record]]] = {
    "residual network of depth 56": lambda: recorded("resnet", {"depth": 56}, IMAGES),
    "in bfloat16": lambda: recorded("resnet", {"depth": 20, "variant": "he"}, IMAGES, bfloat16=True),
    "batch normalization": lambda: recorded("resnet", {"depth": 20, "variant": "he"}, IMAGES, "batchnorm"),
    "units first in memory": lambda: recorded("resnet", {"depth": 8}, IMAGES, "quantile_activation"),
    "rows of units first in memory": lambda: recorded(
        "mlp", {"width": 9, "depth": 4}, ROWS, "quantile_activation", n=50
    ),
    "convolutions of several widths": lambda: recorded("cnn11", {}, IMAGES),
    "perceptron": lambda: recorded("mlp", {"width": 100, "depth": 8}, ROWS, n=256),
    "LSTM": lambda: recorded("lstm", {"hidden": 100, "dropout": 0.2}, WORDS),
    "LSTM and code": lambda: recorded("code_lstm", {"hidden": 20, "d_sae": 300}, WORDS),
    "autoencoder": lambda: recorded("autoencoder", {"d_sae": 500}, Sizes((784,), 10), n=300),
}


def of_random_shapes() -> list[Record]:
    """Several Sites of each shape: constants, zeros, infinities, not numbers, all layouts of memory."""
    generator = torch.Generator().manual_seed(5)
    records = []
    for index in range(200):
        axes: Axes = ("nc", "tnc", "nchw")[index % 3]  # type: ignore[assignment]
        size = [int(torch.randint(2, high, (1,), generator=generator)) for high in (20, 9, 9)]
        shape = {"nc": (8 * size[0], size[1]), "tnc": (size[1], size[0], 7), "nchw": (size[1], size[0], *size[1:])}[
            axes
        ]
        values = torch.randn(shape, generator=generator) * (1 + index % 5) + 3
        match index % 7:
            case 0:
                kept = (values < 3) & (torch.rand(shape, generator=generator) < 0.5)
                values = (values - 3) * kept  # zeros of both signs, and nothing above them
            case 1:
                values = values.relu()
            case 2:
                values = torch.full(shape, 0.1)
            case 3:
                values.view(-1)[0], values.view(-1)[-1] = math.inf, -math.inf
            case 4:
                values.view(-1)[1] = math.nan
            case 5:
                values = values.transpose(0, 1)
            case 6 if axes == "nchw":
                values = values.contiguous(memory_format=torch.channels_last)
        records += [Record(Site("pre", axes, tuple(values.shape[1:])), values)] * (1 + index % 2)
    return records


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """As many as the test asks for."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    ("records", "largest", "threads"),
    [
        *((one, largest, 1) for one in (*NETWORKS.values(), of_random_shapes) for largest in (LARGEST_BATCH, 5_000)),
        (of_random_shapes, 5_000, 2),  # threads cost more than they save on what is so small
    ],
    indirect=["threads"],
)
def test_sites_described_together_are_described_as_each_alone(
    records: Callable[[], list[Record]], largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit: sealed Results hold these numbers."""
    monkeypatch.setattr("reproduce.training.site_statistics.LARGEST_BATCH", largest)
    found = records()
    assert [repr(one) for one in describe(found)] == [repr(plain(record)) for record in found]  # repr: NaN is NaN


@pytest.mark.parametrize("evaluations", [1, 2, EVALUATIONS, EVALUATIONS + 1, 99, 200, 1237])
def test_sites_are_described_at_the_first_the_last_and_evenly_between(evaluations: int) -> None:
    chosen = [index for index in range(evaluations) if are_described(index, evaluations)]
    assert len(chosen) == min(evaluations, EVALUATIONS)
    assert (chosen[0], chosen[-1]) == (0, evaluations - 1)
    assert max(np.diff(chosen), default=1) - min(np.diff(chosen), default=1) <= 1


@pytest.mark.parametrize("records", [*NETWORKS.values(), of_random_shapes], ids=[*NETWORKS, "random shapes"])
def test_as_on_a_gpu_they_are_the_same_but_for_last_bits(
    records: Callable[[], list[Record]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reproduce.training.site_statistics.ONE_BY_ONE", frozenset())
    found = records()
    for one, record in zip(describe(found), found, strict=True):
        expected = plain(record).model_dump()
        for name, value in one.model_dump().items():
            assert value == pytest.approx(expected[name], rel=1e-6, abs=1e-6, nan_ok=True), name


class Operations(TorchDispatchMode):
    """Counts aten operations, and those that wait for a value."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        self.waits += torch.Tag.data_dependent_output in func.tags
        return func(*args, **(kwargs or {}))


class Copies(TorchFunctionMode):
    """Counts copies to the host; generators' states lie there."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += getattr(func, "__name__", "") in ("tolist", "item", "numpy", "__array__", "__float__", "__int__")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("variant", ["fixup", "he"])
def test_an_evaluation_costs_few_operations_and_one_wait(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A residual network of depth 56 and 256 images, as on a GPU; here on 1/64 of the numbers, and of a batch."""
    monkeypatch.setattr("reproduce.training.site_statistics.ONE_BY_ONE", frozenset())
    monkeypatch.setattr("reproduce.training.site_statistics.LARGEST_BATCH", LARGEST_BATCH // 64)
    generators = Generators.seeded(0, torch.device("cpu"))
    sizes = Sizes((3, 8, 8), 10)
    options = {"depth": 56, "variant": variant}
    model = models.build("resnet", options, sizes, generators.initialisation, generators.dropout).train()
    if variant == "he":
        load_method("batchnorm").prepare(model, generators.method)
    images = torch.randn(64, 3, 8, 8, generator=generators.method).contiguous(memory_format=torch.channels_last)
    task: Any = SimpleNamespace(model=model, forward_site_batch=torch.no_grad()(lambda: model(images)))
    trace = watch(model)
    with Copies() as copies, Operations() as operations:
        found = site_statistics(task, generators, trace)
    assert len(found) == 110
    assert operations.count <= 1_500
    assert operations.waits + copies.count == 1


def test_statistics_of_a_map_are_numpy() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn((6, 3, 4, 5), generator=generator) * 2 + 1
    found = described("nchw", maps)
    samples = maps.double().numpy().transpose(0, 2, 3, 1).reshape(120, 3)
    norms = np.sqrt((samples**2).sum(1))
    assert found.mean == pytest.approx(samples.mean(), rel=1e-5)
    assert found.mean_square == pytest.approx((samples**2).mean(), rel=1e-5)
    assert found.norm_dispersion == pytest.approx(norms.std() / norms.mean(), rel=1e-5)
    assert found.unit_quantiles == pytest.approx(np.quantile(samples[:, 1], QUANTILES), rel=1e-5)
    values = np.linalg.eigvalsh(np.cov(samples.T))
    share = values / values.sum()
    assert found.effective_rank == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-4)
    assert found.excess_kurtosis == pytest.approx(kurtosis(samples, axis=0).mean(), rel=1e-4)
    counts, edges = np.histogram(samples[:, 1], bins=BINS)
    assert found.unit_range == pytest.approx((edges[0], edges[-1]), rel=1e-6)
    assert found.unit_histogram == tuple(counts)


def test_statistics_of_a_sequence_count_times_as_samples() -> None:
    outputs = torch.randn((7, 4, 5), generator=torch.Generator().manual_seed(1))
    found = described("tnc", outputs)
    assert found == described("nc", outputs.reshape(28, 5))


def spectrum(variances: list[float], n_samples: int = 64) -> torch.Tensor:
    """Samples whose covariance has exactly these eigenvalues, rotated at random."""
    generator = torch.Generator().manual_seed(2)
    d = len(variances)
    draws = torch.randn((n_samples, d), generator=generator, dtype=torch.float64)
    basis, _ = torch.linalg.qr(draws - draws.mean(0))  # centred orthonormal columns
    rotation, _ = torch.linalg.qr(torch.randn((d, d), generator=generator, dtype=torch.float64))
    return (basis * torch.tensor(variances, dtype=torch.float64).sqrt()) @ rotation * 8 + 3


@pytest.mark.parametrize("variances", [[1.0] * 5, [4.0, 2.0, 1.0, 1.0], [1.0, 0.0, 0.0], [9.0, 1e-8, 1e-8], [1.0] * 40])
def test_effective_rank_of_known_spectra(variances: list[float]) -> None:
    share = [value / sum(variances) for value in variances]
    expected = math.exp(-sum(p * math.log(p) for p in share if p > 0))
    assert rank_of(spectrum(variances)) == pytest.approx(expected, rel=1e-4)


def test_effective_rank_with_fewer_samples_than_features() -> None:
    """The covariance of n samples has rank n - 1 at most: with equal distances, exactly that, evenly."""
    assert rank_of(torch.eye(8, 30)) == pytest.approx(7.0, rel=1e-5)


def test_effective_rank_takes_samples_spread_over_the_whole_batch() -> None:
    samples = torch.zeros(2560, 3)
    samples[0::10, 0] = torch.linspace(-1, 1, 256)
    samples[1::10, 1] = 5.0  # not among every tenth
    assert rank_of(samples) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("value", [0.0, 3.5])
def test_effective_rank_of_a_constant_batch_is_one(value: float) -> None:
    assert rank_of(torch.full((20, 4), value)) == 1.0


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("shape", [(30, 5), (5, 30)])
def test_a_diverged_batch_is_described(bad: float, shape: tuple[int, int]) -> None:
    samples = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    samples[1, 2], samples[3, 4], samples[4, 2] = bad, -bad, bad
    found = described("nc", samples)
    assert not math.isfinite(found.mean)
    assert 1.0 <= found.effective_rank <= 5.0
    everything = described("nc", torch.full(shape, bad))
    assert everything.effective_rank == 1.0


def test_silence_has_no_dispersion() -> None:
    found = described("nc", torch.zeros(10, 4))
    assert (found.mean, found.mean_square, found.norm_dispersion, found.effective_rank) == (0.0, 0.0, 0.0, 1.0)


def test_excess_kurtosis_of_two_points_and_of_constants() -> None:
    two_points = torch.tensor([[1.0, 5.0], [-1.0, 5.0]]).repeat(10, 1)
    found = described("nc", two_points)
    assert found.excess_kurtosis == pytest.approx(-1.0)  # the mean of -2, and of 0 for the unit that does not vary
    assert found.unit_range == (5.0, 5.0)
    assert found.unit_histogram is not None
    assert sum(found.unit_histogram) == 20


@pytest.mark.parametrize(("scale", "expected"), [(0.0, 1.0), (1.0, 0.0), (3.0, 2.0)])
def test_the_distance_to_a_normal_law_is_that_of_its_deviation(scale: float, expected: float) -> None:
    """W1 of N(0, s^2) and N(0, 1) is |s - 1| E|Z|; what 256 samples of 20 units add to it is below 0.1."""
    samples = scale * torch.randn(256, 20, generator=torch.Generator().manual_seed(4))
    found = described("nc", samples).distance_to_normal
    assert found == pytest.approx(expected * math.sqrt(2 / math.pi), abs=0.1)


def test_projections_are_the_same_in_every_run_and_draw_from_no_generator() -> None:
    samples = torch.randn(50, 7, generator=torch.Generator().manual_seed(4))
    before = torch.get_rng_state()
    first = described("nc", samples)
    _directions.cache_clear()
    assert described("nc", samples) == first
    assert torch.equal(torch.get_rng_state(), before)


def test_a_diverging_site_can_still_be_described() -> None:
    values = torch.tensor([[1.0, math.inf], [2.0, math.nan], [3.0, 1e38]])
    found = described("nc", values)
    assert found.unit_histogram is not None
    assert sum(found.unit_histogram) == 3
