"""Quantile activation (Challa et al. 2024): a pre-activation is replaced by its quantile within the batch."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from methods.quantile_activation.choices import Choices, grounded_levels, kernel_slopes, on_grid
from reproduce.method import (
    Later,
    Method,
    Positive,
    QuantileMemory,
    Site,
    TransformableFunction,
    batch_normalization,
    check_activations,
    differentiable_once,
    fill_sites,
    in_float32,
    moderate_scale,
    sites_with_role,
    tied_places,
)

Output = Literal["uniform", "normal"]
Context = Literal["fixed", "moving"]

_UNIFORM_STD = math.sqrt(1 / 12)
_EPSILON = 1e-5  # added to a unit's variance where its slope is bounded, so that a constant unit has one


def quantile_transform(
    activations: Tensor, output: Output = "uniform", context: Context = "fixed", steepest: float = 10.0
) -> Tensor:
    """Each unit's values replaced by their quantiles among its n samples; the shape and type of the activations.

    ``u_i = (#{x_j < x_i} + #{x_j <= x_i}) / (2 n)``, the average rank less 1/2, over n: the marginals are
    exactly uniform on ``1/(2n), 3/(2n), ...`` where no values are tied, and tied values share one quantile. "normal"
    returns the standard normal law's quantile at u_i. The result does not change under increasing maps of a unit.

    As a function of the samples u is a staircase, whose gradient is zero or does not exist. In its place stands the
    slope of a chord of the staircase, from m = sqrt(n) sorted samples below x_i to m above, cut off at the ends:

        f_i = (u_(r+m) - u_(r-m)) / (x_(r+m) - x_(r-m)),    r the rank of x_i,

    an estimate of the unit's density at x_i, the derivative of its distribution function ("normal": the same with
    the outputs in place of u). It is bounded: no steeper than ``steepest`` times a straight line that maps the
    samples' standard deviation onto the output's.

    - ``context = "fixed"``: ``dL/dx_i = f_i dL/du_i``, as if the other samples were only a measuring rod.
    - ``context = "moving"``: the samples move the rod too. Each of the w_i samples in the window of i carries an equal
      share of its slope: ``dL/dx_j = v_j - sum_{i: j in window of i} v_i / w_i`` with ``v = f dL/du``. What moves all
      samples alike, which changes no quantile, then has no gradient.

    A constant unit has none. The result cannot be differentiated twice.

    Args:
        activations: (..., units); every leading axis counts samples. Of a map (n, c, y, x) give `maps.flatten(1)`,
            or `maps.movedim(1, -1)` with a sample at each location. NaN stays NaN.
        output: the law of the result.
        context: see above.
        steepest: the bound; ties, as after a ReLU, would have an infinite slope.

    Raises:
        ValueError: fewer than two samples, no units, not floating point; unknown choices; a bound below one.
    """
    check_activations(activations, least_samples=2)
    rows = activations.reshape(-1, activations.shape[-1]).mT
    return _transform_rows(rows, output, context, steepest)[0].mT.reshape(activations.shape)


def _transform_rows(
    rows: Tensor, output: Output, context: Context, steepest: float, choices: Choices = Choices()
) -> tuple[Tensor, Tensor]:
    """`quantile_transform` of the samples in each row (..., n), and the rows sorted, in float32 at least."""
    if rows.shape[-1] < 2:
        raise ValueError(f"a quantile within the batch needs at least 2 samples, got {rows.shape[-1]}")
    if output not in ("uniform", "normal") or context not in ("fixed", "moving") or not steepest >= 1:
        raise ValueError(
            "output is 'uniform' or 'normal', context 'fixed' or 'moving', steepest at least 1; "
            f"got {output!r}, {context!r} and {steepest}"
        )
    precise = in_float32(rows)
    ordered, order = precise.detach().contiguous().sort(dim=-1, stable=True)
    options = output, context, steepest, choices, torch.is_grad_enabled()
    result: Tensor = _BatchQuantile.apply(precise, ordered, order, *options)[0]  # type: ignore[no-untyped-call]
    return result.to(rows.dtype), ordered


class _BatchQuantile(TransformableFunction):
    """Rows (..., n), and what sorting them gives, to quantiles within each row."""

    @staticmethod
    def forward(
        rows: Tensor,
        ordered: Tensor,
        order: Tensor,
        output: Output,
        context: Context,
        steepest: float,
        choices: Choices,
        with_slopes: bool,
    ) -> tuple[Tensor, ...]:
        last_place = rows.shape[-1] - 1
        first, last = tied_places(ordered)
        level = (first + last + 1).to(rows.dtype) / (2 * rows.shape[-1])
        if choices.grounded:
            is_negative = ordered < 0
            level = grounded_levels(level, is_negative.to(level.dtype).mean(-1, keepdim=True), is_negative)
        outcome = _of_law(level, output)
        given = outcome if choices.levels is None else _of_law(on_grid(level, choices.levels), output)
        result = torch.empty_like(ordered).scatter_(-1, order, given)
        result = torch.where(rows.isnan(), rows, result)
        if not with_slopes:
            return (result,)
        if choices.bandwidth is not None:
            return result, order.int(), kernel_slopes(ordered, level, choices.bandwidth)
        reach = math.ceil(math.sqrt(rows.shape[-1]))
        # Windows end with whole ties, so that tied samples have the same one.
        start = first.gather(-1, (first - reach).clamp_(min=0))
        end = last.gather(-1, (last + reach).clamp_(max=last_place))
        rise = outcome.gather(-1, end) - outcome.gather(-1, start)
        run = ordered.gather(-1, end) - ordered.gather(-1, start)
        scale = moderate_scale(ordered[..., ::last_place])  # the least and the largest
        variance = (ordered * scale).var(-1, correction=0, keepdim=True)
        deviation = (variance + _EPSILON * scale.square()).sqrt() / scale
        longest = steepest * (_UNIFORM_STD if output == "uniform" else 1.0)
        slope = rise / torch.maximum(run, rise * deviation / longest).clamp_min_(torch.finfo(rows.dtype).tiny)
        window = (start.int(), end.int()) if context == "moving" else ()
        return result, order.int(), slope, *window

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        TransformableFunction.keep(ctx, output)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return (None,) * len(ctx.needs_input_grad)
        order, slope, *window = ctx.saved_tensors
        order = order.long()
        pull = gradient.gather(-1, order) * slope
        if window:
            start, end = (place.long() for place in window)
            sums = nn.functional.pad((pull / (end - start + 1)).cumsum(-1), (1, 0))
            pull = pull - (sums.gather(-1, end + 1) - sums.gather(-1, start))
        return torch.empty_like(pull).scatter_(-1, order, pull), *(None,) * 7


def _of_law(levels: Tensor, output: Output) -> Tensor:
    return levels if output == "uniform" else torch.special.ndtri(levels)


def reference_quantile(activations: Tensor, reference: Tensor, output: Output = "uniform") -> Tensor:
    """Quantiles of values (..., units) within a law that points (units, points) describe; the shape of the values.

    The points of each unit ascend and belong to the levels ``(k + 1/2) / points``. Between them the level is
    interpolated, values equal to several points have the middle one of their levels, and values beyond the ends have
    the level of the end. "normal" returns the standard normal law's quantile at that level. NaN stays NaN.

    Raises:
        ValueError: values or points of other shapes.
    """
    if activations.dim() == 0 or reference.dim() != 2 or activations.shape[-1] != len(reference):
        raise ValueError(
            "activations (..., units) need reference points (units, points), "
            f"got {tuple(activations.shape)} and {tuple(reference.shape)}"
        )
    rows = activations.reshape(-1, activations.shape[-1]).mT
    return _within_reference(rows, reference, output).mT.reshape(activations.shape)


def _within_reference(rows: Tensor, reference: Tensor, output: Output, choices: Choices = Choices()) -> Tensor:
    """`reference_quantile` of the values in each row (units, n)."""
    points = reference.shape[1]
    values = rows.to(reference.dtype).contiguous()
    level = _reference_levels(values, reference)
    if choices.grounded:
        zero_level = _reference_levels(torch.zeros_like(values[:, :1]), reference)
        level = grounded_levels(level, zero_level, values < 0)
    level = level.clamp(0.5 / points, 1 - 0.5 / points)
    result = _of_law(level if choices.levels is None else on_grid(level, choices.levels), output)
    return torch.where(values.isnan(), values, result).to(rows.dtype)


def _reference_levels(values: Tensor, reference: Tensor) -> Tensor:
    points = reference.shape[1]
    fixed = values.detach()
    below, not_above = torch.searchsorted(reference, fixed), torch.searchsorted(reference, fixed, right=True)
    left = reference.gather(1, (below - 1).clamp(min=0))
    right = reference.gather(1, below.clamp(max=points - 1))
    tiny = torch.finfo(reference.dtype).tiny
    fraction = ((values - left) / (right - left).clamp_min(tiny)).clamp(0, 1)
    between = (below + fraction - 0.5) / points
    return torch.where(below == not_above, between, (below + not_above).to(reference.dtype) / (2 * points))


class QuantileActivation(QuantileMemory):
    """`quantile_transform` while training; at evaluation the quantile within what training has shown.

    Each time step of a sequence is ranked by itself, since a rank among later steps would tell a layer above what is to
    come.

    Args:
        axes, units, points, momentum: as of `QuantileMemory`.
        output, context, steepest: as of `quantile_transform`.
        choices: where it follows the authors' code.
        adapts: quantiles are those of the test batch at evaluation, and not those of training.
    """

    def __init__(
        self,
        axes: str,
        units: int,
        points: int = 128,
        momentum: float = 0.1,
        output: Output = "uniform",
        context: Context = "fixed",
        steepest: float = 10.0,
        choices: Choices = Choices(),
        adapts: bool = False,
    ) -> None:
        super().__init__(axes, units, points, momentum)
        self.output, self.context, self.steepest = output, context, steepest
        self.choices, self.adapts = choices, adapts
        self.before: nn.Module | None = None  # a normalization of what it is given
        self.after: nn.Module | None = None  # and of what it gives

    def forward(self, activation: Tensor) -> Tensor:
        """Activations to their quantiles, of the same shape.

        Raises:
            ValueError: a batch of one sample, while training or where it adapts.
        """
        units_first = self.units_first(activation if self.before is None else self.before(activation))
        # (units, steps, samples): only sequences have several steps.
        stepped = units_first if "t" in self.axes else units_first.flatten(1).unsqueeze(1)
        if self.training or self.adapts:
            result, ordered = _transform_rows(stepped, self.output, self.context, self.steepest, self.choices)
            if self.training:
                self.remember(ordered.to(self.reference.dtype))
        else:
            result = _within_reference(stepped.flatten(1), self.reference, self.output, self.choices)
        quantiles = self.as_before(result.reshape(units_first.shape))
        return quantiles if self.after is None else self.after(quantiles)


class QAct(Method):
    """Put a `QuantileActivation` into every Site of one role.

    Before a ReLU, or any activation that leaves (0, 1) as it is, uniform quantiles take the activation's place; normal
    ones pass through it. The Site records the quantiles. Evaluation uses each unit's quantile function, ``points`` of
    it, averaged over training with ``momentum`` as the weight of the newest batch.
    """

    sites: Literal["pre", "post"] = "pre"  # the paper: pre-activations
    output: Output = "uniform"  # the paper; "normal" is ours
    context: Context = "fixed"
    steepest: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 10.0  # ours; a normal law needs 1.4
    points: Annotated[int, Field(ge=2)] = 128  # ours
    momentum: Annotated[float, Field(gt=0, le=1)] = 0.1  # ours, as is customary for batch normalization

    # Evaluation by the quantiles of the test batch, which is the paper's; None: by those of training.
    statistics: Later[Literal["batch"]] = None
    # The authors' code, as it is known to us: both signs count one half, the slope is a density with a Gaussian kernel
    # of bandwidth 0.5, there are 100 levels, and batch normalization stands before and after. None: none of it.
    grounded: Later[Literal[True]] = None
    bandwidth: Later[Positive] = None
    levels: Later[Annotated[int, Field(ge=2)]] = None
    normalise: Later[Literal["before", "after", "both"]] = None

    @model_validator(mode="after")
    def _authors_choices_go_with_theirs(self) -> QAct:
        chosen = self.grounded or self.bandwidth is not None
        if chosen and (self.output != "uniform" or self.context != "fixed"):
            raise ValueError(
                "grounded and bandwidth need output 'uniform' and context 'fixed', "
                f"found {self.output!r} and {self.context!r}"
            )
        return self

    def prepare(self, model: nn.Module, generator: torch.Generator) -> None:
        """Fill the Sites; each has its own quantile functions.

        Raises:
            ValueError: no such Sites, or a Site that is already filled or whose shape is not known yet.
        """
        fill_sites(model, sites_with_role(model, self.sites), self._layer)

    def _layer(self, site: Site) -> nn.Module:
        layer = QuantileActivation(
            site.known_axes,
            site.features,
            self.points,
            self.momentum,
            self.output,
            self.context,
            self.steepest,
            Choices(self.grounded is True, self.bandwidth, self.levels),
            adapts=self.statistics == "batch",
        )
        if self.normalise in ("before", "both"):
            layer.before = batch_normalization(site)
        if self.normalise in ("after", "both"):
            layer.after = batch_normalization(site)
        return layer
