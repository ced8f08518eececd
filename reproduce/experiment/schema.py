"""Experiments as strict TOML: one table or figure of a paper, its arms, seeds, claims. No torch here."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from reproduce.errors import Misplaced, UserError, first_problem, none_of
from reproduce.experiment.toml import Strict

Scale = Literal["quick", "reduced", "paper"]
Selection = Literal["last", "best_validation", "best_test"]
Scalar = bool | int | float | str
Count = Annotated[int, Field(ge=1)]
Choices = Annotated[tuple[Any, ...], Field(min_length=1)]
IN_RECIPE = "recipe."  # how the name of a choice begins that is the recipe's
_DEFAULTS = tomllib.loads(Path(__file__).with_name("defaults.toml").read_text("utf-8"))
MetricName = Annotated[str, Field(pattern=r"^(test|validation)\.\w+$")]  # of a split: "test.error"
FigureName = Literal[
    "seeds",
    "paired_differences",
    "learning_curves",
    "site_statistics",
    "distance_to_normal",
    "unit_quantiles",
    "variance_by_layer",
]


# Identity rule: fields that are None are left out of a Run's hash, so a field added later must default to
# None and mean "as before". A default other than None, once landed, never changes.


Normalisation = Literal["channel", "mean_image", "pixel", "binary", "unit", "raw"]
Fold = Annotated[int, Field(ge=0)]
FoldConvention = Literal["standard", "swapped"]


class TaskSpec(Strict):
    """A problem held fixed: dataset x model x loss x metric.

    Fields that may be None are options of some kinds of Tasks. All of them stand here, so that a misspelled one is
    found with its file and line before torch is loaded; each kind says which ones it takes in its own ``Options``.
    """

    kind: str  # a file in reproduce/tasks
    dataset: str  # a card in datasets/
    model: str  # a file in reproduce/models
    model_options: dict[str, Scalar] = {}
    validation: Count | None = None  # training examples held out, the last ones; None: the dataset's own split
    train_examples: Count | None = None  # use only the first so many training examples
    normalise: Normalisation | None = None  # images
    reconstruction: Literal["pixel_mean"] | None = None  # autoencoding; None: squared errors summed over features
    classifier_iterations: Count | None = None  # autoencoding: of a logistic regression on the features; None: none
    host: HostSpec | None = None  # activation autoencoding: whose activations
    fold: Fold | None = None  # tables: which of the dataset's test folds
    fold_convention: FoldConvention | None = None  # tables: test on the fold, or train on it

    @property
    def options(self) -> dict[str, Any]:
        """The options that are given, by name."""
        names = (name for name, field in TaskSpec.model_fields.items() if field.default is None)
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class ConstantRate(Strict):
    kind: Literal["constant"] = "constant"


class StepRate(Strict):
    """Multiply the rate by ``factor`` at each milestone."""

    kind: Literal["step"]
    milestones: tuple[int, ...]
    factor: float | tuple[float, ...] = 0.1  # one for all, or one per milestone
    unit: Literal["epochs", "steps"] = "epochs"

    @model_validator(mode="after")
    def _one_factor_each(self) -> StepRate:
        if isinstance(self.factor, tuple) and len(self.factor) != len(self.milestones):
            raise ValueError(f"{len(self.factor)} factors for {len(self.milestones)} milestones")
        return self


class DecayRate(Strict):
    """Multiply the rate by ``factor`` every epoch after the first ``after`` epochs."""

    kind: Literal["decay"]
    after: int
    factor: float


class PlateauRate(Strict):
    """Multiply the rate by ``factor`` when validation has not improved for over ``patience`` evaluations."""

    kind: Literal["plateau"]
    factor: float = 0.25
    patience: int = 0


class CosineRate(Strict):
    kind: Literal["cosine"]


Schedule = Annotated[ConstantRate | StepRate | DecayRate | PlateauRate | CosineRate, Field(discriminator="kind")]


class Clip(Strict):
    """Gradient clipping to an L2 norm: of all gradients together, or of each tensor apart."""

    norm: float = Field(gt=0)
    per: Literal["global", "tensor"] = "global"


class Recipe(Strict):
    """How every arm is trained. Optimiser, rate and weight decay belong here, never to a method."""

    epochs: Count | None = None
    steps: Count | None = None
    batch_size: Count
    optimizer: Literal["sgd", "adam", "rmsprop"] = "sgd"
    learning_rate: float = Field(gt=0)
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    decay_biases: bool = True  # weight decay on biases and scalars too
    bias_rate: float = 1.0  # rate of biases and scalars as a fraction of learning_rate
    schedule: Schedule = ConstantRate()
    warmup_steps: int | None = None  # so many first steps at learning_rate * warmup_factor
    warmup_factor: float | None = None
    clip: Clip | None = None
    augment: Literal["crop_flip"] | None = None  # zero-pad 4, random crop, random horizontal flip
    mixup: float | None = None  # alpha of Beta(alpha, alpha)
    window: Count | None = None  # language modeling: truncated back-propagation length
    eval_batch_size: Count = 500
    evaluate_every: Count = 1  # epochs
    selection: Selection = "last"
    precision: Literal["float32", "bfloat16"] = "float32"
    probe_examples: Count = 256  # for the statistics of Sites

    @model_validator(mode="after")
    def _one_length(self) -> Recipe:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of epochs and steps")
        if (self.warmup_steps is None) != (self.warmup_factor is None):
            raise ValueError("warmup_steps and warmup_factor go together")
        if self.warmup_steps is not None and isinstance(self.schedule, PlateauRate):
            raise Misplaced(("warmup_steps",), "a plateau schedule has no warm-up")
        return self

    @model_validator(mode="after")
    def _momentum_is_used(self) -> Recipe:
        if self.momentum and self.optimizer == "adam":
            raise Misplaced(("momentum",), "adam takes no momentum")
        if self.nesterov and (self.optimizer != "sgd" or not self.momentum):
            raise Misplaced(("nesterov",), "only sgd with momentum takes nesterov")
        return self


class HostSpec(Strict):
    """A model that is trained first, in the same Run, on the Task's dataset; another then reads its activations."""

    model: str
    model_options: dict[str, Scalar] = {}
    recipe: Recipe
    site: str  # the Site to read, by its path in the model


