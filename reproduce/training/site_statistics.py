"""What passes the Sites: statistics of a training-mode pass over a fixed batch, leaving no trace in the run.

Sites of equal shape are described together, and the host waits once, for all numbers of all Sites. On a CPU each number
is that of the Site alone, to the last bit: what depends on how many Sites are looked at is asked of one after another,
and what is left is elementwise, or computed in float64 and then rounded to float32.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from reproduce.method.records import Record
from reproduce.method.rng import Generators
from reproduce.method.sites import Trace
from reproduce.results.record import BINS, PROJECTIONS, QUANTILES, SiteStatistics
from reproduce.tasks import Task

RANK_SAMPLES = 256  # the rank needs an eigenvalue problem of this size at most
EVALUATIONS = 50  # of a Run at which Sites are described, at most: what the longest of the papers' figures draws
ONE_BY_ONE = frozenset({"cpu"})  # devices on which a Site's numbers keep their bits, whatever else is described
LARGEST_BATCH = 2**24  # numbers of Sites that are described together: 64 MiB in float32, and twice that beside them


def are_described(evaluation: int, evaluations: int) -> bool:
    """Whether Sites are described at this evaluation of so many, the first being 0: all, or EVALUATIONS of them.

    These are spread evenly from the first to the last. A network of 110 Sites, described at each of 200 evaluations,
    would fill a Result with numbers that no figure shows.
    """
    if evaluations <= EVALUATIONS:
        return True
    distance = (evaluations - 1) / (EVALUATIONS - 1)
    return evaluation == round(round(evaluation / distance) * distance)


def site_statistics(task: Task, generators: Generators, trace: Trace) -> dict[str, SiteStatistics]:
    """Statistics of every Site on the Task's site batch, in training mode as in the papers' figures; in forward order.

    Running averages and generators are put back afterwards, so a Run with these statistics equals one without.
    """
    buffers = list(task.model.buffers())
    before = [buffer.clone() for buffer in buffers]
    states = generators.state_dict()
    with trace.recording_every_role():
        task.forward_site_batch()
    names = [record.site.name for record in trace.records]
    found = dict(zip(names, describe(trace.records), strict=True))
    trace.clear()
    if buffers:
        with torch.no_grad():
            torch._foreach_copy_(buffers, before)
    generators.load_state_dict(states)
    return found


@torch.no_grad()
def describe(records: Sequence[Record]) -> list[SiteStatistics]:
    """Mean, mean square, dispersion of the norms, effective rank, moments of units, the law of one, and of projections.

    Samples are rows: (samples, features), with space and time counted as samples. The effective rank is
    exp(-sum p log p) with p the eigenvalues of the covariance over their sum (Roy & Vetterli 2007).
    """
    if not records:
        return []
    batches = _of_equal_shape(records)
    sums, powers, chosen, units = [], [], [], []
    for batch in batches:
        samples = _stacked([records[index] for index in batch])
        norms = samples.norm(dim=2)
        deviations = _of_each(norms, lambda own: own.std(correction=0), lambda all_: all_.std(1, correction=0))
        sums.append(torch.stack([_means(samples), _means(samples.square()), _means(norms), deviations], dim=1))
        powers.append(_central_moments(samples))
        chosen.append(_spread_over(samples))
        units.append(samples[:, :, samples.shape[2] // 2].clone())
    mean, mean_square, mean_norm, deviation = torch.cat(sums).unbind(1)
    columns = [
        torch.stack([mean, mean_square, deviation / mean_norm.clamp_min(1e-12)], dim=1).double(),
        torch.cat(_together(_moments_of_units, powers)),
        torch.cat(_together(_distance_to_normal, chosen)),
        torch.cat(_together(effective_rank, _together(_gram, chosen))),
        torch.cat(_together(_law, units)),
    ]
    rows = torch.cat(columns, dim=1).tolist()
    order = [index for batch in batches for index in batch]
    return [_named(row) for _, row in sorted(zip(order, rows, strict=True))]


def _of_equal_shape(records: Sequence[Record]) -> list[list[int]]:
    """Which records are described together: those whose samples fill memory alike, up to LARGEST_BATCH numbers.

    A Site whose samples are spread over memory otherwise, as those of a transposed matrix, is described alone: its
    sums are taken in the order of memory.
    """
    batches: list[list[int]] = []
    newest: dict[tuple[object, ...], list[int]] = {}
    for index, (site, activation) in enumerate(records):
        is_dense = activation.is_contiguous() or (
            site.axes == "nchw" and activation.is_contiguous(memory_format=torch.channels_last)
        )
        kind = (site.axes, activation.dtype, activation.shape, is_dense or index)
        batch = newest.get(kind)
        if batch is None or (len(batch) + 1) * activation.numel() > LARGEST_BATCH:
            batch = newest[kind] = []
            batches.append(batch)
        batch.append(index)
    return batches


def _stacked(records: Sequence[Record]) -> Tensor:
    """Samples of Sites of one kind: (Sites, samples, features), in float32."""
    if len(records) == 1:
        return records[0].samples.float()[None]
    rows = torch.stack([record.vectors("channels") for record in records])
    return rows.reshape(len(records), -1, rows.shape[-1]).float()


def _together(function: Callable[[Tensor], Tensor], parts: Sequence[Tensor]) -> list[Tensor]:
    """``function`` of each part (Sites, ...), called once for parts of one shape, as many as fit into memory."""
    results = list(parts)
    calls: list[list[int]] = []
    newest: dict[torch.Size, list[int]] = {}
    for place, part in enumerate(parts):
        call = newest.get(part.shape[1:])
        if call is None or sum(parts[other].numel() for other in call) + part.numel() > LARGEST_BATCH // 2:
            call = newest[part.shape[1:]] = []
            calls.append(call)
        call.append(place)
    for call in calls:
        result = function(torch.cat([parts[place] for place in call]))
        for place, own in zip(call, result.split([len(parts[place]) for place in call]), strict=True):
            results[place] = own
    return results


def _of_each(values: Tensor, alone: Callable[[Tensor], Tensor], together: Callable[[Tensor], Tensor]) -> Tensor:
    """Of values (Sites, ...) what ``alone`` gives for each Site's, and ``together``, in other last bits, for all.

    Threads of a CPU divide one sum among them, but of several sums each takes some; and of two equal numbers, a zero of
    either sign, the one that comes first may be another.
    """
    if values.device.type in ONE_BY_ONE:
        return torch.stack([alone(own) for own in values.unbind()])
    return together(values)


def _means(values: Tensor) -> Tensor:
    """The mean of all numbers of each Site: (Sites, ...) to (Sites,)."""
    return _of_each(values, torch.mean, lambda all_: all_.flatten(1).mean(1))


def _central_moments(samples: Tensor) -> Tensor:
    """Variance and fourth central moment of each unit of (Sites, samples, units), in float64: (Sites, 2, units)."""
    centred = samples.to(torch.float64, copy=True)
    centred -= centred.mean(1, keepdim=True)
    squares = centred.square_()
    variance = squares.mean(1)
    return torch.stack([variance, squares.square_().mean(1)], dim=1)


def _moments_of_units(moments: Tensor) -> Tensor:
    """Excess kurtosis and variance from `_central_moments`, each the mean over units, in float32: (Sites, 2).

    The first, ``E[(h - mean)^4] / variance^2 - 3``, is 0 for a normal law, -2 for two equal points, its least. A unit
    that does not vary counts as 0.
    """
    variance, fourth = moments.unbind(1)
    excess = torch.where(variance > 0, fourth / variance.square().clamp_min(1e-300) - 3, 0.0)
    return torch.stack([excess.mean(1), variance.mean(1)], dim=1).float().double()


def _distance_to_normal(samples: Tensor) -> Tensor:
    """The mean of W1 to N(0, 1) over projections of (Sites, samples, features), in float32: (Sites, 1).

    A normal law of as many equal parts as there are samples stands for the normal law, a point in the middle of each.
    """
    count, width = samples.shape[1:]
    projected = _sorted(samples.double() @ _directions(width, samples.device))
    return (projected - _normal_points(count, samples.device)).abs_().mean((1, 2))[:, None].float().double()


def _sorted(values: Tensor) -> Tensor:
    """Along the samples; on a CPU by numpy, which takes a tenth of the time."""
    if values.device.type in ONE_BY_ONE:
        rows = np.ascontiguousarray(values.numpy().swapaxes(1, 2))
        rows.sort(axis=2)
        return torch.from_numpy(rows.swapaxes(1, 2))
    return values.sort(dim=1).values


@functools.lru_cache(maxsize=8)  # of as many widths as a network has; wide maps take megabytes
def _directions(width: int, device: torch.device) -> Tensor:
    """PROJECTIONS unit vectors, (width, PROJECTIONS), the same in every Run: no generator of the Run is asked."""
    drawn = np.random.Generator(np.random.PCG64(0)).standard_normal((PROJECTIONS, width))
    return torch.from_numpy((drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).T.copy()).to(device)


@functools.lru_cache(maxsize=64)
def _normal_points(count: int, device: torch.device) -> Tensor:
    """Quantiles of N(0, 1) in the middle of ``count`` equal parts: (count, 1)."""
    levels = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return torch.special.ndtri(levels)[:, None].to(device)


def _spread_over(samples: Tensor) -> Tensor:
    """At most RANK_SAMPLES samples of each Site, evenly from first to last: (Sites, samples, features), finite."""
    stride = max(1, samples.shape[1] // RANK_SAMPLES)
    # A diverging run may hold infinities here; its statistics are then void, but reading them must not fail.
    return samples[:, ::stride][:, :RANK_SAMPLES].nan_to_num()  # float32's largest, whose square float64 holds


def _gram(samples: Tensor) -> Tensor:
    """The smaller of the matrices that have the covariance's spectrum, but for a factor: (Sites, m, m)."""
    samples = samples.double()
    centred = samples - samples.mean(1, keepdim=True)
    return centred @ centred.mT if centred.shape[1] < centred.shape[2] else centred.mT @ centred


