"""A method of this suite as a Lightning callback: `python examples/lightning_callback.py`."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from reproduce import Method, attach, load_method
from reproduce.method.attach import Handle


class ActivationPenalty(lightning.Callback):
    """Adds a method's penalty to the loss of any LightningModule that holds its network in an attribute.

    ``sites`` and ``example`` are those of attach(). A method that becomes a part of the network, as batch normalization
    does, is none for a callback: attach it yourself before fit(), and keep the handle.
    """

    def __init__(self, method: Method, network: str = "network", sites: Any = "post", example: Any = None) -> None:
        self.method, self.network, self.sites, self.example = method, network, sites, example
        self.handle: Handle | None = None

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Attach before the optimizers are made: a method may add parameters."""
        if stage == "fit":
            pl_module.to(trainer.strategy.root_device)  # attach() wants the model where it will train
            network = pl_module.get_submodule(self.network)
            self.handle = attach(self.method, network, self.sites, self.example)

    def on_before_backward(self, trainer: lightning.Trainer, pl_module: Any, loss: Tensor) -> None:
        """Add the penalty in place, on the scale that the loss already has."""
        progress = trainer.global_step / trainer.estimated_stepping_batches
        penalty = self.handle.penalty(progress) / trainer.accumulate_grad_batches
        scaler = getattr(trainer.precision_plugin, "scaler", None)  # with precision="16-mixed"
        loss += penalty if scaler is None else scaler.scale(penalty)

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """For the few methods that act after a step."""
        self.handle.after_step(trainer.optimizers[0])

    def teardown(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        """Leave the model as it was, with trained weights."""
        if stage == "fit" and self.handle is not None:
            self.handle.remove()


class Classifier(lightning.LightningModule):
    """Your module: it knows nothing of the callback."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.network(images), labels)

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        images, labels = batch
        wrong = self.network(images).argmax(1) != labels
        self.log("error", 100 * wrong.float().mean())
        self.log("mean_square", self.network[:2](images).square().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


QUIET: dict[str, Any] = dict.fromkeys(
    ["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False
)


def main() -> None:
    digits = load_digits()
    images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    training, held_out = (TensorDataset(images[part], labels[part]) for part in (slice(0, 1200), slice(1200, None)))
    for strength in (0.0, 0.03):
        lightning.seed_everything(0, verbose=False)
        penalty = ActivationPenalty(load_method("activity_norm", kind="l2", strength=strength, reduction="mean"))
        trainer = lightning.Trainer(max_epochs=10, accelerator="cpu", callbacks=[penalty], **QUIET)
        batches = DataLoader(training, batch_size=100, shuffle=True)
        trainer.fit(Classifier(), batches, DataLoader(held_out, batch_size=600))
        found = trainer.callback_metrics
        print(
            f"strength {strength}: test error {found['error']:.1f} %, "
            f"mean square of the first layer {found['mean_square']:.3f}"
        )


if __name__ == "__main__":
    main()
