"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reproduce.errors import UserError

MethodName = Annotated[str, typer.Argument(help="A method's name, or 'all'.")]
ScaleOption = Annotated[str, typer.Option("--scale", help="quick, reduced or paper.")]
SeedsOption = Annotated[
    str, typer.Option("--seeds", help="'0,1,2', or '5' for the first five; default: as the experiment says.")
]
DataOption = Annotated[
    str, typer.Option("--data", envvar="REPRODUCE_DATA", help="A folder with datasets; looked into first.")
]
RunsOption = Annotated[Path, typer.Option("--runs", help="Where Results and checkpoints go.")]
OnlyOption = Annotated[
    str, typer.Option("--only", help="Only experiments of these names or patterns ('matrix_*'), comma-separated.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]


def data_root(text: str) -> Path | None:
    if not text:
        return None
    root = Path(text)
    if not root.is_dir():
        raise UserError(f"--data {text}: no such folder")
    return root.resolve()
