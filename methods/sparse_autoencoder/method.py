"""Sparse codes by a penalty on activations: L1 on the code of an autoencoder, and what goes with it."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from methods.sparse_autoencoder.weights import SHAPES, Weight, Weights, reconstruction, several_layers, weights_of
from reproduce.method import (
    Method,
    NonNegative,
    Record,
    Role,
    Site,
    Trace,
    check_activations,
    errors_in,
    holders_of,
    in_float32,
    moderate_scale,
    sites_of,
    sites_with_role,
)

Reduction = Literal["per_example", "batch_sum"]

# A latent that is always silent has an infinite divergence; below this its mean activity counts as this.
LEAST_ACTIVITY = 1e-7
# Nor does a latent that is always active cost more than the largest number below 1 in float32 does.
GREATEST_ACTIVITY = 1 - 2.0**-24
_ROUNDING = 1e-5  # a mean of numbers up to 1 may come out above 1 by less than this
ENCODER_SHARE = 0.2  # a resampled encoder row's norm over the mean of the living (Bricken et al. 2023)


def l1_code_penalty(code: Tensor, decoder: Tensor | None = None, reduction: Reduction = "per_example") -> Tensor:
    """Mean (or sum) over samples of ``sum_j |f_j|``, or of ``sum_j |f_j| ||W_dec,j||`` with a decoder; 0-dim.

    Cunningham et al. (2023), eq. 4; with the decoder's row norms, Anthropic's update of April 2024. Computed in
    float32 at least.

    Args:
        code: (..., d_sae); every leading axis counts samples. Of a map (n, c, y, x) give `maps.flatten(1)`, or
            `maps.movedim(1, -1)` with a sample at each location.
        decoder: (d_sae, d_in). The penalty then does not change when a latent's code is divided by a number and
            its row multiplied by it.
        reduction: ``"per_example"`` the mean over samples; ``"batch_sum"`` their sum, which grows with the batch.

    Raises:
        ValueError: an empty or integer code, a decoder of another width, or an unknown reduction.
    """
    magnitudes = _checked(code).abs()
    if decoder is not None:
        if decoder.dim() != 2 or len(decoder) != code.shape[-1]:
            raise ValueError(f"decoder must be (d_sae, d_in) with d_sae {code.shape[-1]}, got {tuple(decoder.shape)}")
        wide = decoder.to(magnitudes.dtype)
        scale = moderate_scale(wide)
        magnitudes = magnitudes * ((wide * scale).norm(dim=1) / scale)
    match reduction:
        case "per_example":
            return magnitudes.sum(-1).mean()
        case "batch_sum":
            return magnitudes.sum()
    raise ValueError(f"reduction is 'per_example' or 'batch_sum', got {reduction!r}")


def kl_sparsity(code: Tensor, target: float) -> Tensor:
    """``sum_j KL(rho || rhohat_j)`` of Bernoulli laws, rhohat_j the mean over samples of latent j; 0-dim.

    Ng (2011), CS294A notes, where rhohat is taken over the whole training set. Codes (..., d_sae) lie in [0, 1], as
    behind a sigmoid; a mean above 1 gives NaN. A mean below 1e-7 (6e-5 for codes in float16) counts as that, and one
    above 1 - 6e-8 likewise, so that silent and saturated latents cost a finite amount and have no gradient.

    Raises:
        ValueError: an empty or integer code, or a target outside (0, 1).
    """
    if not 0.0 < target < 1.0:
        raise ValueError(f"target must lie in (0, 1), got {target!r}")
    least = max(LEAST_ACTIVITY, torch.finfo(code.dtype).tiny)  # whose slope, 1 / least, fits into the code's type
    code = _checked(code)
    found = code.reshape(-1, code.shape[-1]).mean(0)
    mean = torch.where(found > 1 + _ROUNDING, torch.nan, found.clamp(least, GREATEST_ACTIVITY))
    silent = torch.log((1 - target) / (1 - mean))
    return (target * torch.log(target / mean) + (1 - target) * silent).sum()


def l0(code: Tensor) -> Tensor:
    """Mean over samples of the number of latents that are not zero; 0-dim. Codes are (..., d_sae)."""
    return (_checked(code) != 0).sum(-1).double().mean()


def feature_density(code: Tensor) -> Tensor:
    """Fraction of samples on which each latent is not zero, (d_sae,); codes are (..., d_sae)."""
    return (_checked(code).reshape(-1, code.shape[-1]) != 0).double().mean(0)


def dead_fraction(code: Tensor) -> Tensor:
    """Fraction of latents that are zero on every sample given; 0-dim. State with it how many samples that were."""
    return feature_density(code).eq(0).double().mean()


def fvu(inputs: Tensor, reconstruction: Tensor) -> Tensor:
    """Fraction of variance unexplained, ``sum |x - xhat|^2 / sum |x - mean x|^2``; 0-dim.

    Inputs and reconstruction are (..., d_in); the mean and both sums run over all samples given. 1 for the mean
    itself, 0 for a perfect reconstruction. Raises ValueError for two shapes.
    """
    x, xhat = _pair(inputs, reconstruction)
    return (x - xhat).square().sum() / (x - x.mean(0)).square().sum()


def explained_variance(inputs: Tensor, reconstruction: Tensor) -> Tensor:
    """``1 - fvu``; 0-dim."""
    return 1 - fvu(inputs, reconstruction)


def relative_reconstruction_bias(inputs: Tensor, reconstruction: Tensor) -> Tensor:
    """``gamma = E |xhat|^2 / E (xhat . x)``; 0-dim. Below 1 the output is too small, as under L1.

    Rajamanoharan et al. (2024), eq. 10; ``xhat / gamma`` is the best rescaling. Raises ValueError for two shapes.
    """
    x, xhat = _pair(inputs, reconstruction)
    return xhat.square().sum() / (xhat * x).sum()


def ce_loss_score(clean: float, with_sae: float, ablated: float) -> float:
    """``(ablated - with_sae) / (ablated - clean)``: the part of a model's loss (nats) that a reconstruction keeps.

    1 where the reconstruction changes nothing, 0 where it is as bad as the ablation (zero or mean: say which).

    Raises:
        ValueError: where the ablation costs nothing, so that nothing can be kept.
    """
    if ablated == clean:
        raise ValueError(f"the ablated and the clean loss are both {clean}: there is nothing to recover")
    return (ablated - with_sae) / (ablated - clean)


def _checked(code: Tensor) -> Tensor:
    with errors_in("code"):
        check_activations(code)
    return in_float32(code)


def _pair(inputs: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
    if inputs.shape != reconstruction.shape or inputs.dim() == 0 or inputs.numel() == 0:
        shapes = f"{tuple(inputs.shape)} and {tuple(reconstruction.shape)}"
        raise ValueError(f"inputs and reconstruction must be (..., d_in) of one shape and not empty, got {shapes}")
    rows, output = inputs.reshape(-1, inputs.shape[-1]), reconstruction.reshape(-1, inputs.shape[-1])
    return rows.double(), output.double()


class Resampling(nn.Module):
    """Dead latents of one autoencoder begin again from inputs that it reconstructs badly (Bricken et al. 2023).

    Lives in the autoencoder, so that its counts are in every checkpoint.
    """

    idle: Tensor  # (d_sae,) steps since each latent fired
    steps: Tensor

    def __init__(self, site: Site, every: int, until: float) -> None:
        super().__init__()
        self.every, self.until = every, until
        self._site = (site,)  # in a tuple: that of the code, which is no part of this
        self.register_buffer("idle", torch.zeros(site.features, dtype=torch.int64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.batch: tuple[Tensor, Tensor] | None = None  # of the last forward pass, whose penalty has not been taken
        self.batches: list[tuple[Tensor, Tensor]] = []  # of those since the last step
        self.is_recorded = False  # the call that is under way

    def forward(self, value: Any) -> Any:
        """The identity, for an autoencoder that calls all its children in turn, as Sequential does."""
        return value

    def begin(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Forward pre-hook of the autoencoder: whether its code is recorded, as a call of it alone is not.

        Not where it ends: the autoencoder may be the whole model, whose pass is over then.
        """
        self.is_recorded = False
        if module.training and torch.is_grad_enabled():
            read = next((value for value in (*inputs, *named.values()) if isinstance(value, Tensor)), None)
            if read is None:
                raise ValueError(
                    f"resampling needs inputs that are a tensor, {type(module).__name__} was called with none"
                )
            self.is_recorded = self._site[0].is_recorded(read)

    def remember(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        """Forward hook of the autoencoder: keep the inputs and reconstructions of its last call that is recorded."""
        if self.is_recorded:
            read = next(value for value in (*inputs, *named.values()) if isinstance(value, Tensor))
            self.batch = read.detach(), reconstruction(read, output).detach()

    def keep(self) -> None:
        """The penalty of the last forward pass is taken: its batch is one of those of the next step."""
        if self.batch is not None:
            self.batches.append(self.batch)
            self.batch = None

    @torch.no_grad()
    def after_step(
        self,
        weights: Weights,
        code: Tensor,
        optimizer: torch.optim.Optimizer,
        progress: Tensor,
        generator: torch.Generator,
    ) -> None:
        """Count, and where a resampling is due, give each dead latent new weights and empty moments.

        The same tensors are computed and written at every step; `torch.where` decides which change.
        """
        self.steps += 1
        fired = (code != 0).reshape(-1, code.shape[-1]).any(0)
        self.idle.copy_(torch.where(fired, 0, self.idle + 1))
        due = (self.steps % self.every == 0) & (progress <= self.until)
        dead = (self.idle >= max(1, self.every // 2)) & due
        directions = self._directions(weights, len(dead), generator)
        weights.decoder.write(directions, dead, optimizer)
        if weights.b_enc is not None:
            weights.b_enc.write(torch.zeros_like(weights.b_enc.stored), dead, optimizer)
        if weights.encoder is not None:
            norms, alive = weights.encoder.latents_first.norm(dim=1), ~dead
            of_alive = (norms * alive).sum() / alive.sum().clamp_min(1)
            scale = ENCODER_SHARE * torch.where(alive.any(), of_alive, norms.mean())
            weights.encoder.write(scale * directions, dead, optimizer)
        self.idle.masked_fill_(dead, 0)
        self.batch, self.batches = None, []  # no activation outlives its step

    def _directions(self, weights: Weights, count: int, generator: torch.Generator) -> Tensor:
        """Unit vectors (count, d_in) towards inputs drawn with probability proportional to their squared loss."""
        if not self.batches:
            self.keep()
        if not self.batches:
            raise ValueError("resampling needs a training-mode forward pass before each step")
        inputs, output = self._rows(0, weights.decoder), self._rows(1, weights.decoder)
        centre = weights.b_dec
        cumulative = (inputs - output).double().square().sum(1).square().cumsum(0)
        uniform = torch.rand(count, generator=generator, device=inputs.device, dtype=torch.float64)
        chosen = torch.searchsorted(cumulative, uniform * cumulative[-1]).clamp_max(len(inputs) - 1)
        vectors = inputs[chosen] if centre is None else inputs[chosen] - centre
        return nn.functional.normalize(vectors, dim=1)

    def _rows(self, which: Literal[0, 1], decoder: Weight) -> Tensor:
        """Inputs or reconstructions of all batches since the last step, (samples, d_in)."""
        shape = self.batches[0][which].shape
        if decoder.d_in not in (math.prod(shape[axis:]) for axis in range(1, len(shape))):
            raise ValueError(
                f"resampling makes an input a row of the decoder, which has {decoder.d_in} entries, and inputs have "
                f"shape {tuple(shape)}: encoder and decoder must be a single linear layer each"
            )
        rows = [batch[which].reshape(-1, decoder.d_in) for batch in self.batches]
        return rows[0] if len(rows) == 1 else torch.cat(rows)


def _owner(model: nn.Module, site: Site) -> nn.Module:
    """The autoencoder whose code a Site is: the nearest module around it with a decoder, else the nearest."""
    holders = holders_of(model, site)
    return next((module for module in holders if weights_of(module) is not None), holders[0])


class SparseAutoencoder(Method):
    """L1 on the code: ``l1_coefficient`` times `l1_code_penalty`, plus ``kl_coefficient`` times `kl_sparsity`.

    Both are summed over the Sites of role ``sites``. ``norm_weighted`` weights each latent by the norm of its row in
    the ``W_dec`` of the module that owns the Site, or of its column in a linear layer ``decoder`` (`weights_of`). Both
    coefficients rise linearly over the first ``warm_up`` of training. With ``resample_every``, after that many steps
    and every so many again, until ``resample_until`` of training, latents that were silent over the last half of them
    begin anew (`Resampling`, in `after_step`).
    """

    l1_coefficient: NonNegative = 1.0  # lambda; SAELens' default, for squared errors summed over features
    reduction: Reduction = "per_example"  # over samples
    norm_weighted: bool = False  # Anthropic's update of April 2024
    warm_up: Annotated[float, Field(ge=0, le=1)] = 0.0  # SAELens' l1_warm_up_steps, as a fraction of training
    kl_coefficient: NonNegative = 0.0  # beta of Ng (2011); 3 there
    target_density: Annotated[float, Field(gt=0, lt=1)] = 0.05  # rho of Ng (2011)
    sites: Role = "code"  # where the activations are read
    resample_every: Annotated[int, Field(ge=2)] | None = None  # steps; 25,000 in Bricken et al. (2023)
    resample_until: Annotated[float, Field(ge=0, le=1)] = 0.5  # ours; the last of four came at 0.1 in Bricken et al.

    @model_validator(mode="after")
    def _resampling_is_of_codes(self) -> SparseAutoencoder:
        if self.resample_every is not None and self.sites != "code":
            raise ValueError(f"resample_every needs sites = 'code', got {self.sites!r}")
        return self

    @property
    def acts_after_step(self) -> bool:
        return self.resample_every is not None

    def prepare(self, model: nn.Module, generator: torch.Generator) -> None:
        """Give each autoencoder the counts that resampling needs.

        Raises:
            ValueError: a model without a code Site, or whose code has no decoder and encoder's bias to write anew.
        """
        if self.resample_every is None:
            return
        for site in sites_with_role(model, self.sites):
            owner = _owner(model, site)
            weights = weights_of(owner)
            if weights is None or weights.b_enc is None:
                raise ValueError(f"Site {site.name!r}: resampling needs W_dec and b_enc beside it, that is {SHAPES}")
            with errors_in(f"Site {site.name!r}"):
                for weight in filter(None, weights[:3]):
                    weight.stored  # noqa: B018  # or an error
                if deep := several_layers(owner):
                    raise ValueError(
                        f"resampling writes an input into a row of encoder and decoder, and {deep} has several linear "
                        "layers"
                    )
                sizes = [weight.d_in for weight in (weights.decoder, weights.encoder) if weight is not None]
                if len({*sizes}) > 1:
                    raise ValueError(
                        f"resampling writes one direction into decoder and encoder, whose rows have {sizes[0]} and "
                        f"{sizes[1]} entries: both must be one linear layer"
                    )
            resampling = Resampling(site, self.resample_every, self.resample_until)
            owner.add_module("resampling", resampling)
            owner.register_forward_pre_hook(resampling.begin, with_kwargs=True)
            owner.register_forward_hook(resampling.remember, with_kwargs=True)

    def penalty(self, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
        """The weighted penalty.

        Raises:
            ValueError: a mask, with resampling; no decoder to weight latents by.
        """
        total = trace.zero()
        for record in trace.select(self.sites):
            if self.resample_every is not None:
                self._keep_batch(trace.model, record)
            if self.l1_coefficient:
                decoder = self._decoder(trace.model, record.site) if self.norm_weighted else None
                total = total + self.l1_coefficient * l1_code_penalty(record.samples, decoder, self.reduction)
            if self.kl_coefficient:
                total = total + self.kl_coefficient * kl_sparsity(record.samples, self.target_density)
        return total * (progress / self.warm_up).clamp_max(1.0) if self.warm_up else total

    def after_step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Tensor, generator: torch.Generator
    ) -> None:
        """Resample dead latents where that is due; nothing without ``resample_every``."""
        if self.resample_every is None:
            return
        for site in sites_of(model):
            if site.role == self.sites and site.trace is not None:
                owner: Any = _owner(model, site)
                codes = [record.samples.detach() for record in site.trace.records if record.site is site]
                code = codes[0] if len(codes) == 1 else torch.cat(codes)  # several: of accumulated batches
                owner.resampling.after_step(weights_of(owner), code, optimizer, progress, generator)

    def _keep_batch(self, model: nn.Module, record: Record) -> None:
        if record.is_masked:
            raise ValueError(
                f"Site {record.site.name!r}: resampling counts and draws padded positions too: give no mask, or leave "
                "resample_every out"
            )
        resampling = getattr(_owner(model, record.site), "resampling", None)
        if isinstance(resampling, Resampling):
            resampling.keep()

    def _decoder(self, model: nn.Module, site: Site) -> Tensor:
        weights = weights_of(_owner(model, site))
        if weights is None:
            raise ValueError(f"Site {site.name!r}: norm_weighted needs W_dec in the module that holds the Site")
        return weights.decoder.latents_first
