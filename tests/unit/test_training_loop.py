"""The loop: repeatable to the bit, interruptible anywhere, honest about divergence."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from methods.batchnorm.method import BatchNorm
from methods.per.method import PER
from reproduce import tasks
from reproduce.data import ImageData, Images, WordData
from reproduce.experiment.dataset_card import DatasetCard, Statistics
from reproduce.experiment.recipe import Recipe
from reproduce.experiment.schema import TaskSpec
from reproduce.method import Method, Role, Trace, Unregularized
from reproduce.method.rng import Generators
from reproduce.training import loop
from reproduce.training.checkpoints import CheckpointError, previous, read_checkpoint, write_checkpoint
from reproduce.training.loop import Interrupted, Outcome, train
from reproduce.training.tape import Tape

CPU = torch.device("cpu")


class Everything(Method):
    """Buffers, new parameters and random directions at once."""

    batchnorm: bool = True
    sites: Role = "post"  # PER's

    def prepare(self, model: nn.Module, generator: torch.Generator) -> None:
        if self.batchnorm:
            BatchNorm().prepare(model, generator)

    def penalty(self, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
        return progress * PER(mode="sliced", strength=0.1, n_slices=8).penalty(trace, progress, generator)


class Constant(Method):
    """A penalty of 1/4 without a gradient, infinite from some progress on."""

    infinite_after: float = 2.0

    def penalty(self, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
        return torch.where(progress >= self.infinite_after, math.inf, 0.25)


class Problem:
    """What `train` needs, made anew for each call as a new process would."""

    def __init__(
        self, spec: dict[str, Any], recipe: dict[str, Any], method: Method, data: ImageData | WordData
    ) -> None:
        self.spec = TaskSpec.model_validate({"dataset": "tiny", **spec})
        self.recipe = Recipe.model_validate({"learning_rate": 0.1, "probe_examples": 6, **recipe})
        self.method = method
        self.data = data

    def run(self, folder: Path, seed: int = 0, **options: Any) -> tuple[Outcome, dict[str, Tensor]]:
        folder.mkdir(exist_ok=True)
        generators = Generators.seeded(seed, CPU)
        task = tasks.build(self.spec, self.recipe, self.data, generators, CPU)
        outcome = train("id", self.recipe, task, self.method, generators, CPU, folder, **options)
        return outcome, {name: value.clone() for name, value in task.model.state_dict().items()}


def image_problem(method: Method | None = None, **recipe: Any) -> Problem:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (28, 1, 6, 6), generator=generator, dtype=torch.uint8)
    split = Images(pixels, torch.arange(28) % 3)
    card = DatasetCard.model_construct(name="tiny", statistics=Statistics(mean=(0.5,), std=(0.3,), source="made up"))
    data = ImageData(card=card, train=split, validation=None, test=split, classes=3, origin="here")
    spec = {
        "kind": "image_classification",
        "model": "mlp",
        "model_options": {"width": 6, "depth": 2, "dropout": 0.3},
        "validation": 8,
    }
    standard = {
        "epochs": 3,
        "batch_size": 6,
        "momentum": 0.9,
        "nesterov": True,
        "bias_rate": 0.5,
        "weight_decay": 1e-3,
        "augment": "crop_flip",
        "mixup": 0.4,
        "schedule": {"kind": "cosine"},
    }
    return Problem(spec, standard | recipe, method or Everything(), data)


def word_problem(method: Method | None = None, **recipe: Any) -> Problem:
    tokens = (torch.arange(64) ** 2 + torch.arange(64) // 7) % 9
    card = DatasetCard.model_construct(name="tiny")
    words = tuple("abcdefghi")
    data = WordData(card=card, train=tokens, validation=tokens[:30], test=tokens[20:], vocabulary=words, origin="here")
    options = {"hidden": 5, "tied": True, "dropout": 0.3, "dropout_kind": "locked"}
    spec = {"kind": "language_modeling", "model": "lstm", "model_options": options}
    standard = {
        "epochs": 3,
        "batch_size": 3,
        "window": 4,
        "eval_batch_size": 2,
        "learning_rate": 4.0,
        "clip": {"norm": 0.25},
        "schedule": {"kind": "plateau", "factor": 0.5},
    }
    return Problem(spec, standard | recipe, method or Everything(batchnorm=False), data)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "images": image_problem,
    "images, adam, steps": lambda: image_problem(
        epochs=None, steps=8, optimizer="adam", momentum=0.0, nesterov=False, learning_rate=0.01, evaluate_every=2
    ),
    "images, rmsprop, plateau": lambda: image_problem(
        optimizer="rmsprop", nesterov=False, learning_rate=0.01, schedule={"kind": "plateau"}
    ),
    "images, RandAugment, mixup or CutMix": lambda: image_problem(augment="crop_flip_randaugment", cutmix=1.0),
    "words": word_problem,
}


def numbers(outcome: Outcome) -> list[dict[str, Any]]:
    """All that is recorded, but for the time it took."""
    assert outcome.epochs
    return [record.model_dump(exclude={"seconds_per_step"}) for record in outcome.epochs]


def same_weights(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Outcome, dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return {name: make().run(folder / str(i)) for i, (name, make) in enumerate(PROBLEMS.items())}


def global_generators() -> list[Any]:
    kind, keys, *rest = np.random.get_state()  # the one that a hook must not touch
    return [torch.get_rng_state().tolist(), random.getstate(), [kind, list(keys), *rest]]


@pytest.mark.parametrize("name", PROBLEMS)
def test_same_seed_same_bits(name: str, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    before = global_generators()
    outcome, weights = PROBLEMS[name]().run(tmp_path / "again")
    assert global_generators() == before
    assert numbers(outcome) == numbers(undisturbed[name][0])
    assert same_weights(weights, undisturbed[name][1])


def test_other_seed_other_numbers(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    outcome, weights = image_problem().run(tmp_path / "other", seed=1)
    assert all(
        a["train_loss"] != b["train_loss"]
        for a, b in zip(numbers(outcome), numbers(undisturbed["images"][0]), strict=True)
    )
    assert not same_weights(weights, undisturbed["images"][1])


def test_it_trains(undisturbed: dict[str, Any]) -> None:
    """The bits that agree are not those of a network that stands still."""
    for outcome, weights in undisturbed.values():
        losses = [record.train_loss for record in outcome.epochs]
        assert len(set(losses)) == len(losses)
        assert outcome.diverged_step is None
        assert all(torch.isfinite(value).all() for value in weights.values())


@pytest.mark.fault(
    what="training stops after any one step",
    injected="it is stopped after each step in turn, and goes on",
    promise="the same bits as without a stop",
)
@pytest.mark.parametrize("name", PROBLEMS)
def test_interrupted_after_every_step(name: str, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    """The harshest interruption: each step in a process of its own."""
    for _ in range(100):
        try:
            outcome, weights = PROBLEMS[name]().run(tmp_path / "run", should_stop=lambda: True)
            break
        except Interrupted:
            continue
    assert outcome.resumed == outcome.epochs[-1].step - 1
    assert numbers(outcome) == numbers(undisturbed[name][0])
    assert same_weights(weights, undisturbed[name][1])


def test_a_run_that_stopped_at_an_evaluation_keeps_it_in_the_log(tmp_path: Path) -> None:
    folder, calls = tmp_path / "run", iter(range(1, 100))
    with pytest.raises(Interrupted):
        image_problem().run(folder, should_stop=lambda: next(calls) == 3)
    (first,) = folder.glob("events.*")
    first.rename(folder / "events.out.tfevents.1000000000.before")  # TensorBoard reads them in the order of names
    outcome, _ = image_problem().run(folder)
    events = EventAccumulator(str(folder))
    events.Reload()
    steps = [record.step for record in outcome.epochs]
    assert [event.step for event in events.Scalars("seconds_per_step")] == steps == [3, 6, 9]
    assert {event.step for event in events.Scalars("loss/task")} >= {3, 6, 9}


@pytest.mark.fault(
    what="a lost machine",
    injected="training ends without a word in the middle of an epoch",
    promise="the run goes on from its checkpoint to the same bits",
)
@pytest.mark.parametrize(("name", "logged"), [("images", [3, 6, 9]), ("words", [5, 10, 15])])
def test_killed_and_resumed(
    name: str, logged: list[int], undisturbed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Death without a word: what was done since the last periodic checkpoint is done again, also in the logs."""
    now = [0.0]
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    calls = iter(range(1, 1000))

    def die() -> bool:
        step = next(calls)
        if step == 4:
            now[0] += 2 * loop.CHECKPOINT_SECONDS
        if step == 7:
            raise SystemExit("killed")
        return False

    with pytest.raises(SystemExit):
        PROBLEMS[name]().run(tmp_path / "run", should_stop=die)
    saved = read_checkpoint(tmp_path / "run" / "checkpoint.pt", "id")
    assert saved is not None
    assert saved["step"] == 4
    (first,) = (tmp_path / "run").glob("events.*")
    first.rename(tmp_path / "run" / "events.out.tfevents.1000000000.before")  # read in the order of names
    outcome, weights = PROBLEMS[name]().run(tmp_path / "run")
    assert outcome.resumed == 1
    assert numbers(outcome) == numbers(undisturbed[name][0])
    assert same_weights(weights, undisturbed[name][1])
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss/task")] == logged


