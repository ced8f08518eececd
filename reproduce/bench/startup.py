"""What the command line costs before it does anything, beside the libraries that it cannot do without."""

from __future__ import annotations

import subprocess
import sys

COMMAND_LINE = "import reproduce.cli.commands"
LIBRARIES = "import typer; from pydantic import BaseModel"


def startup_seconds(rounds: int) -> tuple[list[float], list[float]]:
    """Processor seconds of importing the command line and of importing its libraries, in turn, ``rounds`` times."""
    _import_seconds(COMMAND_LINE)  # the first reads files that the disk has, and may compile them
    pairs = [(_import_seconds(COMMAND_LINE), _import_seconds(LIBRARIES)) for _ in range(rounds)]
    return [ours for ours, _ in pairs], [theirs for _, theirs in pairs]


def _import_seconds(statement: str) -> float:
    """In a fresh interpreter, whose own start is not counted."""
    program = f"import time; start = time.process_time(); {statement}; print(time.process_time() - start)"
    return float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
