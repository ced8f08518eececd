"""A checkout of its own in a temporary folder, with one tiny experiment, for the command line to work in."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from reproduce.results.spelling import content_of

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 300  # seconds, for a busy machine
UNWANTED = ("REPRODUCE_DATA", "REPRODUCE_METHODS", "PYTHONPATH")  # of the environment of whoever tests
METHODS = ("vanilla", "batchnorm", "activity_norm", "per")

TINY = """\
title = "Digits in a moment"
scale = "quick"
source = "made for this test"
seeds = [0]
baseline = "batchnorm"
[tasks.digits]
kind = "image_classification"
dataset = "digits"
model = "mlp"
train_examples = 100
model_options = { width = 8, depth = 2, dropout = 0.2 }
[recipe]
epochs = 80
batch_size = 20
learning_rate = 0.1
momentum = 0.9
augment = "crop_flip"
mixup = 0.4
schedule = { kind = "step", milestones = [60] }
evaluate_every = 40
probe_examples = 20
[arms.batchnorm]
method = "batchnorm"
[arms.per]
method = "per"
params = { strength = 1e-3, mode = "sliced", n_slices = 16 }
[[claims]]
task = "digits"
arm = "per"
over = "batchnorm"
metric = "test.error"
direction = "lower"
source = "nowhere"
"""

ON_MNIST = TINY.replace('dataset = "digits"', 'dataset = "mnist"').replace(
    "train_examples = 100\n", "validation = 1000\n"
)

# Many commands in one process, each as the console script would run it; torch is imported once.
DRIVER = """\
import json, sys, traceback
from pathlib import Path
from typer.testing import CliRunner
from reproduce.cli.commands import app

if __name__ == "__main__":
    answers = []
    for command in json.load(sys.stdin):
        for path, text in command["files"].items():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(text, "utf-8")
        result = CliRunner().invoke(app, command["arguments"])
        crash = result.exception
        if crash is not None and not isinstance(crash, SystemExit):
            traceback.print_exception(crash)
        left = sorted(path.name for path in Path().iterdir())
        answers.append({"code": result.exit_code, "stdout": result.stdout, "stderr": result.stderr, "left": left})
    json.dump(answers, sys.stdout)
"""


@dataclass(frozen=True)
class Answer:
    code: int
    stdout: str
    stderr: str
    left: tuple[str, ...] = ()  # what lay in the checkout afterwards, where several commands were given
    seconds: float = 0.0  # where it was one command


@dataclass(frozen=True)
class Checkout:
    """The folder, and ways to give commands in it."""

    path: Path

    def start(self, *arguments: str, by: Sequence[str] = (sys.executable,)) -> subprocess.Popen[str]:
        """`python -m reproduce`, by Python or by a program that starts it, in a process group of its own."""
        with one_core():
            return subprocess.Popen(
                [*by, "-m", "reproduce", *arguments],
                cwd=self.path,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )

    def run(self, *arguments: str, by: Sequence[str] = (sys.executable,)) -> Answer:
        before = time.monotonic()
        process = self.start(*arguments, by=by)
        try:
            stdout, stderr = process.communicate(timeout=PATIENCE)
        finally:
            end(process)
        return Answer(process.returncode, stdout, stderr, seconds=time.monotonic() - before)

    def python(self, code: str, given: str = "", **variables: str) -> str:
        """What a script prints; it must say nothing on stderr and end well."""
        with one_core():
            done = subprocess.run(
                [sys.executable, "-c", code],
                cwd=self.path,
                env=self.environment | {"PYTHONPATH": str(self.path)} | variables,
                input=given,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
            )
        assert (done.stderr, done.returncode) == ("", 0)
        return done.stdout

    def commands(self, *commands: tuple[list[str], dict[str, str]], **variables: str) -> list[Answer]:
        """Several commands one after the other, each with files to write before, all with these in the environment."""
        given = [{"arguments": arguments, "files": files} for arguments, files in commands]
        return [Answer(**answer) for answer in json.loads(self.python(DRIVER, json.dumps(given), **variables))]

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in UNWANTED}
        return kept | {"COLUMNS": "200", "NO_COLOR": "1"}


@pytest.fixture(scope="session")
def on_one_core() -> Callable[[], AbstractContextManager[None]]:
    return one_core


@contextmanager
def one_core() -> Iterator[None]:
    """Processes started in here run on one core: one thread each, and quick on a busy machine too.

    Each worker of pytest has its own, or they would wait for each other while the other cores are idle.
    """
    cores = os.sched_getaffinity(0)
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    os.sched_setaffinity(0, {sorted(cores)[worker % len(cores)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def processes_of_group(group: int) -> list[int]:
    """The living processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text("utf-8").rpartition(")")[2].split()
        except OSError:  # ended while we looked
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def end(process: subprocess.Popen[str]) -> None:
    """End a process with all that it started."""
    if processes_of_group(process.pid):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_until(process: subprocess.Popen[str], happened: Callable[[], bool]) -> None:
    """Watch a process until something is so; it must not end before that."""
    for _ in range(50 * PATIENCE):
        try:
            process.wait(0.02)
        except subprocess.TimeoutExpired:
            if happened():
                return
        else:
            raise AssertionError(f"it ended too early: {process.communicate()}")
    raise AssertionError("it never happened")


