"""Activity penalties: L1 and L2 norms of activations, and AR and TAR of Merity, McCann & Socher (2017)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor

from reproduce.method import Features, Method, NonNegative, Record, Role, Trace, check_activations, in_float32

Reduction = Literal["sum", "mean"]


def l1_activity(activations: Tensor, reduction: Reduction = "sum") -> Tensor:
    """Mean over samples of ``|h|_1``, the sum (or mean) over units of absolute values; 0-dim.

    Activations have shape (..., units); every leading axis counts samples, of a map (n, channels, y, x) the
    channels too: give `maps.flatten(1)`, or `maps.movedim(1, -1)` with a sample at each location. Computed in float32
    at least. Joo et al. (2020), section 4.2.

    Raises:
        ValueError: no activations, or an unknown reduction.
    """
    return _over_units(_checked(activations).abs(), reduction)


def l2_activity(activations: Tensor, reduction: Reduction = "sum") -> Tensor:
    """Mean over samples of ``|h|_2^2``, the sum (or mean) over units of squares; as `l1_activity`."""
    return _over_units(_checked(activations).square(), reduction)


def activation_regularization(dropped: Tensor) -> Tensor:
    """AR: the mean of all squares of a recurrent output after its dropout mask (time, batch, units); 0-dim.

    The authors' code; their text writes ``L2(m * h_t)``. Raises ValueError for no activations.
    """
    return _checked(dropped).square().mean()


def temporal_activation_regularization(outputs: Tensor) -> Tensor:
    """TAR: the mean of all squares of ``h_{t+1} - h_t`` of an output before dropout; 0-dim.

    The output has shape (time, batch, units). A window of a single step has no differences, and its TAR is
    zero. Raises ValueError for another shape or no activations.
    """
    outputs = _checked(outputs)
    if outputs.dim() != 3:
        raise ValueError(f"TAR is for outputs of shape (time, batch, units), got {tuple(outputs.shape)}")
    if len(outputs) == 1:
        return outputs.new_zeros(())
    return outputs.diff(dim=0).square().mean()


def _checked(activations: Tensor) -> Tensor:
    check_activations(activations)
    return in_float32(activations)


def _over_units(magnitudes: Tensor, reduction: Reduction) -> Tensor:
    if reduction == "sum":
        return magnitudes.sum(-1).mean()
    if reduction == "mean":
        return magnitudes.mean()
    raise ValueError(f"reduction is 'sum' or 'mean', got {reduction!r}")


class ActivityNorm(Method):
    """L1 or L2 norm of the activations of every layer, or AR and TAR of the last recurrent layer.

    ``kind = "l1"`` and ``"l2"``: ``strength`` times the sum over Sites. ``kind = "ar_tar"``: ``strength``
    times AR of the last "dropped" Site plus ``temporal_strength`` times TAR of the last "post" Site;
    ``sites``, ``features`` and ``reduction`` then have no effect.
    """

    kind: Literal["l1", "l2", "ar_tar"] = "l2"
    strength: NonNegative = 1e-4  # lambda, and alpha of AR; from the grid of Joo et al. (2020)
    temporal_strength: NonNegative = 0.0  # beta of TAR
    sites: Role = "post"
    features: Features = "flatten"  # a sample of a map: all of it, or one location
    reduction: Reduction = "sum"  # over units

    @model_validator(mode="after")
    def _temporal_needs_time(self) -> ActivityNorm:
        if self.kind != "ar_tar" and self.temporal_strength != 0:
            raise ValueError(f"temporal_strength {self.temporal_strength} needs kind = 'ar_tar', got {self.kind!r}")
        return self

    @property
    def recorded_roles(self) -> frozenset[Role]:
        """Of AR and TAR those that have a weight."""
        if self.kind != "ar_tar":
            return super().recorded_roles
        weights: dict[Role, float] = {"dropped": self.strength, "post": self.temporal_strength}
        return frozenset(role for role, weight in weights.items() if weight)

    @property
    def is_mean_over_samples(self) -> bool:
        return True

    def penalty(self, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
        """The weighted penalty."""
        if self.kind == "ar_tar":
            return self._recurrent(trace)
        term = l1_activity if self.kind == "l1" else l2_activity
        terms = [term(record.vectors(self.features), self.reduction) for record in trace.select(self.sites)]
        return self.strength * torch.stack(terms).sum()

    def _recurrent(self, trace: Trace) -> Tensor:
        total = trace.zero()
        if self.strength:
            dropped = self._last(trace, "dropped").vectors("channels")
            total = total + self.strength * activation_regularization(dropped)
        if self.temporal_strength:
            outputs = self._last(trace, "post").examples.transpose(0, 1)
            total = total + self.temporal_strength * temporal_activation_regularization(outputs)
        return total

    def _last(self, trace: Trace, role: Role) -> Record:
        records = trace.select(role)
        record = records[-1]
        if sum(each.site is record.site for each in records) > 1:
            raise ValueError(
                f"AR and TAR are of whole sequences; Site {record.site.name!r} was called several times in this pass: "
                "call its layer once, on the whole sequence"
            )
        if not record.site.is_sequence:
            raise ValueError(f"AR and TAR need a recurrent output; Site {record.site.name!r} has {record.site.axes!r}")
        return record
