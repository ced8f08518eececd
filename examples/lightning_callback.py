"""A method of this suite in Lightning's training loop, by a callback: `python examples/lightning_callback.py`."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from reproduce import load_method
from reproduce.integrations.lightning import PenaltyCallback


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


def penalised(strength: float) -> lightning.Trainer:
    """A Trainer with a callback more: your LightningModule stays as it is."""
    method = load_method("activity_norm", kind="l2", strength=strength, reduction="mean")
    return lightning.Trainer(max_epochs=10, accelerator="cpu", callbacks=[PenaltyCallback(method)], **QUIET)


def main() -> None:
    digits = load_digits()
    images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    training, held_out = (TensorDataset(images[part], labels[part]) for part in (slice(0, 1200), slice(1200, None)))
    squares, errors = [], []
    for strength in (0.0, 0.03):
        lightning.seed_everything(0, verbose=False)
        trainer = penalised(strength)
        batches = DataLoader(training, batch_size=100, shuffle=True)
        trainer.fit(Classifier(), batches, DataLoader(held_out, batch_size=600))
        found = trainer.callback_metrics
        print(
            f"strength {strength}: test error {found['error']:.1f} %, "
            f"mean square of the first layer {found['mean_square']:.3f}"
        )
        squares.append(float(found["mean_square"]))
        errors.append(float(found["error"]))
    print(
        f"The penalty brings the mean square from {squares[0]:.3f} to {squares[1]:.3f}, and the test error from "
        f"{errors[0]:.1f} to {errors[1]:.1f} %, of one seed."
    )


if __name__ == "__main__":
    main()
