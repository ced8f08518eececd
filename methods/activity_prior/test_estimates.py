"""How finely a law is cut, and the estimate of entropy in the divergence: counts and loops in float64."""

from __future__ import annotations

import math

import pytest
import scipy.special
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, Normal

from methods.activity_prior.method import Histogram, Laws, RectifiedNormal, prior_loss


@pytest.mark.parametrize("n", [2, 7, 100, 255, 256, 1000])
@pytest.mark.parametrize("law", [Normal(0.0, 1.0), Histogram([0.0, 0.7, 2.0], [1.0, 5.0])])
def test_a_law_is_cut_into_256_pieces_or_just_above(law: Normal | Histogram, n: int) -> None:
    """All intervals between bounds in as many parts, no more of them than it takes; together they are all of it."""
    intervals = n + (1 if isinstance(law, Histogram) else 0)  # an edge bounds one more
    pieces = Laws([law]).pieces(n, torch.zeros(1, dtype=torch.float64))
    count = len(pieces.width)
    assert count % intervals == 0
    assert count >= 256
    assert count == intervals or count - intervals < 256
    assert pieces.width.sum().item() == pytest.approx(1, rel=1e-12)
    assert pieces.rank.tolist() == [min(n - 1, math.floor(level * n)) for level in pieces.level.tolist()]


@pytest.mark.parametrize("n", [3, 5, 10, 40])
def test_the_divergence_is_a_loop_over_spacings(n: int) -> None:
    """``H = mean(log(x_(i+m) - x_(i-m)) - digamma(gaps)) + digamma(n + 1)``, m the rounded root of n."""
    h: Tensor = torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    ordered, reach = sorted(h.tolist()), round(math.sqrt(n))
    entropy = scipy.special.digamma(n + 1)
    for i in range(n):
        low, high = max(i - reach, 0), min(i + reach, n - 1)
        entropy += (math.log(ordered[high] - ordered[low]) - scipy.special.digamma(high - low)) / n
    cross = sum((x - 0.3) ** 2 / (2 * 1.4**2) + math.log(1.4 * math.sqrt(2 * math.pi)) for x in ordered) / n
    law = Normal(torch.tensor(0.3, dtype=torch.float64), torch.tensor(1.4, dtype=torch.float64))
    assert prior_loss(h[:, None], law, distance="kl").item() == pytest.approx(cross - entropy, rel=1e-12)


@pytest.mark.parametrize("mean", [-3.0, -0.4, 0.0, 5.0])
def test_a_law_without_quantiles_has_those_of_its_distribution_function(mean: float) -> None:
    """A mixture of one normal law has no ``icdf``; its quantiles are those of the normal law."""
    of_one = MixtureSameFamily(Categorical(torch.ones(1)), Normal(torch.tensor([mean]), torch.tensor([0.5])))
    h = mean + torch.linspace(-1, 2, 30, dtype=torch.float64)[:, None]
    wanted = prior_loss(h, Normal(mean, 0.5))
    torch.testing.assert_close(prior_loss(h, of_one), wanted, rtol=1e-5, atol=1e-6)


def test_pieces_of_no_width_are_nothing_though_a_quantile_is_infinite_there() -> None:
    """Behind an empty last bin lies a piece from 1 to 1, at which a normal law has no quantile."""
    laws = [Normal(0.0, 1.0), Histogram([0.0, 1.0, 2.0], [3.0, 0.0])]
    h = torch.linspace(-1, 2, 21, dtype=torch.float64)[:, None].expand(-1, 2)
    wanted = sum(prior_loss(h[:, unit : unit + 1], law).item() for unit, law in enumerate(laws)) / 2
    assert prior_loss(h, laws).item() == pytest.approx(wanted, rel=2e-3)


@pytest.mark.parametrize(
    ("edges", "counts", "found"),
    [
        ([0.0, 1.0], [1.0, 2.0], r"edges of shape \(2,\) and counts of shape \(2,\)$"),
        ([0.0, 0.0, 1.0], [1.0, 1.0], "finite increasing edges, found 0, 0, 1$"),
        (list(range(101)), [0.0] * 100, r"not all 0, found 0, 0, 0, 0, \.\.\., 0, 0, 0$"),
        ([0.0, 1.0, 2.0], [1.0, -1.0], "none negative and not all 0, found 1, -1$"),
        (["a", 1.0], [1.0], "edges and counts that are numbers: "),
    ],
)
def test_no_histogram_is_made_of_other_numbers(edges: list[float], counts: list[float], found: str) -> None:
    with pytest.raises(ValueError, match=found):
        Histogram(edges, counts)


def test_a_rectified_law_far_below_zero_has_no_negative_variance() -> None:
    """The unrounded one is the integral of the squared tail; at such means float32 leaves less than nothing."""
    law = RectifiedNormal(-torch.linspace(4.5, 12, 500), torch.ones(()))
    assert (law.variance >= 0).all()
    assert law.stddev.isfinite().all()
