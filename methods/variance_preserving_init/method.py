"""Initialisation that keeps the variance over samples, not only over weights (Luther & Seung 2019), and its cures."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from methods.variance_preserving_init.direct import DirectlyBefore
from reproduce.method import Method, Role, Site, errors_in, fill_sites, in_float32, sites_of, sites_with_role


def relu_correlation_map(correlation: Tensor | float) -> Tensor:
    """What a wide layer with weights N(0, 2 / inputs) after a ReLU makes of the correlation of two samples.

    ``k(rho) = (sqrt(1 - rho^2) + rho (pi - arccos rho)) / pi``, the arc-cosine kernel of order 1 (Cho & Saul 2009).
    With ``rho = m^2 / sigma^2``, the squared sample mean of a pre-activation over its whole mean square, it is the
    recursion of Luther & Seung (2019). Its only fixed point is 1, its slope ``1 - arccos(rho) / pi``, at the ends too.
    Values are looked at, which `torch.vmap` cannot; any shape is taken as it is.

    Args:
        correlation: uncentred cosine of two samples' pre-activations, any shape, in [-1, 1].

    Returns:
        The same of the next layer's pre-activations, float64.

    Raises:
        ValueError: a correlation outside [-1, 1].
    """
    rho = _checked(correlation)
    inner = torch.where(rho.abs() < 1, rho, 0.0)  # at the ends root and arc cosine have infinite slopes, their sum not
    found = ((1 - inner.square()).sqrt() + inner * (torch.pi - inner.arccos())) / torch.pi
    return torch.where(rho >= 1, rho, torch.where(rho <= -1, 0.0 * rho, found))


def centred_correlation_map(correlation: Tensor | float) -> Tensor:
    """As `relu_correlation_map`, for weights whose rows sum to zero: ``(k(rho) - 1/pi) / (1 - 1/pi)``; ours.

    ``1/pi = k(0)`` is what all units have in common. 0 is a fixed point of slope 0.73 and attracts, 1 repels. Not under
    `torch.vmap`, as `relu_correlation_map`.
    """
    common = 1 / torch.pi
    return (relu_correlation_map(correlation) - common) / (1 - common)


def sample_variance_share(correlation: Tensor | float, depth: int, centred: bool = False) -> Tensor:
    """Share of a pre-activation's mean square that is variance over samples, ``depth`` layers on: ``1 - rho``.

    Without ``centred`` it decays as ``9 pi^2 / (2 depth^2)``; with it, it tends to 1. Not under `torch.vmap`, as
    `relu_correlation_map`.

    Args:
        correlation: mean correlation of two samples in the first layer's pre-activations, in [-1, 1].
        depth: ReLU layers in between; 0 gives ``1 - correlation``.
        centred: rows sum to zero and have the gain of `sample_variance_gain`; otherwise He's weights.

    Raises:
        ValueError: a correlation outside [-1, 1], or a negative depth.
    """
    if depth < 0:
        raise ValueError(f"depth counts layers and is at least 0, found {depth}")
    rho = _checked(correlation)
    step = centred_correlation_map if centred else relu_correlation_map
    for _ in range(depth):
        rho = step(rho).clamp(-1, 1)
    return 1 - rho


def sample_variance_gain(activation: Callable[[Tensor], Tensor] = torch.relu) -> float:
    """The norm of zero-sum rows that keep the sample variance 1 of normal pre-activations: ``Var[f(z)]^(-1/2)``.

    ReLU: ``sqrt(2 / (1 - 1/pi)) = 1.713``, for every variance, because it is homogeneous. Brock, De & Smith (2021)
    scale activations by the same number. By quadrature over z ~ N(0, 1).

    Raises:
        ValueError: an activation that is constant or not finite.
    """
    z, weight = _normal_grid()
    value = activation(z.clone())  # a copy: modules may work in place
    variance = float((weight * (value - (weight * value).sum()).square()).sum())
    if not 0 < variance < float("inf"):
        raise ValueError(f"an activation of a normal variable needs a finite variance above 0, found {variance}")
    return variance**-0.5


@torch.no_grad()
def centred_rows_(weight: Tensor, gain: float) -> Tensor:
    """Make every row of a kernel (outputs, ...) sum to zero and have norm ``gain``, in place; its direction stays.

    ``w <- gain (w - mean(w)) / |w - mean(w)|``: the standardisation of Brock, De & Smith (2021), once instead of at
    every step. What all inputs have in common then cancels.

    Returns:
        The weight.

    Raises:
        ValueError: a kernel without rows of two inputs at least, or a row that is constant.
    """
    if weight.dim() < 2 or weight.numel() == 0 or weight[0].numel() < 2:
        raise ValueError(
            f"centred rows need a kernel (outputs, inputs, ...) of two inputs, found {tuple(weight.shape)}"
        )
    rows = in_float32(weight).flatten(1)
    centred = rows - rows.mean(1, keepdim=True)
    length = centred.norm(dim=1, keepdim=True)
    n_constant = int((length <= 1e-6 * rows.norm(dim=1, keepdim=True)).sum())
    if n_constant:
        raise ValueError(f"centred rows need weights that vary, found {n_constant} constant of {len(rows)} rows")
    return weight.copy_((gain * centred / length).view_as(weight))


@torch.no_grad()
def unit_sample_variance_(weight: Tensor, variance: Tensor) -> Tensor:
    """Scale every row of a kernel (outputs, inputs) so that ``sum_j w_j^2 variance_j = 1``, in place; ours.

    Its outputs then have the sample variance 1, if the inputs are not correlated.

    Args:
        weight: (outputs, inputs).
        variance: of each input over samples, (inputs,).

    Returns:
        The weight.

    Raises:
        ValueError: shapes that do not match, or a row that reads nothing that varies.
    """
    if weight.dim() != 2 or variance.shape != weight.shape[1:]:
        shapes = f"{tuple(weight.shape)}, {tuple(variance.shape)}"
        raise ValueError(f"a kernel (outputs, inputs) needs variances (inputs,), found {shapes}")
    rows = in_float32(weight)
    found = (rows.square() * variance.to(rows.dtype)).sum(1, keepdim=True)
    n_silent = int((~(found > 0)).sum())
    if n_silent:
        raise ValueError(f"each row needs an input that varies, found {n_silent} of {len(rows)} rows without")
    return weight.copy_(rows * found.rsqrt())


class FirstBatchStandardisation(nn.Module):
    """``(h - mean) / deviation`` with the statistics of the first training batch; before it, the identity.

    Statistics are of each unit over samples and space, or of the whole layer. No gradient passes through them. A unit
    without variance is centred alone. What is known lies in buffers: a checkpoint, or a probe that puts them back,
    finds the state that it left. After `fold` nothing is computed any more.

    Args:
        site: what it transforms; no sequence.
        kernel: the layer before the Site, whose weight and bias `fold` rewrites.
        of_layer: one mean and one deviation for all units.

    Raises:
        ValueError: a Site of other axes or another width than the kernel's, or a kernel without bias.
    """

    mean: Tensor
    scale: Tensor
    is_set: Tensor

    def __init__(self, site: Site, kernel: nn.Module | None, of_layer: bool) -> None:
        super().__init__()
        bias = getattr(kernel, "bias", None)
        if site.is_sequence or not isinstance(bias, Tensor) or len(bias) != site.features:
            raise ValueError(
                f"Site {site.name!r} ({site.axes!r}, {site.features} features) needs to be no sequence, and a kernel "
                "with as many biases right before it"
            )
        self._kernel = (kernel,)  # in a tuple: it is no part of this module
        self.of_layer = of_layer
        self.is_folded = False  # in this process: a step has been taken
        self.channel = site.known_axes.index("c")
        self.shape = (-1, *[1] * (len(site.axes) - 1 - self.channel))
        features = 1 if of_layer else site.features
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.register_buffer("is_set", torch.zeros((), dtype=torch.bool))

    def forward(self, activation: Tensor) -> Tensor:
        if self.is_folded:
            return activation
        mean, scale = self._remember(activation.detach()) if self.training else (self.mean, self.scale)
        return ((activation - mean.view(self.shape)) * scale.view(self.shape)).to(activation.dtype)

    @torch.no_grad()
    def _remember(self, activation: Tensor) -> tuple[Tensor, Tensor]:
        values = activation.to(self.mean.dtype).movedim(self.channel, 0).flatten(1)
        variance, mean = torch.var_mean(values.reshape(1, -1) if self.of_layer else values, dim=1, correction=0)
        varies = variance > 1e-10 * mean.square()  # below lies what rounding leaves of a constant
        scale = torch.where(varies, variance.clamp_min(torch.finfo(variance.dtype).tiny).rsqrt(), 1.0)
        mean, scale = torch.where(self.is_set, self.mean, mean), torch.where(self.is_set, self.scale, scale)
        self.mean.copy_(mean)
        self.scale.copy_(scale)
        self.is_set.fill_(True)
        return mean, scale

    @torch.no_grad()
    def fold(self) -> None:
        """Move what is known into the kernel, and be the identity from now on; changes nothing when done again."""
        (kernel,) = self._kernel
        if isinstance(kernel, _KERNELS) and kernel.bias is not None:
            kernel.weight.mul_(self.scale.view(-1, *[1] * (kernel.weight.dim() - 1)))
            kernel.bias.sub_(self.mean).mul_(self.scale)
        self.mean.zero_()
        self.scale.fill_(1.0)
        self.is_folded = True


_N_STEPS, _N_STREAMS = 128, 16  # of random words; ours
_KERNELS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_ACTIVATIONS = (
    nn.ReLU,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.GELU,
    nn.SiLU,
    nn.Softplus,
    nn.Tanh,
    nn.Sigmoid,
)


class VariancePreservingInit(Method):
    """Rewrite the initial weights so that the sample variance is kept; the loss is vanilla's.

    ``closed_form`` sees no data, and leaves the kernel that reads them. Kernels that read an activation get
    `centred_rows_` with the gain of that activation, and no bias. The input kernels of LSTM layers over an embedding
    get `unit_sample_variance_` for uniformly random words. ``sample_statistics`` and ``layer_statistics`` standardise
    each pre-activation by the first batch: `FirstBatchStandardisation` in the first step, the weights after it. All
    are for plain sequences of layers.
    """

    recorded_roles: ClassVar[frozenset[Role]] = frozenset()  # it reads weights

    mode: Literal["closed_form", "sample_statistics", "layer_statistics"] = "closed_form"

    @property
    def acts_after_step(self) -> bool:
        return self.mode != "closed_form"

    def prepare(self, model: nn.Module, generator: torch.Generator) -> None:
        """Rewrite the kernels, or fill the Sites. Random words are drawn where there are LSTM layers.

        Raises:
            ValueError: no kernel that can be treated, activations that are no modules, a kernel that cannot be scaled;
                no 'pre' Site, one that is filled, or one that does not follow a kernel with a bias.
        """
        if self.mode != "closed_form":
            _standardise(model, self.mode == "layer_statistics")
        elif any(isinstance(module, nn.LSTM) for module in model.modules()):
            _scale_input_kernels(model, generator)
        else:
            _centre_kernels(model)

    def after_step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Tensor, generator: torch.Generator
    ) -> None:
        """Fold what the first batch has set into the weights."""
        if self.acts_after_step:
            for site in sites_of(model):
                if isinstance(site.transform, FirstBatchStandardisation):
                    site.transform.fold()


def _standardise(model: nn.Module, of_layer: bool) -> None:
    with errors_in("modes of statistics standardise 'pre' Sites"):
        chosen = set(sites_with_role(model, "pre"))
    kernel: nn.Module | None = None
    kernels: dict[Site, nn.Module | None] = {}
    for module in model.modules():
        if isinstance(module, _KERNELS):
            kernel = module
        elif isinstance(module, Site) and module in chosen:
            kernels[module], kernel = kernel, None
    for kernel in filter(None, kernels.values()):
        _own_weight(kernel)  # or an error: what is known is moved into it in the end
    fill_sites(model, list(kernels), lambda site: FirstBatchStandardisation(site, kernels[site], of_layer))
    for site, kernel in kernels.items():
        if kernel is not None:
            DirectlyBefore(site).hook(kernel)


@torch.no_grad()
def _scale_input_kernels(model: nn.Module, generator: torch.Generator) -> None:
    """Each layer's inputs are what the layers before make of random words; the first half of the steps is not used,
    because it still remembers the zeros at the start.
    """
    value: Tensor | None = None
    treated = 0
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            shape, device = (_N_STEPS, _N_STREAMS), module.weight.device
            value = module(torch.randint(module.num_embeddings, shape, generator=generator, device=device))
        elif isinstance(module, nn.LSTM) and value is not None:
            if module.num_layers > 1 or module.bidirectional or module.proj_size or module.batch_first:
                raise ValueError(f"{name}: needs an nn.LSTM of one layer and direction, time first, no projection")
            with errors_in(name):
                unit_sample_variance_(_own_weight(module, "weight_ih_l0"), value[_N_STEPS // 2 :].flatten(0, 1).var(0))
            value = module(value)[0]
            treated += 1
    if not treated:
        raise ValueError("mode 'closed_form' needs an LSTM that reads an embedding; the model has none")


def _normal_grid() -> tuple[Tensor, Tensor]:
    """Nodes and weights of the trapezoid rule for means over N(0, 1), with a node at 0 where activations bend."""
    z = torch.linspace(-12, 12, 24_001, dtype=torch.float64)
    weight = (-z.square() / 2).exp()
    return z, weight / weight.sum()


def _checked(correlation: Tensor | float) -> Tensor:
    rho = torch.as_tensor(correlation, dtype=torch.float64)
    if not bool((rho.abs() <= 1).all()):
        raise ValueError(f"a correlation lies in [-1, 1], found {rho.tolist()}")
    return rho


def _own_weight(kernel: nn.Module, name: str = "weight") -> nn.Parameter:
    found = kernel._parameters.get(name)
    if found is None:
        raise ValueError(
            f"{name} of {type(kernel).__name__} is made from other parameters, by a parametrization or a hook, so "
            "that what is written into it is lost: prepare the model first, and then wrap its layers"
        )
    return found


def _centre_kernels(model: nn.Module) -> None:
    """Of a plain sequence, in the order in which its modules were given."""
    modules = list(model.named_modules())
    n_activations = sum(isinstance(module, _ACTIVATIONS) for _, module in modules)
    n_sites = sum(site.role == "pre" for site in sites_of(model))
    if n_activations == 0 or n_sites not in (0, n_activations):
        raise ValueError(
            f"centred rows need a module such as nn.ReLU at each activation; the model has {n_activations} of them and "
            f"{n_sites} 'pre' Sites"
        )
    activation: nn.Module | None = None
    treated = 0
    for name, module in modules:
        if isinstance(module, _ACTIVATIONS):
            activation = module
        elif isinstance(module, _KERNELS) and activation is not None:
            with errors_in(name):
                centred_rows_(_own_weight(module), sample_variance_gain(activation))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            treated += 1
    if not treated:
        raise ValueError("centred rows need a kernel that reads an activation; the model has none")
