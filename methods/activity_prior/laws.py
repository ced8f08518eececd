"""Laws that activations can follow: distributions, histograms and samples, with what the distances need of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Normal, constraints

from reproduce.method import making_constants

PIECES = 256  # a law that is no list of samples is cut into at least so many pieces of probability


class _Bins(NamedTuple):
    edges: Sequence[float] | Tensor
    counts: Sequence[float] | Tensor


class Histogram(_Bins):
    """A law with constant density in each bin: b + 1 increasing edges, and b counts (of any total).

    Raises:
        ValueError: the numbers are none.
    """

    __slots__ = ()

    def __new__(cls, edges: Sequence[float] | Tensor, counts: Sequence[float] | Tensor) -> Histogram:
        _check_bins(edges, counts)
        return super().__new__(cls, edges, counts)


def _check_bins(edges: Any, counts: Any) -> None:
    try:
        edges, counts = (torch.as_tensor(part, dtype=torch.float64) for part in (edges, counts))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"a histogram has edges and counts that are numbers: {error}") from error
    if edges.dim() != 1 or counts.dim() != 1 or len(edges) != len(counts) + 1 or not len(counts):
        raise ValueError(
            "a histogram has b + 1 increasing edges and b counts, found edges of shape "
            f"{tuple(edges.shape)} and counts of shape {tuple(counts.shape)}"
        )
    if not bool((edges.diff() > 0).all() & edges.isfinite().all()):
        raise ValueError("a histogram has finite increasing edges, found " + _shortly(edges))
    if not bool((counts >= 0).all() & (counts.sum() > 0) & counts.isfinite().all()):
        raise ValueError("a histogram has finite counts, none negative and not all 0, found " + _shortly(counts))


def _shortly(values: Tensor) -> str:
    numbers = [f"{value:g}" for value in values.tolist()]
    return ", ".join(numbers if len(numbers) <= 8 else [*numbers[:4], "...", *numbers[-3:]])


Law = Distribution | Histogram | Tensor | tuple[Any, Any]


class RectifiedNormal(Distribution):
    """The law of ``max(0, X)`` with X ~ N(loc, scale^2): what units behind a ReLU can follow, zeros included."""

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}
    support = constraints.nonnegative

    def __init__(self, loc: float | Tensor, scale: float | Tensor, validate_args: bool | None = None) -> None:
        self.base = Normal(loc, scale, validate_args=validate_args)
        self.loc, self.scale = self.base.loc, self.base.scale
        super().__init__(self.base.batch_shape, validate_args=validate_args)

    def icdf(self, value: Tensor) -> Tensor:
        return self.base.icdf(value).clamp_min(0)

    def cdf(self, value: Tensor) -> Tensor:
        return torch.where(value < 0, 0.0, self.base.cdf(value))

    @property
    def mean(self) -> Tensor:
        """``loc Phi(a) + scale phi(a)``, a = loc / scale."""
        return self.loc * self._mass() + self.scale * self._density()

    @property
    def variance(self) -> Tensor:
        """``(loc^2 + scale^2) Phi(a) + loc scale phi(a)``, less the squared mean."""
        second = (self.loc**2 + self.scale**2) * self._mass() + self.loc * self.scale * self._density()
        return (second - self.mean**2).clamp_min(0)  # far below zero rounding would leave less

    def _mass(self) -> Tensor:
        return torch.special.ndtr(self.loc / self.scale)

    def _density(self) -> Tensor:
        return torch.exp(-0.5 * (self.loc / self.scale) ** 2) / math.sqrt(2 * math.pi)


class SmoothedHistogram(Distribution):
    """A histogram plus independent normal noise: a density that has a logarithm and a slope everywhere.

    Bins of constant density have no slope, and an empty bin no logarithm, so a divergence to them pulls nowhere. This
    is the law of X + Z with X from the histogram and Z ~ N(0, deviation^2):
    ``p(x) = sum_i (c_i / w_i) (Phi((x - e_i) / deviation) - Phi((x - e_{i+1}) / deviation))``, with edges e, widths w
    and shares c.

    Args:
        edges, counts: as of `Histogram`.
        deviation: of the noise; half of the narrowest bin where it is not given.

    Raises:
        ValueError: no histogram, or a deviation that is not positive.
    """

    arg_constraints = {}
    support = constraints.real

    def __init__(
        self, edges: Sequence[float] | Tensor, counts: Sequence[float] | Tensor, deviation: float | None = None
    ) -> None:
        _checked((edges, counts))
        self.edges, counts = torch.as_tensor(edges), torch.as_tensor(counts)
        self.shares = counts / counts.sum()
        self.deviation = float(self.edges.diff().min()) / 2 if deviation is None else deviation
        if not self.deviation > 0:
            raise ValueError(f"a smoothed histogram needs a positive deviation, got {deviation}")
        super().__init__(validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Of values (...); in float32 at least, without underflow far from every bin."""
        place = (value[..., None] - self.edges.to(value)) / self.deviation
        above, below = place[..., :-1], place[..., 1:]  # above - below is the bin's width
        is_right = above + below > 0  # there the same mass is computed in the other tail
        larger = torch.special.log_ndtr(torch.where(is_right, -below, above))
        smaller = torch.special.log_ndtr(torch.where(is_right, -above, below))
        mass = larger + torch.log1p(-torch.exp(smaller - larger))
        return torch.logsumexp(mass + (self.shares / self.edges.diff()).log().to(value), -1)

    def cdf(self, value: Tensor) -> Tensor:
        """``sum_i c_i (g(x - e_i) - g(x - e_{i+1})) / w_i``, ``g(t) = t Phi(t / s) + s phi(t / s)``, deviation s."""
        place = value[..., None].double() - self.edges.double()
        scaled = place / self.deviation
        density = torch.exp(-0.5 * scaled.square()) / math.sqrt(2 * math.pi)
        integral = place * torch.special.ndtr(scaled) + self.deviation * density
        return (
            ((integral[..., :-1] - integral[..., 1:]) * (self.shares / self.edges.diff()).double()).sum(-1).clamp(0, 1)
        )

    @property
    def mean(self) -> Tensor:
        return (self.shares * (self.edges[1:] + self.edges[:-1]) / 2).sum()

    @property
    def variance(self) -> Tensor:
        """That of the histogram plus that of the noise."""
        middle = (self.edges[1:] + self.edges[:-1]) / 2
        second = (self.shares * (middle.square() + self.edges.diff().square() / 12)).sum()
        return second - self.mean.square() + self.deviation**2


