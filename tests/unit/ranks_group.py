"""What each of two processes on the CPU does that train Runs together; the tests start them once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, distributed, nn

from reproduce.bench.tiny_tasks import PROBLEMS, Problem, configurations
from reproduce.errors import UserError
from reproduce.experiment.folder import METHODS, MethodFolder, all_methods
from reproduce.method import Method
from reproduce.method.parts import BatchNormOfAll, Part, passing, read_whole_batches
from reproduce.training.group import ALONE, Abandoned, Group

RANKS, STEPS = 2, 4
FOLDERS = {**all_methods(), "_template": MethodFolder("_template", METHODS / "_template")}
CONFIGURATIONS: dict[str, Method] = {
    f"{name}-{key}": method for name in FOLDERS for key, method in configurations(FOLDERS[name]).items()
}


def problem_like(name: str, model: str, options: dict[str, Any], **recipe: Any) -> Problem:
    """The image classification of the tiny tasks, with another network and recipe."""
    first = PROBLEMS[0]
    spec = first.spec.model_copy(update={"model": model, "model_options": options})
    return dataclasses.replace(first, name=name, spec=spec, recipe=first.recipe.model_copy(update=recipe))


CLASSIFICATION = [problem for problem in PROBLEMS if problem.spec.kind in ("image_classification", "table_classification")]
DRAWING = [
    problem_like("dropout", "mlp", {"width": 8, "depth": 2, "dropout": 0.3}, augment="crop_flip"),
    problem_like("mixed", "mlp", {"width": 8, "depth": 2}, mixup=0.8, cutmix=1.0),
    problem_like("rows", "row_rnn", {"hidden": 5}),
]
PROBLEMS_IN_PARTS = {problem.name: problem for problem in (*CLASSIFICATION, *DRAWING)}


def pairs() -> Iterator[tuple[str, Problem, Method]]:
    """Every configuration that trains in one process on images, and one of each method on what draws, rows and steps."""
    images = CLASSIFICATION[:2]
    one_of_each = {key.partition("-")[0]: key for key in CONFIGURATIONS}.values()
    for name, problem in PROBLEMS_IN_PARTS.items():
        for key in CONFIGURATIONS if problem in images else one_of_each:
            if problem.refusal(CONFIGURATIONS[key]) is None:
                yield f"{key} on {name}", problem, CONFIGURATIONS[key]


def trained(problem: Problem, method: Method, group: Group = ALONE) -> dict[str, Any]:
    """Losses of some steps, and all that training has left."""
    session = problem.session(method, group=group)
    losses = []
    for _ in range(STEPS):
        session.steps(1)
        losses.append([session.step.loss.item(), session.step.penalty.item()])
    generators = session.generators.state_dict()
    return {"losses": torch.tensor(losses), "state": session.model.state_dict(), "generators": generators}


def own_penalties(problem: Problem, method: Method, part: Part) -> float | str:
    """Of the first batch before any step: the mean of the penalties of its parts, or why a part has none."""
    session = problem.session(method)
    with passing(part):
        session.forward()
    try:
        own = session.penalty().detach()
    except ValueError as error:
        return str(error)
    distributed.all_reduce(own)
    return own.item() / RANKS


def normalized(part: Part | None, rows: Tensor, momentum: float | None) -> dict[str, Any]:
    """Output, gradients and running statistics of batch normalization, of the whole or of a part of the rows."""
    kind = nn.BatchNorm1d if rows.dim() == 2 else nn.BatchNorm2d
    norm = kind(rows.shape[1], momentum=momentum)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, rows.shape[1]))
        norm.bias.copy_(torch.linspace(-1, 1, rows.shape[1]))
    model = nn.Sequential(norm)
    if part is not None:
        read_whole_batches(model, part, set(model.modules()))
        assert isinstance(norm, BatchNormOfAll)
    own = (rows if part is None else part.own(rows)).clone().requires_grad_()
    weights = torch.linspace(-1, 2, rows.numel()).view(rows.shape)
    for _ in range(2):
        with passing(part):
            made = model(own)
    (made * (weights if part is None else part.own(weights))).sum().backward()
    gradients = [own.grad, norm.weight.grad, norm.bias.grad]
    return {"made": made.detach(), "gradients": gradients, "state": norm.state_dict()}


NORMALIZED = {
    "units": (torch.randn(8, 3, generator=torch.Generator().manual_seed(1)) * 2 + 50, 0.1),
    "maps": (torch.randn(4, 3, 2, 5, generator=torch.Generator().manual_seed(2)), 0.1),
    "cumulative": (torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(3)), None),
}


def told_apart(group: Group) -> dict[str, Any]:
    """What one process alone has or does, and what the group makes of it."""
    assert group.part is not None
    rank = group.part.rank
    found: dict[str, Any] = {"flags": group.agreed(rank == 0, rank == 1), "value": group.of_first({"rank": rank})}
    for failing in range(RANKS):
        try:
            with group.together():
                if rank == failing:
                    raise UserError(f"no data at {failing}")
        except (UserError, Abandoned) as error:
            found[f"{failing} fails"] = f"{type(error).__name__}: {error}"
    with group.together():
        found["none fails"] = True
    return found


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    part = Part(rank, RANKS, distributed.new_group(backend="gloo"))
    group = Group(part, distributed.group.WORLD)
    found: dict[str, Any] = {"told": told_apart(group)}
    for name, problem, method in pairs():
        try:
            found[name] = trained(problem, method, group)
        except ValueError as error:
            found[name] = str(error)
            continue
        if problem is CLASSIFICATION[0] and method.recorded_roles:
            found[name]["penalties"] = own_penalties(problem, method, part)
    for name, (rows, momentum) in NORMALIZED.items():
        found[name] = normalized(part, rows, momentum)
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()
