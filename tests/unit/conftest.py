"""Synthetic Results with the shapes of real ones: several seeds, arms, a diverged run, a grid."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import Tensor, nn

from reproduce.cli import chosen
from reproduce.experiment.cells import Cell, cells
from reproduce.experiment.folder import MethodFolder
from reproduce.experiment.identity import RunConfig, Start
from reproduce.experiment.recipe import Recipe
from reproduce.experiment.schema import Arm, Claim, Experiment, TaskSpec
from reproduce.method import Method, Role, Trace, sites_of
from reproduce.results.evaluate import MethodFindings, evaluate
from reproduce.results.match import ResultIndex
from reproduce.results.record import Environment, EpochRecord, Final, Result, SiteStatistics


class Everything(Method):
    """A method with all that a resumed training must find again: it learns, counts, draws, follows progress, and acts
    after a step.
    """

    strength: float = 0.3
    sites: Role = "post"

    def prepare(self, model: nn.Module, generator: torch.Generator) -> None:
        model.register_parameter("scale", nn.Parameter(torch.rand((), generator=generator)))
        model.register_buffer("n_steps", torch.zeros(()))
        model.register_buffer("n_samples", torch.zeros(()))

    def penalty(self, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
        squares = torch.stack([record.activation.square().mean() for record in trace.select(self.sites)]).sum()
        drawn = torch.rand((), generator=generator)
        return self.strength * (1 + progress) * (squares * drawn + (trace.model.scale - 0.5).square())

    def after_step(self, model: Any, optimizer: Any, progress: Tensor, generator: torch.Generator) -> None:
        first = next(iter(sites_of(model)))
        model.n_steps += 1
        model.n_samples += sum(len(record.activation) for record in first.trace.records if record.site is first)
        with torch.no_grad():
            model.scale.mul_(1 - 0.1 * torch.rand((), generator=generator))


DEFAULTS = {"vanilla": {}, "batchnorm": {"eps": 1e-5}, "per": {"strength": 0.0, "mode": "exact"}}


def example_experiment(**changes: Any) -> Experiment:
    """Four arms on one task: a baseline, a better one, one with a grid, one that cannot run."""
    content: dict[str, Any] = {
        "title": "Table 9: a small network on digits",
        "question": "Does the penalty lower the test error?",
        "scale": "paper",
        "source": "Nobody 2020, Table 9",
        "seeds": (0, 1, 2),
        "tasks": {"digits": TaskSpec(kind="image_classification", dataset="digits", model="mlp")},
        "recipe": Recipe(epochs=8, batch_size=32, learning_rate=0.1),
        "arms": {
            "vanilla": Arm(label="Vanilla"),
            "batchnorm": Arm(method="batchnorm", label="BN"),
            "per": Arm(method="per", label="PER", grid={"strength": (1e-3, 1e-4)}),
            "vcl": Arm(method="vcl", label="VCL", pending="the method is not built yet"),
        },
        "baseline": "vanilla",
        "claims": (
            Claim(task="digits", arm="vanilla", metric="test.error", value=7.21, tolerance=0.5, source="row 1"),
            Claim(task="digits", arm="vcl", metric="test.error", value=7.0, tolerance=0.5, source="row 3"),
            Claim(
                task="digits",
                arm="per",
                over="vanilla",
                metric="test.error",
                value=-0.5,
                tolerance=0.3,
                source="rows 1 and 4",
            ),
            Claim(
                task="digits",
                arm="batchnorm",
                over="vanilla",
                metric="test.error",
                direction="lower",
                source="text",
            ),
        ),
        "figures": ("seeds", "learning_curves", "site_statistics", "unit_quantiles"),
        "deviations": ("The data are smaller.",),
    }
    return Experiment.model_validate({**content, **changes})


def example_result(
    cell: Cell,
    test: float,
    validation: float | None = None,
    diverged: bool = False,
    finished: str = "2026-01-01T00:00:00+00:00",
    **changes: Any,
) -> Result:
    """A Result of one cell that ends at these numbers, with smooth curves toward them."""
    defaults = DEFAULTS.get(cell.method, {})
    config = RunConfig(
        task=cell.task,
        dataset_checksum=changes.pop("dataset_checksum", "c0ffee" * 10),
        recipe=cell.recipe,
        method=cell.method,
        method_version=changes.pop("method_version", 1),
        params={**defaults, **cell.params},
        start=Start(method=cell.start, version=1, params={}) if cell.start else None,
        seed=cell.seed,
        loop_version=changes.pop("loop_version", 1),
    )
    generator = np.random.default_rng([cell.seed, len(cell.arm_name)])
    epochs = []
    for epoch in range(1, 9):
        slow = 1 + 6 * math.exp(-epoch / 2) + 0.02 * float(generator.normal())
        squares = {"layers.0": 0.9 + 0.05 * epoch, "layers.1": 0.7 * slow}
        sites = {
            f"{layer}.{role}": SiteStatistics(
                mean=0.1,
                mean_square=square * (1 if role == "pre" else 0.5),
                norm_dispersion=0.3,
                effective_rank=20.0,
                unit_quantiles=tuple(float(q * slow) for q in (-1.0, -0.6, 0.05, 0.7, 1.1)),
            )
            for layer, square in squares.items()
            for role in ("pre", "post")
        }
        epochs.append(
            EpochRecord(
                epoch=epoch,
                step=epoch * 37,
                train_loss=math.nan if diverged and epoch == 8 else 0.3 * slow,
                penalty=0.01,
                learning_rate=0.1,
                validation={} if validation is None else {"error": validation * slow},
                test={"error": test * slow},
                sites=sites,
                seconds_per_step=0.001,
            )
        )
    final = Final(
        selection=cell.recipe.selection,
        epoch=8,
        validation={} if validation is None else {"error": validation},
        test={"error": test},
    )
    return Result(
        id=config.id,
        config=config,
        defaults=defaults,
        status="diverged" if diverged else "completed",
        diverged_step=290 if diverged else None,
        metric="error",
        parameters=12_345,
        epochs=tuple(epochs),
        final=None if diverged else final,
        environment=Environment(
            commit="0123456789abcdef0123456789abcdef01234567",
            dirty=False,
            packages={"torch": "2.15.0", "numpy": "2.4.0"},
            python="3.11.9",
            platform="Linux x86_64",
            device="cpu",
            precision="float32",
            threads=1,
            wall_seconds=12.5,
            peak_memory_bytes=200 * 2**20,
            finished=finished,
        ),
        seal=config.id,
    )


def example_results(experiment: Experiment) -> list[Result]:
    """Every cell run: the first grid point better on validation, the second with a diverged seed."""
    levels = {"vanilla": 7.2, "batchnorm": 6.9, "per": 6.6}
    found = []
    for cell in cells(experiment):
        weak = cell.params.get("strength") == 1e-4
        shift = (0.00, 0.08, -0.06)[cell.seed % 3]
        own = 0.02 * (cell.seed * len(cell.arm_name) % 5)
        test = levels[cell.arm_name] + shift + own + (0.2 if weak else 0.0)
        found.append(example_result(cell, test, test + 0.3, diverged=weak and cell.seed == 2))
    return found


def example_card(folder: Path) -> Path:
    """Write a card that uses what cards use, and return its folder."""
    folder.mkdir(parents=True)
    (folder / "card.md").write_text(
        "# Projected Error Function Regularization\n\n"
        "## Idea\nPull activations toward a normal distribution, with $x < 1$ & no `$` trouble.\n\n"
        "## Mathematics\n"
        "$$\\mathcal{L}(h) = \\sqrt{\\tfrac{2}{\\pi}}\\; {}_1F_1\\left(-\\tfrac12; \\tfrac d2; "
        "-\\tfrac{\\lVert h \\rVert^2}{2}\\right)$$\n\n"
        "## Deviations\n1. The paper says A. We do B.\n2. The paper says C. We do D.\n\n"
        "## Citation\n```bibtex\n@inproceedings{nobody2020,\n  author = {No Body},\n  title = {A <title>},\n"
        "  year = {2020},\n  doi = {10.1234/nothing}\n}\n```\n",
        "utf-8",
    )
    return folder


@pytest.fixture(scope="session")
def make_experiment() -> Callable[..., Experiment]:
    return example_experiment


@pytest.fixture(scope="session")
def make_result() -> Callable[..., Result]:
    return example_result


@pytest.fixture(scope="session")
def make_results() -> Callable[[Experiment], list[Result]]:
    return example_results


@pytest.fixture(scope="session")
def write_card() -> Callable[[Path], Path]:
    return example_card


@pytest.fixture
def card_folder(tmp_path: Path) -> Path:
    """A method folder with a card."""
    return example_card(tmp_path / "methods" / "per")


@pytest.fixture
def per_findings(card_folder: Path) -> Callable[..., MethodFindings]:
    """What these Results come to in these experiments of a method with a card."""

    def evaluated(experiments: dict[str, Experiment], results: Iterable[Result], name: str = "per") -> MethodFindings:
        indexed = ResultIndex(results)
        findings = tuple(evaluate(key, experiment, indexed) for key, experiment in experiments.items())
        return MethodFindings(MethodFolder(name, card_folder), findings)

    return evaluated


@pytest.fixture
def no_evidence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Commands that read the committed Results, which takes seconds, find none."""
    monkeypatch.setattr(chosen, "EVIDENCE", tmp_path / "no evidence")


@pytest.fixture
def everything() -> Method:
    return Everything()


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found: `tests/unit/ranks.py`."""
    root = str(Path(__file__).resolve().parents[2])
    if root not in sys.path:  # pytest without -m: the processes find what this one finds
        sys.path.insert(0, root)
    from tests.unit.ranks import RANKS, process

    return _found_by(process, RANKS, tmp_path_factory, "ranks")


@pytest.fixture(scope="session")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found that train Runs together: `tests/unit/ranks_group.py`."""
    from tests.unit.ranks_group import RANKS, process

    return _found_by(process, RANKS, tmp_path_factory, "grouped")


def _found_by(
    process: Callable[[int, str], None], count: int, tmp_path_factory: pytest.TempPathFactory, name: str
) -> list[dict[str, Any]]:
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # of all workers: the first that asks starts the processes
    folder = shared / name
    with FileLock(shared / f"{name}.lock"):
        if not folder.exists():
            folder.mkdir()
            torch.multiprocessing.spawn(process, (str(folder),), nprocs=count)
    return [torch.load(folder / f"{rank}.pt") for rank in range(count)]
