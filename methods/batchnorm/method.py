"""Batch normalization (Ioffe & Szegedy 2015): standardise each feature over the mini-batch."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from reproduce.method import Later, Method, Positive, Site, batch_normalization, fill_sites, sites_with_role


class BatchNorm(Method):
    """Put ``y = scale (x - mean) / sqrt(var + eps) + shift`` (Algorithm 1) into every Site of one role.

    ``mean`` and the biased ``var`` are taken over the mini-batch, and over space for convolutional maps; the
    running averages of both serve evaluation. ``momentum`` is the weight of the newest batch in them. With
    ``statistics = "batch"`` there are none: a test batch is standardised by its own, and what is predicted of an
    example depends on the batch that it comes in.
    """

    sites: Literal["pre", "post"] = "pre"  # section 3.2: immediately before the non-linearity
    eps: Positive = 1e-5  # ours: the paper gives no value
    momentum: Annotated[float, Field(gt=0, le=1)] = 0.1  # ours: the paper says "moving averages"
    affine: bool = True  # gamma and beta are learned
    initial_scale: Positive = 1.0  # gamma at the start; ours
    # Of the test batch too, as Nado et al. (2020) and Schneider et al. (2020) do under shift. None: of training.
    statistics: Later[Literal["batch"]] = None

    @model_validator(mode="after")
    def _scale_needs_affine(self) -> BatchNorm:
        if not self.affine and self.initial_scale != 1:
            raise ValueError(f"initial_scale {self.initial_scale} has no effect with affine = false")
        return self

    def prepare(self, model: nn.Module, generator: torch.Generator) -> None:
        """Fill the Sites with normalizations that have their own statistics.

        Raises:
            ValueError: for a recurrent Site, a Site that is already filled, or a model without such Sites.
        """
        fill_sites(model, sites_with_role(model, self.sites), self._normalizer)

    def _normalizer(self, site: Site) -> nn.Module:
        if site.is_sequence:
            raise ValueError(
                f"Site {site.name!r} holds a sequence (axes {site.axes!r}), and batch normalization needs one without "
                "time: recurrent_batchnorm is the method for LSTMs"
            )
        options = {"eps": self.eps, "momentum": self.momentum, "affine": self.affine}
        layer = batch_normalization(site, **options, track_running_stats=self.statistics is None)
        if self.affine:
            nn.init.constant_(layer.weight, self.initial_scale)
        return layer
