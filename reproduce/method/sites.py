"""Sites: the named places in a model where papers act, and the Trace of what passed them in a step."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from reproduce.method.records import Record, without_masked

Role = Literal["pre", "post", "dropped", "code", "gaussian"]
ROLES: frozenset[Role] = frozenset(get_args(Role))
Axes = Literal["nc", "ncl", "nchw", "ncdhw", "nhwc", "ndhwc", "tnc", "ntc"]
_Of = TypeVar("_Of")
_OWNER: ContextVar[Trace | None] = ContextVar("whose Sites sites_of finds", default=None)


class Site(nn.Module):
    """An identity module that records what passes it while training, and may hold a transform.

    Args:
        role: ``"pre"`` before a non-linearity, ``"post"`` after it (a recurrent output counts as post),
            ``"dropped"`` a recurrent output after its dropout mask, ``"code"`` an autoencoder's or classifier's code,
            ``"gaussian"`` what gives means and then deviations of a code that is drawn (`gaussian_code`).
        axes: meaning of the tensor's axes: ``n`` batch, ``t`` time, ``c`` features, ``l`` ``d`` ``h`` ``w`` space.
        shape: shape of one sample, features first: ``(features,)`` without batch and time, or ``(channels, *space)``,
            where space is that of the first map met.
        could_be: what the axes may be as well, where they are a guess.

    A method may put a module into ``transform`` (batch normalisation, say): the Site then records its output.
    ``owner`` is None for a Site of the model's own, or the Trace of the handle that put it into another's model.
    """

    def __init__(self, role: Role, axes: Axes, shape: tuple[int, ...] | None, could_be: Sequence[Axes] = ()) -> None:
        super().__init__()
        if role not in get_args(Role) or axes not in get_args(Axes):
            raise ValueError(f"a Site has role {get_args(Role)} and axes {get_args(Axes)}; got {role!r}, {axes!r}")
        self.role: Role = role
        self.axes: Axes = axes
        self.could_be = tuple(could_be)
        self.shape = shape
        self.dtype: torch.dtype | None = None  # of what passed in a dry run
        self.is_packed = False  # rows of a packed sequence pass it, with axes "tnc": (steps of all sequences, features)
        self.name = ""  # its path in the model, given by `watch`
        self.transform: nn.Module | None = None
        self.trace: Trace | None = None
        self.owner: Trace | None = None

    @property
    def features(self) -> int:
        """Number of channels or units."""
        if self.shape is None:
            raise ValueError(
                f"Site {self.name!r} has not seen a batch yet: give `example=`, an input that reaches it "
                "in eval() too, or name in `sites` the modules without it"
            )
        self._known(lambda axes: axes.index("c"))
        return self.shape[0]

    @property
    def known_axes(self) -> Axes:
        """The axes, for a method to which each of them matters.

        Raises:
            ValueError: they are a guess. The other properties refuse a guess too, where it matters to them.
        """
        return self._known(lambda axes: axes)

    @property
    def is_map(self) -> bool:
        """Whether a sample has locations in space, each with all channels."""
        return self._known(lambda axes: not {"l", "h"}.isdisjoint(axes))

    @property
    def is_sequence(self) -> bool:
        """Whether there is an axis of time."""
        return self._known(lambda axes: "t" in axes)

    @property
    def has_features_last(self) -> bool:
        """Whether features are the last axis, and not the second."""
        return self._known(lambda axes: axes.endswith("c"))

    def _known(self, of: Callable[[Axes], _Of]) -> _Of:
        found = of(self.axes)
        if any(of(other) != found for other in self.could_be):
            choices = " or ".join(map(repr, (self.axes, *self.could_be)))
            raise ValueError(f"Site {self.name!r}: no layer beside it says whether its axes are {choices}: give axes=")
        return found

    def forward(self, activation: Tensor) -> Tensor:
        if self.transform is not None:
            activation = self.transform(activation)
        if self.training and self.trace is not None:
            self.trace.add(self, activation)
        return activation

    def is_recorded(self, activation: Tensor) -> bool:
        """Whether what passes now is recorded, for a transform that remembers what penalties read."""
        return self.trace is not None and self.trace.takes(self, activation)

    def extra_repr(self) -> str:
        return f"{self.role}, {' or '.join((self.axes, *self.could_be))}, {self.shape}"


class Trace:
    """What the Sites of a model recorded in the current training step, and the model's weights.

    Args:
        model: whose Sites record.
        roles: of the Sites that are recorded; an activation that nobody reads would be kept in memory for nothing.
    """

    def __init__(self, model: nn.Module, roles: frozenset[Role] = ROLES) -> None:
        self.model = model
        self.roles = roles
        self.source_examples: int | None = None  # the batch's first ones, where others of a target domain follow
        self._records: list[Record] = []
        self._passed_over = False  # a Site of another role, in this step
        self._is_read_by_penalty = False
        self._mask: Tensor | None = None
        self._zero: Tensor | None = None

    def takes(self, site: Site, activation: Tensor) -> bool:
        """Whether this activation of a Site is recorded."""
        return site.training

    def add(self, site: Site, activation: Tensor) -> None:
        if site.role in self.roles:
            self._records.append(Record(site, activation))
        else:
            self._passed_over = True

    @property
    def records(self) -> list[Record]:
        """What was recorded, in the order of the forward pass.

        Raises:
            ValueError: a penalty asks, and Sites were passed over: it would be that of some Sites in the place of all.
        """
        if self._is_read_by_penalty and self._passed_over:
            raise ValueError(
                f"`records` is not all Sites: only {sorted(self.roles) or 'none'} are recorded. A method that reads "
                "others needs its own `recorded_roles`; one that reads some says which by `select`"
            )
        return self._given()

    @contextlib.contextmanager
    def read_by_penalty(self) -> Iterator[None]:
        """Within it, `records` is refused where it is not complete."""
        before, self._is_read_by_penalty = self._is_read_by_penalty, True
        try:
            yield
        finally:
            self._is_read_by_penalty = before

    @contextlib.contextmanager
    def recording_every_role(self) -> Iterator[None]:
        """Within it, every Site is recorded."""
        roles, self.roles = self.roles, ROLES
        try:
            yield
        finally:
            self.roles = roles

    @contextlib.contextmanager
    def masked(self, mask: Tensor | None) -> Iterator[None]:
        """Within it, records are without the positions at which ``mask`` (n, positions...) is False.

        A Site without positions, (n, c), is left as it is: it holds one row an example, or what a packed sequence left.

        Raises:
            ValueError: a mask that is not Boolean; a Site whose positions it does not fit, or whose transform has seen
                all positions; when a method reads an activation whole.
        """
        if mask is not None:
            self._check_mask(mask)
        self._mask = mask
        try:
            yield
        finally:
            self._mask = None

    def _check_mask(self, mask: Tensor) -> None:
        if mask.dtype != torch.bool or mask.dim() < 2:
            raise ValueError(
                f"a mask is Boolean, (n, positions...), True where a position is real; got {mask.dtype} of shape "
                f"{tuple(mask.shape)}"
            )
        for site in self.own_sites():
            if site.transform is not None and site.known_axes != "nc":
                raise ValueError(
                    f"Site {site.name!r} holds {type(site.transform).__name__}, which has seen padded positions before "
                    "any mask: give no mask"
                )

    def _given(self) -> list[Record]:
        if self._mask is None:
            return self._records
        calls = Counter(record.site for record in self._records)
        return [without_masked(record, self._mask, calls[record.site]) for record in self._records]

    def own_sites(self) -> list[Site]:
        """The Sites that this Trace records."""
        return [site for site in self.model.modules() if isinstance(site, Site) and site.trace is self]

    def module_of(self, site: Site) -> nn.Module:
        """The module whose activations pass a Site: it is one itself, where the model's code calls it."""
        return site

    @contextlib.contextmanager
    def own_sites_only(self) -> Iterator[None]:
        """Within it, `sites_of` finds the Sites that this Trace owns, and no others."""
        token = _OWNER.set(self)
        try:
            yield
        finally:
            _OWNER.reset(token)

    def replace_activations(self, made: Callable[[Tensor, int], Tensor]) -> None:
        """Put into each record what is made of its activation, and of the place of its axis of examples."""
        self._records = [Record(one.site, made(one.activation, one.site.axes.index("n"))) for one in self._records]

    def clear(self) -> None:
        self._records.clear()
        self._passed_over = False

    def select(self, role: Role) -> list[Record]:
        """Records of one role, in the order of the forward pass.

        Raises:
            ValueError: if this model has no Site of that role, or nothing passed it, because a penalty on nothing is a
                mistake; or if it is a role that the method does not say it reads.
        """
        if role not in self.roles:
            raise ValueError(
                f"{role!r} Sites are not recorded, only {sorted(self.roles) or 'none'}: a method that reads them needs "
                f"a field of type Role that says so, or its own `recorded_roles`"
            )
        chosen = [record for record in self._given() if record.site.role == role]
        if not chosen:
            present = sorted({site.role for site in self.own_sites()})
            raise ValueError(f"the model recorded no {role!r} Site (it has {present or 'none'}): choose other `sites`")
        for record in chosen:
            record.refuse_empty()
        return chosen

    def domains(self, examples: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of a batch of two domains: first those of the source, then those of the target.

        Raises:
            ValueError: it is not known how many are of the source, or one of both has none.
        """
        if self.source_examples is None:
            raise ValueError(
                "this penalty needs a batch of two domains, examples of the source first: a task with the option "
                "target_domain, or handle.penalty(source_examples=...)"
            )
        if not 0 < self.source_examples < len(examples):
            raise ValueError(
                f"a batch of two domains needs examples of both: source_examples = {self.source_examples} of "
                f"{len(examples)} rows leaves one of them none"
            )
        return examples[: self.source_examples], examples[self.source_examples :]

    def zero(self) -> Tensor:
        """A 0-dim zero on the model's device, a new one each time: a penalty is its caller's to write into."""
        if self._zero is None:
            self._zero = torch.zeros((), device=device_of(self.model), dtype=torch.float32)
        return self._zero.clone()


def sites_of(model: nn.Module) -> Iterator[Site]:
    """The Sites of a model, each knowing its path afterwards.

    Where a method is attached (`Trace.own_sites_only`), those of its own handle, with the names that it gave.
    """
    owner = _OWNER.get()
    if owner is not None:
        yield from owner.own_sites()
        return
    for name, module in model.named_modules():
        if isinstance(module, Site) and module.owner is None:
            module.name = name
            yield module


def holders_of(model: nn.Module, site: Site) -> list[nn.Module]:
    """The modules around a Site, the nearest first: by object, so that it does not matter what the Site is called.

    That of another's model, put there by `attach`, has the module first whose activations pass it.
    """
    parents = {id(child): module for module in model.modules() for child in reversed(list(module.children()))}
    inner = site.owner.module_of(site) if site.owner is not None else site
    holders: list[nn.Module] = [] if inner is site else [inner]
    while inner is not model and id(inner) in parents:
        inner = parents[id(inner)]
        holders.append(inner)
    return holders


def watch(model: nn.Module, roles: frozenset[Role] = ROLES) -> Trace:
    """Connect every Site of ``model`` to one new Trace, which records those of these roles, and return it."""
    trace = Trace(model, roles)
    for site in sites_of(model):
        site.trace = trace
    return trace


def sites_with_role(model: nn.Module, role: Role) -> list[Site]:
    """The Sites of one role, in the order of the model's modules.

    Raises:
        ValueError: the model has none.
    """
    chosen = [site for site in sites_of(model) if site.role == role]
    if not chosen:
        raise ValueError(f"the model has no {role!r} Site; {_those_there(model)}")
    return chosen


def _those_there(model: nn.Module) -> str:
    found = [f"{site.name} ({site.role})" for site in sites_of(model)]
    if not found:
        return (
            "it has no Sites at all: before and after activation modules there are some, not where activations are "
            "called as functions; what recurrent layers give are Sites 'post'"
        )
    return f"it has {', '.join(found[:12])}{' and more' if len(found) > 12 else ''}"


def fill_sites(model: nn.Module, sites: Sequence[Site], make: Callable[[Site], nn.Module]) -> None:
    """Put a module of its own, on the model's device and of the type of `dtype_of`, into each of these Sites, or into
    none.

    Raises:
        ValueError: a Site that is filled already, or that ``make`` refuses.
    """
    filled = next((site for site in sites if site.transform is not None), None)
    if filled is not None:
        raise ValueError(f"Site {filled.name!r} already holds {type(filled.transform).__name__}")
    device, dtypes = device_of(model), [dtype_of(model, site) for site in sites]
    made = [_made_in(dtype, make, site) for site, dtype in zip(sites, dtypes, strict=True)]
    for site, dtype, transform in zip(sites, dtypes, made, strict=True):
        # To float32 nothing is cast: what a method keeps in double precision stays so.
        site.transform = transform.to(device, dtype) if dtype == torch.float64 else transform.to(device)


def _made_in(dtype: torch.dtype, make: Callable[[Site], nn.Module], site: Site) -> nn.Module:
    """Where torch's default type is half precision, or not the model's, modules begin in this one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(before if before == torch.float32 else dtype)
    try:
        return make(site)
    finally:
        torch.set_default_dtype(before)


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter lies; the CPU for a model without parameters."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def dtype_of(model: nn.Module, site: Site | None = None) -> torch.dtype:
    """What a method adds to a model is of this type: float64 for one in double precision, else float32.

    At a Site what has passed it in a dry run says so, where there was one, else the model's first parameter. In half
    precision it is float32, as statistics must be.
    """
    types = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    found = next(types, torch.float32) if site is None or site.dtype is None else site.dtype
    return found if found == torch.float64 else torch.float32
