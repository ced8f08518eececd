"""Activity priors: every unit's histogram over samples follows a given law, by distances in one dimension. Ours."""

from __future__ import annotations

import math
from functools import cache
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.distributions import Exponential, Laplace, Normal, Uniform

from methods.activity_prior.laws import Histogram, Law, Laws, Pieces, RectifiedNormal, SmoothedHistogram
from reproduce.method import (
    Features,
    Method,
    NonNegative,
    Positive,
    PositiveCount,
    Record,
    Role,
    Site,
    Trace,
    accumulation_dtype,
    batch_normalization,
    check_activations,
    errors_in,
    fill_sites,
    in_float32,
    making_constants,
    sites_with_role,
)

__all__ = ["ActivityPrior", "Histogram", "Law", "Laws", "Memory", "RectifiedNormal", "SmoothedHistogram", "prior_loss"]

Across = Literal["samples", "units", "all"]
Distance = Literal["wasserstein1", "wasserstein2", "cramer", "kl", "moments"]

_SMALLEST_SPACING = 1e-4  # of "kl": closer samples count as that far apart, so that ties have no infinite gradient


class Memory(nn.Module):
    """The most recent samples of some units, detached, for batches too small to show a histogram.

    Buffers hold everything, so that a state dict carries it. The first batch, repeated, fills the whole memory.

    Args:
        capacity: samples, the newest batch included.
        units: units of a sample.

    Raises:
        ValueError: no samples or no units.
    """

    values: Tensor
    position: Tensor
    is_filled: Tensor

    def __init__(self, capacity: int, units: int) -> None:
        super().__init__()
        if capacity < 1 or units < 1:
            raise ValueError(f"a memory holds at least one sample of one unit, got {capacity} and {units}")
        self.capacity = capacity
        self.register_buffer("values", torch.zeros(capacity, units))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))  # where the next sample goes
        self.register_buffer("is_filled", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def remember(self, samples: Tensor) -> None:
        """Keep samples (n, units) in place of the oldest; of more than ``capacity`` the last."""
        if not len(samples):
            return
        newest = samples.detach()[-self.capacity :].to(self.values.dtype)
        repeated = newest.repeat(-(-self.capacity // len(newest)), 1)[: self.capacity]
        self.values.copy_(torch.where(self.is_filled, self.values, repeated))
        places = (self.position + torch.arange(len(newest), device=self.values.device)) % self.capacity
        self.values.index_copy_(0, places, newest)
        self.position.copy_((self.position + len(newest)) % self.capacity)
        self.is_filled.fill_(True)

    def earlier(self, newest: int) -> Tensor:
        """The remembered samples without the ``newest`` last ones: (capacity - newest, units), or none."""
        ages = torch.arange(max(0, self.capacity - newest), device=self.values.device)
        return self.values[(self.position + ages) % self.capacity]


def prior_loss(
    activations: Tensor,
    prior: Law | list[Law] | Laws,
    across: Across = "samples",
    distance: Distance = "wasserstein1",
    memory: Memory | None = None,
) -> Tensor:
    """Distance between the histogram of activations and a given law, averaged over units (or samples); 0-dim.

    With the distribution function ``F_n`` and the quantile function ``Q_n`` of the n samples of a unit, sorted,
    and ``F`` and ``Q`` of the law:

    - ``wasserstein1``: ``int_0^1 |Q_n - Q| du``; ``wasserstein2``: ``int_0^1 (Q_n - Q)^2 du``, the square of W2;
    - ``cramer``: ``int (F_n - F)^2 dx = E|X - Y| - E|X - X'| / 2 - E|Y - Y'| / 2``;
    - ``kl``: KL(activations, law), with the entropy from m-spacings, ``m = sqrt(n)`` (Vasicek 1976), less its bias
      for a constant density; it may be negative. The law needs a density; of a histogram it is that of
      `SmoothedHistogram`;
    - ``moments``: ``(mean - mu)^2 + (std - sigma)^2``, the square of W2 between normal laws.

    The first three are exact for a law given by samples. Other laws are replaced by their quantiles at the middles
    of at least 256 pieces of probability, which all ``i / n`` and all edges of a histogram bound. Values are looked at,
    so that NaN is refused: not under `torch.vmap`; units are treated together as they are.

    Args:
        activations: (..., units); leading axes count samples. Of a map (n, c, y, x) give `maps.flatten(1)`, or
            `maps.movedim(1, -1)` with a sample at each location.
        prior: a `torch.distributions.Distribution` (of batch shape () or (units,)), a histogram as a pair
            ``(edges, counts)``, or samples as a tensor (m,); a list has one of them for each unit. `Laws` made
            of such a list keeps what it computes from step to step. No gradient reaches a law. A distribution
            without ``icdf`` has its ``cdf`` inverted by bisection.
        across: "samples", each unit's histogram; "units", each sample's; "all", one of all numbers.
        distance: see above; in the units of the activations, or their square for wasserstein2 and moments.
        memory: keeps the activations, and adds those it has kept to the histogram. The gradient reaches the new
            ones alone, scaled up so that a small batch pulls as hard as a large one.

    Raises:
        ValueError: activations without samples, not floating point or not finite; a law that lacks what the
            distance needs; neither one law nor one for each unit; a memory across units.
    """
    check_activations(activations)
    if activations.dim() < 2:
        raise ValueError(f"activations must be (..., units) with samples, got shape {tuple(activations.shape)}")
    n_wrong = int((~activations.detach().isfinite()).sum())
    if n_wrong:
        raise ValueError(f"activations must be finite, found {n_wrong} of {activations.numel()} NaN or infinite")
    samples = activations.reshape(-1, activations.shape[-1])
    earlier = samples[:0].detach()
    if memory is not None:
        memory.remember(samples)
        earlier = memory.earlier(len(samples))
    laws = prior if isinstance(prior, Laws) else Laws(prior if isinstance(prior, list) else [prior])
    return _prior_loss(samples, earlier, laws, across, distance)


def _prior_loss(samples: Tensor, earlier: Tensor, laws: Laws, across: Across, distance: Distance) -> Tensor:
    """`prior_loss` of samples (n, units) beside earlier ones (m, units), without a look at their values."""
    precision = accumulation_dtype(samples)
    rows = torch.cat([samples.to(precision), earlier.to(precision)])
    if across == "samples":
        rows = rows.mT.contiguous()
    elif across == "all":
        rows = rows.reshape(1, -1)
    elif across != "units":
        raise ValueError(f"across is 'samples', 'units' or 'all', got {across!r}")
    elif len(earlier):
        raise ValueError("a memory of earlier samples needs across = 'samples' or 'all', got 'units'")
    value = _distance(rows, laws, distance).mean()
    scale = (len(samples) + len(earlier)) / len(samples)
    return scale * value - (scale - 1) * value.detach() if len(earlier) else value


def _distance(rows: Tensor, laws: Laws, distance: Distance) -> Tensor:
    """Of the numbers in each row (units, n); (units,)."""
    if distance == "moments":
        mean, deviation = laws.moments(rows)
        _check_count(len(mean), rows)
        variance = rows.var(1, correction=0).clamp_min(torch.finfo(rows.dtype).tiny)  # a constant unit stays finite
        return (rows.mean(1) - mean).square() + (variance.sqrt() - deviation).square()
    if distance == "kl":
        return _divergence(rows, laws)
    if distance not in ("wasserstein1", "wasserstein2", "cramer"):
        raise ValueError(f"distance is wasserstein1, wasserstein2, cramer, kl or moments, got {distance!r}")
    law = laws.pieces(rows.shape[1], rows)
    _check_count(len(law.value), rows)
    ordered = rows.sort(dim=1).values
    if distance == "cramer":
        return _cramer(ordered, law)
    gap = ordered[:, law.rank] - law.value
    return ((gap.abs() if distance == "wasserstein1" else gap.square()) * law.width).sum(1)


def _cramer(ordered: Tensor, law: Pieces) -> Tensor:
    """By the form with expectations, in which ``E|x - Y|`` is piecewise linear in x."""
    n = ordered.shape[1]
    value = law.value.expand(len(ordered), -1).contiguous()
    below = torch.searchsorted(value, ordered.detach(), right=True)
    mass = nn.functional.pad(law.width.cumsum(0), (1, 0))[below]
    moment = nn.functional.pad((law.width * value).cumsum(1), (1, 0))
    to_law = (ordered * (2 * mass - 1) + moment[:, -1:] - 2 * moment.gather(1, below)).mean(1)
    rank = (2 * torch.arange(n, device=ordered.device, dtype=ordered.dtype) + 1 - n) / n**2
    within_law = (law.width * value * (2 * law.level - 1)).sum(1)
    return to_law - (ordered * rank).sum(1) - within_law


def _divergence(rows: Tensor, laws: Laws) -> Tensor:
    """``mean(-log p(x)) - H`` with ``H = mean(log spacing - digamma(gaps)) + digamma(n + 1)``."""
    n = rows.shape[1]
    if n < 3:
        raise ValueError(f"distance 'kl' needs at least 3 samples, found {n}")
    reach = round(math.sqrt(n))
    place = torch.arange(n, device=rows.device)
    above, below = (place + reach).clamp(max=n - 1), (place - reach).clamp(min=0)
    ordered = rows.sort(dim=1).values
    spacing = (ordered[:, above] - ordered[:, below]).clamp_min(_SMALLEST_SPACING)
    bias = torch.digamma((above - below).to(rows.dtype)).mean() - torch.digamma(rows.new_full((), n + 1.0))
    return bias - spacing.log().mean(1) - laws.log_density(rows).mean(1)


def _check_count(n_laws: int, rows: Tensor) -> None:
    if n_laws not in (1, len(rows)):
        raise ValueError(f"one law for all units is needed or one for each of {len(rows)}, found {n_laws}")


class _Prior(BaseModel):
    """A law by name, as an experiment file writes it. Every parameter is written out."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class NormalPrior(_Prior):
    kind: Literal["normal"]
    mean: float
    std: Positive

    def law(self) -> Law:
        return Normal(self.mean, self.std, validate_args=False)


class RectifiedNormalPrior(_Prior):
    kind: Literal["rectified_normal"]
    mean: float  # before rectification
    std: Positive

    def law(self) -> Law:
        return RectifiedNormal(self.mean, self.std, validate_args=False)


class UniformPrior(_Prior):
    kind: Literal["uniform"]
    low: float
    high: float

    @model_validator(mode="after")
    def _low_is_below_high(self) -> UniformPrior:
        if self.low >= self.high:
            raise ValueError(f"a uniform law needs low below high, got {self.low} and {self.high}")
        return self

    def law(self) -> Law:
        return Uniform(self.low, self.high, validate_args=False)


class LaplacePrior(_Prior):
    kind: Literal["laplace"]
    location: float
    scale: Positive

    def law(self) -> Law:
        return Laplace(self.location, self.scale, validate_args=False)


class ExponentialPrior(_Prior):
    kind: Literal["exponential"]
    rate: Positive

    def law(self) -> Law:
        return Exponential(self.rate, validate_args=False)


class HistogramPrior(_Prior):
    kind: Literal["histogram"]
    edges: tuple[float, ...]
    counts: tuple[float, ...]

    @model_validator(mode="after")
    def _is_a_histogram(self) -> HistogramPrior:
        Laws([self.law()])
        return self

    def law(self) -> Law:
        return Histogram(self.edges, self.counts)


Prior = Annotated[
    NormalPrior | RectifiedNormalPrior | UniformPrior | LaplacePrior | ExponentialPrior | HistogramPrior,
    Field(discriminator="kind"),
]
_STANDARD_NORMAL = {"kind": "normal", "mean": 0.0, "std": 1.0}


@cache  # never emptied: a recorded step goes on reading the constants that it met
def _laws(priors: tuple[Prior, ...]) -> Laws:
    with making_constants():
        return Laws([prior.law() for prior in priors])


class FlattenOneSize(nn.Flatten):
    """Flattens maps (n, *shape); others are refused."""

    def __init__(self, site: Site, shape: tuple[int, ...]) -> None:
        super().__init__()
        self._site, self.shape = (site,), shape

    def forward(self, activation: Tensor) -> Tensor:
        if activation.shape[1:] != self.shape:
            raise ValueError(_of_another_size(self._site[0], activation))
        return super().forward(activation)


class Remembering(nn.Module):
    """Passes activations on unchanged and keeps the most recent samples of those that are recorded in ``memory``.

    Penalties read the newest ones in the record itself: what is in no record, as a pass under `torch.no_grad` or what a
    checkpoint computes again, would stand in their place.
    """

    def __init__(self, site: Site, capacity: int, features: Features, is_ordered: bool) -> None:
        super().__init__()
        self.features, self.is_ordered = features, is_ordered
        self._site = (site,)  # in a tuple: a Site is no part of its own transform
        is_flat = features == "flatten" and site.is_map
        self.memory = Memory(capacity, math.prod(site.shape or ()) if is_flat else site.features)

    def forward(self, activation: Tensor) -> Tensor:
        (site,) = self._site
        if site.is_recorded(activation):
            samples = _samples(Record(site, activation), self.features, self.is_ordered)
            if samples.shape[1] != self.memory.values.shape[1]:
                raise ValueError(_of_another_size(site, activation))
            self.memory.remember(samples)
        return activation


def _of_another_size(site: Site, activation: Tensor) -> str:
    return (
        f"Site {site.name!r}: activations {tuple(activation.shape)} (axes {site.axes!r}), and it was prepared for "
        f"units of shape {site.shape}: give it one size, or choose features = 'channels'"
    )


def _samples(record: Record, features: Features, is_ordered: bool) -> Tensor:
    """(samples, units); those of maps in the order (channels, *space) where ``is_ordered``, else in that of memory."""
    if is_ordered and features == "flatten" and record.site.is_map:
        return record.examples.flatten(1)
    vectors = record.vectors(features)
    return vectors.reshape(-1, vectors.shape[-1])


class ActivityPrior(Method):
    """`prior_loss` at every Site of one role, summed over Sites and weighted by ``strength``.

    ``mode = "l2_after_batchnorm"`` is the advice usually given instead: the Sites get batch normalization with
    learned scale and shift, and the penalty is the mean square of what it returns. ``prior``, ``across``,
    ``distance``, ``memory`` and ``max_samples`` then have no effect. ``features`` decides for both modes whether
    a convolutional map has one unit for each location and channel, or for each channel.
    """

    mode: Literal["prior", "l2_after_batchnorm"] = "prior"
    strength: NonNegative = 1e-2  # ours
    # One law, or one for each unit; the default is ours.
    prior: Prior | tuple[Prior, ...] = Field(default=_STANDARD_NORMAL, validate_default=True)  # type: ignore[assignment]
    across: Across = "samples"
    distance: Distance = "wasserstein1"  # ours
    memory: Annotated[int, Field(ge=0)] = 0  # samples that the histogram is made of; 0: the batch alone; ours
    sites: Role = "post"
    site_name: str = ""  # a part of the Site's name; "" takes all
    features: Features = "flatten"
    max_samples: PositiveCount | None = 1024  # of a step, drawn at random where there are more; ours

    @model_validator(mode="after")
    def _memory_has_samples(self) -> ActivityPrior:
        if self.memory and self.across == "units":
            raise ValueError("memory needs across = 'samples' or 'all', got 'units'")
        return self

    def prepare(self, model: nn.Module, generator: torch.Generator) -> None:
        """Put memories, or batch normalizations, into the chosen Sites.

        Raises:
            ValueError: no such Site, or one that is filled already or holds a sequence to normalize.
        """
        if self.strength == 0 or (self.mode == "prior" and not self.memory):
            return
        of_role = sites_with_role(model, self.sites)
        chosen = [site for site in of_role if self.site_name in site.name]
        if not chosen:
            found = ", ".join(site.name for site in of_role)
            raise ValueError(f"the model has no {self.sites!r} Site named *{self.site_name}*; it has {found}")
        fill_sites(model, chosen, self._memory_of if self.mode == "prior" else self._normalizer)

    @property
    def _has_a_law_for_each_unit(self) -> bool:
        return isinstance(self.prior, tuple) and len(self.prior) > 1

    def _memory_of(self, site: Site) -> nn.Module:
        return Remembering(site, self.memory, self.features, self._has_a_law_for_each_unit)

    def _normalizer(self, site: Site) -> nn.Module:
        if self.features == "channels" or not site.is_map:
            return batch_normalization(site)
        channels, *space = site.shape or ()
        shape = (*space, channels) if site.has_features_last else (channels, *space)
        return nn.Sequential(FlattenOneSize(site, shape), nn.BatchNorm1d(math.prod(shape)), nn.Unflatten(1, shape))

    def penalty(self, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
        """The weighted loss.

        Not a number among the activations makes the loss not a number, which the training loop reports.
        """
        chosen = [record for record in trace.select(self.sites) if self.site_name in record.site.name]
        if not chosen:
            raise ValueError(f"no {self.sites!r} Site has {self.site_name!r} in its name: choose another `site_name`")
        return self.strength * torch.stack([self._term(record, generator) for record in chosen]).sum()

    def _term(self, record: Record, generator: torch.Generator) -> Tensor:
        if self.mode == "l2_after_batchnorm":
            return in_float32(record.activation).square().mean()
        samples = _samples(record, self.features, self._has_a_law_for_each_unit)
        earlier = samples[:0].detach()
        if self.memory:
            if not isinstance(record.site.transform, Remembering):
                raise ValueError(f"the memory of Site {record.site.name!r} needs `prepare`, which makes it")
            earlier = record.site.transform.memory.earlier(len(samples))
        if self.max_samples is not None and len(samples) > self.max_samples:
            drawn = torch.randperm(len(samples), generator=generator, device=samples.device)
            samples = samples[drawn[: self.max_samples]]
        priors = self.prior if isinstance(self.prior, tuple) else (self.prior,)
        with errors_in(f"Site {record.site.name!r}"):
            return _prior_loss(samples, earlier, _laws(priors), self.across, self.distance)