class Arm(Strict):
    """One row of a table: a method with its parameters, and what the paper changed beside it."""

    method: str = _DEFAULTS["arm"]["method"]
    label: str = ""
    params: dict[str, Any] = {}
    grid: dict[str, Choices] = {}  # parameters to choose by mean validation metric
    recipe_grid: dict[str, Choices] = {}  # likewise what the recipe says: its rate, its weight decay
    start: str | None = None  # another method that prepares the network first, with its own defaults
    model: str | None = None
    model_options: dict[str, Scalar] = {}
    recipe: dict[str, Any] = {}
    tasks: tuple[str, ...] | None = None  # only on these tasks
    pending: str | None = None  # why this arm cannot run yet; it is then shown, never run

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

    task: str
    arm: str
    metric: MetricName
    over: str | None = None
    value: float | None = None
    tolerance: float | None = Field(default=None, gt=0)
    direction: Literal["lower", "higher"] | None = None
    paper_runs: Count = 1  # how many runs each printed number is the mean of; 1 where the paper says nothing
    source: str = Field(min_length=1)  # the address in the paper; "ours" and more for a claim that no paper makes

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

    title: str
    question: str = ""
    scale: Scale
    source: str = Field(min_length=1)
    seeds: tuple[int, ...] = Field(min_length=1)
    choosing_seeds: tuple[int, ...] = ()  # on which grids choose, and which are not judged; none: `seeds`
    baseline_seeds: tuple[int, ...] = ()  # of the baseline, which many arms are held against; none: `seeds`
    seen_seeds: tuple[int, ...] = ()  # whose numbers were seen while the grids were set: Results of them do not count
    tasks: dict[str, TaskSpec] = Field(min_length=1)
    recipe: Recipe
    arms: dict[str, Arm] = Field(min_length=1)
    baseline: str | None = None  # the arm that differences are taken against
    claims: tuple[Claim, ...] = ()
    figures: tuple[FigureName, ...] = ("seeds", "learning_curves", "site_statistics")
    deviations: tuple[str, ...] = ()  # how this file differs from the paper, one sentence each
    caveat: str = ""  # what a reader must know before the numbers: said wherever what was found is said
    metrics: tuple[str, ...] = ()  # "test.l0": to be shown in columns beside the Task's own metric
    axes: dict[str, dict[str, Scalar]] = {}  # of tasks that a file spans by axes: by task, the value on each axis

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
                    location, message, _ = first_problem(error, given, Recipe)
                    where = "recipe_grid" if location and location[0] in arm.recipe_grid else "recipe"
                    raise Misplaced(("arms", name, where, *location), message) from error
        return self

    def recipe_of(self, arm: Arm, point: Mapping[str, Any]) -> Recipe:
        """The common recipe with what the arm changes, at one of its points."""
        common = self.recipe.model_dump(exclude_none=True)
        return Recipe.model_validate({**common, **arm.recipe, **_of_recipe(point)})


