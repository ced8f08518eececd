"""`bench`: how long steps take, beside vanilla's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reproduce.cli.campaign import DeviceOption
from reproduce.cli.options import JsonOption, MethodsOption, RunsOption, chosen_methods, say_at_once

if TYPE_CHECKING:
    from reproduce.bench.measure import Row


def bench(
    method: Annotated[str, typer.Argument(help="A method's name, or 'all'.")] = "all",
    device: DeviceOption = "",
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Interleaved rounds; more are steadier.")] = 5,
    runs: RunsOption = Path("runs"),
    small: Annotated[bool, typer.Option("--small", help="Toy sizes: checks the bench, measures nothing.")] = False,
    as_json: JsonOption = False,
    methods: MethodsOption = None,
) -> None:
    """Time every method's step against vanilla's, and the loop against bare steps."""
    say_at_once("loading torch; then a method's rows once all its steps are timed, in a minute or so")
    from reproduce.bench.measure import as_json as bench_json
    from reproduce.bench.measure import bench as measure
    from reproduce.bench.measure import machine
    from reproduce.cli.terminal import bench_table, console
    from reproduce.training.run import default_device, torch_device

    chosen = torch_device(device or default_device())
    runs.mkdir(parents=True, exist_ok=True)
    measured: list[Row] = []
    content: dict[str, Any] = {}
    for rows in measure(chosen_methods(method), chosen, rounds, small):
        measured += rows
        content = {"machine": machine(chosen), "rounds": rounds, "small": small, **bench_json(measured)}
        (runs / "bench.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        if not as_json:
            console().print(bench_table(rows, show_header=len(measured) == len(rows)))
    print(json.dumps(content, indent=1) if as_json else f"written: {runs / 'bench.json'}")
