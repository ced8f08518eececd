"""A callback that adds a method's penalty to the loss of a LightningModule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from reproduce.integrations import extra
from reproduce.method import Method, Role
from reproduce.method.attach import Handle, attach
from reproduce.method.chosen import default_sites
from reproduce.method.sites import Axes

with extra("lightning"):
    import lightning
    from lightning.pytorch import callbacks as callbacks_of_lightning
    from lightning.pytorch.callbacks import GradientAccumulationScheduler
    from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy, Strategy
    from lightning.pytorch.utilities import rank_zero_warn

__all__ = ["PenaltyCallback"]

# Lightning has the second from 2.6 on.
_AVERAGING = ("StochasticWeightAveraging", "WeightAveraging")
AVERAGING: tuple[type, ...] = tuple(
    getattr(callbacks_of_lightning, name) for name in _AVERAGING if hasattr(callbacks_of_lightning, name)
)


class PenaltyCallback(lightning.Callback):
    """Adds a method's penalty to the loss that a LightningModule returns, which knows nothing of it.

    ``lightning.Trainer(callbacks=[PenaltyCallback(load_method("per", strength=3e-4))])``

    The method is attached before the optimiser is made and before `DistributedDataParallel` wraps the module.
    Accumulated batches, mixed precision and gradient clipping act on the sum of loss and penalty, `Method.after_step`
    once for each step of the optimiser, and evaluation has no penalty. A checkpoint of Lightning's holds what the
    method added to the network, and the callback's own state: a training that is resumed goes on as if undisturbed.

    The method stays attached after ``fit()``, so that ``validate()``, ``test()`` and checkpoints have what it made a
    part of the network; `remove` gives the network back.

    Args:
        method: any method of this suite.
        network: the attribute of the LightningModule that holds the network, to be called as a whole in
            ``training_step``; None: its only part with parameters; "": the LightningModule, where it calls itself.
        sites, example, axes, seed: as in `reproduce.attach`; sites=None: where the method reads.
        mask: gives of a batch the mask of positions that are no padding, for `Handle.penalty`.
        total_steps: optimiser steps at which schedules of the method end; None: those that the Trainer will make.
        log_as: the name under which the penalty is logged, once a step.

    Raises:
        ValueError: when a stage begins: manual optimisation, another strategy than one device or DDP, no such network,
            no end of the training, or what `attach` refuses.
    """

    def __init__(
        self,
        method: Method,
        network: str | None = None,
        sites: Literal["pre", "post"] | Sequence[str] | Mapping[str, Role] | None = None,
        example: Any = None,
        axes: Axes | Mapping[str, Axes] | None = None,
        seed: int = 0,
        mask: Callable[[Any], Tensor | None] | None = None,
        total_steps: int | None = None,
        log_as: str = "penalty",
    ) -> None:
        if not isinstance(method, Method):
            raise TypeError(f"PenaltyCallback takes a method, load_method({method!r}) say, got {method!r}")
        self.method = method
        self.network = network
        self.sites = default_sites(method) if sites is None else sites
        self.example, self.axes, self.seed = example, axes, seed
        self.mask, self.total_steps, self.log_as = mask, total_steps, log_as
        self.handle: Handle | None = None
        self._added: dict[str, torch.dtype] = {}  # parameters and buffers of the method
        self._n_steps = 0.0
        self._batch_mask: Tensor | None = None
        self._has_warned = False

    @property
    def state_key(self) -> str:
        return self._generate_state_key(method=type(self.method).__name__, network=self.network, log_as=self.log_as)

    def remove(self) -> None:
        """Give back the network that was attached, with its trained weights."""
        if self.handle is not None:
            self.handle.remove()

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        is_training = stage == "fit"
        if is_training:
            _refuse(trainer.strategy, pl_module)
        network = _network(pl_module, self.network)
        if self.handle is not None and self.handle.model is network and (self.handle.is_attached or not is_training):
            return
        before = _dtypes(network)
        pl_module.to(trainer.strategy.root_device)  # attach() wants the model where it will train
        self.handle = attach(self.method, network, self.sites, self.example, self.axes, self.seed)
        self._added = {name: dtype for name, dtype in _dtypes(network).items() if name not in before}
        if self._added:
            self._refuse_averages(trainer.callbacks)  # type: ignore[attr-defined]  # set by a connector

    def _refuse_averages(self, callbacks: Sequence[lightning.Callback]) -> None:
        """A copy that another callback has made already lacks what the method added."""
        for callback in callbacks[: list(map(id, callbacks)).index(id(self))]:
            if isinstance(callback, AVERAGING):
                self.remove()
                raise ValueError(
                    f"{type(callback).__name__} averages a copy of the module that it made before the method added "
                    f"{next(iter(self._added))!r}: put PenaltyCallback before it in callbacks="
                )

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Refuse what the strategy has done to the network since."""
        now = _dtypes(self._attached().model)
        for name, dtype in self._added.items():
            if dtype.is_floating_point and torch.finfo(now[name]).bits < torch.finfo(dtype).bits:
                raise ValueError(
                    f"precision={trainer.precision!r} makes the method's {name!r} {now[name]}, in which small changes "
                    "are lost: use 'bf16-mixed' or '16-mixed'"
                )

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._n_steps = _n_steps(trainer) if self.total_steps is None else self.total_steps

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._batch_mask = None if self.mask is None else self.mask(batch)

    def on_before_backward(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, loss: Tensor
    ) -> None:
        """Add the penalty in place, on the scale that the loss already has: Lightning logs the loss without it."""
        progress = min(1.0, trainer.global_step / self._n_steps)
        self._warn_of_several_passes()
        penalty = self._attached().penalty(progress, self._batch_mask)
        pl_module.log(self.log_as, penalty.detach())
        share = penalty / trainer.accumulate_grad_batches
        scaler = getattr(trainer.precision_plugin, "scaler", None)  # of precision="16-mixed"
        loss += share if scaler is None else scaler.scale(share)

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        handle = self._attached()
        if handle.awaits_after_step:  # not after each of accumulated batches, nor where a scaler left the step out
            handle.after_step(trainer.optimizers[0])

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn == "fit" and self.state_key not in checkpoint["callbacks"]:
            raise ValueError(
                f"the checkpoint was written without {self.state_key}: resume with the callbacks that it was written "
                "with, or begin a new training from its weights by load_from_checkpoint()"
            )

    def state_dict(self) -> dict[str, Any]:
        return dict(self.handle.state_dict()) if self.handle is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.handle is not None:
            self.handle.load_state_dict(state_dict)

    def _warn_of_several_passes(self) -> None:
        handle = self._attached()
        n_passes = handle.last_pass.n_passes
        if n_passes > 1 and handle.trace.roles and not self._has_warned:
            self._has_warned = True
            rank_zero_warn(
                f"training_step called the network {n_passes} times, and the penalty is that of the last call alone: "
                "call it once, on all views together (torch.cat), for a penalty on all"
            )

    def _attached(self) -> Handle:
        if self.handle is None:
            raise ValueError("PenaltyCallback is not attached: it is a callback of a Trainer, and attaches in fit()")
        return self.handle


