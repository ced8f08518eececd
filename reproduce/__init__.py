"""What does regularizing activations buy? Published methods, one folder each, under one protocol.

The public face: `attach` puts a published method onto your own model, `load_method` makes one by its name,
`gradient_ratio` tells how strong its penalty pulls, and `Method` and `Site` are what a method of your own is made of.
Importing this loads no torch; the first use does.
"""

from __future__ import annotations

TYPE_CHECKING = False  # checkers take it for true; `typing` itself takes as long to import as all else here
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Literal

    from torch import nn

    from reproduce.experiment.folder import load_method
    from reproduce.method import Method, Role, Site
    from reproduce.method.attach import Handle
    from reproduce.method.sites import Axes
    from reproduce.training.calibrate import gradient_ratio
else:

    def __getattr__(name: str) -> Any:
        """What takes a while to import, torch most of all, when it is first asked for."""
        if name == "load_method":
            from reproduce.experiment import folder

            return folder.load_method
        if name in ("Method", "Site"):
            from reproduce import method

            return getattr(method, name)
        if name == "gradient_ratio":
            from reproduce.training import calibrate

            return calibrate.gradient_ratio
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["Method", "Site", "__version__", "attach", "gradient_ratio", "load_method"]
__version__ = "0.1.0"


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def attach(
    method: str | Method,
    model: nn.Module,
    sites: Literal["pre", "post"] | Sequence[str] | Mapping[str, Role] | None = None,
    example: Any = None,
    axes: Axes | Mapping[str, Axes] | None = None,
    seed: int = 0,
    **parameters: Any,
) -> Handle:
    """Attach a method to your own model; its handle gives the penalty to add to your loss.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.ReLU())
    >>> handle = attach("activity_norm", model, kind="l2", strength=0.5, reduction="mean")
    >>> outputs = model(torch.tensor([[1.0, -2.0], [3.0, 4.0]]))  # records the ReLU's outputs 1, 0, 3 and 4
    >>> handle.penalty().item()  # 0.5 times the mean of their squares
    3.25
    >>> handle.remove()

    The same as ``attach(load_method("activity_norm", kind="l2", ...), model)``, which is also the way to give a method
    a parameter that bears the name of one of attach's own.

    Args:
        method: the name of a method, or a method.
        model: your module, on its device already; its code stays as it is.
        sites: before ("pre") or after ("post") the activation modules: there a method that is named then also reads;
            None: where the method reads by default; or names of modules whose outputs are meant, in which ``*`` stands
            for any one part: ``["encoder.layer.*.intermediate"]``; or a mapping from names to roles.
        example: one input (a tuple or list: positional, a dict: keyword arguments) for a dry run, where a method must
            know shapes before training.
        axes: the meaning of the axes where the layers beside do not say it, for all Sites or by module name: "nc",
            "ncl", "nchw", "ncdhw", "ntc", "tnc", "nhwc" or "ndhwc".
        seed: of the generator that the method draws from.
        parameters: of the method that is named.

    Raises:
        UserError: an unknown name, or a parameter that the method does not take.
        TypeError: parameters beside a method that is made already.
        ValueError: nothing to attach to, or what the method refuses; the model is then unchanged.
    """
    from reproduce.experiment.folder import load_method
    from reproduce.method.attach import attach as attach_method
    from reproduce.method.chosen import default_sites

    if isinstance(method, str):
        name, method = method, load_method(method, **parameters)
        if isinstance(sites, str) and "sites" in type(method).model_fields:
            method = load_method(name, sites=sites, **parameters)
    elif parameters:
        raise TypeError(f"attach() takes no {next(iter(parameters))!r} for a method that is made already: name it")
    return attach_method(method, model, default_sites(method) if sites is None else sites, example, axes, seed)