def small_checkout(path: Path) -> Checkout:
    """A few methods and one experiment that trains in a moment, with checkpoints all the time."""
    ignored = shutil.ignore_patterns("__pycache__", "experiments", "matrix.toml", "matrix_*.toml", "test_*.py")
    for folder in ("reproduce", "datasets", *(f"methods/{name}" for name in METHODS)):
        shutil.copytree(ROOT / folder, path / folder, ignore=ignored)
    loop = path / "reproduce" / "training" / "loop.py"
    text = loop.read_text("utf-8")
    assert text.count("CHECKPOINT_SECONDS = 30.0\n") == 1
    loop.write_text(text.replace("CHECKPOINT_SECONDS = 30.0\n", "CHECKPOINT_SECONDS = 0.1\n"), "utf-8")
    experiments = path / "methods" / "per" / "experiments"
    experiments.mkdir()
    (experiments / "tiny.toml").write_text(TINY, "utf-8")
    return Checkout(path)


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    return small_checkout(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="session")
def new_checkout() -> Callable[[Path], Checkout]:
    return small_checkout


@pytest.fixture(scope="session")
def undisturbed(checkout: Checkout) -> Answer:
    """The tiny experiment trained from beginning to end, into the folder `runs`."""
    return checkout.run("run", "per", "--jobs", "1", "--device", "cpu")


@pytest.fixture
def groups() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes to be ended with all that they started, whatever the test's outcome."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        end(process)


def results_in(runs: Path) -> dict[str, Any]:
    """The content of every sealed Result, by the name of its folder."""
    paths = sorted(runs.glob("*/result.json"))
    return {path.parent.name: content_of(path.read_text("utf-8")) for path in paths}


@pytest.fixture(scope="session")
def sealed_in() -> Callable[[Path], dict[str, Any]]:
    return results_in


def numbers_of(results: dict[str, Any]) -> dict[str, Any]:
    """All of each Result but what tells when and how long."""
    found = {}
    for name, result in results.items():
        kept = {key: value for key, value in result.items() if key not in ("environment", "seal")}
        kept["epochs"] = [{**record, "seconds_per_step": None} for record in kept["epochs"]]
        found[name] = kept
    return found


@pytest.fixture(scope="session")
def numbers() -> Callable[[dict[str, Any]], dict[str, Any]]:
    return numbers_of


@pytest.fixture(scope="session")
def on_mnist() -> str:
    return ON_MNIST


@pytest.fixture(scope="session")
def tiny() -> str:
    return TINY


@pytest.fixture(scope="session")
def watch() -> Callable[[subprocess.Popen[str], Callable[[], bool]], None]:
    return wait_until


@pytest.fixture(scope="session")
def group_of() -> Callable[[int], list[int]]:
    return processes_of_group


# The browser: Chromium, headless.

CHROMIUM = "/usr/bin/chromium"
QUIET = [  # nothing but the page that is asked for is looked up
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Most elements: what figures are drawn of and signs of formulas, of which axe has nothing to say, and rows like others.
ALIKE = """() => document.querySelectorAll(
    'svg > :not(title), math > *, tbody tr:nth-child(n+4), li:nth-child(n+3), dl > :nth-child(n+5)'
).forEach(one => one.remove())"""


@dataclass
class Window:
    """One page of the browser, and what happened in it since `show`."""

    page: Any
    axe: Any
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def listen(self) -> None:
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on(
            "console", lambda said: self.errors.append(said.text) if said.type in ("error", "warning") else None
        )
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", self._dismiss)

    def _dismiss(self, dialog: Any) -> None:
        self.errors.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def show(self, path: Path, viewport: dict[str, int], theme: str = "light", media: str = "screen") -> None:
        self.page.set_viewport_size(viewport)
        self.page.emulate_media(color_scheme=theme, media=media)
        self.requests.clear()
        self.errors.clear()
        self.page.goto(path.as_uri())

    def faults(self, **options: Any) -> list[str]:
        """What axe finds that is more than minor: the rule, and the first element that breaks it."""
        self.page.evaluate(ALIKE)
        found = self.axe.run(self.page, options={"resultTypes": ["violations"], **options}).response["violations"]
        return [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found if one["impact"] != "minor"]


@pytest.fixture(scope="module")
def window() -> Iterator[Window]:
    missing = [name for name in ("playwright", "axe_playwright_python") if importlib.util.find_spec(name) is None]
    missing += [] if Path(CHROMIUM).exists() else [CHROMIUM]
    if missing:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"no browser: {', '.join(missing)} is missing")
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        one = Window(browser.new_page(), Axe())
        one.listen()
        yield one
        browser.close()
