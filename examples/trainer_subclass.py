"""A method of this suite in a subclass of Hugging Face's Trainer: `python examples/trainer_subclass.py`."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

from reproduce import Method, attach, load_method


class PenalisedTrainer(Trainer):
    """A Trainer whose training loss has a method's penalty in it; evaluation is untouched."""

    def __init__(self, *arguments: Any, method: Method, sites: Any, example: Any = None, **options: Any) -> None:
        super().__init__(*arguments, **options)  # moves the model to its device, and makes no optimizer yet
        self.handle = attach(method, self.model, sites, example)
        self.add_callback(AfterStep(self))

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not model.training:
            return found
        penalty = self.handle.penalty(self.state.global_step / self.state.max_steps)
        if self.model_accepts_loss_kwargs and num_items_in_batch is not None:
            # This loss is already its share of an accumulated batch; any other is divided after this function.
            penalty = penalty / self.current_gradient_accumulation_steps
        return (found[0] + penalty, found[1]) if return_outputs else found + penalty


class AfterStep(TrainerCallback):
    """For the few methods that act after a step."""

    def __init__(self, trainer: PenalisedTrainer) -> None:
        self.trainer = trainer

    def on_optimizer_step(self, *_: Any, optimizer: Any, **__: Any) -> None:
        self.trainer.handle.after_step(optimizer)


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
SITES = [f"bert.encoder.layer.{index}.intermediate" for index in range(2)]


def main() -> None:
    held_out = sentences(300, seed=1)
    for strength in (0.0, 0.3):
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
            trainer = PenalisedTrainer(
                model,
                arguments,
                train_dataset=sentences(400, seed=0),
                eval_dataset=held_out,
                method=load_method("activity_norm", kind="l2", strength=strength, reduction="mean"),
                sites=SITES,
            )
            trainer.train()
            loss = trainer.evaluate()["eval_loss"]
        trainer.handle.remove()  # the model is as it was, with trained weights
        squares: list[Tensor] = []
        layer = model.get_submodule(SITES[0])
        layer.register_forward_hook(lambda module, inputs, output, seen=squares: seen.append(output.square().mean()))
        with torch.no_grad():
            model.eval()(torch.stack([one["input_ids"] for one in held_out]).to(model.device))
        print(f"strength {strength}: test loss {loss:.3f}, mean square of the first layer {squares[0]:.3f}")


if __name__ == "__main__":
    main()
