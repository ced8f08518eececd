"""What the axes of an activation are, by its memory or its sizes, where those of the outputs of layers are known."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from reproduce.method.sites import Axes

FIRST: dict[int, Axes] = {2: "nc", 3: "ncl", 4: "nchw", 5: "ncdhw"}  # channels are the second axis
LAST: dict[int, Axes] = {2: "nc", 3: "ntc", 4: "nhwc", 5: "ndhwc"}
UNKNOWN: dict[int, tuple[Axes, ...]] = {3: ("ntc", "tnc", "ncl"), 4: ("nchw", "nhwc"), 5: ("ncdhw", "ndhwc")}


@dataclass(frozen=True)
class Output:
    """What one layer gave: numbers only.

    Args:
        axes: and what else they may be; empty: of a convolution whose input had no batch axis.
        shape: of the tensor.
        batch_first: what the layer says of sequences; None: nothing.
    """

    axes: tuple[Axes, ...]
    shape: tuple[int, ...]
    batch_first: bool | None = None

    def size(self, axis: str) -> int:
        return self.shape[self.axes[0].index(axis)]

    @property
    def positions(self) -> list[int]:
        """The sizes of time and space."""
        return [size for axis, size in zip(self.axes[0], self.shape, strict=True) if axis not in "nc"]


@dataclass(frozen=True)
class Lying:
    """How a tensor lies in memory."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]


def by_strides(axes: Axes, own: Lying, view: Lying) -> Axes | None:
    """The axes of a view of memory whose axes are known: an axis keeps its stride where it is moved or cut.

    None where they have no name, or sizes of 1 leave them open.
    """
    if view == own:
        return axes
    at = {step: axis for axis, size, step in zip(axes, own.shape, own.stride, strict=True) if size > 1}
    found = [at.get(step, "?") if size > 1 else "1" for size, step in zip(view.shape, view.stride, strict=True)]
    if len(at) < sum(size > 1 for size in own.shape) or found.count("c") != 1:  # expanded, or channels were cut up
        return None
    channel, dim = found.index("c"), len(found)
    if dim != len(axes) and view.shape[channel] != own.shape[axes.index("c")]:
        return None
    if channel == 1 and found[0] in ("n", "1"):
        return FIRST.get(dim)
    if channel != dim - 1:
        return None
    if dim == 3 and (found[1] == "n" or found[:2] == ["t", "1"]):
        return "tnc"
    return LAST.get(dim) if found[0] in ("n", "1") else None


def by_sizes(shape: tuple[int, ...], outputs: Iterable[Output]) -> tuple[Axes, ...]:
    """All axes that an activation of this shape may have if functions made it of one of these outputs.

    Outputs with the same sizes count first, channels moved or not; then those that differ in the batch alone, and where
    there are some, those that differ in channels alone, joined or cut, as well; then those with as many channels, or
    with all other sizes the same; then those of one position, whose channels may be spread over all. An output of one
    channel is spread over an axis too, and tells nothing but by all sizes. Of sequences it is not said whether time is
    first.
    """
    # Each in the order in which axes were found.
    tiers: tuple[dict[Axes, None], ...] = {}, {}, {}, {}
    of_other_channels: dict[Axes, None] = {}
    for output in outputs:
        if len(output.shape) != len(shape) or not output.axes:
            continue
        is_last = output.axes[0].endswith("c")
        for kind in (LAST, FIRST) if is_last else (FIRST, LAST):
            axes = kind.get(len(shape))
            tier = None if axes is None else _likeness(shape, axes, output)
            if axes is not None and tier is not None:
                tiers[tier][axes] = None
                if tier == 2 and _has_others(shape, axes, output):
                    of_other_channels[axes] = None
                if tier == 2 and axes.endswith("c") != is_last:  # or channels were joined, and space was cut to so many
                    tiers[tier][(LAST if is_last else FIRST)[len(shape)]] = None
    if tiers[1]:
        tiers[1].update(of_other_channels)
    return next((tuple(found) for found in tiers if found), ())


def _likeness(shape: tuple[int, ...], axes: Axes, output: Output) -> int | None:
    """How like an output an activation is, if these are its axes: the smaller the more; None: not at all."""
    rest = list(shape)
    has_channels = rest.pop(axes.index("c")) == output.size("c")
    has_others = _has_others(shape, axes, output)
    if has_channels and _has_positions(rest, output, axes):
        return 0 if has_others else 1
    if output.size("c") == 1 or not (has_channels or has_others):
        return None
    return 3 if all(size == 1 for size in output.positions) else 2


def _has_others(shape: tuple[int, ...], axes: Axes, output: Output) -> bool:
    """Whether all sizes but the number of channels are those of the output, in any order."""
    rest = list(shape)
    rest.pop(axes.index("c"))
    return sorted(rest) == sorted([output.size("n"), *output.positions])


def _has_positions(rest: list[int], output: Output, axes: Axes) -> bool:
    if axes == "ntc":  # or time is first
        return output.positions[0] in rest
    return output.positions == rest[1:]


def in_time(shape: tuple[int, ...], outputs: Iterable[Output]) -> tuple[Axes, ...]:
    """Which of batch and time comes first: by the newest output of a layer that says so; nothing if none does.

    The axis that has the size of its batch is the batch; if none or both have, that of its time is time. A layer on
    maps says how large the batch is, where that fits one axis.
    """
    for output in outputs:
        if not output.axes or (output.batch_first is None and "t" in output.axes[0]):
            continue
        orders: tuple[Axes, Axes] = ("ntc", "tnc") if output.batch_first else ("tnc", "ntc")
        for axis in "nt" if output.batch_first is not None else "n":
            fitting = [axes for axes in orders if shape[axes.index(axis)] == output.size(axis)]
            if len(fitting) == 1:
                return tuple(fitting)
        if output.batch_first is not None:
            return orders
    return ()


def with_other_order(found: tuple[Axes, ...]) -> tuple[Axes, ...]:
    """These axes, and for sequences those with batch and time exchanged."""
    other: dict[Axes, Axes] = {"ntc": "tnc", "tnc": "ntc"}
    return tuple(dict.fromkeys((*found, *(other[axes] for axes in found if axes in other))))


def shape_of_sample(axes: Axes, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The `Site.shape` of activations of this shape: features first, then space."""
    sizes = dict(zip(axes, shape, strict=True))
    return sizes["c"], *(size for axis, size in sizes.items() if axis not in "nct")
