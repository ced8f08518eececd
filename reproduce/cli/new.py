"""A new method's folder: a copy of the template, which is a small method that runs and passes every check."""

from __future__ import annotations

import builtins
import importlib.util
import keyword
import os
import pkgutil
import re
import shutil
import sys
import tempfile
from pathlib import Path

import reproduce
from reproduce.cli.options import as_typed
from reproduce.errors import UserError, did_you_mean
from reproduce.experiment.folder import METHODS, MORE_METHODS, ROOT, WORKING_FOLDER, methods_outside

TEMPLATE = "_template"
SCHEMA_HINT = "#:schema "  # begins the first line of a TOML file
KINDS = ("activations", "weights", "network")  # what a method acts on
OTHER_KINDS = "kinds"
# A method's name is that of a folder, a package, a page and a word of the command line: it may hide none of these.
TAKEN = {
    "the command line's word for every method": {"all"},
    "a page over all methods": {"index", "matrix"},
    "a room of the harness": {reproduce.__name__, METHODS.name}
    | {room.name for room in pkgutil.iter_modules(reproduce.__path__)},
    "a keyword of Python": set(keyword.kwlist),
    "a built-in name of Python": set(dir(builtins)),
    "a module of Python's standard library": sys.stdlib_module_names,
}


def create_method(name: str, methods: Path = METHODS, template: Path | None = None, kind: str = KINDS[0]) -> Path:
    """Copy the template to a folder of this name in ``methods``, put the name in, and return the folder.

    Hyphens become underscores. The folder appears complete or not at all.

    Args:
        kind: what the method acts on, one of KINDS: the template's own files are of the first, and those that another
            kind has in their place lie in its folder of ``kinds``.

    Raises:
        UserError: a name that cannot be a module's, that is another thing's already, an unknown kind, or no template.
    """
    if kind not in KINDS:
        raise UserError(f"unknown kind {kind!r}: {did_you_mean(kind, KINDS)}")
    chosen = name.strip().replace("-", "_")
    if not chosen:
        raise UserError("a new method needs a name: make new-method NAME=my_method")
    if not re.fullmatch("[a-z][a-z0-9_]*", chosen):
        raise UserError(
            f"method name {name!r}: expected lower-case letters, digits and hyphens or underscores, a letter first"
        )
    for owner, names in TAKEN.items():
        if chosen in names:
            raise UserError(f"method name {name!r}: {chosen} is {owner}: choose another name")
    if importlib.util.find_spec(chosen) is not None:
        raise UserError(f"method name {name!r}: {chosen} is a module that is installed: choose another name")
    template, folder = template or methods / TEMPLATE, methods / chosen
    for taken in (folder, template.parent / chosen):  # two methods of one name would clash, wherever they lie
        if taken.exists():
            raise UserError(f"method name {name!r}: {taken} exists already")
    if not template.is_dir():
        raise UserError(f"{template}: the template to copy is missing")
    with tempfile.TemporaryDirectory(dir=methods, prefix="_new_") as temporary:
        ignored = shutil.ignore_patterns("__pycache__", OTHER_KINDS)
        copy = Path(shutil.copytree(template, Path(temporary) / chosen, ignore=ignored))
        if kind != KINDS[0]:
            shutil.copytree(template / OTHER_KINDS / kind, copy, ignore=ignored, dirs_exist_ok=True)
            (copy / "tests.py").replace(copy / "test_method.py")  # called otherwise there, so that pytest passes it by
        for path in copy.rglob("*.*"):
            text = path.read_text("utf-8").replace(TEMPLATE, chosen)
            path.write_text(_with_schema_in_reach(text, folder / path.relative_to(copy)), "utf-8")
        copy.rename(folder)
    return folder


def _with_schema_in_reach(text: str, path: Path) -> str:
    """A file's text without the schema that its first line names to editors, where none is there from its place."""
    first, _, rest = text.partition("\n")
    hint = first.removeprefix(SCHEMA_HINT)
    reached = os.path.normpath(path.parent / hint)  # resolved as text: the folder is not there yet
    return rest if hint != first and not os.path.isfile(reached) else text


def new(name: str, kind: str = KINDS[0]) -> None:
    """Make the folder of a new method from the template: in methods/, or in the folder that --methods names."""
    methods = methods_outside() or WORKING_FOLDER / METHODS.name
    methods.mkdir(exist_ok=True)
    folder = create_method(name, methods, METHODS / TEMPLATE, kind)
    print(f"made {folder}: an example that runs, to be replaced file by file")
    if methods == METHODS:
        print(f"check it: .venv/bin/pytest methods/{folder.name} tests/contract -k {folder.name}")
        print(f"train it: make reproduce-{folder.name}")
    else:
        tests = f" tests/contract -k {folder.name}" if WORKING_FOLDER == ROOT else ""
        print(f"check it: {MORE_METHODS}={methods} {sys.executable} -m pytest {folder}{tests}")
        print(f"train it: {as_typed()} run {folder.name} --methods {methods}")
