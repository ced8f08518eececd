"""The whole interface of a method: what it changes before training, adds to the loss, and does after a step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args, get_origin

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn

from reproduce.method.sites import ROLES, Role, Trace

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PositiveCount = Annotated[int, Field(ge=1)]
_Of = TypeVar("_Of")
# The type of a field that came after Runs were sealed: None, its default, means "as before" and leaves no id changed.
Later = Annotated[_Of | None, Field(exclude_if=lambda value: value is None)]


class Method(BaseModel):
    """One published idea. Its fields are its hyperparameters; it is frozen, and keeps no state between steps.

    ``version`` grows when a change moves numbers: Results of older versions are then shown as superseded.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: ClassVar[int] = 1

    def __new__(cls, *arguments: Any, **parameters: Any) -> Self:
        if cls is Method:
            raise TypeError("Method is the base of all methods and none itself: load_method(name) gives one")
        return super().__new__(cls)

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        is_guarded = cls.penalty is Method.penalty or hasattr(cls.penalty, "strengths")
        if not is_guarded:  # this class's own, or one mixed in
            setattr(cls, "penalty", _zero_at_strength_zero(cls.penalty, cls.strengths()))  # noqa: B010

    @field_validator("*", mode="before")
    @classmethod
    def _lists_are_tuples(cls, value: Any) -> Any:
        """All the way down: a strict model takes no list for a tuple, and JSON has nothing but lists."""
        return _with_tuples(value)

    @classmethod
    def strengths(cls) -> list[str]:
        """The fields that weight the penalty: those whose names end in ``strength`` or ``coefficient``."""
        return [name for name in cls.model_fields if name.endswith(("strength", "coefficient"))]

    @property
    def recorded_roles(self) -> frozenset[Role]:
        """Roles of the Sites that `penalty` and `after_step` read: while training, a Trace records no others.

        They are the values of the fields that hold a `Role`, or all roles for a method that has no such field; none for
        a method without a penalty, or with every strength at zero, that does nothing after a step either. A method that
        reads by another rule overrides this.
        """
        own = type(self)
        adds = own.penalty is not Method.penalty and not _all_zero(self, getattr(own.penalty, "strengths", []))
        if not adds and not self.acts_after_step:
            return frozenset()
        chosen = [name for name, field in own.model_fields.items() if _holds_role(field.annotation)]
        return frozenset(getattr(self, name) for name in chosen) if chosen else ROLES

    @property
    def acts_after_step(self) -> bool:
        """Whether `after_step` does something: a method of which only some configurations do overrides this."""
        return type(self).after_step is not Method.after_step

    @property
    def is_mean_over_samples(self) -> bool:
        """Whether the mean of the penalties of a batch's parts, equally large, is that of the batch. Default: no.

        Where several processes train a Run, the penalty is then that of each one's own part; else all parts are
        gathered for it, which is right for every method, and costs memory and time.
        """
        return False

    def prepare(self, model: nn.Module, generator: torch.Generator) -> None:
        """Change the network before training (fill Sites, add parameters). Default: change nothing."""

    def penalty(self, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
        """What is added to the loss at this step: a 0-dim tensor, already weighted.

        It is not called where every strength is zero: the penalty is then exactly zero, nothing is read or drawn, and
        training is vanilla's, bit for bit.

        Args:
            trace: what the Sites of `recorded_roles` recorded in this step's forward pass.
            progress: fraction of training done, 0-dim in [0, 1].
            generator: the only source of randomness a method may use; lives on the model's device.
        """
        return trace.zero()

    def after_step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Tensor, generator: torch.Generator
    ) -> None:
        """Change weights and the optimiser's state once it has stepped. Default: change nothing.

        For the few ideas that rewrite weights outside the gradient. What they must remember lies in buffers that
        `prepare` adds to the model, so that checkpoints carry it. As in a penalty: static shapes, no wait for a value.

        Args:
            model: as trained; its Sites' Traces still hold this step's records.
            optimizer: its state tensors have the shapes of their parameters.
            progress: as in `penalty`, of this step.
            generator: as in `penalty`.
        """


class Unregularized(Method):
    """No method: training with the recipe alone."""


def _zero_at_strength_zero(penalty: Callable[..., Tensor], strengths: list[str]) -> Callable[..., Tensor]:
    """Here, and not in every method, so that no method can forget it.

    ``strengths`` are those of the class to which the penalty belongs: a subclass with more of them may call it.
    """

    @functools.wraps(penalty)
    def guarded(self: Method, trace: Trace, *arguments: Any, **options: Any) -> Tensor:
        if _all_zero(self, strengths):
            return trace.zero()
        with trace.read_by_penalty():
            return penalty(self, trace, *arguments, **options)

    guarded.strengths = strengths  # type: ignore[attr-defined]
    return guarded


def _all_zero(method: Method, strengths: list[str]) -> bool:
    """Whether there are strengths, and none of them adds anything."""
    return bool(strengths) and all(getattr(method, name) == 0 for name in strengths)


def _with_tuples(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_with_tuples, value))
    if isinstance(value, dict):
        return {name: _with_tuples(item) for name, item in value.items()}
    return value


def _holds_role(annotation: Any) -> bool:
    """Whether a field is of type `Role`, or of some of its values."""
    return get_origin(annotation) is Literal and ROLES.issuperset(get_args(annotation))
