"""Commands in the README and the docs work as typed after `make setup`, whether or not the environment is active.

Those of `make` are tried with ``-n``. Those of `reproduce` begin with ``.venv/bin/``, which needs no activation; each
is parsed with all its options. `list`, `plan`, `status` and `doctor` train nothing: they run. In place of a `run`,
`bundle` or `publish`, for which there may have to be hours of training, the `plan` of the same choice runs.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reproduce.cli.commands import app
from reproduce.experiment import dataset_card
from reproduce.experiment import folder as folders
from reproduce.experiment.folder import ROOT, find_method
from reproduce.training.plan import plan
from reproduce.training.run import RunSettings, execute

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAM = ".venv/bin/reproduce"
LOOKING = ("list", "plan", "status", "doctor")
OF_A_PLAN = ("--scale", "--seeds", "--only", "--arms", "--tasks", "--budget", "--jobs")
STAND_INS = {
    "path/to/data": "tests",
    "METHOD": "per",
    "my-method": "per",
    "my_method": "per",
    "<method>": "per",
    "x": "x",
}
BARE = re.compile(r"^(?:\$ )?(?:python3?|pip|pytest|reproduce)(?: |$)")


def commands_of(page: Path) -> list[str]:
    """Lines of fenced blocks without a language that are commands; comments and continued lines are taken care of."""
    text = page.read_text("utf-8")
    blocks = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    lines = [line for language, block in blocks if language in ("", "bash") for line in _joined(block).splitlines()]
    fenced = [line.strip().removeprefix("$ ") for line in lines]
    inline = re.findall(r"`((?:make |\.venv/bin/|python -m |reproduce )[^`\n]*)`", text)
    found = [re.sub(r"\s+#.*$", "", line).strip() for line in [*fenced, *inline]]
    return [
        line for line in found if re.match(r"(make|\.venv/bin/\S+|bash|[A-Z]+=\S+)\s", f"{line} ") or BARE.match(line)
    ]


def _joined(block: str) -> str:
    return block.replace("\\\n", " ")


COMMANDS = list(dict.fromkeys((page.name, command) for page in PAGES for command in commands_of(page)))


def words_of(command: str) -> list[str]:
    return [STAND_INS.get(word, word) for word in shlex.split(command)]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Without an active environment: no other folder of the path is the one of this Python."""
    environment = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "REPRODUCE_DATA")}
    environment |= {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_there_are_commands_in_each_kind_of_page() -> None:
    pages = {page for page, _ in COMMANDS}
    assert {"README.md", "CONTRIBUTING.md", "gpu.md", "own_model.md"} <= pages
    assert len(COMMANDS) > 30


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_command_needs_no_active_environment(page: str, command: str) -> None:
    assert not BARE.match(command), f"{page}: write {PROGRAM}, .venv/bin/python or make, not {command!r}"


@pytest.mark.parametrize(("page", "command"), [one for one in COMMANDS if one[1].startswith("make ")])
def test_make_knows_the_target(page: str, command: str) -> None:
    words = words_of(command.replace("<method>", "per").replace("...", ""))
    done = run([*words[:1], "-n", *words[1:]])
    assert done.returncode == 0, f"{page}: {command}: {done.stderr}"
    assert "Nothing to be done" not in done.stdout


@pytest.mark.parametrize(("page", "command"), [one for one in COMMANDS if one[1].startswith(f"{PROGRAM} ")])
def test_reproduce_takes_the_arguments(page: str, command: str) -> None:
    words = words_of(command)[1:]
    if words[0] == "--install-completion":  # it would write into the shell's own files
        words = ["--help"]
    done = CliRunner().invoke(app, [*words, *([] if words[0].startswith("--") else ["--help"])])
    assert done.exit_code == 0, f"{page}: {command}: {done.output}"


def looking() -> list[tuple[str, list[str]]]:
    """The commands that are run, as they are or as the plan of their choice."""
    found = {}
    for page, command in COMMANDS:
        words = words_of(command)
        if words[0] != PROGRAM or len(words) < 2:
            continue
        if words[1] in LOOKING:
            chosen = [word for word in words[1:] if word != "--watch"]
            chosen += ["--quickly"] if words[1] == "doctor" else []  # its estimates have a test of their own
        elif words[1] in ("run", "bundle", "publish") and len(words) > 2:
            chosen = [
                "plan",
                words[2],
                *(w for a, b in itertools.pairwise(words) if a in OF_A_PLAN for w in (a, b)),
            ]
        else:
            continue
        found[" ".join(chosen)] = (page, chosen)
    return list(found.values())


@pytest.mark.slow
@pytest.mark.parametrize(("page", "words"), looking(), ids=[" ".join(words) for _, words in looking()])
def test_what_trains_nothing_runs(page: str, words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In this process, which has loaded torch once for all of them."""
    monkeypatch.chdir(ROOT)
    if "matrix_mine" in words:
        monkeypatch.setattr(folders, "WORKLOADS", column_of_the_page(tmp_path))
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, f"{page}: {done.output}"
    assert done.stdout.strip()


def column_of_the_page(folder: Path) -> Path:
    """The workloads with the column that docs/own_data.md shows, on images that are here."""
    workloads = Path(shutil.copytree(folders.WORKLOADS, folder / "workloads"))
    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "own_data.md").read_text("utf-8"), re.DOTALL)
    column = next(block for block in blocks if "arms_of" in block)
    (workloads / "matrix_mine.toml").write_text(column.replace('"flowers"', '"digits"'), "utf-8")
    return workloads


@pytest.mark.slow
@pytest.mark.parametrize("lender", ["images", "tables", "words"])
def test_the_columns_that_the_page_shows_train(lender: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each with the head of the first, and data as the page describes them."""
    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "own_data.md").read_text("utf-8"), re.DOTALL)
    columns = [block for block in blocks if "arms_of" in block]
    head = columns[0].partition("arms_of")[0]
    (own,) = (block[block.index("arms_of") :] for block in columns if f'arms_of = "{lender}"' in block)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "poem.txt").write_text("a rose is a rose\n" * 200, "utf-8")
    rows = [f"{i % 7},{i % 5},{'abc'[i % 3]}" for i in range(120)]
    (tmp_path / "data" / "iris.csv").write_text("\n".join(["width,length,kind", *rows]) + "\n", "utf-8")
    cards = Path(shutil.copytree(dataset_card.CARDS, tmp_path / "datasets"))
    about = next(block for block in blocks if "licence" in block)
    for name, kind in (("iris", "csv"), ("poem", "text")):
        card = next(block for block in blocks if f'format = "{kind}"' in block)
        (cards / f"{name}.toml").write_text(f"{about}\n{card}", "utf-8")
    workloads = Path(shutil.copytree(folders.WORKLOADS, tmp_path / "workloads"))
    (workloads / "matrix_mine.toml").write_text((head + own).replace('"flowers"', '"digits"'), "utf-8")
    monkeypatch.setattr(dataset_card, "CARDS", cards)
    monkeypatch.setattr(folders, "WORKLOADS", workloads)
    monkeypatch.chdir(ROOT)
    given = ["all", "--only", "matrix_mine", "--data", str(tmp_path / "data")]
    planned = CliRunner().invoke(app, ["plan", *given])
    assert planned.exit_code == 0, planned.output
    assert "per" in planned.output
    assert "batchnorm" in planned.output
    experiment = find_method("vanilla").experiments()["matrix_mine"]
    first, *_ = plan({"matrix_mine": experiment}, tmp_path / "data")
    settings = RunSettings(
        runs=tmp_path / "runs", root=tmp_path / "data", cache=tmp_path / "cache", device="cpu", threads=1
    )
    assert execute(first, settings).status == "completed"


PYTHON = [one for one in COMMANDS if re.match(r"\.venv/bin/(python|pytest) ", one[1])]


@pytest.mark.parametrize(("page", "command"), PYTHON)
def test_the_files_that_are_named_are_there(page: str, command: str) -> None:
    named = [word for word in shlex.split(command)[1:] if "/" in word and not word.startswith(("-", "."))]
    kept = [word for word in named if "my_method" not in word and "x/" not in word]
    assert [word for word in kept if not (ROOT / word).exists()] == []
