"""Mutants of one file, each under the tests nearest to it: docs/mutants.py starts this in a copy of the tree.

Cosmic Ray says where a file can be mutated and how. Each mutant runs in a fork of one process that has loaded the
libraries already, which takes longer than most tests. Tests come in the order of the time that they took unchanged.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import itertools
import json
import math
import os
import random
import re
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator
from parso.python.tree import Operator
from parso.tree import NodeOrLeaf

ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Pow")
COMPARISONS = ("Eq", "NotEq", "Lt", "LtE", "Gt", "GtE")
OPERATORS = (
    *(f"ReplaceBinaryOperator_{a}_{b}" for a in (*ARITHMETIC, "FloorDiv", "Mod") for b in ARITHMETIC if a != b),
    *(f"ReplaceComparisonOperator_{a}_{b}" for a, b in itertools.permutations(COMPARISONS, 2)),
    *(f"ReplaceComparisonOperator_{a}_{b}" for a, b in (("Is", "IsNot"), ("IsNot", "Is"))),
    *(f"ReplaceUnaryOperator_Delete_{name}" for name in ("USub", "Not", "Invert")),
    *("AddNot", "ReplaceAndWithOr", "ReplaceOrWithAnd", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue"),
    "NumberReplacer",
)
LIBRARIES = ("torch", "numpy", "scipy.stats", "pandas", "pydantic", "hypothesis", "mpmath", "matplotlib.pyplot")
MEMORY = 24 * 2**30  # bytes of addresses: a changed size may ask for any number of them
CAUGHT = (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED)  # interrupted: a test file that does not load

Position = tuple[int, int]  # line and column


@dataclass(frozen=True)
class Mutant:
    """One change of the file."""

    text: str  # of the whole file
    at: int  # the line's number
    line: str
    changed: str


def mutants(source: str, seed: int) -> list[tuple[str, int]]:
    """Operator and occurrence of every change of a formula, in an order that the seed draws.

    No place comes twice before every place has come once. Left out is what is no formula: annotations, texts, what is
    raised, decorators, and defaults of the fields of a class, which are a method's own numbers and enter its ids.
    """
    skipped = list(_no_formula(ast.parse(source)))
    nodes = list(ast_nodes(get_ast(source)))
    changes = []
    for name in OPERATORS:
        operator = get_operator(f"core/{name}")()
        places = ((node, start) for node in nodes for start, _ in operator.mutation_positions(node))
        for occurrence, (node, start) in enumerate(places):
            if _computes(node) and not any(low <= start < high for low, high in skipped):
                changes.append((start, name, occurrence))
    random.Random(seed).shuffle(changes)
    times: Counter[Position] = Counter()
    rounds = []
    for start, name, occurrence in changes:
        rounds.append((times[start], name, occurrence))
        times[start] += 1
    rounds.sort(key=lambda change: change[0])  # stable: within a round as drawn
    return [(name, occurrence) for _, name, occurrence in rounds]


def _computes(node: NodeOrLeaf) -> bool:
    """Not the star of a signature, say, which Cosmic Ray takes for a product."""
    return not isinstance(node, Operator) or node.parent.type in ("arith_expr", "term", "power")


def _no_formula(tree: ast.Module) -> Iterator[tuple[Position, Position]]:
    for node in ast.walk(tree):
        parts: list[ast.AST | None] = []
        if isinstance(node, ast.arg | ast.AnnAssign):
            parts.append(node.annotation)
        if isinstance(node, ast.FunctionDef):
            parts += [node.returns, *node.decorator_list]
        if isinstance(node, ast.ClassDef):
            parts += [
                *node.decorator_list,
                *(each for each in node.body if isinstance(each, ast.AnnAssign | ast.Assign)),
            ]
        if isinstance(node, ast.Raise | ast.JoinedStr):
            parts.append(node)
        for part in parts:
            if part is not None and hasattr(part, "end_lineno"):
                yield (part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)


def mutant(source: str, name: str, occurrence: int) -> Mutant:
    text = mutate_code(source, get_operator(f"core/{name}")(), occurrence)
    pairs = zip(source.splitlines(), text.splitlines(), strict=True)
    at, line, changed = next((at, old, new) for at, (old, new) in enumerate(pairs, 1) if old != new)
    return Mutant(text, at, _spaced(line), _spaced(changed))


def _spaced(line: str) -> str:
    return re.sub(r"(?<=[(\[]) ", "", " ".join(line.split("  #")[0].split()))


class ShortestFirst:
    """Of pytest: tests in the order of the seconds that each took."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: self.seconds.get(item.nodeid, math.inf))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration


def exit_code(tests: list[str], seconds: dict[str, float], limit: float, keep: Path | None = None) -> int | None:
    """pytest's exit code in a process of its own; negative: a signal ended it; None: it ran out of time."""
    child = os.fork()
    if child == 0:
        _become_pytest(tests, seconds, keep)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            _end_group(child)  # what a test started and left
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    _end_group(child)
    os.waitpid(child, 0)
    return None


def _end_group(child: int) -> None:
    try:
        os.killpg(child, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _become_pytest(tests: list[str], seconds: dict[str, float], keep: Path | None) -> None:
    os.setsid()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, *(() if keep else (2,))):
        os.dup2(nothing, stream)
    code: int = pytest.ExitCode.INTERNAL_ERROR
    try:
        order = ShortestFirst(seconds)
        options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider"]
        code = pytest.main([*options, *tests], plugins=[order])
        if keep:
            keep.write_text(json.dumps(order.seconds), "utf-8")
    finally:
        os._exit(code)


def unchanged(file: str, tests: list[str]) -> dict[str, float]:
    """By test, the seconds that it takes.

    Raises:
        SystemExit: the tests do not pass.
    """
    keep = Path("seconds.json")
    code = exit_code(tests, {}, math.inf, keep)
    if code != 0:
        raise SystemExit(f"{file}: its tests end with {code} though nothing was changed: {' '.join(tests)}")
    # Python takes what it has compiled for current if time, to a second, and size agree.
    Path(importlib.util.cache_from_source(file)).unlink(missing_ok=True)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    return json.loads(keep.read_text("utf-8"))


def main(file: str, tests: list[str], seed: int, again: list[int], first: int, end: int) -> None:
    """Prints a line of JSON for each mutant: those of ``again``, and from ``first`` up to ``end``."""
    path = Path(file)
    source = path.read_text("utf-8")
    changes = mutants(source, seed)
    say({"possible": len(changes)})
    for name in LIBRARIES:
        importlib.import_module(name)
    seconds = unchanged(file, tests)
    limit = 20 + 2.5 * sum(seconds.values())
    for number in (*again, *range(first, min(end, len(changes)))):
        change = mutant(source, *changes[number])
        path.write_text(change.text, "utf-8")
        code = exit_code(tests, seconds, limit)
        path.write_text(source, "utf-8")
        if code not in (None, 0, *CAUGHT) and code > 0:
            raise SystemExit(f"{file}: pytest ended with {code} for {change.line} changed to {change.changed}")
        outcome = "timed out" if code is None else "survived" if code == 0 else "caught"
        say({"number": number, "at": change.at, "line": change.line, "changed": change.changed, "outcome": outcome})


def say(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
