"""Orthogonal regularization of kernels: Bansal, Chen & Wang (2018), Brock et al. (2017, 2019), Keras."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import model_validator
from torch import Tensor, nn

from reproduce.method import (
    Kernel,
    KernelKind,
    Method,
    NonNegative,
    PositiveCount,
    Role,
    Trace,
    accumulation_dtype,
    errors_in,
    in_float32,
    kernels_of,
    moderate_scale,
    refuse_frozen,
)

Gram = Literal["rows", "columns", "smaller"]
Norm = Literal["squared_frobenius", "frobenius", "l1", "max", "row_sum", "spectral"]
Law = Literal["normal", "uniform"]
Groups = Literal["apart", "together"]

logger = logging.getLogger(__name__)


def as_matrix(weight: Tensor) -> Tensor:
    """A kernel (out, ...) as a matrix (out, fan_in), one row a filter, in float32 at least.

    The papers write the transpose, W of shape (fan_in, out): their ``W^T W`` is the Gram matrix of these rows.

    Raises:
        ValueError: fewer than two axes, no elements, or not floating point.
        TypeError: no tensor.
    """
    if not isinstance(weight, Tensor):
        raise TypeError(
            f"a kernel is a tensor (out, ...), found {type(weight).__name__}: `for _, weight in kernels(model)` gives "
            "those of a model"
        )
    if weight.dim() < 2 or weight.numel() == 0:
        raise ValueError(f"a kernel must be (out, ...) with at least two axes, not empty; found {tuple(weight.shape)}")
    if not weight.is_floating_point():
        raise ValueError(f"a kernel must be floating point, found {weight.dtype}")
    return in_float32(weight).flatten(1)


def gram_matrix(matrix: Tensor, gram: Gram = "rows") -> Tensor:
    """Inner products ``M M^T`` of the rows of a matrix (m, n), ``M^T M`` of its columns, or the smaller of both.

    Raises:
        ValueError: not a matrix, or an unknown side.
    """
    if matrix.dim() != 2:
        raise ValueError(f"a Gram matrix needs a matrix of two axes, found shape {tuple(matrix.shape)}")
    vectors = _vectors(matrix, gram)
    with torch.autocast(matrix.device.type, enabled=False):
        return vectors @ vectors.mT


def soft_orthogonality(weight: Tensor, gram: Gram = "rows", norm: Norm = "squared_frobenius") -> Tensor:
    """SO: a norm of ``D = G - I``, with G the Gram matrix of a kernel (out, ...); 0-dim.

    ``squared_frobenius`` is the sum of the squares of D (Bansal et al.), ``frobenius`` its root,
    ``l1`` the sum of absolute values (Brock et al. 2017, section 3.4), ``max`` the largest of them, ``row_sum``
    the largest sum of a row, and ``spectral`` the largest singular value ``max |s_k^2 - 1|``, exactly (an
    eigenvalue decomposition; `srip` estimates it). The squared Frobenius norm is computed from the smaller Gram
    matrix: those of rows and of columns differ by m - n, and have the same gradient.

    Raises:
        ValueError: a kernel that `as_matrix` refuses, an unknown side or norm.
    """
    matrix = as_matrix(weight)
    if norm == "squared_frobenius":
        vectors, smaller = _vectors(matrix, gram), _vectors(matrix, "smaller")
        return _deviation(smaller).square().sum() + (len(vectors) - len(smaller))
    deviation = _deviation(_vectors(matrix, gram))
    match norm:
        case "frobenius":
            return _length(deviation)
        case "l1":
            return deviation.abs().sum()
        case "max":
            return deviation.abs().amax()
        case "row_sum":
            return deviation.abs().sum(1).amax()
        case "spectral":
            return _largest_eigenvalue(deviation)
    raise ValueError(f"unknown norm {norm!r}: squared_frobenius, frobenius, l1, max, row_sum or spectral")


def literal_soft_orthogonality(weight: Tensor) -> Tensor:
    """``|M M^T - I|_F^2`` written out for the rows, however many: what `soft_orthogonality` is timed against."""
    return _deviation(as_matrix(weight)).square().sum()


def double_soft_orthogonality(weight: Tensor, norm: Norm = "squared_frobenius") -> Tensor:
    """DSO: `soft_orthogonality` of the rows plus that of the columns (Bansal et al.); 0-dim.

    With the squared Frobenius norm this is twice SO plus a constant. Raises ValueError as `soft_orthogonality`.
    """
    return soft_orthogonality(weight, "rows", norm) + soft_orthogonality(weight, "columns", norm)


def mutual_coherence(weight: Tensor, gram: Gram = "rows", normalised: bool = False) -> Tensor:
    """MC: the largest absolute entry of ``G - I`` (Bansal et al.); 0-dim.

    ``normalised`` gives the mutual coherence itself, ``max_{i != j} |<w_i, w_j>| / (|w_i| |w_j|)``, which is
    blind to the vectors' lengths and to which the penalty owes its name.

    Raises:
        ValueError: a kernel that `as_matrix` refuses, or a single vector where cosines are asked for.
    """
    if normalised:
        return _absolute_cosines(weight, gram).amax()
    return soft_orthogonality(weight, gram, "max")


def srip(
    weight: Tensor,
    n_iterations: int = 1,
    squared: bool = False,
    gram: Gram = "smaller",
    start: Tensor | Law = "normal",
    generator: torch.Generator | None = None,
) -> Tensor:
    """SRIP: the spectral norm of ``D = G - I`` by power iteration (Bansal et al.); 0-dim.

    ``v = D v / |D v|``, ``n_iterations`` times from ``start``, then ``|D v|`` or its square; the gradient flows
    through all of it, as in the authors' code. Never above the exact value. D is not formed: ``D v = M (M^T v) - v``.

    Args:
        weight: kernel (out, ...).
        n_iterations: 1 in the authors' code.
        squared: True in their PyTorch code, False in the paper and in their Keras code.
        gram: "smaller" in their code for wide networks, "columns" in that for ImageNet, "rows" in the paper.
        start: a vector as long as the Gram matrix, or the law to draw it from: their code has uniform on [0, 1).
        generator: what a start is drawn from.

    Raises:
        ValueError: a kernel that `as_matrix` refuses; fewer than one iteration; a start of another length.
    """
    vectors = _vectors(as_matrix(weight), gram)
    if n_iterations < 1:
        raise ValueError(f"the power method needs at least one iteration, got {n_iterations}")
    if isinstance(start, str):
        start = draw_start(len(vectors), start, generator, vectors.device, vectors.dtype)
    elif start.shape != (len(vectors),):
        raise ValueError(f"start must have shape ({len(vectors)},), found {tuple(start.shape)}")
    with torch.autocast(weight.device.type, enabled=False):
        product = _apply_deviation(vectors, start.to(vectors.dtype))
        for _ in range(n_iterations):
            product = product * moderate_scale(product)  # only its direction counts
            length = torch.linalg.vector_norm(product).clamp_min(torch.finfo(vectors.dtype).tiny)
            product = _apply_deviation(vectors, product / length)
        return product.square().sum() if squared else _length(product)


def draw_start(
    length: int,
    law: Law,
    generator: torch.Generator | None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """A start of the power iteration, (length,): standard normal, or uniform on [0, 1).

    Raises:
        ValueError: an unknown law.
    """
    if law not in ("normal", "uniform"):
        raise ValueError(f"a start is drawn from 'normal' or 'uniform', got {law!r}")
    draw = torch.randn if law == "normal" else torch.rand
    return draw(length, generator=generator, device=device, dtype=dtype)


def off_diagonal_orthogonality(weight: Tensor, gram: Gram = "rows") -> Tensor:
    """The sum of ``G_ij^2`` over ``i != j`` of a kernel (out, ...) (Brock, Donahue & Simonyan 2019, BigGAN); 0-dim.

    It leaves the lengths free. Raises ValueError as `as_matrix`.
    """
    return _off_diagonal(gram_matrix(as_matrix(weight), gram)).square().sum()


def mean_absolute_cosine(weight: Tensor, gram: Gram = "rows") -> Tensor:
    """The mean of ``|cos(w_i, w_j)|`` over ``i != j`` of a kernel (out, ...); 0-dim in [0, 1].

    ``keras.regularizers.OrthogonalRegularizer`` without its factor. A Keras kernel is (in, units): rows here are
    its ``mode="columns"``. A zero vector has cosine 0 with all others.

    Raises:
        ValueError: a kernel that `as_matrix` refuses, or a single vector.
    """
    cosines = _absolute_cosines(weight, gram)
    return cosines.sum() / (len(cosines) * (len(cosines) - 1))


def _vectors(matrix: Tensor, gram: Gram) -> Tensor:
    """The vectors whose inner products are taken, as rows."""
    if gram not in ("rows", "columns", "smaller"):
        raise ValueError(f"gram is 'rows', 'columns' or 'smaller', got {gram!r}")
    is_tall = matrix.shape[0] > matrix.shape[1]
    return matrix.mT if gram == "columns" or (gram == "smaller" and is_tall) else matrix


def _deviation(vectors: Tensor) -> Tensor:
    """``G - I``."""
    products = gram_matrix(vectors)
    return products - torch.eye(len(products), device=products.device, dtype=products.dtype)


def _largest_eigenvalue(symmetric: Tensor) -> Tensor:
    """In absolute value; NaN for a matrix that is not finite, of which the decomposition would raise."""
    is_finite = symmetric.isfinite().all()
    values = torch.linalg.eigvalsh(torch.where(is_finite, symmetric, 0.0))
    return values.abs().amax() * torch.where(is_finite, 1.0, torch.nan).to(values.dtype)


def _length(numbers: Tensor) -> Tensor:
    """The Euclidean norm, also where squares are no numbers of float32."""
    scale = moderate_scale(numbers)
    return torch.linalg.vector_norm(numbers * scale) / scale


def _apply_deviation(vectors: Tensor, vector: Tensor) -> Tensor:
    return vectors @ (vectors.mT @ vector) - vector


def _off_diagonal(products: Tensor) -> Tensor:
    return products - torch.diag(products.diagonal())


def _absolute_cosines(weight: Tensor, gram: Gram) -> Tensor:
    """|cos| between all vectors, with zeros on the diagonal."""
    vectors = _vectors(as_matrix(weight), gram)
    if len(vectors) < 2:
        raise ValueError(f"cosines need at least two vectors, found {len(vectors)} in shape {tuple(weight.shape)}")
    return _off_diagonal(gram_matrix(nn.functional.normalize(vectors * moderate_scale(vectors), dim=1))).abs()


_KINDS = ("conv", "linear", "recurrent")


def kernels(model: nn.Module, layers: str = "all", groups: Groups = "apart") -> list[tuple[str, Tensor]]:
    """Names and weights (out, ...) of a model's kernels, each gate, projection and group of a convolution by itself.

    A kernel of `nn.LSTM` holds four blocks, of `nn.GRU` three, a linear layer ``qkv`` three where it has three times as
    many outputs as inputs (`kernels_of` knows some such names), a grouped convolution one for each group, and a
    shared one counts once. Which weights there are says `kernels_of`. Embeddings are tables and no kernels, and so is
    an output layer that is tied to one. Take them anew in each step: blocks are views, and what a parametrization makes
    is of one step.

    Args:
        model: any module.
        layers: "all"; "conv", "linear"; "recurrent", the hidden-to-hidden kernels alone; else a part of the name.
            Weights of modules that torch does not know are found by name alone, and then read as (out, ...).
        groups: "together": a grouped convolution is one matrix (out, inputs of a group), as in code that reshapes it.

    Raises:
        ValueError: no kernel of that kind or name; the message lists those that there are.
    """
    return [
        (part.name if len(blocks) == 1 else f"{part.name}[{index}]", block)
        for part in _parts(model, layers, groups)
        for blocks in [_cut(part.weight, part.groups)]
        for index, block in enumerate(blocks)
    ]


class _Part(NamedTuple):
    """A kernel (out, ...), or all those of a grouped convolution; a depthwise one has hundreds."""

    name: str
    kind: KernelKind
    weight: Tensor
    groups: int

    def penalty(self, term: Callable[..., Tensor], *stacked: Tensor) -> Tensor:
        """The sum over groups of a penalty; what else it takes has an entry for each group."""
        if self.groups == 1:
            return term(self.weight, *stacked)
        return torch.vmap(term)(self.weight.unflatten(0, (self.groups, -1)), *stacked).sum()


def _parts(model: nn.Module, layers: str, groups: Groups) -> list[_Part]:
    if groups not in ("apart", "together"):
        raise ValueError(f"groups is 'apart' or 'together', got {groups!r}")
    found = [kernel for kernel in kernels_of(model) if kernel.kind != "embedding"]
    parts = [part for kernel in found for part in _parts_of(kernel, groups) if _is_asked_for(part, layers)]
    if not parts:
        known = [part.name for kernel in found if kernel.kind != "unknown" for part in _parts_of(kernel, groups)]
        which = f" for layers = {layers!r}: it has {', '.join(known)}" if known else ""
        unread = _unread(found)
        raise ValueError(f"orthogonality needs kernels, and the model has none{which}{f'; {unread}' if unread else ''}")
    return parts


def _parts_of(kernel: Kernel, groups: Groups) -> list[_Part]:
    weight = kernel.outputs_first
    if kernel.kind == "conv":
        return [_Part(kernel.name, kernel.kind, weight, kernel.blocks if groups == "apart" else 1)]
    labels = [f"{kernel.name}[{index}]" for index in range(kernel.blocks)] if kernel.blocks > 1 else [kernel.name]
    return [_Part(label, kernel.kind, block, 1) for label, block in zip(labels, _cut(weight, len(labels)), strict=True)]


def _cut(weight: Tensor, n_blocks: int) -> Sequence[Tensor]:
    """Along the outputs; a whole one as it is, since views of a weight are of no use once an optimiser has stepped."""
    return weight.chunk(n_blocks) if n_blocks > 1 else (weight,)


def _is_asked_for(part: _Part, layers: str) -> bool:
    if layers == "all":
        return part.kind != "unknown"
    return part.kind == layers if layers in _KINDS else layers in part.name


def _unread(found: list[Kernel]) -> str:
    """What to do about the weights whose outputs may be either axis; nothing where there are none."""
    names = ", ".join(kernel.name for kernel in found if kernel.kind == "unknown")
    return names and f"not read, since it is not known which axis counts outputs: {names} (layers may name one of them)"


# Fractions of the training at which the factor on the coefficient changes: epochs 20, 50, 70 and 120 of 200.
_MILESTONES = (0.1, 0.25, 0.35, 0.6)
_FACTORS: dict[str, tuple[float, ...]] = {
    "constant": (1.0, 1.0, 1.0, 1.0),
    "paper": (1e-2, 1e-3, 1e-5, 0.0),  # 0.1, then 1e-3, 1e-4, 1e-6 and 0
    "code": (1e-3, 1e-4, 1e-6, 0.0),  # 1e-2, then 1e-2 times 1e-3, 1e-4, 1e-6 and 0
}


def scheduled(progress: Tensor, schedule: Literal["constant", "paper", "code"]) -> Tensor:
    """The factor on the coefficient at ``progress`` in [0, 1]; same shape.

    ``paper`` divides the first coefficient by 100, 1,000, 100,000 and then makes it 0, at 20, 50, 70 and 120 of
    200 epochs; ``code`` reads those numbers as factors of a first coefficient of 1e-2. See the card.
    """
    factor = torch.ones_like(progress)
    for milestone, value in zip(_MILESTONES, _FACTORS[schedule], strict=True):
        factor = torch.where(progress >= milestone, value, factor)
    return factor


class OrthogonalRegularization(Method):
    """One penalty on every chosen kernel, summed over kernels and weighted by ``strength``.

    ``formula`` is "soft" (SO), "double_soft" (DSO), "mutual_coherence" (MC, the largest entry), "srip",
    "off_diagonal" (BigGAN) or "cosine" (Keras). ``norm`` belongs to the first two, ``n_iterations``,
    ``squared``, ``start`` and ``redraw`` to SRIP; ``gram`` has no effect on DSO.
    """

    recorded_roles: ClassVar[frozenset[Role]] = frozenset()  # it reads weights
    # As of `kernels`. No field, which would change the identity of every Run: a subclass may say "together".
    groups: ClassVar[Groups] = "apart"

    formula: Literal["soft", "double_soft", "mutual_coherence", "srip", "off_diagonal", "cosine"] = "soft"
    strength: NonNegative = 1e-2  # lambda at the start; the authors' code for CIFAR
    schedule: Literal["constant", "paper", "code"] = "constant"  # ours; the paper and its code disagree
    layers: str = "all"  # as in the authors' PyTorch code; see `kernels`
    gram: Gram = "smaller"  # the side that can be orthonormal; the authors' code for wide networks
    norm: Norm = "squared_frobenius"
    n_iterations: PositiveCount = 1  # the authors' code
    squared: bool = False  # the paper's SRIP is not; the authors' PyTorch code squares it
    start: Law = "normal"  # the paper's text leaves it open; uniform on [0, 1) in the code for wide networks
    redraw: bool = True  # a new start every step, as in the authors' PyTorch code; theirs for Keras keeps one

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> OrthogonalRegularization:
        if self.formula not in ("soft", "double_soft") and not self._is_default("norm"):
            raise ValueError(f"norm {self.norm!r} needs formula 'soft' or 'double_soft', got {self.formula!r}")
        only_srip = {name for name in ("n_iterations", "squared", "start", "redraw") if not self._is_default(name)}
        if self.formula != "srip" and only_srip:
            raise ValueError(f"{', '.join(sorted(only_srip))} needs formula 'srip', got {self.formula!r}")
        return self

    def _is_default(self, name: str) -> bool:
        return bool(getattr(self, name) == type(self).model_fields[name].default)

    def prepare(self, model: nn.Module, generator: torch.Generator) -> None:
        """Draw the starts of the power iterations where one serves all steps; they are kept beside the weights."""
        if self.strength == 0:
            return
        unread = _unread(kernels_of(model)) if self.layers == "all" else ""
        if unread:
            logger.warning("orthogonality: %s", unread)
        if self.formula != "srip" or self.redraw:
            return
        for index, part in enumerate(_parts(model, self.layers, self.groups)):
            starts = self._starts(part, generator, generator.device, torch.float32)
            model.register_buffer(f"srip_start_{index}", starts.to(part.weight.device))

    def penalty(self, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
        """The weighted sum.

        Raises:
            ValueError: no kernels for ``layers``, or all of them are frozen in a model that trains.
        """
        parts = _parts(trace.model, self.layers, self.groups)
        refuse_frozen(trace.model, [part.weight for part in parts])
        terms = [self._term(trace.model, part, index, generator) for index, part in enumerate(parts)]
        total = self.strength * torch.stack(terms).sum()
        return total if self.schedule == "constant" else total * scheduled(progress, self.schedule)

    def _term(self, model: Any, part: _Part, index: int, generator: torch.Generator) -> Tensor:
        with errors_in(f"kernel {part.name!r}"):
            match self.formula:
                case "soft":
                    return part.penalty(lambda weight: soft_orthogonality(weight, self.gram, self.norm))
                case "double_soft":
                    return part.penalty(lambda weight: double_soft_orthogonality(weight, self.norm))
                case "mutual_coherence":
                    return part.penalty(lambda weight: mutual_coherence(weight, self.gram))
                case "off_diagonal":
                    return part.penalty(lambda weight: off_diagonal_orthogonality(weight, self.gram))
                case "cosine":
                    return part.penalty(lambda weight: mean_absolute_cosine(weight, self.gram))
            start = getattr(model, f"srip_start_{index}", None)
            if self.redraw:
                start = self._starts(part, generator, part.weight.device, accumulation_dtype(part.weight))
            if start is None:
                raise ValueError("a start that serves all steps needs `prepare`, which draws it")
            options = self.n_iterations, self.squared, self.gram
            return part.penalty(lambda weight, own: srip(weight, *options, own), start)

    def _starts(self, part: _Part, generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Tensor:
        """A start (length,), or one for each group."""
        length = len(_vectors(as_matrix(part.weight[: len(part.weight) // part.groups]), self.gram))
        drawn = draw_start(part.groups * length, self.start, generator, device, dtype)
        return drawn if part.groups == 1 else drawn.view(part.groups, length)
