"""How something is trained, as an experiment's file says it: length, optimizer, schedule, clipping. No torch here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from reproduce.errors import Misplaced
from reproduce.experiment.toml import Strict

Selection = Literal["last", "best_validation", "best_validation_average", "best_test"]
AVERAGED_EPOCHS = 10  # of "best_validation_average": the mean over so many, as uriyapes/VCL_DC, main_UCI.py, has it
Count = Annotated[int, Field(ge=1)]

# The identity rule of `schema` holds here too: a field added later must default to None.


class ConstantRate(Strict):
    """The rate stays as it is."""

    kind: Literal["constant"] = "constant"


class StepRate(Strict):
    """Multiply the rate by ``factor`` at each milestone."""

    kind: Literal["step"]
    milestones: tuple[int, ...] = Field(description="After how many epochs, or steps.")
    factor: float | tuple[float, ...] = Field(default=0.1, description="One for all milestones, or one for each.")
    unit: Literal["epochs", "steps"] = Field(default="epochs", description="What milestones count.")

    @model_validator(mode="after")
    def _one_factor_each(self) -> StepRate:
        if isinstance(self.factor, tuple) and len(self.factor) != len(self.milestones):
            raise ValueError(f"{len(self.factor)} factors for {len(self.milestones)} milestones")
        return self


class DecayRate(Strict):
    """Multiply the rate by ``factor`` every epoch after the first ``after`` epochs."""

    kind: Literal["decay"]
    after: int = Field(description="Epochs at the full rate.")
    factor: float = Field(description="Of each epoch after these.")


class PlateauRate(Strict):
    """Multiply the rate by ``factor`` when validation has not improved for over ``patience`` evaluations."""

    kind: Literal["plateau"]
    factor: float = Field(default=0.25, description="By which the rate is multiplied.")
    patience: int = Field(default=0, description="So many evaluations without improvement change nothing yet.")


class CosineRate(Strict):
    """The rate falls to zero along half a cosine over the whole of training."""

    kind: Literal["cosine"]


class LinearRate(Strict):
    """The rate falls in a straight line over the whole of training."""

    kind: Literal["linear"]
    last: float = Field(ge=0, lt=1, description="Where it ends, as a fraction of `learning_rate`.")


Schedule = Annotated[
    ConstantRate | StepRate | DecayRate | PlateauRate | CosineRate | LinearRate, Field(discriminator="kind")
]


class Clip(Strict):
    """Gradient clipping to an L2 norm: of all gradients together, or of each tensor apart."""

    norm: float = Field(gt=0, description="The largest norm that is let through.")
    per: Literal["global", "tensor"] = Field(
        default="global", description="The norm of all gradients together, or of each tensor by itself."
    )


class Averaging(Strict):
    """Averaged weights, non-monotonically triggered (NT-ASGD).

    Averaging begins after the first evaluation that is worse than the best of all but the ``patience`` before it.
    """

    patience: Count = Field(
        default=5, description="Evaluations that count as too new: the best of all others before is not reached."
    )
    fine_tune_after: Count | None = Field(
        default=None,
        description="Epochs after which training goes on from the averaged weights, and averages anew from there. "
        "Left out: never.",
    )


class AugmentedLoss(Strict):
    """A second loss of words, against the distribution of words that are like the one that comes (Inan et al. 2017)."""

    temperature: float = Field(gt=0, description="Tau, by which the logits of both distributions are divided.")
    proportion: float = Field(gt=0, description="Gamma: the loss has the weight gamma tau beside cross-entropy.")


class Recipe(Strict):
    """How every arm is trained. Optimiser, rate and weight decay belong here, never to a method."""

    # What validators below hold, for editors.
    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [{"required": ["epochs"]}, {"required": ["steps"]}],
            "dependencies": {"warmup_steps": ["warmup_factor"], "warmup_factor": ["warmup_steps"]},
        }
    )

    epochs: Count | None = Field(default=None, description="Passes over the training data. Either this or `steps`.")
    steps: Count | None = Field(default=None, description="Steps of the optimizer. Either this or `epochs`.")
    batch_size: Count = Field(description="Examples a step; of text, streams that are read side by side.")
    optimizer: Literal["sgd", "adam", "nadam", "rmsprop"] = Field(default="sgd", description="What steps.")
    learning_rate: float = Field(gt=0, description="The rate that `schedule` starts from.")
    momentum: float = Field(default=0.0, description="Of sgd and rmsprop.")
    smoothing: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Of rmsprop: what its running mean of squares keeps of itself in a step. Left out: 0.99.",
    )
    nesterov: bool = Field(default=False, description="Nesterov's form of sgd's momentum.")
    weight_decay: float = Field(default=0.0, description="The coefficient of weights in their own gradient.")
    decay_biases: bool = Field(default=True, description="Whether weight decay is on biases and scalars too.")
    bias_rate: float = Field(default=1.0, description="Rate of biases and scalars as a fraction of `learning_rate`.")
    schedule: Schedule = Field(default=ConstantRate(), description="How the rate changes while a model trains.")
    warmup_steps: int | None = Field(
        default=None, description="So many first steps run at `learning_rate` times `warmup_factor`."
    )
    warmup_factor: float | None = Field(default=None, description="Goes together with `warmup_steps`.")
    clip: Clip | None = Field(default=None, description="Gradient clipping. Left out: none.")
    augment: Literal["crop_flip", "crop_flip_randaugment"] | None = Field(
        default=None,
        description="Images: zero-pad by 4, crop at random, flip left to right at random; with RandAugment, two random "
        "operations of magnitude 9 of 30 each as well. Left out: as they are.",
    )
    mixup: float | None = Field(default=None, description="Mix pairs of images: the alpha of Beta(alpha, alpha).")
    cutmix: float | None = Field(
        default=None,
        gt=0,
        description="Put a box of one image into another: the alpha of Beta(alpha, alpha). With `mixup` too, each "
        "batch takes one of the two, by a coin.",
    )
    window: Count | None = Field(default=None, description="Language modeling: tokens of truncated back-propagation.")
    window_lengths: Literal["random"] | None = Field(
        default=None,
        description="Language modeling: `random` draws each window's length, normal around `window`, of one window in "
        "twenty around half of it, with deviation 5 and at least 5, and the rate is in proportion to it. Left out: all "
        "have `window` tokens.",
    )
    augmented_loss: AugmentedLoss | None = Field(
        default=None,
        description="Language modeling: train against words that are like the one that comes too. Left out: it alone.",
    )
    averaging: Averaging | None = Field(
        default=None, description="Evaluate a running average of the weights. Left out: the weights themselves."
    )
    eval_batch_size: Count = Field(default=500, description="Examples, or streams, at a time while evaluating.")
    evaluate_every: Count = Field(default=1, description="Epochs from one evaluation to the next.")
    selection: Selection = Field(
        default="last",
        description="Which evaluation counts: the last, or the best by validation (`best_validation_average`: by its "
        "mean over the last 10 epochs) or, where a paper does so, by test.",
    )
    precision: Literal["float32", "bfloat16"] = Field(default="float32", description="Of the forward pass.")
    probe_examples: Count = Field(default=256, description="On so many examples the statistics of Sites are taken.")
    kernel_spectra: Literal[True] | None = Field(
        default=None, description="Keep the singular values of every kernel, where Sites are described. Left out: none."
    )

    @model_validator(mode="after")
    def _one_length(self) -> Recipe:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of epochs and steps")
        if (self.warmup_steps is None) != (self.warmup_factor is None):
            raise ValueError("warmup_steps and warmup_factor go together")
        if self.warmup_steps is not None and isinstance(self.schedule, PlateauRate):
            raise Misplaced(("warmup_steps",), "a plateau schedule has no warm-up")
        if self.selection == "best_validation_average" and self.epochs is None:
            raise Misplaced(("selection",), "an average over epochs needs epochs, found steps")
        return self

    @model_validator(mode="after")
    def _what_belongs_together(self) -> Recipe:
        begins = self.averaging.fine_tune_after if self.averaging else None
        if begins and (self.epochs is None or begins >= self.epochs or begins % self.evaluate_every):
            trained = f"{self.epochs} epochs" if self.epochs else f"{self.steps} steps"
            expected = f"a multiple of evaluate_every = {self.evaluate_every} before the end of {trained}"
            raise Misplaced(("averaging", "fine_tune_after"), f"found {begins}, expected {expected}")
        if self.window_lengths and self.window is None:
            raise Misplaced(("window_lengths",), "lengths are drawn around window, which is missing")
        if self.augmented_loss and self.window is None:
            raise Misplaced(("augmented_loss",), "it is of words, which come in windows: window is missing")
        return self

    @model_validator(mode="after")
    def _momentum_is_used(self) -> Recipe:
        if self.momentum and self.optimizer in ("adam", "nadam"):
            raise Misplaced(("momentum",), f"{self.optimizer} takes no momentum")
        if self.smoothing and self.optimizer != "rmsprop":
            raise Misplaced(("smoothing",), f"only rmsprop takes smoothing, found {self.optimizer}")
        if self.nesterov and (self.optimizer != "sgd" or not self.momentum):
            raise Misplaced(("nesterov",), "only sgd with momentum takes nesterov")
        return self
