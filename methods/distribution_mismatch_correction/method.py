"""Distribution mismatch correction (Fuchs, Knoll & Pernkopf 2021): test batches are given the laws of training."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from reproduce.method import (
    Method,
    QuantileMemory,
    Site,
    check_activations,
    fill_sites,
    in_float32,
    sites_with_role,
    tied_places,
)


def match_quantiles(activations: Tensor, reference: Tensor, share: float = 1.0) -> Tensor:
    """Each unit's values moved towards the law of its reference, in their order; the shape and type of the values.

    ``T(x_i) = (1 - share) x_i + share Q(u_i)``, with ``u_i = (#{x_j < x_i} + #{x_j <= x_i}) / (2 n)`` the level of x_i
    among the unit's n samples, and Q the quantile function of the reference: straight between its points, which
    ascend and belong to the levels ``(k + 1/2) / points``, and constant beyond the outer two. Of all maps that give the
    samples the reference's law, that of ``share = 1`` moves them the least: the distances ``|x_i - Q(u_i)|`` have the
    mean ``W1``, the 1-D Wasserstein distance. With another share the samples are left at ``(1 - share) W1``.

    The levels are constants to the gradient. One sample has no law, and stays as it is; NaN stays NaN.

    Args:
        activations: (..., units); every leading axis counts samples.
        reference: (units, points).
        share: of the way, from 0 to 1.

    Raises:
        ValueError: values or points of other shapes, not floating point, or a share outside [0, 1].
    """
    check_activations(activations)
    if reference.dim() != 2 or activations.shape[-1] != len(reference) or reference.shape[1] < 2:
        raise ValueError(
            "activations (..., units) need reference points (units, two or more), "
            f"got {tuple(activations.shape)} and {tuple(reference.shape)}"
        )
    if not 0 <= share <= 1:
        raise ValueError(f"share is a part of the way, from 0 to 1, got {share}")
    rows = activations.reshape(-1, activations.shape[-1]).mT
    return _match_rows(rows, reference, share).mT.reshape(activations.shape)


def _match_rows(rows: Tensor, reference: Tensor, share: float) -> Tensor:
    """`match_quantiles` of the samples in each row (units, n)."""
    n, points = rows.shape[1], reference.shape[1]
    if n < 2 or share == 0:
        return rows
    values = in_float32(rows)
    ordered, order = values.detach().contiguous().sort(dim=-1)
    first, last = tied_places(ordered)
    level = (first + last + 1).to(reference.dtype) / (2 * n)
    position = (level * points - 0.5).clamp(0, points - 1)
    lower = position.floor().long()
    left, right = reference.gather(1, lower), reference.gather(1, (lower + 1).clamp(max=points - 1))
    wanted = torch.lerp(left, right, position - lower).to(values.dtype)
    wanted = torch.empty_like(wanted).scatter_(1, order, wanted)
    moved = (1 - share) * values + share * wanted if share < 1 else wanted
    return torch.where(values.isnan(), values, moved).to(rows.dtype)


class DistributionMatching(QuantileMemory):
    """Nothing while training, when quantile functions are remembered; at evaluation `match_quantiles`.

    Until a training batch has been seen it changes nothing at evaluation either.

    Args:
        axes, units, points, momentum: as of `QuantileMemory`.
        share: as of `match_quantiles`.
    """

    def __init__(self, axes: str, units: int, points: int = 128, momentum: float = 0.1, share: float = 1.0) -> None:
        super().__init__(axes, units, points, momentum)
        self.share = share

    def forward(self, activation: Tensor) -> Tensor:
        """Activations as they are while training, and of the laws of training at evaluation."""
        units_first = self.units_first(activation)
        rows = units_first.flatten(1)
        if self.training:
            self.remember(in_float32(rows.detach()).sort(dim=-1).values.to(self.reference.dtype).unsqueeze(1))
            return activation
        matched = torch.where(self.is_filled, _match_rows(rows, self.reference, self.share), rows)
        return self.as_before(matched.reshape(units_first.shape))


class DistributionMismatchCorrection(Method):
    """Put a `DistributionMatching` into every Site of one role. Training is vanilla's, bit for bit.

    Each unit of a test batch is given its law of training, layer by layer, so that a layer sees corrected inputs. What
    is predicted of an example then depends on the batch that it comes in.
    """

    sites: Literal["pre", "post"] = "pre"  # ours: "post" where a normalization holds the Sites before activations
    share: Annotated[float, Field(ge=0, le=1)] = 1.0  # all of the way, as in the paper
    points: Annotated[int, Field(ge=2)] = 128  # ours
    momentum: Annotated[float, Field(gt=0, le=1)] = 0.1  # ours, as is customary for batch normalization

    def prepare(self, model: nn.Module, generator: torch.Generator) -> None:
        """Fill the Sites; each has its own quantile functions.

        Raises:
            ValueError: no such Sites, one that holds a sequence, is already filled or whose shape is not known yet.
        """
        fill_sites(model, sites_with_role(model, self.sites), self._layer)

    def _layer(self, site: Site) -> nn.Module:
        if site.is_sequence:
            raise ValueError(
                f"Site {site.name!r} holds a sequence (axes {site.axes!r}), and distribution mismatch correction needs "
                "one without time: a level among later steps would tell what is to come, and streams are too few"
            )
        return DistributionMatching(site.known_axes, site.features, self.points, self.momentum, self.share)