def effective_rank(gram: Tensor) -> Tensor:
    """exp of the entropy of the normalised spectra of (Sites, m, m): (Sites, 1), rounded to float32.

    1 for a rank-one or constant batch. Matrices are finite, as those of `_spread_over` are.
    """
    power = torch.linalg.eigvalsh(gram).clamp_min(0)
    share = power / power.sum(1, keepdim=True).clamp_min(1e-300)
    entropy = -(share * share.clamp_min(1e-300).log()).sum(1, keepdim=True)
    return entropy.exp().float().double()


def _law(units: Tensor) -> Tensor:
    """QUANTILES, smallest and largest value, and the counts in BINS equal parts between them, of (Sites, samples)."""
    units = units.double()
    quantiles = _of_each(units, _quantiles_of_one, _quantiles)
    ends = _of_each(units, lambda own: torch.stack(own.aminmax()), lambda all_: torch.stack(all_.aminmax(dim=1), dim=1))
    return torch.cat([quantiles, ends, _histogram(units, ends[:, :1], ends[:, 1:])], dim=1)


def _histogram(units: Tensor, low: Tensor, high: Tensor) -> Tensor:
    position = (units - low).div_((high - low).clamp_min(1e-300)).mul_(BINS)
    place = position.nan_to_num_().long().clamp_(0, BINS - 1)
    return units.new_zeros(len(units), BINS).scatter_add_(1, place, units.new_ones(()).expand_as(units))


