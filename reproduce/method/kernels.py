"""The kernels of a model, found by what its modules are: for penalties on weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import ParametrizationList

from reproduce.method.made_weights import is_of_torch, made_by_hooks, weight_as_drawn, weight_in_use
from reproduce.method.own_parts import own_attribute, own_parametrizations
from reproduce.method.sites import Site

KernelKind = Literal["linear", "conv", "recurrent", "embedding", "other", "unknown"]

# Modules whose kernels hold several blocks of outputs, one for each gate or projection, and how many.
_BLOCKS: dict[type[nn.Module], int] = {
    nn.LSTM: 4,
    nn.GRU: 3,
    nn.RNN: 1,
    nn.LSTMCell: 4,
    nn.GRUCell: 3,
    nn.RNNCell: 1,
    nn.MultiheadAttention: 3,
}
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_NO_KERNELS = (nn.LayerNorm, nn.RMSNorm, Site)  # scales of normalizations; what a method has put at a Site
# Linear layers that hold queries, keys and values, one after another, where they have three times as many outputs as
# inputs: timm, nanoGPT, MPT, Phi, vit-pytorch. Others of such layers mix the three head by head.
_FUSED = {"qkv", "c_attn", "Wqkv", "qkv_proj", "to_qkv"}
_ATTENTION_BIASES = {"bias_k", "bias_v"}


class Kernel(NamedTuple):
    """A weight of two or more axes, as its module uses it: behind a parametrization the result, sharded the whole.

    ``kind`` is "recurrent" for hidden-to-hidden kernels, "other" for further kernels of a known layer, and "unknown"
    for those of a module of which it is not known which axis counts outputs. ``blocks`` kernels of their own (gates,
    projections, groups of a convolution) lie one after another along the outputs.
    """

    name: str
    kind: KernelKind
    weight: Tensor  # in the layout of its module
    blocks: int
    layout: Literal["outputs_first", "inputs_first", "groups_of_inputs"]

    @property
    def outputs_first(self) -> Tensor:
        """(out, ...), block by block: a view, but for a transposed convolution with several groups."""
        if self.layout == "inputs_first":
            return self.weight.transpose(0, 1)
        if self.layout == "groups_of_inputs":  # (in, out / groups, ...)
            return torch.cat([group.transpose(0, 1) for group in self.weight.chunk(self.blocks)])
        return self.weight


def kernels_of(model: nn.Module) -> list[Kernel]:
    """Every weight of two or more axes, each once, in the order of the model's modules.

    No biases, no scales of normalizations, and nothing that a method has added at a Site. A weight that an embedding
    shares is an embedding. Weights that are made from others, by parametrizations or by the older hooks of
    `torch.nn.utils` (weight_norm, spectral_norm, prune), are made anew from these, and no power iteration is taken.
    Those that FSDP2 has sharded are gathered, which every rank has to do.

    Raises:
        ValueError: a lazy module that has no shape yet, a weight that other code makes in each forward pass, or one
            that `weight_in_use` refuses.
    """
    added = (found for found in model.modules() if isinstance(found, ParametrizationList | Site))
    inside = {id(part) for found in added for part in found.modules()}
    modules = [(path, module) for path, module in model.named_modules() if id(module) not in inside]
    tables = {_identity(module, "weight") for _, module in modules if _is_embedding(module)}
    kernels: list[Kernel] = []
    seen: set[Any] = set()
    names = _names(model)
    for path, module in modules:
        for name, kind, blocks, layout in _named(names[id(module)], module):
            identity, full_name = _identity(module, name), f"{path}.{name}".lstrip(".")
            if identity in seen or (identity in tables and kind != "embedding"):
                continue
            seen.add(identity)
            _refuse_left_over(module, name, full_name)
            weight = weight_in_use(module, name)
            if isinstance(weight, UninitializedParameter):
                raise ValueError(f"{full_name!r} has no shape yet: call the model once on a batch before this")
            if weight.layout != torch.strided:
                raise ValueError(f"{full_name!r} is sparse, {weight.layout}: a penalty on weights needs dense ones")
            if weight.dim() >= 2:
                kernels.append(Kernel(full_name, kind, _whole(weight), blocks, layout))
    return kernels


def refuse_frozen(model: nn.Module, weights: Sequence[Tensor]) -> None:
    """A penalty on weights without gradient trains nothing; of a model that is frozen as a whole it is only measured.

    Raises:
        ValueError: none of the weights has a gradient, and the model has others to train.
    """
    if not torch.is_grad_enabled() or any(weight.requires_grad for weight in weights):
        return
    if any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("all weights that the penalty reads are frozen: choose `layers` that train, or leave it out")


def _names(model: nn.Module) -> dict[int, set[str]]:
    """By a module's id its own name, and that of what holds it alone: a wrapper, as `torch.compile` puts around it."""
    names: dict[int, set[str]] = defaultdict(set)
    for path, module in model.named_modules():
        names[id(module)].add(path.rpartition(".")[2])
        parts = list(module.children())
        if len(parts) == 1:
            names[id(parts[0])] |= names[id(module)]
    return names