class Pieces(NamedTuple):
    """Pieces of probability: the sorted sample and the value of the law that each pairs."""

    rank: Tensor  # (pieces,) which sorted sample
    level: Tensor  # (pieces,) middle of the piece
    width: Tensor  # (pieces,) its probability
    value: Tensor  # (laws, pieces) quantile of the law there


class Laws:
    """One law for all units, or one for each; what the distances ask of them is computed once.

    Raises:
        ValueError: nothing, or something that is no law of numbers.
        TypeError: one law in place of a list.
    """

    def __init__(self, laws: Sequence[Law]) -> None:
        if isinstance(laws, Distribution | Histogram | Tensor) or not isinstance(laws, Sequence):
            raise TypeError(f"Laws takes a list, one law for all units or one for each; found {type(laws).__name__}")
        if not laws:
            raise ValueError("at least one law is needed, found an empty list")
        self.laws = tuple(_checked(law) for law in laws)
        self._pieces: dict[Any, Pieces] = {}
        self._moments: dict[Any, tuple[Tensor, Tensor]] = {}
        self._densities: dict[Any, tuple[Distribution | Histogram | Tensor, ...]] = {}

    def pieces(self, n: int, like: Tensor) -> Pieces:
        """The laws beside n sorted samples, with the dtype and on the device of ``like``."""
        key = n, like.dtype, like.device
        if key not in self._pieces:
            with making_constants():
                self._pieces[key] = self._cut(n, like)
        return self._pieces[key]

    def moments(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, each (laws,)."""
        key = like.dtype, like.device
        if key not in self._moments:
            with making_constants():
                mean, deviation = zip(*map(_moments, self.laws), strict=True)
                self._moments[key] = torch.cat(mean).to(like), torch.cat(deviation).to(like)
        return self._moments[key]

    def log_density(self, rows: Tensor) -> Tensor:
        """Of rows (units, n), with one law for all rows or one for each."""
        laws = self._with_densities(rows)
        if len(laws) == 1:
            return _log_density(laws[0], rows)
        if len(laws) != len(rows):
            raise ValueError(f"one law for all units is needed or one for each of {len(rows)}, found {len(laws)}")
        return torch.cat([_log_density(law, row) for law, row in zip(laws, rows.split(1), strict=True)])

    def _with_densities(self, like: Tensor) -> tuple[Distribution | Histogram | Tensor, ...]:
        """The laws, with histograms smoothed, in the dtype and on the device of ``like``."""
        key = like.dtype, like.device
        if key not in self._densities:
            with making_constants():
                self._densities[key] = tuple(_with_density(law, like) for law in self.laws)
        return self._densities[key]

    def _cut(self, n: int, like: Tensor) -> Pieces:
        """Cut [0, 1] at every i / n and wherever a quantile function jumps or bends, then finer for other laws."""
        bounds = torch.cat([torch.arange(n + 1, dtype=torch.float64) / n, *map(_bounds, self.laws)]).sort().values
        only_samples = all(isinstance(law, Tensor) for law in self.laws)
        cuts = 1 if only_samples else max(1, -(-PIECES // (len(bounds) - 1)))
        width = (bounds.diff() / cuts)[:, None].expand(-1, cuts)
        level = (bounds[:-1, None] + width * (torch.arange(cuts) + 0.5)).flatten()
        level = level.clamp(1e-12, 1 - 1e-12)  # pieces of no width lie at 0 and 1, where quantiles may be infinite
        value = torch.cat([_quantile(law, level) for law in self.laws])
        rank = (level * n).long().clamp(max=n - 1)
        return Pieces(rank.to(like.device), level.to(like), width.flatten().to(like), value.to(like))


def _checked(law: Law) -> Distribution | Histogram | Tensor:
    """A law, with histograms and samples as float64 tensors on the CPU."""
    if isinstance(law, Distribution):
        if law.event_shape or len(law.batch_shape) > 1:
            raise ValueError(f"a law must be of numbers, one for all units or one for each; found {law}")
        return law
    if isinstance(law, tuple) and any(isinstance(part, Distribution | Histogram) for part in law):
        raise ValueError(f"a tuple is a histogram (edges, counts): give laws as a list, found {_named(law)}")
    if isinstance(law, tuple) and len(law) == 2:
        _check_bins(*law)
        return Histogram(*(torch.as_tensor(part, dtype=torch.float64).cpu() for part in law))
    if isinstance(law, Tensor) and law.dim() == 1 and len(law) and bool(law.isfinite().all()):
        return law.detach().double().cpu().sort().values
    found = tuple(law.shape) if isinstance(law, Tensor) else type(law).__name__
    raise ValueError(f"a law is a Distribution, a pair (edges, counts) or finite samples (n,); found {found}")


def _named(laws: tuple[Any, ...]) -> str:
    return f"({', '.join(type(law).__name__ for law in laws)})"


def _bounds(law: Distribution | Histogram | Tensor) -> Tensor:
    """Probabilities at which the quantile function jumps or bends."""
    if isinstance(law, Tensor):
        return torch.arange(1, len(law), dtype=torch.float64) / len(law)
    if isinstance(law, Histogram):
        return _cumulated(law)[1:-1]
    return torch.empty(0, dtype=torch.float64)


def _cumulated(law: Histogram) -> Tensor:
    counts = torch.as_tensor(law.counts)
    return nn.functional.pad((counts / counts.sum()).cumsum(0), (1, 0)).clamp(max=1)


def _quantile(law: Distribution | Histogram | Tensor, level: Tensor) -> Tensor:
    """The quantile function of a law at levels (pieces,); (1 or units, pieces), in float64 on the CPU.

    Raises:
        ValueError: a distribution with neither a quantile nor a distribution function.
    """
    if isinstance(law, Tensor):
        return law[(level * len(law)).long().clamp(max=len(law) - 1)][None]
    if isinstance(law, Histogram):
        edges, cumulated = torch.as_tensor(law.edges), _cumulated(law)
        place = (torch.searchsorted(cumulated, level, right=True) - 1).clamp(0, len(edges) - 2)
        share = (level - cumulated[place]) / cumulated.diff()[place].clamp_min(1e-300)
        return (edges[place] + share.clamp(0, 1) * edges.diff()[place])[None]
    column = level[:, None].to(_device(law))
    try:
        value = law.icdf(column)
    except NotImplementedError:
        value = _inverted(law, column)
    return value.detach().double().cpu().expand(len(level), -1).mT


def _device(law: Distribution) -> torch.device:
    return next((value.device for value in vars(law).values() if isinstance(value, Tensor)), torch.device("cpu"))


def _inverted(law: Distribution, level: Tensor) -> Tensor:
    """The quantile function by 200 halvings of an interval that doubles until it brackets every level.

    Raises:
        ValueError: no distribution function, or none that reaches the levels.
    """
    lower, upper = (getattr(law.support, name, None) for name in ("lower_bound", "upper_bound"))
    shape, device = (len(level), *(law.batch_shape or (1,))), level.device

    def full(value: Any) -> Tensor:
        return torch.as_tensor(value, dtype=torch.float64, device=device).expand(shape)

    low = full(lower) if lower is not None else full(-1.0) if upper is None else full(upper) - 1
    high = full(upper) if upper is not None else low + 2
    try:
        for _ in range(1000):
            is_short = full(0.0) if upper is not None else (law.cdf(high) < level).double()
            is_long = full(0.0) if lower is not None else (law.cdf(low) > level).double()
            if not bool((is_short + is_long).any()):
                break
            span = high - low
            low, high = low - span * is_long, high + span * is_short
        for _ in range(200):
            middle = (low + high) / 2
            is_low = law.cdf(middle) < level
            low, high = torch.where(is_low, middle, low), torch.where(is_low, high, middle)
    except NotImplementedError as error:
        name = type(law).__name__
        raise ValueError(
            f"this distance needs quantiles; {name} has neither icdf nor cdf: give samples of it, or take 'kl'"
        ) from error
    if not bool((low + high).isfinite().all()):
        raise ValueError(f"this distance needs quantiles, and the cdf of {type(law).__name__} does not reach them all")
    return (low + high) / 2


def _moments(law: Distribution | Histogram | Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, each (1,) or (units,), in float64 on the CPU.

    Raises:
        ValueError: a distribution without a finite mean or variance.
    """
    if isinstance(law, Tensor):
        return law.mean()[None], law.std(correction=0)[None]
    if isinstance(law, Histogram):
        edges, counts = torch.as_tensor(law.edges), torch.as_tensor(law.counts)
        share, middle = counts / counts.sum(), (edges[1:] + edges[:-1]) / 2
        mean = (share * middle).sum()
        second = (share * (middle.square() + edges.diff().square() / 12)).sum()
        return mean[None], (second - mean.square()).clamp_min(0).sqrt()[None]
    try:
        mean, variance = (part.detach().double().cpu().reshape(-1) for part in (law.mean, law.variance))
    except NotImplementedError as error:
        raise ValueError(f"distance 'moments' needs a mean and a variance; {type(law).__name__} has none") from error
    if not bool((mean.isfinite() & variance.isfinite()).all()):
        raise ValueError(f"distance 'moments' needs a finite mean and variance, found {law}")
    return mean, variance.sqrt()


def _log_density(law: Distribution | Histogram | Tensor, rows: Tensor) -> Tensor:
    """Of rows (units, n).

    Raises:
        ValueError: a law without a density.
    """
    try:
        if isinstance(law, Distribution):
            return law.log_prob(rows.mT).mT
    except NotImplementedError:
        pass
    raise ValueError(
        f"distance 'kl' needs a density; found {type(law).__name__}, which has none (or one with jumps): "
        "give a distribution that has one, a histogram, or another distance"
    )


def _with_density(law: Distribution | Histogram | Tensor, like: Tensor) -> Distribution | Histogram | Tensor:
    """A histogram smoothed, in the dtype and on the device of ``like``; another law as it is."""
    if not isinstance(law, Histogram):
        return law
    return SmoothedHistogram(torch.as_tensor(law.edges).to(like), torch.as_tensor(law.counts).to(like))
