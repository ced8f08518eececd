"""Classification of a table's rows on one of its source's folds: cross-entropy, error in percent."""

from __future__ import annotations

from typing import Any

import torch

from reproduce import models
from reproduce.data import Rows, TableData
from reproduce.errors import UserError
from reproduce.experiment.schema import Recipe, TaskSpec
from reproduce.method.rng import Generators
from reproduce.models import Sizes
from reproduce.tasks._classification import Classification

USES = ("fold", "fold_convention")  # fields of a TaskSpec


class TableClassification(Classification[Rows]):
    """Features as the source standardised them.

    ``fold_convention = "standard"`` tests on the rows inside the fold and trains on the others; ``"swapped"``
    trains on the rows inside and tests on the others. Both hold out the same validation rows.
    """

    def __init__(
        self, spec: TaskSpec, recipe: Recipe, data: TableData, generators: Generators, device: torch.device
    ) -> None:
        if recipe.augment:
            raise UserError("recipe.augment is for images; table classification has none")
        if spec.fold is None or spec.fold_convention is None:
            raise UserError("table classification needs task.fold and task.fold_convention")
        if spec.fold >= len(data.folds):
            raise UserError(f"task.fold {spec.fold}: dataset {spec.dataset!r} has folds 0 to {len(data.folds) - 1}")
        fold = data.folds[spec.fold]
        train, test = (fold.others, fold.inside) if spec.fold_convention == "standard" else (fold.inside, fold.others)
        splits = {"validation": data.rows.at(fold.validation), "test": data.rows.at(test)}
        super().__init__(spec, recipe, data.rows.at(train), splits, generators, device)
        sizes = Sizes(tuple(data.rows.features.shape[1:]), data.classes)
        model = models.build(spec.model, dict(spec.model_options), sizes, generators.initialisation, generators.dropout)
        self.model = model.to(device)


def build(
    spec: TaskSpec, recipe: Recipe, data: Any, generators: Generators, device: torch.device
) -> TableClassification:
    if not isinstance(data, TableData):
        raise UserError(f"task table_classification needs a table; dataset {spec.dataset!r} holds {data.holds}")
    return TableClassification(spec, recipe, data, generators, device)
