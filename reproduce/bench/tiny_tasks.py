"""Tiny tasks, one of every kind: a few images, rows or words from which a small network learns in 20 steps.

The contract battery trains every method on them, and `reproduce check` every method on the device at hand.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from reproduce import tasks
from reproduce.bench.stepper import recording
from reproduce.bench.variants import read_variants
from reproduce.data import Data, Fold, ImageData, Images, Rows, TableData, WordData
from reproduce.experiment.dataset_card import DatasetCard, Statistics
from reproduce.experiment.folder import MethodFolder
from reproduce.experiment.recipe import Recipe
from reproduce.experiment.schema import HostSpec, TaskSpec
from reproduce.experiment.shifts import TargetSpec
from reproduce.method import Method
from reproduce.method.rng import Generators
from reproduce.training.group import ALONE, Group
from reproduce.training.host import build_task
from reproduce.training.step import Step

CPU = torch.device("cpu")
STEPS = 20


def configurations(folder: MethodFolder) -> dict[str, Method]:
    """A method's defaults and the variants of its variants.toml by name, each configuration once."""
    method_class = folder.load()
    required = any(described.is_required() for described in method_class.model_fields.values())
    params: dict[str, dict[str, Any]] = {} if required else {"defaults": {}}
    params |= {name: variant.params for name, variant in read_variants(folder).variants.items()}
    found: dict[str, Method] = {}
    for name, chosen in params.items():
        method = method_class.model_validate_json(json.dumps(chosen))
        if method not in found.values():
            found[name] = method
    return found


def _images() -> ImageData:
    """Noise, the brighter the higher the class."""
    labels = torch.arange(32) % 3
    noise = torch.randint(0, 86, (32, 1, 6, 6), generator=torch.Generator().manual_seed(0))
    split = Images((noise * (1 + labels.view(-1, 1, 1, 1))).to(torch.uint8), labels)
    card = DatasetCard.model_construct(
        name="tiny", statistics=Statistics(mean=(0.33,), std=(0.25,), source="made here")
    )
    return ImageData(card=card, train=split, validation=None, test=split, classes=3, origin="made here")


@functools.cache  # Runs on one and the same data share what they train first
def _words() -> WordData:
    tokens = torch.arange(45) ** 2 % 7
    card = DatasetCard.model_construct(name="tiny")
    return WordData(card=card, train=tokens, validation=tokens, test=tokens, vocabulary=tuple("abcdefg"), origin="here")


class Session:
    """A training step that can be taken whole, or hook by hook to look at what each one does."""

    def __init__(
        self,
        method: Method,
        problem: Problem,
        captured: bool = False,
        rate_on_device: bool | None = None,
        device: torch.device = CPU,
        group: Group = ALONE,
        **recipe: Any,
    ) -> None:
        self.method, self.device = method, device
        self.generators = Generators.seeded(0, device)
        self.task = problem.build(self.generators, device, **recipe)
        chosen = problem.recipe.model_copy(update=recipe)
        make_recording = functools.partial(recording, self.generators, device) if captured else None
        self.step = Step(self.task, method, chosen, self.generators, device, make_recording, rate_on_device, group)
        self.model, self.trace = self.step.model, self.step.trace
        self.task.start_epoch()

    def forward(self) -> Tensor:
        self.trace.clear()
        return self.task.loss(torch.tensor(0, device=self.device))

    def penalty(self, progress: float = 0.5) -> Tensor:
        return self.method.penalty(self.trace, self._place(progress), self.generators.method)

    def steps(self, count: int) -> None:
        """As the loop takes them."""
        for _ in range(count):
            if int(self.step.index) == 0:
                self.task.start_epoch()
            self.step()

    def after_step(self, progress: float = 0.5) -> None:
        self.method.after_step(self.model, self.step.optimizer, self._place(progress), self.generators.method)

    def _place(self, progress: float) -> Tensor:
        return torch.tensor(progress, device=self.device)


