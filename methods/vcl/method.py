"""VCL, the variance constancy loss (Littwin & Wolf, NeurIPS 2018): two small samples should vary equally."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from reproduce.method import (
    Method,
    NonNegative,
    Positive,
    Record,
    Role,
    Site,
    Trace,
    TransformableFunction,
    check_activations,
    device_of,
    dtype_of,
    in_float32,
    losses_together,
    mean_of_each,
    moderate_scale,
    show_in_forward,
    sites_with_role,
)


def variance_constancy_loss(
    activations: Tensor, beta: Tensor | float = 1.0, sample_size: int = 5, unbiased: bool = True
) -> Tensor:
    """Mean over units of ``(1 - s1^2 / (s2^2 + beta))^2``, s1^2 and s2^2 variances of two small samples; 0-dim.

    Activations have shape (batch, ...), and every element of the trailing shape is a unit. The samples are rows
    [0, n) and [n, 2n) of a batch whose order is random; other rows are unused. ``beta`` is a number or broadcasts
    against the trailing shape. Variances divide by n - 1, or by n where not ``unbiased``. Gradients flow through
    both variances and beta. Computed in float32 at least. At a pole, s2^2 = -beta, the loss is not finite.
    The loss as in the authors' code (vcl_pytorch); s2^2 + beta in place of the true variance.

    Raises:
        ValueError: a batch smaller than 2n, samples too small for a variance, a beta of another shape, activations
            that are not floating point.
    """
    _check(activations, beta, sample_size, unbiased)
    return _losses([activations], beta, sample_size, unbiased, of_any_size=True).squeeze(0)


def variance_constancy_losses(
    activations: Sequence[Tensor], betas: Sequence[Tensor], sample_size: int = 5, unbiased: bool = True
) -> Tensor:
    """`variance_constancy_loss` of each of several activations of one shape, (activations,), in few operations for all.

    Here variances have to be numbers that float32 holds.

    Raises:
        ValueError: as `variance_constancy_loss`.
    """
    _check(activations[0], betas[0], sample_size, unbiased)
    beta = torch.stack(list(betas))
    repeated = activations[0].dim() - beta.dim()  # axes of the units that share a beta
    beta = beta.reshape(len(beta), *(1,) * repeated, *beta.shape[1:])
    return _losses(activations, beta, sample_size, unbiased, of_any_size=False)


def _losses(
    activations: Sequence[Tensor], beta: Tensor | float, sample_size: int, unbiased: bool, of_any_size: bool
) -> Tensor:
    """Beta is one for all activations, or broadcasts against (activations, units...)."""
    samples = _FirstRows.apply(2 * sample_size, *activations)  # type: ignore[no-untyped-call]
    samples = in_float32(samples).unflatten(1, (2, sample_size))
    if of_any_size:  # a ratio of variances, which float32 may not hold
        scale = moderate_scale(samples)
        samples, beta = samples * scale, beta * scale.square()
    centred = samples - samples.mean(2, keepdim=True)
    # torch's own variance takes over ten times as long over so short an axis.
    first, second = (centred.square().sum(2) / (sample_size - int(unbiased))).unbind(1)
    return mean_of_each((1 - first / (second + beta)).square())


def two_slice_variance_constancy_loss(
    activations: Tensor, beta: Tensor | float = 1.0, sample_size: int = 5, unbiased: bool = True
) -> Tensor:
    """`variance_constancy_loss` as the formula reads, one slice for each sample; kept to be timed against it."""
    _check(activations, beta, sample_size, unbiased)
    first = activations[:sample_size].var(0, correction=int(unbiased))
    second = activations[sample_size : 2 * sample_size].var(0, correction=int(unbiased))
    return ((1 - first / (second + beta)) ** 2).mean()


class _FirstRows(TransformableFunction):
    """``activations[:n]`` of each, stacked, in the memory layout of the activations, and so are the gradients.

    Slicing pads its gradient in the default layout, and adding that to the gradient of a map in channels_last
    takes longer than all the rest.
    """

    @staticmethod
    def forward(n: int, *activations: Tensor) -> Tensor:
        axes = range(activations[0].dim())
        memory_order = sorted(axes, key=activations[0].stride, reverse=True)
        stacked = torch.stack([h[:n].permute(memory_order) for h in activations])
        return stacked.permute(0, *(1 + memory_order.index(axis) for axis in axes))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.layouts = [_Layout(tuple(h.shape), h.stride(), h.dtype) for h in inputs[1:]]  # without holding on to them

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_Padded.apply(ctx.layouts, gradient)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class _Layout:
    """Of a tensor."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def zeros(self, device: torch.device) -> Tensor:
        like = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")
        return torch.zeros_like(like, device=device)


