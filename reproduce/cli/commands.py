"""The command line: `python -m reproduce`. The only file that ties everything together."""

from __future__ import annotations

import json
import platform
from typing import Annotated

import typer

from reproduce import __version__
from reproduce.cli.bench import bench
from reproduce.cli.bundle import ACCEPT_OPTIONS_OF_RUN, bundle
from reproduce.cli.calibrate import calibrate
from reproduce.cli.campaign import ORDER
from reproduce.cli.check import check
from reproduce.cli.chosen import SCALES, readable_experiments, say_left_out
from reproduce.cli.doctor import doctor
from reproduce.cli.new import KINDS, new
from reproduce.cli.options import EachOnce, JsonOption, MethodsOption, one_line_errors
from reproduce.cli.pack import pack, unpack
from reproduce.cli.plan import HELP as PLAN_HELP
from reproduce.cli.plan import plan
from reproduce.cli.report import publish, report
from reproduce.cli.run import HELP as RUN_HELP
from reproduce.cli.run import run
from reproduce.cli.schema import schema
from reproduce.cli.status import status
from reproduce.experiment.folder import all_methods

# `list`, `status` and `new` answer at once: what trains and what draws is imported by the commands that do so.

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Reproduce published ways of regularizing activations, and judge their claims. In a checkout, reports/ and "
    "data/ are its own; where the package is installed, they are made in the current folder, as runs/ always is.",
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"reproduce {__version__} (Python {platform.python_version()})")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version, and end.")
    ] = False,
) -> None:
    pass


@app.command("list", cls=EachOnce)
@one_line_errors
def list_methods(as_json: JsonOption = False, methods: MethodsOption = None) -> None:
    """The methods and their experiments."""
    from reproduce.cli.terminal import print_entry

    unread: dict[tuple[str, str], str] = {}
    every = readable_experiments(all_methods().values(), unread)
    broken = [*unread.values()]
    if as_json:
        rows = [
            {
                "method": folder.name,
                "title": folder.title,
                "experiments": {name: experiment.scale for name, experiment in experiments.items()},
            }
            for folder, experiments in every.items()
        ]
        print(json.dumps(rows, indent=1))
        say_left_out(broken)
        return
    for folder, experiments in every.items():
        print_entry(folder.name, folder.title, indent=4, style="bold")
        by_scale: dict[str, list[str]] = {}
        for name, experiment in experiments.items():
            by_scale.setdefault(experiment.scale, []).append(name)
        for scale in sorted(by_scale, key=SCALES.index):
            print_entry(f"    {scale:<7}", ", ".join(by_scale[scale]), indent=13)
    say_left_out(broken)


app.command(cls=EachOnce, help=PLAN_HELP, short_help=PLAN_HELP.removesuffix(f" {ORDER}"))(one_line_errors(plan))
app.command(cls=EachOnce, help=RUN_HELP, short_help=RUN_HELP.removesuffix(f" {ORDER}"))(one_line_errors(run))
app.command(cls=EachOnce)(one_line_errors(status))
app.command(cls=EachOnce)(one_line_errors(report))
app.command(cls=EachOnce)(one_line_errors(publish))
app.command(cls=EachOnce)(one_line_errors(bench))
app.command(cls=EachOnce)(one_line_errors(check))
app.command(cls=EachOnce)(one_line_errors(doctor))
app.command(cls=EachOnce)(one_line_errors(calibrate))
app.command(cls=EachOnce, context_settings=ACCEPT_OPTIONS_OF_RUN)(one_line_errors(bundle))
app.command(cls=EachOnce)(one_line_errors(pack))
app.command(cls=EachOnce)(one_line_errors(unpack))
app.command(cls=EachOnce)(one_line_errors(schema))


@app.command("new", cls=EachOnce)
@one_line_errors
def new_method(
    name: Annotated[str, typer.Argument(help="The new method's name; hyphens become underscores.")],
    kind: Annotated[
        str, typer.Option("--kind", help=f"What it acts on: {', '.join(KINDS)}.", autocompletion=lambda: list(KINDS))
    ] = KINDS[0],
    methods: MethodsOption = None,
) -> None:
    """Make the folder of a new method from the template: in methods/, or in the folder that --methods names."""
    new(name, kind)
