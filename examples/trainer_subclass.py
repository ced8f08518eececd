"""A method of this suite in Hugging Face's Trainer, by a mix-in: `python examples/trainer_subclass.py`."""

from __future__ import annotations

import tempfile

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

from reproduce import load_method
from reproduce.integrations.transformers import PenaltyTrainer


def sentences(n: int, seed: int) -> list[dict[str, Tensor]]:
    """Made-up sentences of 12 words; the question is which half of the vocabulary has more of them."""
    words = torch.randint(0, 40, (n, 12), generator=torch.Generator().manual_seed(seed))
    labels = ((words < 20).sum(1) > 6).long()
    return [{"input_ids": ids, "labels": label} for ids, label in zip(words, labels, strict=True)]


def classifier() -> BertForSequenceClassification:
    """A tiny BERT with random weights: nothing is downloaded."""
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=40,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=12,
        )
    )


# Most of transformers' activations are classes of its own, and "post" finds those of torch only: name the modules.
SITES = ["bert.encoder.layer.*.intermediate"]


def penalised(model: nn.Module, arguments: TrainingArguments, strength: float) -> PenaltyTrainer:
    """A Trainer with a method more; `PenaltyMixin` does the same to a Trainer class of your own."""
    method = load_method("activity_norm", kind="l2", strength=strength, reduction="mean")
    return PenaltyTrainer(
        model,
        arguments,
        train_dataset=sentences(400, seed=0),
        eval_dataset=sentences(300, seed=1),
        method=method,
        sites=SITES,
    )


def main() -> None:
    held_out = sentences(300, seed=1)
    outcomes = []
    for strength in (0.0, 0.3):  # strong on purpose, so that its effect is seen at once; a grid would begin far below
        torch.manual_seed(0)
        model = classifier()
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder,
                num_train_epochs=4,
                per_device_train_batch_size=32,
                learning_rate=3e-3,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                logging_strategy="no",
            )
            trainer = penalised(model, arguments, strength)
            trainer.train()
            loss = trainer.evaluate()["eval_loss"]
        trainer.handle.remove()  # the model is as it was, with trained weights
        squares: list[Tensor] = []
        layer = model.get_submodule("bert.encoder.layer.0.intermediate")
        layer.register_forward_hook(lambda module, inputs, output, seen=squares: seen.append(output.square().mean()))
        with torch.no_grad():
            model.eval()(torch.stack([one["input_ids"] for one in held_out]).to(model.device))
        print(f"strength {strength}: test loss {loss:.3f}, mean square of the first layer {squares[0]:.3f}")
        outcomes.append((float(squares[0]), loss))
    (free, free_loss), (held, held_loss) = outcomes
    price = "which is the price of a strength that rules the task" if held_loss > free_loss else "of one seed"
    print(
        f"The penalty brings the mean square from {free:.3f} to {held:.3f}, and the test loss from {free_loss:.3f} to "
        f"{held_loss:.3f}, {price}."
    )


if __name__ == "__main__":
    main()
