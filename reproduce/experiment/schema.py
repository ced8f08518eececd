"""Experiments as strict TOML: one table or figure of a paper, its arms, seeds, claims. No torch here."""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError, model_validator

from reproduce.errors import Misplaced, first_problem, none_of
from reproduce.experiment.metrics import place_of_metric
from reproduce.experiment.recipe import Count, Recipe
from reproduce.experiment.shifts import CorruptedSpec, TargetSpec
from reproduce.experiment.toml import Strict
from reproduce.experiment.word_cache import WordCacheSpec

Scale = Literal["quick", "reduced", "paper"]
Scalar = bool | int | float | str
Choices = Annotated[tuple[Any, ...], Field(min_length=1)]
MOST_POINTS = 10_000  # of one arm's grids
IN_RECIPE = "recipe."  # how the name of a choice begins that is the recipe's
_DEFAULTS = tomllib.loads(Path(__file__).with_name("defaults.toml").read_text("utf-8"))
# of a split: "test.error"; "test.error@20": at the end of epoch 20, whatever epoch counts
MetricName = Annotated[str, Field(pattern=r"^(test|validation)\.\w+(@[1-9]\d*)?$")]
FigureName = Literal[
    "seeds",
    "paired_differences",
    "learning_curves",
    "site_statistics",
    "distance_to_normal",
    "unit_quantiles",
    "variance_by_layer",
    "kernel_spectra",
    "kernel_deviation",
]


# Identity rule: fields that are None are left out of a Run's hash, so a field added later must default to
# None and mean "as before". A default other than None, once landed, never changes.


Normalisation = Literal["channel", "image_channel", "mean_image", "pixel", "binary", "unit", "raw"]
Fold = Annotated[int, Field(ge=0)]
FoldConvention = Literal["standard", "swapped"]


class TaskSpec(Strict):
    """A problem held fixed: dataset x model x loss x metric.

    What may be left out are options of some kinds of Tasks; each kind says which ones it takes in its own ``Options``.
    """

    # All of them stand here, so that a misspelled one is found with its file and line before torch is loaded.

    kind: str = Field(description="What is learned: a file in reproduce/tasks, by its name.")
    dataset: str = Field(description="A card in datasets/, by its name.")
    model: str = Field(description="A file in reproduce/models, by its name.")
    model_options: dict[str, Scalar] = Field(default={}, description="The fields of that model's `Options`.")
    validation: Count | None = Field(
        default=None,
        description="Training examples to hold out for validation, the last ones. Left out: the dataset's own split.",
    )
    train_examples: Count | None = Field(
        default=None, description="Use only the first so many training examples; of text, so many tokens."
    )
    symbols: Literal["characters"] | None = Field(
        default=None,
        description="Language modeling: what the tokens are. Left out: words. `characters`: of a corpus of characters, "
        "with bits per character as a further metric.",
    )
    token_errors: Literal[True] | None = Field(
        default=None,
        description="Language modeling: `error` too, the percentage of tokens that are not the most probable one. Left "
        "out: without.",
    )
    word_cache: WordCacheSpec | None = Field(
        default=None,
        description="Language modeling: the perplexity with a cache of recent words too. Left out: without.",
    )
    dropout_samples: Count | None = Field(
        default=None,
        description="Language modeling: of the test text the perplexity of so many predictions averaged, each with "
        "dropout masks of its own, too. Left out: without.",
    )
    imbalance: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = Field(
        default=None,
        description="Images: a long-tailed cut. Of K classes the k-th, from 0, keeps `imbalance ** (-k / (K - 1))` "
        "times as many training examples as the smallest has, its first ones. Left out: all.",
    )
    corrupted: CorruptedSpec | None = Field(
        default=None, description="Images: the error on corrupted test images too. Left out: on the clean ones alone."
    )
    out_of_distribution: str | None = Field(
        default=None,
        description="Images: another card of images of the same shape, from whose test images the task's own have to "
        "be told apart, by the largest softmax and by the density of the last activations. Left out: none.",
    )
    target_domain: TargetSpec | None = Field(
        default=None,
        description="Images: a second domain without labels, to which a method adapts the network; each step then has "
        "`batch_size` images of the source and as many of the target. Left out: one domain.",
    )
    normalise: Normalisation | None = Field(
        default=None,
        description="Images: how pixels become numbers. `channel` (left out): by the card's statistics of channels, or "
        "by those of the training images. `image_channel`: by channels' means, and the mean over images of each "
        "image's own deviation, another custom. `mean_image`: minus the mean image. `pixel`: each by its mean and "
        "deviation. `binary`: 0 or 1. `unit`: in [0, 1]. `raw`: 0 to 255.",
    )
    reconstruction: Literal["pixel_mean"] | None = Field(
        default=None,
        description="Autoencoding: squared errors averaged over pixels. Left out: summed over them.",
    )
    objective: Literal["with_penalty"] | None = Field(
        default=None,
        description="Autoencoding: `with_penalty` also evaluates what training minimises, the loss plus the method's "
        "penalty, as `objective`, in batches of the recipe's `batch_size`. Left out: the loss alone.",
    )
    classifier_iterations: Count | None = Field(
        default=None,
        description="Autoencoding: iterations of a logistic regression on the features, whose error is then the metric "
        "that counts. Left out: no classifier.",
    )
    classifier_strength: Literal["chosen"] | None = Field(
        default=None,
        description="Autoencoding: `chosen` takes for C, the inverse of the classifier's L2 penalty, that of 0.001, "
        "0.01, 0.1, 1 and 10 with the least validation error; of equals the smallest. Left out: 1.",
    )
    host: HostSpec | None = Field(
        default=None,
        description="Activation autoencoding: the model whose activations are read. Image classification: an "
        "autoencoder that is trained first, and whose encoder the task's model, `code_classifier`, begins with.",
    )
    fold: Fold | None = Field(default=None, description="Tables: which of the dataset's test folds, from 0.")
    fold_convention: FoldConvention | None = Field(
        default=None,
        description="Tables: test on the fold (`standard`), or train on it and test on the rest (`swapped`).",
    )

    @property
    def datasets(self) -> tuple[str, ...]:
        """The cards of all that is read: the dataset's, and that of what is out of its distribution."""
        return (self.dataset,) if self.out_of_distribution is None else (self.dataset, self.out_of_distribution)

    @property
    def options(self) -> dict[str, Any]:
        """The options that are given, by name."""
        names = (name for name, field in TaskSpec.model_fields.items() if field.default is None)
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class HostSpec(Strict):
    """A model that is trained first, in the same Run, on the Task's dataset; another then reads its activations."""

    model: str = Field(description="A file in reproduce/models, by its name.")
    model_options: dict[str, Scalar] = Field(default={}, description="The fields of that model's `Options`.")
    recipe: Recipe = Field(description="How the host is trained.")
    site: str = Field(description="The Site to read, by its path in the model.")