def _quantiles_of_one(unit: Tensor) -> Tensor:
    return torch.quantile(unit, torch.tensor(QUANTILES, dtype=unit.dtype))


def _quantiles(units: Tensor) -> Tensor:
    """As `torch.quantile`, which would take no more than 2^24 numbers, and wait for the levels to be copied."""
    ordered = units.sort(dim=1).values
    last = ordered.shape[1] - 1
    levels = []
    for quantile in QUANTILES:
        place = quantile * last
        below = math.floor(place)
        levels.append(torch.lerp(ordered[:, below], ordered[:, math.ceil(place)], place - below))
    found = torch.stack(levels, dim=1)
    return torch.where(ordered[:, -1:].isnan(), torch.nan, found)  # not a number among them is sorted to the end


def _named(row: Sequence[float]) -> SiteStatistics:
    mean, mean_square, norm_dispersion, kurtosis, variance, distance, rank, *law = row
    quantiles, (low, high), counts = law[: len(QUANTILES)], law[-BINS - 2 : -BINS], law[-BINS:]
    return SiteStatistics(
        mean=mean,
        mean_square=mean_square,
        norm_dispersion=norm_dispersion,
        effective_rank=rank,
        unit_quantiles=tuple(quantiles),
        unit_range=(low, high),
        unit_histogram=tuple(int(count) for count in counts),
        excess_kurtosis=kurtosis,
        sample_variance=variance,
        distance_to_normal=distance,
    )
