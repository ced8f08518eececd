"""JSON Schema of the files that people write, for editors that complete and check TOML."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated

import typer

from reproduce.bench.variants import Variants
from reproduce.errors import UserError
from reproduce.experiment.json_schema import Schema, card_schema, experiment_schema, file_schema, matrix_schema

SCHEMAS: dict[str, Callable[[], Schema]] = {
    "experiment": experiment_schema,
    "matrix": matrix_schema,
    "variants": lambda: file_schema("What is timed and checked of a method: variants.toml", Variants),
    "card": card_schema,
}


def schema_text(name: str) -> str:
    """The schema of one kind of file, as JSON.

    Raises:
        UserError: no such kind.
    """
    if name not in SCHEMAS:
        raise UserError(f"unknown kind of file {name!r}: there are {', '.join(SCHEMAS)}")
    return json.dumps(SCHEMAS[name](), indent=1, ensure_ascii=False) + "\n"


def schema(name: Annotated[str, typer.Argument(help=f"The kind of file: {', '.join(SCHEMAS)}.")]) -> None:
    """Print the JSON Schema of experiments, matrix.toml, variants.toml or dataset cards."""
    print(schema_text(name), end="")