def _refuse(strategy: Strategy, pl_module: lightning.LightningModule) -> None:
    if not pl_module.automatic_optimization:
        raise ValueError(
            f"{type(pl_module).__name__} optimises manually, where a callback cannot know which loss is meant: "
            "attach() the method yourself, add handle.penalty() to the loss, and call handle.after_step(optimizer)"
        )
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy) or isinstance(strategy, DeepSpeedStrategy):
        raise ValueError(
            f"PenaltyCallback trains on one device or with strategy='ddp', found {type(strategy).__name__}"
        )


def _network(pl_module: lightning.LightningModule, name: str | None) -> nn.Module:
    """The part of a LightningModule that is meant."""
    owner, parts = type(pl_module).__name__, dict(pl_module.named_children())
    if name is not None:
        try:
            return pl_module.get_submodule(name)
        except AttributeError as error:
            raise ValueError(
                f"{owner} has no part {name!r} when training is set up, it has {', '.join(parts) or 'none'}: make it "
                "in __init__(), or name another as network"
            ) from error
    found = [part for part in parts.values() if next(part.parameters(), None) is not None]
    if len(found) != 1 or next(pl_module.parameters(recurse=False), None) is not None:
        raise ValueError(
            f"network=None is the only part with parameters, and {owner} has {', '.join(parts) or 'none'} when "
            "training is set up: name the one that training_step calls, or give network='' where it calls self(...)"
        )
    return found[0]


def _dtypes(model: nn.Module) -> dict[str, torch.dtype]:
    """The type of each parameter and buffer."""
    return {name: tensor.dtype for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def _n_steps(trainer: lightning.Trainer) -> float:
    """The steps of the optimiser in the whole training."""
    callbacks: list[lightning.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
    if any(isinstance(one, GradientAccumulationScheduler) for one in callbacks):
        raise ValueError(
            "the Trainer accumulates batches by epoch: it cannot say how many steps training takes, and schedules "
            "go by the fraction done; give PenaltyCallback its total_steps"
        )
    found = trainer.estimated_stepping_batches
    if not 0 < found < float("inf"):
        raise ValueError(
            f"the Trainer says that training takes {found} steps, and schedules go by the fraction done: give it "
            "max_epochs or max_steps, or give PenaltyCallback its total_steps"
        )
    return found
