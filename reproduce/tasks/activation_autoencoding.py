"""Autoencoding of a language model's activations, judged by what the model makes of the reconstruction."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from reproduce import models
from reproduce.data import WordData
from reproduce.errors import UserError
from reproduce.experiment.metrics import METRICS
from reproduce.experiment.recipe import Count, Recipe
from reproduce.experiment.schema import HostSpec, TaskSpec
from reproduce.method.rng import Generators
from reproduce.method.sites import Site
from reproduce.models import Sizes
from reproduce.tasks import Metrics, TaskOptions, language_modeling, rows_of_batch
from reproduce.tasks._sparsity import CODE_METRICS, RECONSTRUCTION_METRICS, CodeStatistics, ReconstructionStatistics
from reproduce.tasks.language_modeling import LanguageModeling


class Options(TaskOptions):
    needs = "words"
    unused = ("window", "window_lengths", "mixup", "cutmix", "augment")  # the host's window is its own

    host: HostSpec
    train_examples: Count | None = None  # tokens, of the text that the host is trained on and reads

    def check_recipe(self, recipe: Recipe, n_train: int | None) -> None:
        if recipe.window:
            raise UserError("recipe.window: window belongs to task.host, which reads the text", ["recipe", "window"])
        super().check_recipe(recipe, n_train)

    @property
    def metrics(self) -> frozenset[str]:
        losses = {name for name in METRICS if name.startswith("ce_loss_")}
        return CODE_METRICS | RECONSTRUCTION_METRICS | losses | {"perplexity"}


class Splice(nn.Module):
    """Replace activations (T, B, d) by their reconstructions, and measure codes and reconstructions."""

    def __init__(self, autoencoder: Any, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.autoencoder, self.mean, self.scale = autoencoder, mean, scale
        self.codes, self.reconstructions = CodeStatistics(), ReconstructionStatistics()

    def forward(self, activation: Tensor) -> Tensor:
        inputs = (activation.flatten(0, 1) - self.mean) * self.scale
        code = self.autoencoder.encode(inputs)
        output = self.autoencoder.decode(code)
        self.codes.add(code)
        self.reconstructions.add(inputs, output)
        return (output / self.scale + self.mean).view_as(activation)


class Ablation(nn.Module):
    """Replace activations by a constant (zero or mean ablation): one vector (d,) for all."""

    def __init__(self, vector: Tensor) -> None:
        super().__init__()
        self.vector = vector

    def forward(self, activation: Tensor) -> Tensor:
        return self.vector.expand_as(activation)


@dataclass(frozen=True)
class Host:
    """A trained language model, its activations (tokens, d) at one Site over the training text, and what it costs
    to lose them: cross-entropies in nats for each split.
    """

    task: LanguageModeling
    site: Site
    activations: Tensor
    references: dict[str, dict[str, float]]
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)  # Runs in other threads share the host

    @contextmanager
    def spliced(self, module: nn.Module) -> Iterator[None]:
        """The host with ``module`` applied to the Site's output; a layer's own state goes on as it was.

        One at a time: who else splices waits.
        """
        with self.lock:
            self.site.transform = module
            try:
                yield
            finally:
                self.site.transform = None

    def losses(self) -> dict[str, float]:
        """Cross-entropy in nats of each split, as the host now is."""
        return {name: metrics["loss"] for name, metrics in self.evaluate().items()}

    def evaluate(self) -> Metrics:
        found = self.task.evaluate()
        self.task.model.eval()  # the host stays in evaluation mode
        return found


class ActivationAutoencoding:
    """The host, which is trained already, stays as it is; the autoencoder is trained by the Run's recipe.

    Activations are centred and scaled to a mean norm of sqrt(d). Loss: mean over tokens of the sum over features of
    squared errors. Metrics of a split: those of autoencoding, and ``ce_loss_with_sae``, ``ce_loss_without_sae``,
    ``ce_loss_with_zero_ablation``, ``ce_loss_with_mean_ablation`` in nats, ``ce_loss_increase``, ``ce_loss_score``
    against zero and ``ce_loss_score_mean`` against mean ablation, ``perplexity`` with the autoencoder spliced in.
    """

    metric = METRICS["fvu"]
    source_examples: int | None = None

    def __init__(
        self,
        spec: TaskSpec,
        recipe: Recipe,
        host: Host,
        generators: Generators,
        device: torch.device,
    ) -> None:
        self.recipe, self.generators, self.device = recipe, generators, device
        self.host = host
        activations = self.host.activations
        self.mean = activations.mean(0)
        centred = activations - self.mean
        self.scale = math.sqrt(centred.shape[1]) / centred.norm(dim=1).mean()
        self.inputs = centred.mul_(self.scale)
        sizes = Sizes((self.inputs.shape[1],), self.inputs.shape[1])
        model = models.build(spec.model, dict(spec.model_options), sizes, generators.initialisation, generators.dropout)
        self.model: Any = model.to(device)
        if not hasattr(model, "encode"):
            raise UserError(f"this task needs an autoencoder; model {spec.model!r} has no 'encode'")
        self.steps_per_epoch = len(self.inputs) // recipe.batch_size
        if self.steps_per_epoch < 1:
            raise UserError(f"batch_size {recipe.batch_size} is larger than the {len(self.inputs)} activations")
        self.total_epochs = recipe.epochs or -(-(recipe.steps or 1) // self.steps_per_epoch)
        self.epochs_begun = 0
        self.order = torch.zeros(len(self.inputs), dtype=torch.int64, device=device)

    def start_epoch(self) -> None:
        self.order.copy_(torch.randperm(len(self.inputs), generator=self.generators.order))
        self.model.anneal(self.epochs_begun / self.total_epochs)
        self.epochs_begun += 1

    def loss(self, index: Tensor) -> Tensor:
        chosen = self.order.index_select(0, rows_of_batch(index, self.recipe.batch_size))
        return self._batch_loss(self.inputs[chosen])

    def _batch_loss(self, inputs: Tensor) -> Tensor:
        return (self._output(inputs) - inputs).square().sum(1).mean()

    def _output(self, inputs: Tensor) -> Tensor:
        bfloat16 = self.recipe.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
            output = self.model(inputs)
        return output.float()

    @torch.no_grad()
    def evaluate(self) -> Metrics:
        self.model.eval()
        found = {name: self._evaluate_split(name) for name in self.host.task.splits}
        self.model.train()
        return found

    def _evaluate_split(self, name: str) -> dict[str, float]:
        splice = Splice(self.model, self.mean, self.scale)
        with self.host.spliced(splice):
            spliced = self.host.task._evaluate_split(self.host.task.splits[name])
        loss, reference = spliced["loss"], self.host.references[name]
        clean, zero, mean = (reference[key] for key in ("clean", "zero", "mean"))
        return {
            **splice.reconstructions.metrics(),
            **splice.codes.metrics(),
            "decoder_norm": self.model.W_dec.norm(dim=1).mean().item(),
            "ce_loss_with_sae": loss,
            "ce_loss_without_sae": clean,
            "ce_loss_with_zero_ablation": zero,
            "ce_loss_with_mean_ablation": mean,
            "ce_loss_increase": loss - clean,
            "ce_loss_score": (zero - loss) / (zero - clean),
            "ce_loss_score_mean": (mean - loss) / (mean - clean),
            "perplexity": spliced["perplexity"],
        }

    def prepared_loss(self) -> Callable[[], Tensor]:
        inputs = self.inputs[: self.recipe.batch_size]
        return lambda: self._batch_loss(inputs)

    @torch.no_grad()
    def forward_site_batch(self) -> None:
        self._output(self.inputs[: self.recipe.probe_examples])

    def state_dict(self) -> dict[str, Any]:
        return {"order": self.order, "epochs_begun": self.epochs_begun}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order.copy_(state["order"])
        self.epochs_begun = state["epochs_begun"]


def build_host(
    spec: TaskSpec, options: Options, data: Any, generators: Generators, device: torch.device
) -> LanguageModeling:
    """The language modeling on which the host is trained, by its own recipe."""
    host = options.host
    _check_words(spec, data)
    own = spec.model_copy(update={"model": host.model, "model_options": host.model_options, "host": None})
    own_options = language_modeling.Options(train_examples=options.train_examples)
    task = LanguageModeling(own, own_options, host.recipe, data, generators, device)
    _site(task, host)
    return task


def read_host(options: Options, task: LanguageModeling) -> Host:
    """The trained host with its activations, and the losses of its zero and mean ablation."""
    site = _site(task, options.host)
    task.model.eval().requires_grad_(False)
    activations = _activations(task, site)
    host = Host(task, site, activations, {})
    ablations = {"zero": torch.zeros_like(activations[0]), "mean": activations.mean(0)}
    losses = {"clean": host.losses()}
    for name, vector in ablations.items():
        with host.spliced(Ablation(vector)):
            losses[name] = host.losses()
    for split in task.splits:
        host.references[split] = {name: found[split] for name, found in losses.items()}
    return host


@torch.no_grad()
def _activations(task: LanguageModeling, site: Site) -> Tensor:
    """The Site's outputs while the host reads its training text once, without dropout: (tokens, d)."""
    seen: list[Tensor] = []
    handle = site.register_forward_hook(lambda module, inputs, output: seen.append(output.flatten(0, 1)))
    try:
        task._evaluate_split(task.train)
    finally:
        handle.remove()
    return torch.cat(seen)


def _site(task: LanguageModeling, chosen: HostSpec) -> Site:
    site = dict(task.model.named_modules()).get(chosen.site)
    if not isinstance(site, Site):
        raise UserError(f"task.host.site {chosen.site!r}: model {chosen.model!r} has no such Site")
    return site


def _check_words(spec: TaskSpec, data: Any) -> None:
    if not isinstance(data, WordData):
        raise UserError(f"this task needs words; dataset {spec.dataset!r} holds {data.holds}")


def build(
    spec: TaskSpec,
    options: Options,
    recipe: Recipe,
    data: Any,
    generators: Generators,
    device: torch.device,
    host: Host | None = None,
) -> ActivationAutoencoding:
    _check_words(spec, data)
    if host is None:
        raise ValueError("the host was not trained: build this Task by `training.host.build_task`")
    return ActivationAutoencoding(spec, recipe, host, generators, device)