class _Padded(TransformableFunction):
    """Rows, stacked, to the gradients of the activations that they are the first rows of: zero below."""

    @staticmethod
    def forward(layouts: list[_Layout], stacked: Tensor) -> tuple[Tensor, ...]:
        padded = [layout.zeros(stacked.device) for layout in layouts]
        for own, rows in zip(padded, stacked.unbind(), strict=True):
            own[: len(rows)] = rows
        return tuple(padded)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.n = inputs[1].shape[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, _FirstRows.apply(ctx.n, *gradients)  # type: ignore[no-untyped-call]


def _check(activations: Tensor, beta: Tensor | float, sample_size: int, unbiased: bool) -> None:
    smallest = 2 if unbiased else 1
    if sample_size < smallest:
        raise ValueError(f"a variance needs samples of at least {smallest}, got sample_size {sample_size}")
    if activations.dim() == 0 or len(activations) < 2 * sample_size:
        found = len(activations) if activations.dim() else 0
        raise ValueError(
            f"VCL compares two samples of {sample_size} and needs a batch of at least {2 * sample_size}, got {found}: "
            "take larger batches, or a smaller sample_size"
        )
    check_activations(activations)
    units = activations.shape[1:]
    shape = beta.shape if isinstance(beta, Tensor) else torch.Size()
    fits = len(shape) <= len(units) and all(
        own in (1, unit) for own, unit in zip(reversed(shape), reversed(units), strict=False)
    )
    if not fits:
        raise ValueError(f"beta of shape {tuple(shape)} does not fit units of shape {tuple(units)}")


class VCL(Method):
    """``strength`` times the sum over Sites of `variance_constancy_loss`, with one beta for each unit.

    ``prepare`` gives every Site a parameter ``beta`` of the shape of one sample (each location and channel of a
    map has its own), which the optimiser treats as a weight: the rate of weights, and weight decay. Recurrent
    Sites have one beta for each feature; the loss is then taken at each time step and averaged, which is ours.
    A pole (s2^2 = -beta) makes the loss infinite or undefined, and the Run is then sealed as diverged.
    """

    strength: NonNegative = 0.01  # gamma; vcl_pytorch and the authors' UCI driver
    sample_size: Annotated[int, Field(ge=1)] = 5  # n; both codes
    unbiased: bool = True  # n - 1 in vcl_pytorch, n in the UCI driver
    initial_beta: Positive = 1.0  # vcl_pytorch; 0.1 in the UCI driver
    learn_beta: bool = True  # both codes
    include_first: bool = True  # the first layer: in vcl_pytorch, not in the UCI driver
    sites: Role = "pre"  # both codes, and the abstract's "before the activation"

    @model_validator(mode="after")
    def _samples_have_a_variance(self) -> VCL:
        if self.unbiased and self.sample_size < 2:
            raise ValueError(f"sample_size {self.sample_size} has no unbiased variance: at least 2")
        return self

    def prepare(self, model: nn.Module, generator: torch.Generator) -> None:
        """Give the chosen Sites their betas; nothing changes where ``strength`` is zero.

        Raises:
            ValueError: no such Sites, a Site that already has betas, or one whose shape is not known yet.
        """
        if self.strength == 0:
            return
        chosen = sites_with_role(model, self.sites)[0 if self.include_first else 1 :]
        if not chosen:
            raise ValueError(
                f"the model has no {self.sites!r} Site after the first; include_first = True takes that one"
            )
        betas = [
            torch.full(self._shape(site), self.initial_beta, device=device_of(model), dtype=dtype_of(model, site))
            for site in chosen
        ]
        for site, beta in zip(chosen, betas, strict=True):
            if self.learn_beta:
                site.register_parameter("beta", nn.Parameter(beta))
                show_in_forward(site, ["beta"])
            else:
                site.register_buffer("beta", beta)

    def penalty(self, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
        """The weighted loss."""
        records = [record for record in trace.select(self.sites) if _beta(record.site) is not None]
        if not records:
            raise ValueError("VCL needs betas at its Sites: call prepare() before training")
        losses = partial(variance_constancy_losses, sample_size=self.sample_size, unbiased=self.unbiased)
        betas = [_beta(record.site) for record in records]
        return self.strength * losses_together(losses, [_examples(record) for record in records], betas).sum()

    def _shape(self, site: Site) -> tuple[int, ...]:
        if _beta(site) is not None:
            raise ValueError(f"Site {site.name!r} already has betas")
        if site.shape is None:
            raise ValueError(
                f"Site {site.name!r} has not seen a batch yet: give `example=`, an input that reaches it in eval() too"
            )
        _ = site.known_axes  # refused where they are a guess
        return site.shape


def _beta(site: Site) -> Tensor | None:
    found = getattr(site, "beta", None)
    return found if isinstance(found, Tensor) else None


def _examples(record: Record) -> Tensor:
    """(batch, units...): a recurrent output has a unit for each time and feature, a map one for each of its betas."""
    examples, beta = record.examples, _beta(record.site)
    if record.site.is_map and beta is not None and examples.shape[1:] != beta.shape:
        raise ValueError(
            f"Site {record.site.name!r}: maps of {tuple(examples.shape[1:])}, and VCL has a beta at each place of "
            f"{tuple(beta.shape)}: give it maps of one size"
        )
    return examples