def _of_recipe(point: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(IN_RECIPE): value for name, value in point.items() if name.startswith(IN_RECIPE)}


class Cell(Strict):
    """One training that an experiment asks for, before the method's own defaults are filled in."""

    task_name: str
    arm_name: str
    task: TaskSpec
    recipe: Recipe
    method: str
    params: dict[str, Any]  # as given
    start: str | None = None
    seed: int
    point: dict[str, Any] = {}  # of the arm's points the one that it belongs to


def cells(experiment: Experiment, seeds: tuple[int, ...] | None = None) -> list[Cell]:
    """All trainings of an experiment: seeds outermost, so that a cut leaves complete comparisons.

    Where arms choose on seeds of their own, these come first; of the others, all that may be chosen is here.

    Args:
        seeds: of every arm, in place of the experiment's own.
    """
    found = []
    recipes = {
        name: [experiment.recipe_of(arm, point) for point in arm.points()] for name, arm in experiment.arms.items()
    }
    asked = {name: {*experiment.seeds_of(name), *experiment.choosing_seeds_of(name)} for name in experiment.arms}
    for seed in seeds or experiment.all_seeds:
        for task_name, task in experiment.tasks.items():
            for arm_name, arm in experiment.arms.items():
                if arm.pending or (arm.tasks is not None and task_name not in arm.tasks):
                    continue
                if not seeds and seed not in asked[arm_name]:
                    continue
                changed = {"model_options": {**task.model_options, **arm.model_options}}
                arm_task = task.model_copy(update={**changed, "model": arm.model or task.model})
                for point, recipe in zip(arm.points(), recipes[arm_name], strict=True):
                    found.append(
                        Cell(
                            task_name=task_name,
                            arm_name=arm_name,
                            task=arm_task,
                            recipe=recipe,
                            method=arm.method,
                            params={name: value for name, value in point.items() if not name.startswith(IN_RECIPE)},
                            start=arm.start,
                            seed=seed,
                            point=point,
                        )
                    )
    return found


def parse_seeds(text: str) -> tuple[int, ...] | None:
    """'0,1,2', or '3,' for one seed, as it stands; a single number n as the first n seeds; nothing as None."""
    if not text:
        return None
    try:
        numbers = tuple(int(part) for part in text.removesuffix(",").split(","))
    except ValueError:
        raise UserError(f"--seeds {text!r}: expected '0,1,2' or a number of seeds") from None
    found = numbers if "," in text else tuple(range(numbers[0]))
    if not found or min(found) < 0:
        raise UserError(f"--seeds {text!r}: expected at least one seed, none negative")
    return found
