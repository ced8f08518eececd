"""A mix-in that adds a method's penalty to the training loss of the Trainer of transformers, and a Trainer with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from reproduce.integrations import extra
from reproduce.method import Method, Role
from reproduce.method.attach import attach
from reproduce.method.chosen import default_sites
from reproduce.method.sites import Axes

with extra("transformers"):
    from transformers import Trainer, TrainerCallback

__all__ = ["PenaltyMixin", "PenaltyTrainer"]

STATE = "method.pt"  # in each checkpoint

_Base: Any = Trainer if TYPE_CHECKING else object


class PenaltyMixin(_Base):
    """Adds a method's penalty to the training loss: ``class PenaltyTrainer(PenaltyMixin, Trainer)``.

    The method is attached before the optimiser is made and before `DistributedDataParallel` or ``torch.compile`` wrap
    the model. Accumulated batches, mixed precision and gradient clipping act on the sum of loss and penalty,
    `Method.after_step` once for each step of the optimiser, and evaluation has no penalty. The loss that the Trainer
    logs is the sum; the mean penalty since the last log stands beside it. Checkpoints hold what the method added to the
    model, and ``method.pt``: a training that is resumed goes on as if undisturbed.

    The method stays attached after ``train()``; ``trainer.handle.remove()`` gives the model back.

    Args:
        method: any method of this suite.
        sites, example, axes: as in `reproduce.attach`; sites=None: where the method reads by default.
        method_seed: of the generator that the method draws from.
        mask_key: the input (n, t) that is zero at padding, which is then left out of the penalty, as in
            `Handle.penalty`; None: padding counts. A batch without padding, or without this input, is taken whole.

    Others are those of the Trainer.

    Raises:
        ValueError: ``model_init``, an optimiser made before the method added parameters, `DataParallel`, FSDP or
            DeepSpeed, a checkpoint without the method's state, or what `attach` refuses.
    """

    def __init__(
        self,
        *arguments: Any,
        method: Method,
        sites: Literal["pre", "post"] | Sequence[str] | Mapping[str, Role] | None = None,
        example: Any = None,
        axes: Axes | Mapping[str, Axes] | None = None,
        method_seed: int = 0,
        mask_key: str | None = "attention_mask",
        **options: Any,
    ) -> None:
        if not isinstance(method, Method):
            raise TypeError(f"{type(self).__name__} takes a method, load_method({method!r}) say, got {method!r}")
        super().__init__(*arguments, **options)  # moves the model to its device, and makes no optimiser yet
        self.mask_key = mask_key
        self._refuse()
        before = set(map(id, self.model.parameters()))
        chosen = default_sites(method) if sites is None else sites
        self.handle = attach(method, self.model, chosen, example, axes, method_seed)
        self._refuse_late_attachment(before)
        self._penalties: list[Tensor] = []  # since the last log
        self.add_callback(_AfterStep(self))

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        mask = self._mask(inputs) if model.training else None
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not model.training:
            return found
        penalty = self.handle.penalty(self.state.global_step / self.state.max_steps, mask)
        self._penalties.append(penalty.detach())
        if self._is_a_share(num_items_in_batch):
            penalty = penalty / self.current_gradient_accumulation_steps
        return (found[0] + penalty, found[1]) if return_outputs else found + penalty

    def log(self, logs: dict[str, float], *arguments: Any, **options: Any) -> None:
        if "loss" in logs and self._penalties:
            logs["penalty"] = torch.stack(self._penalties).mean().item()
            self._penalties.clear()
        super().log(logs, *arguments, **options)

    # The state lies with that of the optimiser: it is written and read where that is.
    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            torch.save(self.handle.state_dict(), Path(output_dir) / STATE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = Path(checkpoint) / STATE
        if not path.is_file():
            raise ValueError(
                f"{checkpoint} has no {STATE}: it was written without this method or with save_only_model; begin a new "
                "training from its weights"
            )
        self.handle.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    def _is_a_share(self, num_items_in_batch: Any) -> bool:
        """Whether the loss is already its share of an accumulated batch; any other is divided after `compute_loss`."""
        said = getattr(self, "loss_is_scaled_for_ga", None)
        if said is not None:
            return bool(said)
        by_items = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        return by_items or self.compute_loss_func is not None

    def _mask(self, inputs: Any) -> Tensor | None:
        """True at positions that are no padding; None where there is none."""
        given = inputs.get(self.mask_key) if self.mask_key is not None else None
        if given is None:
            return None
        if given.dim() != 2:
            raise ValueError(
                f"{self.mask_key!r} of shape {tuple(given.shape)} is no mask (n, t): name another input as mask_key, "
                "or mask_key=None, where padding counts"
            )
        mask: Tensor = given != 0
        return None if mask.all() else mask

    def _refuse(self) -> None:
        if self.model_init is not None:
            raise ValueError(
                "model_init makes a new model for each training, without the method: give the model itself"
            )
        if self.args.n_gpu > 1:
            raise ValueError(
                f"{self.args.n_gpu} GPUs in one process train copies of the model (DataParallel), which record "
                "nothing: start it by torchrun, one process for each, or show it one GPU"
            )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            name = "FSDP" if self.is_fsdp_enabled else "DeepSpeed"
            raise ValueError(
                f"{type(self).__name__} trains on one device or with DistributedDataParallel, found {name}"
            )

    def _refuse_late_attachment(self, before: set[int]) -> None:
        """An optimiser that is there already does not know the method's own parameters."""
        if self.optimizer is None:
            return
        added = [name for name, value in self.model.named_parameters() if id(value) not in before]
        if added:
            self.handle.remove()
            raise ValueError(
                f"the optimizer in optimizers= was made before the method added {added[0]!r} to the model: let the "
                "Trainer make it, by optimizer_cls_and_kwargs= say"
            )


class PenaltyTrainer(PenaltyMixin, Trainer):
    """A Trainer whose training loss has a method's penalty in it."""


class _AfterStep(TrainerCallback):
    """For the few methods that act after a step."""

    def __init__(self, trainer: PenaltyMixin) -> None:
        self.trainer = trainer

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        handle, optimizer = self.trainer.handle, given["optimizer"]
        if handle.awaits_after_step:  # not where a scaler left the step out
            handle.after_step(getattr(optimizer, "optimizer", optimizer))  # accelerate wraps it
