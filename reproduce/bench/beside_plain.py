"""The loop's steps beside plain ones of the same model, in a process of their own.

The plain loop has its own process, since this one keeps freed memory, as the processes that train do and no plain loop.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from reproduce import models
from reproduce.bench.facts import has_amx
from reproduce.bench.plain import image_steps, word_steps
from reproduce.bench.step_times import in_precision
from reproduce.bench.stepper import Stepper
from reproduce.bench.timing import Row, interleaved, ratio_row, timed
from reproduce.bench.workloads import Workload, networks
from reproduce.data import ImageData, WordData
from reproduce.method import Unregularized
from reproduce.method.rng import Generators
from reproduce.models import Sizes

CPU = torch.device("cpu")
AT_LEAST = {"resnet20": 1.1, "lstm_2x200": 1.0}  # times as fast as the plain loop
BFLOAT16_AT_LEAST = 1.5  # times as fast as float32, on a processor that multiplies bfloat16 in tiles
CLIP_AT_LEAST = 1.25  # times as fast as with each tensor clipped in calls of its own
SECONDS_PER_ROUND = 0.5


def rows_beside_plain(rounds: int, small: bool) -> Iterator[Row]:
    """On the CPU: beside the plain loop, bfloat16 beside float32, and clipping of small tensors together."""
    known = networks(small)
    for name, at_least in AT_LEAST.items():
        ours = Stepper(known[name], Unregularized(), CPU)
        reduced = Stepper(in_precision(known[name], "bfloat16"), Unregularized(), CPU)
        repeats = _repeats(ours)
        ours_seconds, plain_seconds, reduced_seconds = [], [], []
        with plain_process(name, small) as plain:
            plain(repeats)  # warm
            for _ in range(rounds):
                ours_seconds.append(timed(ours, CPU, repeats))
                plain_seconds.append(plain(repeats))
                reduced_seconds.append(timed(reduced, CPU, repeats))
        yield ratio_row("step: plain loop / ours", name, plain_seconds, ours_seconds, at_least, at_least=True)
        promised = BFLOAT16_AT_LEAST if has_amx() else None
        yield ratio_row("step: float32 / bfloat16", name, ours_seconds, reduced_seconds, promised, at_least=True)
    yield _row_of_clipping(known["mlp_8x256"], rounds)


def _row_of_clipping(workload: Workload, rounds: int) -> Row:
    together = Stepper(workload, Unregularized(), CPU)
    apart = Stepper(workload, Unregularized(), CPU)
    clip_apart(apart)
    seconds = interleaved({"together": together, "apart": apart}, CPU, rounds, _repeats(apart))
    title = "step: clip one by one / together"
    return ratio_row(title, workload.name, seconds["apart"], seconds["together"], CLIP_AT_LEAST, at_least=True)


def clip_apart(stepper: Stepper) -> None:
    """From now on its gradients are clipped to the same norms by torch's function, once for each tensor."""
    step, clip = stepper.step, stepper.step.clip
    if clip is None or clip.per != "tensor":
        raise ValueError(f"gradients that are clipped each apart are expected, found clip {clip!r}")
    step.clip = None

    def clip_each(*given: object) -> None:
        for parameter in step.parameters:
            nn.utils.clip_grad_norm_(parameter, clip.norm)

    step.optimizer.register_step_pre_hook(clip_each)


def _repeats(step: Callable[[], None]) -> int:
    step()
    return max(1, round(SECONDS_PER_ROUND / timed(step, CPU)))


@contextmanager
def plain_process(name: str, small: bool) -> Iterator[Callable[[int], float]]:
    """A process with a plain loop on a network: a function that takes so many steps there, and returns seconds a step.

    Raises:
        RuntimeError: the process has ended; what it said stands on the standard error.
    """
    command = [sys.executable, "-m", "reproduce.bench.beside_plain", name, *(["small"] if small else [])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("a process without pipes")

        def seconds(steps: int) -> float:
            print(steps, torch.get_num_threads(), file=process.stdin, flush=True)
            answer = process.stdout.readline()  # type: ignore[union-attr]
            if not answer:
                raise RuntimeError(f"the plain loop on {name} has ended")
            return float(answer)

        try:
            yield seconds
        finally:
            process.stdin.close()


def plain_steps(workload: Workload) -> Callable[[], None]:
    """The plain loop on a workload's model and data."""
    recipe, data = workload.recipe, workload.data()
    generators = Generators.seeded(0, CPU)

    def model(sizes: Sizes) -> nn.Module:
        options = dict(workload.task.model_options)
        return models.build(workload.task.model, options, sizes, generators.initialisation, generators.dropout)

    if isinstance(data, ImageData):
        images = data.train.images.float() / 255
        made = model(Sizes(tuple(images.shape[1:]), data.classes))
        normalised = (images - images.mean()) / images.std()
        rates = recipe.learning_rate, recipe.momentum, recipe.weight_decay
        return image_steps(made, normalised, data.train.labels, recipe.batch_size, *rates)
    if isinstance(data, WordData) and recipe.window is not None and recipe.clip is not None:
        made = model(Sizes((), len(data.vocabulary)))
        rows = len(data.train) // recipe.batch_size
        tokens = data.train[: rows * recipe.batch_size].view(recipe.batch_size, rows).t().contiguous()
        state = made.initial_state(recipe.batch_size)  # type: ignore[operator]
        return word_steps(made, tokens, state, recipe.window, recipe.learning_rate, recipe.clip.norm)
    raise ValueError(f"no plain loop is written for {workload.name}")


def answer_requests(name: str, small: bool) -> None:
    """Each line of the standard input asks for so many steps on so many threads; the answer is seconds a step."""
    step = plain_steps(networks(small)[name])
    for line in sys.stdin:
        steps, threads = map(int, line.split())
        torch.set_num_threads(threads)
        print(timed(step, CPU, steps), flush=True)


if __name__ == "__main__":
    answer_requests(sys.argv[1], small="small" in sys.argv[2:])