@dataclass(frozen=True)
class Problem:
    """A Task whose epoch is two steps."""

    name: str
    spec: TaskSpec = field(compare=False)
    recipe: Recipe = field(compare=False)
    data: Callable[[], Data] = field(compare=False)

    def build(self, generators: Generators, device: torch.device = CPU, **recipe: Any) -> tasks.Task:
        return build_task(self.spec, self.recipe.model_copy(update=recipe), self.data(), generators, device)

    def session(self, method: Method, **options: Any) -> Session:
        return Session(method, self, **options)

    @functools.cache  # noqa: B019  # a few Problems live as long as the tests
    def refusal(self, method: Method) -> str | None:
        """Why this method does not work on this task, in its own words; None where it does."""
        try:
            session = self.session(method)
            session.forward()
            session.penalty()
        except ValueError as error:
            return str(error)
        return None


def _rows() -> TableData:
    """Numbers, the larger the higher the class; the fold holds every fourth row."""
    labels = torch.arange(48) % 3
    noise = torch.randn(48, 5, generator=torch.Generator().manual_seed(0))
    inside, others = torch.arange(0, 48, 4), torch.tensor([row for row in range(48) if row % 4])
    fold = Fold(inside=inside, others=others[4:], validation=others[:4])
    rows = Rows(noise + labels.view(-1, 1) - 1, labels)
    return TableData(
        card=DatasetCard.model_construct(name="tiny"), rows=rows, folds=(fold,), classes=3, origin="made here"
    )


def _problem(
    kind: str, data: Callable[[], Data], model: str, options: dict[str, Any], recipe: dict[str, Any], **task: Any
) -> Problem:
    spec = TaskSpec(kind=kind, dataset="tiny", model=model, model_options=options, **task)
    chosen = Recipe(steps=STEPS, evaluate_every=5, eval_batch_size=8, **recipe)
    return Problem(f"{kind}-{model}", spec, chosen, data)


IMAGE: dict[str, Any] = {"batch_size": 16, "learning_rate": 0.2}
WORD: dict[str, Any] = {"batch_size": 4, "window": 5, "learning_rate": 2.0}
CODE: dict[str, Any] = {"batch_size": 16, "learning_rate": 0.01}
GAUSSIAN = {"width": 8, "code": 8, "gaussian": True, "evaluation_draws": 3}
DEEP, CODED = {"depth": 8, "width": 2}, {"hidden": 8, "layers": 1, "d_sae": 8}
HOST = HostSpec(
    model="lstm",
    model_options={"hidden": 6, "layers": 1},
    site="layers.0.post",
    recipe=Recipe(steps=20, evaluate_every=20, eval_batch_size=8, **WORD),
)
IN_PAIRS: dict[str, Any] = {"batch_size": 8, "optimizer": "adam", "learning_rate": 0.01}
TWO_DOMAINS: dict[str, Any] = {"train_examples": 16, "target_domain": TargetSpec(rotation=90)}
FOLD: dict[str, Any] = {"fold": 0, "fold_convention": "standard"}

# Every kind of Task; between them: units, maps, the outputs of a recurrent layer before and after dropout, codes,
# and Gaussian codes of two domains.
PROBLEMS = (
    _problem("image_classification", _images, "mlp", {"width": 8, "depth": 2}, IMAGE),
    _problem("image_classification", _images, "resnet", DEEP, IMAGE | {"learning_rate": 0.5}),
    _problem("image_classification", _images, "mnist_cnn", GAUSSIAN, IN_PAIRS, **TWO_DOMAINS),
    _problem("regression", _images, "rectified_mlp", {"width": 8, "depth": 1}, IMAGE | {"learning_rate": 0.05}),
    _problem("table_classification", _rows, "mlp", {"width": 8, "depth": 2}, IMAGE, **FOLD),
    _problem("language_modeling", _words, "lstm", {"hidden": 8, "dropout": 0.1}, WORD),
    _problem("code_language_modeling", _words, "code_lstm", CODED, WORD | {"learning_rate": 0.5}),
    _problem("autoencoding", _images, "autoencoder", {"d_sae": 8}, CODE),
    _problem("activation_autoencoding", _words, "autoencoder", {"d_sae": 8}, CODE, host=HOST),
)
