"""Which modules of a model `attach` gives Sites, from what its caller wrote."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from reproduce.method import Method
from reproduce.method.sites import Axes, Role
from reproduce.method.taps import ACTIVATIONS, RECURRENT, Side, Tap

_LISTED = 12  # module names in an error where none is near
_NEAR = 3
_MANY = 4  # kernels of a part of the model, from which on it is said that no Site lies in it
_CALLED_LIKE = re.compile("act|relu|gelu|silu|swish|elu|tanh|sigmoid|intermediate", re.IGNORECASE)


def default_sites(method: Method) -> Literal["pre", "post"]:
    """Before or after the activation modules: where the method reads by its own field ``sites``, else after them."""
    return "pre" if getattr(method, "sites", "post") == "pre" else "post"


def kinds_of(sites: Any) -> tuple[type[nn.Module], ...]:
    """The classes of modules that ``"pre"`` and ``"post"`` mean; none where modules are named."""
    if not isinstance(sites, str):
        return ()
    return ACTIVATIONS if sites == "pre" else ACTIVATIONS + RECURRENT


def taps_for(method: Method, model: nn.Module, sites: Any, axes: Any) -> list[tuple[Tap, nn.Module]]:
    """A Tap for each module that ``sites`` asks for, and the module.

    There may be none where the method reads no activations.

    Raises:
        ValueError: names or patterns of no module, wrong axes, or a model without modules for ``sites``.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    side: Side = "input" if isinstance(sites, str) and sites == "pre" else "output"
    roles = _roles(method, modules, sites)
    by_name: dict[str, Any] = dict.fromkeys(roles, axes)
    if isinstance(axes, Mapping):
        by_name = {name: given for key, given in axes.items() for name in _names(key, roles)}
    wrong = [given for given in by_name.values() if given is not None and given not in get_args(Axes)]
    if wrong:
        raise ValueError(f"axes are {get_args(Axes)}, got {wrong[0]!r}")
    chosen: dict[tuple[int, Role], str] = {}
    for name, role in roles.items():  # a module may have several names
        first = chosen.setdefault((id(modules[name]), role), name)
        if by_name.get(name) is not None:
            by_name.setdefault(first, by_name[name])
    return [
        (Tap(name, modules[name], role, side, by_name.get(name)), modules[name]) for (_, role), name in chosen.items()
    ]


def _roles(method: Method, modules: Mapping[str, nn.Module], sites: Any) -> dict[str, Role]:
    """The role of each module that is meant, by name."""
    if isinstance(sites, str):
        if sites not in ("pre", "post"):
            raise ValueError(f"sites is 'pre', 'post' or a list of module names, got {sites!r}")
        kinds = kinds_of(sites)
        found: dict[str, Role] = {
            name: sites  # type: ignore[misc]
            for name, module in modules.items()
            if isinstance(module, kinds)
        }
        if method.recorded_roles:
            _refuse_scripted(modules, kinds)
        if not found and method.recorded_roles:
            raise ValueError(_nothing_found(modules, sites))
        if found and method.recorded_roles:
            _warn_of_part(modules, found, sites)
        return found
    own: Any = getattr(method, "sites", "post")
    default: Role = own if own in get_args(Role) else "post"
    given: dict[str, Role] = dict(sites) if isinstance(sites, Mapping) else dict.fromkeys(sites, default)
    if not given:
        raise ValueError(f"sites names none of: {_listed(modules)}")
    found = {name: role for key, role in given.items() for name in _names(key, modules)}
    for name in found:
        _refuse_uncalled(modules, name)
    return found


def _refuse_uncalled(modules: Mapping[str, nn.Module], name: str) -> None:
    attention = modules.get(name.rpartition(".")[0])
    if type(attention) is nn.MultiheadAttention and modules[name] is attention.out_proj:
        raise ValueError(
            f"module {name!r} was named, and is never called: nn.MultiheadAttention uses its weights without that: "
            "name the attention itself, or another module that is called"
        )


def _refuse_scripted(modules: Mapping[str, nn.Module], kinds: tuple[type[nn.Module], ...]) -> None:
    """Its penalty would be that of the other activations alone."""
    called = {name for name, kind in vars(nn).items() if isinstance(kind, type) and issubclass(kind, kinds)}
    for name, module in modules.items():
        if isinstance(module, torch.jit.ScriptModule) and module.original_name in called:
            raise ValueError(
                f"module {name!r}, {module.original_name}, lies in a part that is scripted or traced, and takes no "
                "hooks: attach() before that part is scripted, or name in sites the modules of other parts that are "
                "meant"
            )


