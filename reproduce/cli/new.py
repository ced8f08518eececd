"""A new method's folder: a copy of the template, which is a small method that runs and passes every check."""

from __future__ import annotations

import keyword
import re
import shutil
import tempfile
from pathlib import Path

from reproduce.errors import UserError
from reproduce.experiment.folder import METHODS, WORKING_FOLDER, methods_outside

TEMPLATE = "_template"
RESERVED = {"all"}  # the command line's word for every method


def create_method(name: str, methods: Path = METHODS, template: Path | None = None) -> Path:
    """Copy the template to a folder of this name in ``methods``, put the name in, and return the folder.

    Hyphens become underscores. The folder appears complete or not at all.

    Raises:
        UserError: a name that cannot be a module's, that is taken or reserved, or no template to copy.
    """
    chosen = name.strip().replace("-", "_")
    if not chosen:
        raise UserError("a new method needs a name: make new-method NAME=my_method")
    if not re.fullmatch("[a-z][a-z0-9_]*", chosen) or keyword.iskeyword(chosen) or chosen in RESERVED:
        raise UserError(
            f"method name {name!r}: expected lower-case letters, digits and hyphens or underscores, a letter first, "
            "and no word of Python or of the command line"
        )
    template, folder = template or methods / TEMPLATE, methods / chosen
    for taken in (folder, template.parent / chosen):  # two methods of one name would clash, wherever they lie
        if taken.exists():
            raise UserError(f"method name {name!r}: {taken} exists already")
    if not template.is_dir():
        raise UserError(f"{template}: the template to copy is missing")
    with tempfile.TemporaryDirectory(dir=methods, prefix="_new_") as temporary:
        copy = Path(shutil.copytree(template, Path(temporary) / chosen, ignore=shutil.ignore_patterns("__pycache__")))
        for path in copy.rglob("*.*"):
            path.write_text(path.read_text("utf-8").replace(TEMPLATE, chosen), "utf-8")
        copy.rename(folder)
    return folder


def new(name: str) -> None:
    """Make the folder of a new method from the template: in methods/, or in the folder that --methods names."""
    methods = methods_outside() or WORKING_FOLDER / METHODS.name
    methods.mkdir(exist_ok=True)
    folder = create_method(name, methods, METHODS / TEMPLATE)
    print(f"made {folder}: an example that runs, to be replaced file by file")
    if methods == METHODS:
        print(f"check it: pytest methods/{folder.name} tests/contract -k {folder.name}")
        print(f"train it: make reproduce-{folder.name}")
    else:
        print(f"train it: reproduce run {folder.name} --methods {methods}")