def test_stopping_at_the_last_step_is_not_an_interruption(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    calls = iter(range(1, 100))
    outcome, _ = image_problem().run(tmp_path / "run", should_stop=lambda: next(calls) == 9)
    assert numbers(outcome) == numbers(undisturbed["images"][0])


def test_probing_and_evaluating_leave_no_trace(tmp_path: Path) -> None:
    for make in (image_problem, lambda **changes: word_problem(schedule={"kind": "constant"}, **changes)):
        often, weights_often = make(evaluate_every=1).run(tmp_path / "often")
        rarely, weights_rarely = make(evaluate_every=100).run(tmp_path / "rarely")
        assert (len(often.epochs), len(rarely.epochs)) == (3, 1)
        assert often.epochs[0].sites.keys() == often.epochs[2].sites.keys() != set()
        assert same_weights(weights_often, weights_rarely)
        assert often.epochs[2].test == rarely.epochs[0].test
        assert often.epochs[2].sites == rarely.epochs[0].sites


def test_of_many_evaluations_some_describe_the_sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first and the last among them, and all other numbers are the same."""
    every, _ = image_problem(evaluate_every=1).run(tmp_path / "every")
    monkeypatch.setattr("reproduce.training.site_statistics.EVALUATIONS", 2)
    some, _ = image_problem(evaluate_every=1).run(tmp_path / "some")
    assert [bool(record.sites) for record in some.epochs] == [True, False, True]
    for one, other in zip(numbers(every), numbers(some), strict=True):
        assert other == one | ({} if other["sites"] else {"sites": {}})


def test_penalty_and_task_loss_are_reported_apart(tmp_path: Path) -> None:
    plain, weights_plain = image_problem(Unregularized()).run(tmp_path / "plain")
    shifted, weights_shifted = image_problem(Constant()).run(tmp_path / "shifted")
    assert [record.penalty for record in plain.epochs] == [0.0] * 3
    assert [record.penalty for record in shifted.epochs] == [0.25] * 3
    assert [record.train_loss for record in plain.epochs] == [record.train_loss for record in shifted.epochs]
    assert same_weights(weights_plain, weights_shifted)


def test_penalty_has_its_gradient(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    _, weights = image_problem(BatchNorm()).run(tmp_path / "run")
    assert not same_weights(weights, undisturbed["images"][1])


@pytest.mark.fault(
    what="a run that diverges",
    injected="a penalty that is infinite from a step on",
    promise="that is a Result: it names the step, and pages count it",
)
@pytest.mark.parametrize("step", [0, 2, 3, 8])
def test_divergence_is_reported_with_its_step(step: int, tmp_path: Path) -> None:
    """Steps are counted from 0; an epoch has 3 and the run 9."""
    problem = image_problem(Constant(infinite_after=(step - 0.5) / 9))
    outcome, _ = problem.run(tmp_path / "run")
    assert outcome.diverged_step == step
    assert len(outcome.epochs) == step // 3
    assert all(math.isfinite(record.train_loss + record.penalty) for record in outcome.epochs)


def test_divergence_of_the_task_loss(tmp_path: Path) -> None:
    outcome, _ = image_problem(Unregularized(), learning_rate=1e38, momentum=0.0, nesterov=False).run(tmp_path / "run")
    assert outcome.diverged_step == 1


def test_divergence_that_only_the_evaluation_sees(tmp_path: Path) -> None:
    """After the last step no further loss could tell."""
    problem = image_problem(Unregularized(), epochs=None, steps=1, learning_rate=1e38, momentum=0.0, nesterov=False)
    outcome, _ = problem.run(tmp_path / "run")
    assert outcome.diverged_step == 1
    assert math.isfinite(outcome.epochs[0].train_loss)
    assert not math.isfinite(outcome.epochs[0].test["loss"])


def test_divergence_survives_an_interruption(tmp_path: Path) -> None:
    problem = image_problem(Constant(infinite_after=(3 - 0.5) / 9))
    for _ in range(100):
        try:
            outcome, _ = problem.run(tmp_path / "run", should_stop=lambda: True)
            break
        except Interrupted:
            continue
    assert outcome.diverged_step == 3


def test_scalars_for_tensorboard(tmp_path: Path) -> None:
    image_problem().run(tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    expected = {"loss/task", "loss/penalty", "learning_rate", "error/validation", "error/test", "seconds_per_step"}
    assert expected < tags
    assert {f"mean_square/layers.{layer}.{role}" for layer in (0, 1) for role in ("pre", "post")} < tags
    assert [event.step for event in events.Scalars("error/test")] == [3, 6, 9]


def test_between_evaluations_the_log_goes_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss is read every LOG_SECONDS, however many steps that are, and at evaluations; so is divergence."""
    now = [0.0]
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def pass_time() -> bool:
        now[0] += 0.4 * loop.LOG_SECONDS
        return False

    said: list[int] = []
    image_problem(evaluate_every=100).run(
        tmp_path / "run", should_stop=pass_time, on_event=lambda event: said.append(event.step)
    )
    assert said == [4, 7, 9]  # the third after the last one, and the end
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss/task")] == said

    diverging = image_problem(Constant(infinite_after=(1 - 0.5) / 9), evaluate_every=100)
    outcome, _ = diverging.run(tmp_path / "diverging", should_stop=pass_time)
    assert outcome.diverged_step == 1
    assert outcome.epochs == []


def test_methods_draw_from_their_own_stream_only(tmp_path: Path) -> None:
    """A penalty of strength zero that draws numbers leaves the run as it was, bit for bit."""

    class Draws(Method):
        def penalty(self, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
            return 0.0 * torch.rand((), generator=generator)

    plain, weights = word_problem(Unregularized()).run(tmp_path / "plain")
    drawing, same = word_problem(Draws()).run(tmp_path / "drawing")
    assert numbers(plain) == numbers(drawing)
    assert same_weights(weights, same)


def test_checkpoint_is_of_plain_values(tmp_path: Path) -> None:
    calls = iter(range(1, 100))
    with pytest.raises(Interrupted):
        image_problem().run(tmp_path / "run", should_stop=lambda: next(calls) == 5)
    saved = read_checkpoint(tmp_path / "run" / "checkpoint.pt", "id")
    assert saved is not None
    assert (saved["step"], saved["id"], saved["resumed"]) == (5, "id", 0)
    assert copy.deepcopy(saved)["epochs"][0]["step"] == 3


CHANGES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "a step past the end": lambda saved: saved | {"step": 10},
    "a step before the first": lambda saved: saved | {"step": -1},
    "a key is missing": lambda saved: {name: value for name, value in saved.items() if name != "seconds"},
    "no weights": lambda saved: saved | {"model": {}},
    "weights of other shapes": lambda saved: (
        saved | {"model": {name: value.new_zeros(7) for name, value in saved["model"].items()}}
    ),
    "evaluations that are none": lambda saved: saved | {"epochs": [{"epoch": "x"}]},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line(
    change: Callable[[dict[str, Any]], dict[str, Any]], tmp_path: Path
) -> None:
    """Whole, of this run's id, and yet not what this program writes."""
    path = tmp_path / "run" / "checkpoint.pt"
    calls = iter(range(1, 100))
    with pytest.raises(Interrupted):
        image_problem().run(tmp_path / "run", should_stop=lambda: next(calls) == 5)
    saved = read_checkpoint(path, "id")
    assert saved is not None
    write_checkpoint(path, "id", change({name: value for name, value in saved.items() if name != "id"}))
    with pytest.raises(CheckpointError, match="does not fit this run") as caught:
        image_problem().run(tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_damaged_checkpoint_costs_what_was_done_since_the_one_before(
    undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    path, told = tmp_path / "run" / "checkpoint.pt", list[str]()
    for stop_at in (4, 3):  # steps 4 and 7
        calls = iter(range(1, 100))
        with pytest.raises(Interrupted):
            image_problem().run(tmp_path / "run", should_stop=lambda calls=calls, at=stop_at: next(calls) == at)  # type: ignore[misc]
    assert [(read_checkpoint(one, "id") or {})["step"] for one in (path, previous(path))] == [7, 4]
    content = bytearray(path.read_bytes())
    content[-2000] ^= 1
    path.write_bytes(content)
    outcome, weights = image_problem().run(tmp_path / "run", note=told.append)
    assert len(told) == 1
    assert told[0].startswith(f"{path}: not a readable checkpoint")
    assert told[0].endswith("goes on from the checkpoint before it")
    assert numbers(outcome) == numbers(undisturbed["images"][0])
    assert same_weights(weights, undisturbed["images"][1])


@pytest.mark.parametrize("make", PROBLEMS.values(), ids=PROBLEMS)
def test_a_replayed_run_is_the_run(make: Callable[[], Problem], tmp_path: Path) -> None:
    """Evaluations, checkpoints and a stop in between; the rate lies in a tensor for both."""

    problem = make()
    longer = {"steps": 20} if problem.recipe.steps else {"epochs": 8}
    problem.recipe = problem.recipe.model_copy(update=longer)

    def trained(name: str, **options: Any) -> tuple[Outcome, dict[str, Tensor]]:
        stops = iter([False] * 6 + [True])
        with pytest.raises(Interrupted):
            problem.run(tmp_path / name, should_stop=lambda: next(stops), rate_on_device=True, **options)
        return problem.run(tmp_path / name, rate_on_device=True, **options)

    with torch.backends.mkldnn.flags(enabled=False):  # a tape cannot hold the workspace of oneDNN's LSTM
        eager, state = trained("eager")
        replayed, again = trained("replayed", make_recording=Tape)
    assert (eager.mode, eager.resumed) == ("eager", 1)
    assert (replayed.mode, replayed.resumed) == ("captured" if problem.recipe.optimizer != "rmsprop" else "eager", 1)
    assert numbers(eager) == numbers(replayed)
    assert all(torch.equal(state[name], again[name]) for name in state)