def _nothing_found(modules: Mapping[str, nn.Module], sites: str) -> str:
    recurrent = [name for name, module in modules.items() if isinstance(module, RECURRENT)]
    if recurrent:
        which = f" ({_listed(recurrent)})" if any(recurrent) else ""
        return (
            f"the model has no activation module, whose input sites = {sites!r} takes; what its recurrent layers"
            f"{which} give are Sites 'post': attach(name, model, sites='post'), or load_method(name, sites='post') "
            "where the method is made before"
        )
    return (
        f"the model has no modules for sites = {sites!r}: activations called as functions (F.relu) cannot be seen; "
        f"name the modules whose outputs are meant, of: {_listed(_patterns(modules))}"
    )


def _warn_of_part(modules: Mapping[str, nn.Module], found: Iterable[str], sites: str) -> None:
    """Say it where a part of the model with most of its kernels holds none of the Sites that were found."""
    paths = [f"{name}." for name in found]
    kernels = [f"{name}." for name, module in modules.items() if _has_kernel(module)]
    for name in modules:  # the outermost come first
        inside = sum(path.startswith(f"{name}.") for path in kernels)
        if not name or inside < _MANY or 2 * inside <= len(kernels):
            continue
        if not any(path.startswith(f"{name}.") for path in paths):
            below = {key: module for key, module in modules.items() if key.startswith(f"{name}.")}
            warnings.warn(
                f"sites = {sites!r} finds {_listed(found)} alone, and nothing in {name!r}, which holds {inside} of the "
                f"model's {len(kernels)} kernels: activations there are called as functions, or are classes that torch "
                f"does not have; name modules in sites, of: {_listed(_patterns(below))}",
                stacklevel=5,
            )
            return


def named_kernels(model: nn.Module) -> str:
    """The layers of a model that have kernels, embeddings apart, for a line of text; no weight is looked at."""
    layers = {name or "the model": module for name, module in model.named_modules() if _has_kernel(module)}
    return _listed(layers)


def _has_kernel(module: nn.Module) -> bool:
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return False
    return any(
        name == "weight" if is_lazy(parameter) else parameter.dim() >= 2
        for name, parameter in module.named_parameters(recurse=False)
    )


def _patterns(modules: Mapping[str, nn.Module]) -> list[str]:
    """Names with ``*`` in place of numbers, each once: those called like an activation first, then in their order."""

    def rank(name: str) -> bool:
        return not _CALLED_LIKE.search(f"{name.rpartition('.')[2]} {type(modules[name]).__name__}")

    named = sorted((name for name in modules if name), key=rank)
    return list(dict.fromkeys(".".join("*" if part.isdigit() else part for part in n.split(".")) for n in named))


def _names(key: str, known: Iterable[str]) -> list[str]:
    """The names that a name or a pattern means; ``*`` stands for one part of a dotted name, or for a piece of it."""
    names = list(known)
    if not isinstance(key, str):
        given = f"a {type(key).__name__}" if isinstance(key, nn.Module) else repr(key)
        raise ValueError(f"sites and axes go by names of modules, as text, got {given}; there are: {_listed(names)}")
    if key in names:
        return [key]
    found = [name for name in names if _fits(name, key)] if any(sign in key for sign in "*?[") else []
    if not found:
        kind = "module" if not any(sign in key for sign in "*?[") else "module that fits"
        raise ValueError(f"no {kind} {key!r}; {_near(key, names)}")
    return found


def _fits(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), pattern.split(".")
    return bool(name) and len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _near(key: str, names: list[str]) -> str:
    """Names that end alike, then names that are spelled alike; or the first ones."""
    last = key.rpartition(".")[2]
    named = [name for name in names if name]
    ends = [name for name in named if name.rpartition(".")[2] == last]
    near = list(dict.fromkeys([*difflib.get_close_matches(key, named, n=_NEAR), *ends]))[:_NEAR]
    return f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are: {_listed(named)}"


def _listed(names: Iterable[str]) -> str:
    named = [name for name in names if name]
    return ", ".join([*named[:_LISTED], *(["..."] if len(named) > _LISTED else [])]) or "none"
