"""Options that several commands take, and how a command says that its input is bad."""

from __future__ import annotations

import functools
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand

from reproduce.errors import ROOM, UserError, is_full, one_line
from reproduce.experiment.folder import MORE_METHODS, MethodFolder, all_methods, find_method, methods_outside
from reproduce.stopping import INTERRUPTED, ending_at_once, interrupt_once

Function = TypeVar("Function", bound=Callable[..., Any])

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


class EachOnce(TyperCommand):
    """A command that takes each option once: of two, the parser would drop the first without a word.

    An argument that is missing is said with what it is.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        options = [
            one
            for one in given
            if one.param_type_name == "option"
            and not getattr(one, "multiple", False)
            and not getattr(one, "is_flag", False)
        ]
        for option in options:
            if options.count(option) > 1:
                name = max(option.opts, key=len)
                print(f"error: {name} is given {options.count(option)} times: expected once", file=sys.stderr)
                raise typer.Exit(2)
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            of = getattr(error.param, "help", None)
            if type(error).__name__ != "MissingParameter" or error.param is None or not of:
                raise
            said = f"{of[:1].lower()}{of[1:]}".rstrip(".")
            usage = " ".join([as_typed(), ctx.info_name or "", (error.param.name or "").upper()])
            print(f"error: {usage}: expected {said}", file=sys.stderr)
            raise typer.Exit(2) from None


def method_names(typed: str) -> list[str]:
    """For the shell's completion: methods whose names begin so, with hyphens where hyphens are typed, and "all"."""
    names = [name.replace("_", "-") if "-" in typed else name for name in all_methods()]
    return [name for name in (*names, "all") if name.startswith(typed)]


MethodName = Annotated[str, typer.Argument(help="A method's name, or 'all'.", autocompletion=method_names)]


def as_typed() -> str:
    """How this command line was called, so that a hint can be typed as it stands: ``.venv/bin/reproduce``."""
    script = Path(sys.argv[0])
    if script.name != "__main__.py" and script.name == "reproduce":
        return _as_found(str(script))
    return f"{_as_found(sys.executable)} -m reproduce"


def _as_found(program: str) -> str:
    """Its name where the shell finds it by that, else its path, from the current folder where it lies below."""
    path = Path(program).absolute()
    if shutil.which(path.name) == str(path):
        return path.name
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """On a terminal, say what takes seconds; the line is gone when it is done."""
    from rich.console import Console

    with Console(stderr=True).status(what), ending_at_once():
        yield


def say_at_once(what: str) -> None:
    """On a terminal, a line about what takes long before it prints anything."""
    if sys.stderr.isatty():
        print(what, file=sys.stderr, flush=True)


def chosen_methods(name: str) -> dict[str, MethodFolder]:
    if name == "all":
        return all_methods()
    folder = find_method(name)
    return {folder.name: folder}


def data_root(text: str) -> Path | None:
    if not text:
        return None
    root = Path(text)
    if not root.is_dir():
        raise UserError(f"--data {text}: no such folder")
    return root.resolve()


def one_line_errors(function: Function) -> Function:
    """Bad input ends in one line on stderr and exit code 2; Ctrl-C in 130."""

    @functools.wraps(function)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        interrupt_once()
        try:
            return function(*arguments, **options)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(2) from None
        except OSError as error:
            if is_full(error):
                print(f"error: {error.filename or 'writing'}: {error.strerror}: {ROOM}", file=sys.stderr)
                raise typer.Exit(2) from None
            if error.filename is None:  # a broken pipe, say: nothing that the user named
                raise
            print(f"error: {one_line(f'{error.filename}: {error.strerror}')}", file=sys.stderr)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            print("stopped; the same command goes on from the checkpoints", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None

    return wrapped  # type: ignore[return-value]


@one_line_errors
def add_methods(folder: Path | None) -> Path | None:
    """Make the folder known to this process, and to the worker processes that it starts."""
    if folder is not None:
        os.environ[MORE_METHODS] = str(folder)
        os.environ[MORE_METHODS] = str(methods_outside() or "")
    return folder


# Its callback does all: commands take the option, and see to the methods as ever.
MethodsOption = Annotated[
    Path | None,
    typer.Option(
        "--methods",
        envvar=MORE_METHODS,
        callback=add_methods,
        help="A folder with more methods, outside the repository.",
    ),
]