def _named(called: set[str], module: nn.Module) -> Iterator[tuple[str, KernelKind, int, Any]]:
    """Name, kind, blocks and layout of what may be a kernel of this module."""
    if isinstance(module, _NO_KERNELS):
        return
    known = list(_known(called, module))
    yield from known
    names = [name for name, _ in module.named_parameters(recurse=False)]
    names += own_parametrizations(module)
    made = made_by_hooks(module)
    parts = {original for hook in made.values() for original in hook.originals}
    listed = {name for name, *_ in known} | parts
    for name in (*names, *made):
        if not (name in listed or (isinstance(module, nn.MultiheadAttention) and name in _ATTENTION_BIASES)):
            yield name, "unknown", 1, "outputs_first"


def _known(called: set[str], module: nn.Module) -> Iterator[tuple[str, KernelKind, int, Any]]:
    if isinstance(module, nn.Linear):
        is_fused = bool(called & _FUSED) and module.out_features == 3 * module.in_features
        yield "weight", "linear", 3 if is_fused else 1, "outputs_first"
    elif isinstance(module, nn.Bilinear):
        yield "weight", "other", 1, "outputs_first"
    elif _is_embedding(module):
        yield "weight", "embedding", 1, "outputs_first"
    elif isinstance(module, _CONVOLUTIONS):
        yield "weight", "conv", module.groups, "outputs_first"
    elif isinstance(module, _TRANSPOSED):
        yield "weight", "conv", module.groups, "inputs_first" if module.groups == 1 else "groups_of_inputs"
    elif _is_conv1d_of_transformers(module):
        inputs, outputs = weight_as_drawn(module, "weight").shape
        packs = "c_attn" in called and outputs % inputs == 0  # queries, keys and values
        yield "weight", "linear", outputs // inputs if packs else 1, "inputs_first"
    elif blocks := next((n for kind, n in _BLOCKS.items() if isinstance(module, kind)), 0):
        for name in _names_of_packed(module):
            is_cut = name.startswith(("weight_ih", "weight_hh", "in_proj"))
            kind: KernelKind = "recurrent" if name.startswith("weight_hh") else "other"
            yield name, kind, blocks if is_cut else 1, "outputs_first"


def _names_of_packed(module: Any) -> list[str]:
    if isinstance(module, nn.MultiheadAttention):
        apart = ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
        is_apart = "in_proj_weight" not in own_parametrizations(module) and module.in_proj_weight is None
        return apart if is_apart else ["in_proj_weight"]
    if isinstance(module, nn.RNNCellBase):
        return ["weight_ih", "weight_hh"]
    ends = [
        f"{layer}{way}" for layer in range(module.num_layers) for way in ("", "_reverse")[: 1 + module.bidirectional]
    ]
    parts = ("ih", "hh", "hr") if module.proj_size else ("ih", "hh")
    return [f"weight_{part}_l{end}" for end in ends for part in parts]


def _is_embedding(module: nn.Module) -> bool:
    """Of a scripted module its class of before says it."""
    return isinstance(module, _EMBEDDINGS) or own_attribute(module, "original_name") in ("Embedding", "EmbeddingBag")


def _is_conv1d_of_transformers(module: nn.Module) -> bool:
    """Its weight is (in, out). By name: the library is not needed for this."""
    is_named = any(kind.__name__ == "Conv1D" for kind in type(module).__mro__)
    return is_named and isinstance(own_attribute(module, "nf"), int)


def _refuse_left_over(module: nn.Module, name: str, full_name: str) -> None:
    if name in vars(module) and name not in made_by_hooks(module):
        raise ValueError(
            f"{full_name!r} is no parameter: some code puts it there in the forward pass, and it may be out of date: "
            "use torch.nn.utils.parametrize for it"
        )


def _identity(module: nn.Module, name: str) -> Any:
    """Equal for one weight in two modules, also where it is made anew each time that it is read."""
    made_by = own_parametrizations(module).get(name)
    if made_by is not None:
        originals = [id(original) for _, original in made_by.named_parameters(recurse=False)]
        return (*originals, *map(_function, made_by))
    if hook := made_by_hooks(module).get(name):
        mask = module._buffers.get(f"{name}_mask")  # of pruning
        return (
            type(hook),
            None if mask is None else _Mask(mask),
            *(id(getattr(module, original)) for original in hook.originals),
        )
    own = dict(module.named_parameters(recurse=False, remove_duplicate=False)).get(name)
    return (id(module), name) if own is None else id(own)


class _Mask:
    """Equal to one that keeps the same: pruning a shared weight by its size gives each layer such a one."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def __hash__(self) -> int:
        return hash(self.mask.shape)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Mask) and torch.equal(self.mask, other.mask)


def _function(part: nn.Module) -> Any:
    """Equal for two parametrizations that make the same of the same: those of torch, and those that hold nothing."""
    holds = vars(part).keys() - vars(nn.Module()).keys()
    is_empty = not (holds or [*part.parameters(), *part.buffers(), *part.children()])
    return type(part) if is_empty or is_of_torch(part) else id(part)


def _whole(weight: Tensor) -> Tensor:
    """Of a weight that is sharded over processes all of it; the gradient goes back to each shard."""
    gather = getattr(weight, "full_tensor", None)
    return weight if gather is None else gather()
