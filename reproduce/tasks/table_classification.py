"""Classification of a table's rows on one of its source's folds: cross-entropy, error in percent."""

from __future__ import annotations

from typing import Any

import torch

from reproduce import models
from reproduce.data import Rows, TableData
from reproduce.errors import UserError
from reproduce.experiment.recipe import Recipe
from reproduce.experiment.schema import Fold, FoldConvention, TaskSpec
from reproduce.method.rng import Generators
from reproduce.models import Sizes
from reproduce.tasks import TaskOptions
from reproduce.tasks._classification import Classification


class Options(TaskOptions):
    """Which of the source's folds, and which side of it is tested on."""

    needs = "a table"
    unused = ("window", "window_lengths", "cutmix", "augment")

    fold: Fold
    fold_convention: FoldConvention

    @property
    def metrics(self) -> frozenset[str]:
        return frozenset({"loss", "error"})


class TableClassification(Classification[Rows]):
    """Features as the source standardised them.

    ``fold_convention = "standard"`` tests on the rows inside the fold and trains on the others; ``"swapped"``
    trains on the rows inside and tests on the others. Both hold out the same validation rows.
    """

    def __init__(
        self,
        spec: TaskSpec,
        options: Options,
        recipe: Recipe,
        data: TableData,
        generators: Generators,
        device: torch.device,
    ) -> None:
        if options.fold >= len(data.folds):
            raise UserError(f"task.fold {options.fold}: dataset {spec.dataset!r} has folds 0 to {len(data.folds) - 1}")
        fold = data.folds[options.fold]
        train, test = fold.others, fold.inside
        if options.fold_convention == "swapped":
            train, test = test, train
        splits = {"validation": data.rows.at(fold.validation), "test": data.rows.at(test)}
        super().__init__(spec, recipe, data.rows.at(train), splits, generators, device)
        sizes = Sizes(tuple(data.rows.features.shape[1:]), data.classes)
        model = models.build(spec.model, dict(spec.model_options), sizes, generators.initialisation, generators.dropout)
        self.model = model.to(device)


def build(
    spec: TaskSpec, options: Options, recipe: Recipe, data: Any, generators: Generators, device: torch.device
) -> TableClassification:
    if not isinstance(data, TableData):
        raise UserError(f"task table_classification needs a table; dataset {spec.dataset!r} holds {data.holds}")
    return TableClassification(spec, options, recipe, data, generators, device)