class Arm(Strict):
    """One row of a table: a method with its parameters, and what the paper changed beside it."""

    method: str = Field(default=_DEFAULTS["arm"]["method"], description="A folder of methods/, by its name.")
    label: str = Field(default="", description="What pages call it. Left out: its name.")
    params: dict[str, Any] = Field(
        default={}, description="Parameters of the method; one that is left out has the method's default."
    )
    grid: dict[str, Choices] = Field(
        default={},
        description="Parameters to choose, each with its values: the point of best mean validation metric is judged.",
    )
    recipe_grid: dict[str, Choices] = Field(
        default={}, description="What the recipe says, chosen likewise: its rate, its weight decay."
    )
    start: str | None = Field(
        default=None, description="Another method that prepares the network first, with its own defaults."
    )
    model: str | None = Field(default=None, description="A model in place of the task's.")
    model_options: dict[str, Scalar] = Field(default={}, description="Options in place of, or beside, the task's.")
    recipe: dict[str, Any] = Field(default={}, description="Keys of the recipe that this arm changes.")
    tasks: tuple[str, ...] | None = Field(default=None, description="Only on these tasks. Left out: on all.")
    pending: str | None = Field(
        default=None, description="Why this arm cannot run yet, in a sentence: it is then shown, and never run."
    )

    @model_validator(mode="after")
    def _can_be_spelled_out(self) -> Arm:
        n_points = math.prod(len(values) for values in self.choices.values())
        if n_points > MOST_POINTS:
            raise Misplaced(("grid",), f"{n_points} points, expected at most {MOST_POINTS}")
        return self

    @property
    def chooses(self) -> bool:
        """Whether its grid has more than one point."""
        return len(self.points()) > 1

    @property
    def choices(self) -> dict[str, Choices]:
        """What the grids vary; what the recipe says is called like ``recipe.learning_rate``."""
        return {**self.grid, **{IN_RECIPE + name: values for name, values in self.recipe_grid.items()}}

    def points(self) -> list[dict[str, Any]]:
        """Every choice of the grids, merged with the fixed parameters."""
        choices = self.choices
        return [
            {**self.params, **dict(zip(choices, values, strict=True))}
            for values in itertools.product(*choices.values())
        ]


