"""`calibrate`: at which strengths a penalty is felt, so that an arm's grid can be set before it is trained."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from itertools import groupby
from typing import Annotated

import typer

from reproduce.cli.options import DataOption, JsonOption, MethodsOption, data_root, say_at_once
from reproduce.errors import UserError, nearest
from reproduce.experiment.folder import WORKING_FOLDER, find_method

DECADES = "1e-6,1e-5,1e-4,1e-3,1e-2,1e-1,1,10,100"


def calibrate(
    method: Annotated[str, typer.Argument(help="A method's name.")],
    workload: Annotated[str, typer.Argument(help="One of its experiments: a column of the matrix, say.")],
    strengths: Annotated[str, typer.Option("--strengths", help="Strengths to measure, comma-separated.")] = DECADES,
    steps: Annotated[int, typer.Option("--steps", min=1, help="The median is over so many first steps.")] = 20,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N.")] = "cpu",
    data: DataOption = "",
    as_json: JsonOption = False,
    methods: MethodsOption = None,
) -> None:
    """Compare the gradient of a penalty with that of the task, early in training, for a range of strengths."""
    folder = find_method(method)
    unread: dict[str, str] = {}
    experiments = folder.experiments(unread)
    if workload in unread:
        raise UserError(unread[workload])
    if workload not in experiments:
        near = nearest(workload, experiments, at_most=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(experiments) or 'none'}"
        raise UserError(f"method {folder.name} has no experiment {workload!r}: {hint}")
    say_at_once(f"loading torch; then {steps} steps at each strength")
    from reproduce.cli.terminal import calibration_table, console
    from reproduce.training import calibrate as measure
    from reproduce.training.run import torch_device

    root = data_root(data)
    rows = measure.calibrate(
        folder,
        experiments[workload],
        parse_strengths(strengths),
        steps,
        torch_device(device),
        root,
        WORKING_FOLDER / "data",
    )
    if as_json:
        finite = [asdict(row) | {"ratio": row.ratio if math.isfinite(row.ratio) else None} for row in rows]
        print(json.dumps(finite, indent=1))
        return
    console().print(calibration_table(rows))
    low, high = measure.HUNDREDTHS
    for (task, arm, weight), of_arm in groupby(rows, lambda row: (row.task, row.arm, row.weight)):
        grid = measure.suggested_grid(list(of_arm))
        advice = (
            f"no strength here has a ratio from {low} to {high}: give others with --strengths"
            if grid is None
            else f"grid = {{ {weight} = [{', '.join(f'{strength:.3g}' for strength in grid)}] }}"
        )
        print(f"{task} / {arm}: {advice}")


def parse_strengths(text: str) -> tuple[float, ...]:
    """'1e-3,1e-2' as numbers.

    Raises:
        UserError: no number, or one that is not positive and finite.
    """
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--strengths {text!r}: expected numbers, comma-separated") from None
    if not all(0 < strength < math.inf for strength in found):
        raise UserError(f"--strengths {text!r}: expected positive numbers")
    return found
