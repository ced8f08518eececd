"""What each of two processes on the CPU does that train Runs together; the tests start them once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, distributed, nn

from reproduce.bench.tiny_tasks import CPU, PROBLEMS, Problem, configurations
from reproduce.errors import UserError
from reproduce.experiment.folder import METHODS, MethodFolder, all_methods
from reproduce.experiment.metrics import METRICS
from reproduce.method import Method, Site
from reproduce.method.parts import BatchNormOfAll, Part, current_part, passing, read_whole_batches
from reproduce.method.rng import Generators
from reproduce.models.dropout import Dropout
from reproduce.training.group import ALONE, Abandoned, Group
from reproduce.training.step import Step

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


UNITS = PROBLEMS[0]
OTHERS = [
    next(problem for problem in PROBLEMS if problem.spec.kind == "table_classification"),
    problem_like("dropout", "mlp", {"width": 8, "depth": 2, "dropout": 0.3}, augment="crop_flip"),
    problem_like("mixed", "mlp", {"width": 8, "depth": 2}, mixup=0.8, cutmix=1.0),
    problem_like("rows", "row_rnn", {"hidden": 5}),
    problem_like("code", "mnist_cnn", {"width": 8, "code": 8, "gaussian": True, "evaluation_draws": 3}),
]
PROBLEMS_IN_PARTS = {problem.name: problem for problem in (UNITS, *OTHERS)}


class Maps:
    """A task of maps in double precision: in a small batch some normalized channel is nearly constant, and what float32
    rounds off is then multiplied until no two ways of summing agree.
    """

    metric = METRICS["error"]
    steps_per_epoch = STEPS
    source_examples = None

    def __init__(self, generators: Generators) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layers = [
                *(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), Site("pre", "nchw", (4, 4, 4)), nn.Tanh()),
                *(Site("post", "nchw", (4, 4, 4)), nn.Conv2d(4, 3, 3), Site("pre", "nchw", (3, 2, 2)), nn.Tanh()),
                *(Site("post", "nchw", (3, 2, 2)), nn.Flatten(), Dropout(0.2, generators.dropout), nn.Linear(12, 3)),
            ]
            self.model = nn.Sequential(*layers).double().to(memory_format=torch.channels_last)

    def loss(self, index: Tensor) -> Tensor:
        seeded = torch.Generator().manual_seed(int(index))
        inputs, part = torch.randn(16, 2, 4, 4, dtype=torch.float64, generator=seeded), current_part()
        labels = torch.randint(3, (16,), generator=seeded)
        inputs, labels = (inputs, labels) if part is None else (part.own(inputs), part.own(labels))
        return nn.functional.cross_entropy(self.model(inputs.to(memory_format=torch.channels_last)), labels)


def trained_on_maps(method: Method, group: Group = ALONE) -> dict[str, Any]:
    generators = Generators.seeded(0, CPU)
    task: Any = Maps(generators)
    return after_steps(Step(task, method, UNITS.recipe, generators, CPU, group=group))


def can_read_maps(method: Method) -> bool:
    try:
        trained_on_maps(method)
    except ValueError:
        return False
    return True


def pairs() -> Iterator[tuple[str, Problem, Method]]:
    """Every configuration that one process trains on images, and one of each method on what draws, rows and steps."""
    one_of_each = {key.partition("-")[0]: key for key in CONFIGURATIONS}.values()
    for name, problem in PROBLEMS_IN_PARTS.items():
        for key in CONFIGURATIONS if problem is UNITS else one_of_each:
            if problem.refusal(CONFIGURATIONS[key]) is None:
                yield f"{key} on {name}", problem, CONFIGURATIONS[key]


def trained(problem: Problem, method: Method, group: Group = ALONE) -> dict[str, Any]:
    """Losses of some steps, and all that training has left."""
    session = problem.session(method, group=group)
    return after_steps(session.step, session.task.start_epoch)


def after_steps(step: Step, start_epoch: Callable[[], None] = lambda: None) -> dict[str, Any]:
    losses = []
    for _ in range(STEPS):
        if int(step.index) == 0:
            start_epoch()
        step()
        losses.append([step.loss.item(), step.penalty.item()])
    return {
        "losses": torch.tensor(losses, dtype=torch.float64),
        "state": step.model.state_dict(),
        "generators": step.generators.state_dict(),
    }


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
        if problem is UNITS and method.recorded_roles:
            found[name]["penalties"] = own_penalties(problem, method, part)
    for name, method in CONFIGURATIONS.items():
        if can_read_maps(method):
            found[f"{name} on maps"] = trained_on_maps(method, group)
    for name, (rows, momentum) in NORMALIZED.items():
        found[name] = normalized(part, rows, momentum)
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()