class Claim(Strict):
    """One statement of the paper with its address, and the tolerance set before the run.

    Without ``over``, the metric of ``arm`` is ``value``. With it, ``arm`` minus ``over`` is ``value`` or,
    where the paper gives no number (a curve, a sentence), lies in ``direction``.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [{"required": ["value"]}, {"required": ["direction"]}],
            "dependencies": {"value": ["tolerance"], "tolerance": ["value"], "direction": ["over"]},
        }
    )

    task: str = Field(description="A task of this file.")
    arm: str = Field(description="The arm that the claim is about.")
    metric: MetricName = Field(
        description="Split and metric: `test.error`, `validation.perplexity`; `test.error@20` at the end of epoch 20."
    )
    over: str | None = Field(default=None, description="The arm that it is compared with.")
    value: float | None = Field(
        default=None, description="The number that the paper prints. Either this or `direction`."
    )
    tolerance: float | None = Field(
        default=None, gt=0, description="How far ours may lie from `value`, set before the runs; goes together with it."
    )
    direction: Literal["lower", "higher"] | None = Field(
        default=None, description="Where the paper gives no number: on which side of `over` the arm lies."
    )
    paper_runs: Count = Field(
        default=1, description="How many runs each printed number is the mean of; 1 where the paper says nothing."
    )
    source: str = Field(
        min_length=1,
        description="The address in the paper: table and row. It begins with `ours` where no paper makes the claim.",
    )

    @property
    def ours(self) -> bool:
        """Whether it is our own hypothesis, which no paper states."""
        return self.source.startswith("ours")

    @property
    def holds_zero(self) -> bool:
        """Whether no gap at all would lie within the tolerance of the published one."""
        if self.over is None or self.value is None or self.tolerance is None:
            return False
        return self.value != 0 and abs(self.value) <= self.tolerance

    @model_validator(mode="after")
    def _one_statement(self) -> Claim:
        if (self.value is None) == (self.direction is None):
            raise ValueError("a claim states exactly one of value and direction")
        if (self.value is None) != (self.tolerance is None):
            raise ValueError("a claim with a value needs a tolerance, and one with a direction has none")
        if self.direction is not None and self.over is None:
            raise ValueError("a claim of direction compares two arms: name the other one in 'over'")
        return self


class Experiment(Strict):
    """One table or figure of a paper."""

    title: str = Field(description="What pages call it.")
    question: str = Field(default="", description="What it asks, in one sentence.")
    scale: Scale = Field(
        description="Minutes on data that comes along, hours at most on two cores and real data, or the paper's own."
    )
    source: str = Field(min_length=1, description="The table or figure of the paper; `ours` where there is none.")
    seeds: tuple[int, ...] = Field(min_length=1, description="On which every arm is trained and judged.")
    choosing_seeds: tuple[int, ...] = Field(
        default=(), description="Seeds on which grids choose, and which are not judged. Left out: `seeds` choose too."
    )
    baseline_seeds: tuple[int, ...] = Field(
        default=(), description="More seeds for the baseline, which many arms are held against; `seeds` among them."
    )
    seen_seeds: tuple[int, ...] = Field(
        default=(), description="Seeds whose numbers were seen while grids were set: Results of them do not count."
    )
    tasks: dict[str, TaskSpec] = Field(min_length=1, description="By name: the problems that are held fixed.")
    recipe: Recipe = Field(description="How every arm is trained.")
    arms: dict[str, Arm] = Field(min_length=1, description="By name: the rows of the table.")
    baseline: str | None = Field(default=None, description="The arm that differences are taken against.")
    claims: tuple[Claim, ...] = Field(default=(), description="What the paper states, each with its address.")
    figures: tuple[FigureName, ...] = Field(
        default=("seeds", "learning_curves", "site_statistics"),
        description="What the page draws: figures of the harness and of the method's figures.py, by name.",
    )
    deviations: tuple[str, ...] = Field(
        default=(), description="How this file differs from the paper, one sentence each."
    )
    caveat: str = Field(
        default="",
        description="What a reader must know before the numbers: it is said wherever what was found is said.",
    )
    arms_of: str = Field(
        default="",
        description="In a column of the matrix: another column, `images` say, whose arms each method that "
        "has no table for this one adds here too.",
    )
    metrics: tuple[str, ...] = Field(
        default=(), description="Shown in columns beside the task's own metric: `test.l0`, say."
    )
    # of tasks that a file spans by axes: by task, the value on each axis; found by `files`, never given
    axes: dict[str, dict[str, Scalar]] = {}

    @model_validator(mode="after")
    def _names_exist(self) -> Experiment:
        for name, arm in self.arms.items():
            for task in arm.tasks or ():
                if task not in self.tasks:
                    raise Misplaced(("arms", name, "tasks"), none_of(task, "the tasks", self.tasks))
        for index, claim in enumerate(self.claims):
            for key, arm_name in (("arm", claim.arm), ("over", claim.over)):
                if arm_name is not None and arm_name not in self.arms:
                    raise Misplaced(("claims", index, key), none_of(arm_name, "the arms", self.arms))
            if claim.task not in self.tasks:
                raise Misplaced(("claims", index, "task"), none_of(claim.task, "the tasks", self.tasks))
        for index, metric in enumerate(self.metrics):
            split, _, name = metric.partition(".")
            if split not in ("test", "validation") or not name:
                raise Misplaced(("metrics", index), f"{metric!r}: expected 'test.NAME' or 'validation.NAME'")
        if self.baseline is not None and self.baseline not in self.arms:
            raise Misplaced(("baseline",), none_of(self.baseline, "the arms", self.arms))
        return self

    @model_validator(mode="after")
    def _claimed_epochs_are_evaluated(self) -> Experiment:
        for index, claim in enumerate(self.claims):
            epoch = place_of_metric(claim.metric).epoch
            if epoch is None:
                continue
            for arm in (self.arms[name] for name in (claim.arm, claim.over) if name is not None):
                recipe = self.recipe_of(arm, {})
                if recipe.epochs is None or epoch > recipe.epochs or epoch % recipe.evaluate_every:
                    trained = f"{recipe.epochs} epochs" if recipe.epochs else f"{recipe.steps} steps"
                    expected = f"a multiple of evaluate_every = {recipe.evaluate_every} within {trained}"
                    raise Misplaced(("claims", index, "metric"), f"epoch {epoch} is not evaluated: expected {expected}")
        return self

    @model_validator(mode="after")
    def _seeds_are_for_one_thing(self) -> Experiment:
        judged = {*self.seeds, *self.baseline_seeds}
        for name, others in (("choosing_seeds", self.choosing_seeds), ("seen_seeds", self.seen_seeds)):
            if shared := sorted(judged & set(others)):
                raise Misplaced((name,), f"{', '.join(map(str, shared))}: judged seeds are {sorted(judged)}")
        if self.choosing_seeds and self.baseline is None and not any(arm.chooses for arm in self.arms.values()):
            raise Misplaced(("choosing_seeds",), "no arm has a grid to choose from")
        if self.baseline_seeds and (self.baseline is None or not set(self.seeds) <= set(self.baseline_seeds)):
            raise Misplaced(("baseline_seeds",), "expected a baseline, and all of seeds among its own")
        return self

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """Those that choose first, then those that are judged."""
        return tuple(dict.fromkeys((*self.choosing_seeds, *self.seeds, *self.baseline_seeds)))

    def seeds_of(self, arm_name: str) -> tuple[int, ...]:
        """On which seeds an arm is judged."""
        return self.baseline_seeds or self.seeds if arm_name == self.baseline else self.seeds

    def choosing_seeds_of(self, arm_name: str) -> tuple[int, ...]:
        """On which further seeds an arm is trained: where it chooses, and the baseline, which is every grid's zero."""
        return self.choosing_seeds if arm_name == self.baseline or self.arms[arm_name].chooses else ()

    @model_validator(mode="after")
    def _recipes_hold(self) -> Experiment:
        for name, arm in self.arms.items():
            for point in arm.points():
                try:
                    self.recipe_of(arm, point)
                except ValidationError as error:
                    given = {**arm.recipe, **_of_recipe(point)}
                    location, message = first_problem(error, given, Recipe)
                    where = "recipe_grid" if location and location[0] in arm.recipe_grid else "recipe"
                    raise Misplaced(("arms", name, where, *location), message) from error
        return self

    def recipe_of(self, arm: Arm, point: Mapping[str, Any]) -> Recipe:
        """The common recipe with what the arm changes, at one of its points."""
        common = self.recipe.model_dump(exclude_none=True)
        return Recipe.model_validate({**common, **arm.recipe, **_of_recipe(point)})


def _of_recipe(point: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(IN_RECIPE): value for name, value in point.items() if name.startswith(IN_RECIPE)}
