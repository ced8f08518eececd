"""The table of docs/reliability.md, from the marks `fault` of the tests: what happens, how it is injected, what holds.

`make references`. No test is imported: their source is read. Numbers are those that `make soak` has seen.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).parent
TESTS = DOCS.parent / "tests"
PAGE = DOCS / "reliability.md"
SEEN = DOCS / "reliability.json"  # by test: what was seen, as `tests/conftest.py` writes it
PLACE = re.compile(r"(?P<begin><!-- faults -->\n).*?(?P<end><!-- end of faults -->)", re.S)


class Fault(NamedTuple):
    """What a test injects and what it holds."""

    what: str
    injected: str
    promise: str
    file: Path
    test: str


def faults() -> Iterator[Fault]:
    """Of all tests, in the order of their files."""
    for file in sorted(TESTS.rglob("test_*.py")):
        for function in ast.parse(file.read_text("utf-8")).body:
            if not isinstance(function, ast.FunctionDef):
                continue
            for mark in function.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fault":
                    said = {str(one.arg): str(ast.literal_eval(one.value)) for one in mark.keywords}
                    yield Fault(**said, file=file, test=function.name)


def made(page: str) -> str:
    """The page with its table made anew."""
    seen: dict[str, str] = json.loads(SEEN.read_text("utf-8")) if SEEN.exists() else {}
    rows = ["| What happens | How it is injected | What is promised | Seen | Held by |", "|:---|:---|:---|:---|:---|"]
    for fault in faults():
        place = fault.file.relative_to(DOCS.parent).as_posix()
        cells = (fault.what, fault.injected, fault.promise, seen.get(f"{place}::{fault.test}", ""))
        rows.append(f"| {' | '.join(cells)} | [{fault.test.removeprefix('test_')}](../{place}) |")
    return PLACE.sub(lambda found: found["begin"] + "\n" + "\n".join(rows) + "\n\n" + found["end"], page)


if __name__ == "__main__":
    PAGE.write_text(made(PAGE.read_text("utf-8")), "utf-8")
