"""What passes the Sites: statistics of a training-mode pass over a fixed batch, leaving no trace in the run."""

from __future__ import annotations

import torch
from torch import Tensor

from reproduce.method.rng import Generators
from reproduce.method.sites import Record, Trace
from reproduce.results.record import BINS, QUANTILES, SiteStatistics
from reproduce.tasks import Task

RANK_SAMPLES = 256  # the rank needs an eigenvalue problem of this size at most


def site_statistics(task: Task, generators: Generators, trace: Trace) -> dict[str, SiteStatistics]:
    """Statistics of every Site on the Task's site batch, in training mode as in the papers' figures; in forward order.

    Running averages and generators are put back afterwards, so a Run with these statistics equals one without.
    """
    buffers = {name: buffer.clone() for name, buffer in task.model.named_buffers()}
    states = generators.state_dict()
    task.forward_site_batch()
    found = {record.site.name: describe(record) for record in trace.records}
    trace.clear()
    for name, buffer in task.model.named_buffers():
        buffer.copy_(buffers[name])
    generators.load_state_dict(states)
    return found


@torch.no_grad()
def describe(record: Record) -> SiteStatistics:
    """Mean, mean square, dispersion of the norms, effective rank, excess kurtosis, and the law of one fixed unit.

    Samples are rows: (samples, features), with space and time counted as samples. The effective rank is
    exp(-sum p log p) with p the eigenvalues of the covariance over their sum (Roy & Vetterli 2007).
    """
    samples = record.samples.detach().float()
    norms = samples.norm(dim=1)
    unit = samples[:, samples.shape[1] // 2].double()
    quantiles = torch.quantile(unit, torch.tensor(QUANTILES, dtype=torch.float64, device=unit.device))
    summary = torch.stack(
        [
            samples.mean(),
            samples.square().mean(),
            norms.std(correction=0) / norms.mean().clamp_min(1e-12),
            effective_rank(samples),
            excess_kurtosis(samples),
        ]
    ).tolist()
    low, high, *counts = _histogram(unit)
    return SiteStatistics(
        mean=summary[0],
        mean_square=summary[1],
        norm_dispersion=summary[2],
        effective_rank=summary[3],
        unit_quantiles=tuple(quantiles.tolist()),
        unit_range=(low, high),
        unit_histogram=tuple(int(count) for count in counts),
        excess_kurtosis=summary[4],
    )


def effective_rank(samples: Tensor) -> Tensor:
    """exp of the entropy of the normalised covariance spectrum, 0-dim; 1 for a rank-one or constant batch."""
    stride = max(1, len(samples) // RANK_SAMPLES)
    # A diverging run may hold infinities here; its statistics are then void, but reading them must not fail.
    chosen = samples[::stride][:RANK_SAMPLES].float().nan_to_num().double()  # float's largest, still squared finitely
    centred = chosen - chosen.mean(0)
    gram = centred @ centred.T if centred.shape[0] < centred.shape[1] else centred.T @ centred
    power = torch.linalg.eigvalsh(gram).clamp_min(0)
    share = power / power.sum().clamp_min(1e-300)
    entropy = -(share * share.clamp_min(1e-300).log()).sum()
    return entropy.exp().float()


def excess_kurtosis(samples: Tensor) -> Tensor:
    """``E[(h - mean)^4] / variance^2 - 3`` of each unit over (samples, units), the mean over units; 0-dim.

    0 for a normal law, -2 for two equal points, its least. A unit that does not vary counts as 0.
    """
    centred = samples.double() - samples.double().mean(0)
    variance = centred.square().mean(0)
    varies = variance > 0
    fourth = centred.square().square().mean(0)
    return torch.where(varies, fourth / variance.square().clamp_min(1e-300) - 3, 0.0).mean().float()


def _histogram(unit: Tensor) -> list[float]:
    """Smallest value, largest value, and the counts of values in BINS equal parts between them."""
    low, high = unit.aminmax()
    position = ((unit - low) / (high - low).clamp_min(1e-300) * BINS).nan_to_num().long().clamp(0, BINS - 1)
    counts = torch.zeros(BINS, dtype=unit.dtype, device=unit.device).index_add_(0, position, torch.ones_like(unit))
    return torch.cat([low.view(1), high.view(1), counts]).tolist()
