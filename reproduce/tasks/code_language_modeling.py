"""Language modeling through a sparse code: perplexity, and how many units carry it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reproduce.data import WordData
from reproduce.errors import UserError
from reproduce.experiment.recipe import Recipe
from reproduce.experiment.schema import TaskSpec
from reproduce.method.rng import Generators
from reproduce.method.sites import sites_of
from reproduce.tasks import language_modeling
from reproduce.tasks._sparsity import CODE_METRICS, CodeStatistics
from reproduce.tasks.language_modeling import LanguageModeling


class Options(language_modeling.Options):
    unused = ("window_lengths", "mixup", "cutmix", "augment")

    @property
    def metrics(self) -> frozenset[str]:
        return super().metrics | CODE_METRICS


class CodeLanguageModeling(LanguageModeling):
    """As language modeling, with ``l0`` and ``dead_fraction`` of the model's one code Site over every token."""

    def __init__(
        self,
        spec: TaskSpec,
        options: Options,
        recipe: Recipe,
        data: WordData,
        generators: Generators,
        device: torch.device,
    ) -> None:
        super().__init__(spec, options, recipe, data, generators, device)
        codes = [site for site in sites_of(self.model) if site.role == "code"]
        if len(codes) != 1:
            raise UserError(f"this task needs a model with one code Site; {spec.model!r} has {len(codes)}")
        self.code = codes[0]

    def _evaluate_split(self, tokens: Tensor) -> dict[str, float]:
        codes = CodeStatistics()
        handle = self.code.register_forward_hook(lambda site, inputs, output: codes.add(output))
        try:
            return super()._evaluate_split(tokens) | codes.metrics()
        finally:
            handle.remove()


def build(
    spec: TaskSpec, options: Options, recipe: Recipe, data: Any, generators: Generators, device: torch.device
) -> CodeLanguageModeling:
    if not isinstance(data, WordData):
        raise UserError(f"language modeling needs words; dataset {spec.dataset!r} holds {data.holds}")
    return CodeLanguageModeling(spec, options, recipe, data, generators, device)
