"""A bundle, from a checkout to a bare Python and back: packed Results of the right commit, whatever was killed between.

The bare Python is an environment of its own that sees torch and what else images for training bring, but none of what
the wheels of a bundle are for. Those are made from the packages installed here, since tests have no network.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

from reproduce.cli.wheels import IMAGE_HAS, lacking

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = Path(sysconfig.get_path("purelib"))
# One while it installs, and one while it trains; each more takes as long as torch takes to load, twice.
KILLS = int(os.environ.get("REPRODUCE_KILLS", "2"))
ARGUMENTS = ("per", "--only", "tiny", "--device", "cpu", "--jobs", "1")
NO_CODE = ("reports/index.html", "reports/data/runs.csv", "reports/evidence/result.json", "docs/page.md")
METHOD_OUTSIDE = "methods_outside/activity_norm_outside"


@dataclass(frozen=True)
class Bundle:
    """Where it lies, the bare Python that runs it, and what it was made in."""

    folder: Path
    python: Path
    home: Any  # the checkout, which takes commands
    commit: str
    one_core: Callable[[], AbstractContextManager[None]]

    @property
    def checkout(self) -> Path:
        return self.home.path

    def start(self, work: Path, out: Path) -> subprocess.Popen[str]:
        """`run.sh` in a process group of its own, with an environment that says nothing of this one."""
        environment = {"PATH": os.environ["PATH"], "HOME": str(work), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        with self.one_core():
            return subprocess.Popen(
                ["bash", str(self.folder / "run.sh")],
                env=environment | {"WORK": str(work), "OUT": str(out), "PYTHON": str(self.python)},
                cwd="/",
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )

    def run(self, work: Path, out: Path) -> tuple[int, str, str]:
        process = self.start(work, out)
        stdout, stderr = process.communicate(timeout=300)
        return process.returncode, stdout, stderr

    def at_home(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command in the checkout."""
        return command(self.checkout, *arguments)


def command(checkout: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("REPRODUCE_")}
    return subprocess.run(
        [sys.executable, "-m", "reproduce", *arguments],
        cwd=checkout,
        env=kept | {"PYTHONPATH": str(checkout), "COLUMNS": "200"} | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def git(checkout: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
    return subprocess.check_output(["git", "-C", str(checkout), *identity, *arguments], text=True).strip()


def wheel_of(name: str, folder: Path) -> None:
    """A wheel of what is installed here under that name."""
    installed = distribution(name)
    tags = re.findall(r"^Tag: (\S+)-(\S+)-(\S+)$", installed.read_text("WHEEL") or "", flags=re.MULTILINE)
    tag = "-".join(".".join(dict.fromkeys(parts)) for parts in zip(*tags, strict=True))
    file = folder / f"{name.replace('-', '_')}-{installed.version}-{tag}.whl"
    with zipfile.ZipFile(file, "w") as wheel:
        for path in installed.files or ():
            if ".." not in path.parts and path.suffix != ".pyc" and path.name not in ("INSTALLER", "REQUESTED"):
                wheel.write(str(path.locate()), str(path))


@pytest.fixture(scope="module")
def bundle(new_checkout: Callable[[Path], Any], on_one_core: Any, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Made in a git checkout of the small tree that other tests train in, with a method that lies outside of it."""
    folder = tmp_path_factory.mktemp("bundled")
    small = new_checkout(folder / "home")
    home = small.path
    tiny = home / "methods" / "per" / "experiments" / "tiny.toml"
    # Time to be killed in: each kill takes what trains within a second.
    tiny.write_text(tiny.read_text("utf-8").replace("epochs = 80\n", f"epochs = {80 * max(KILLS, 2)}\n"), "utf-8")
    for name in ("pyproject.toml", "constraints.txt", ".gitignore"):
        shutil.copy(ROOT / name, home)
    for name in (*NO_CODE, "reports/bench/device.json"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text('{"machine": {"kind": "other"}, "steps": []}' if "bench" in name else "", "utf-8")
    git(home, "init", "--quiet")
    git(home, "add", "--all")
    git(home, "commit", "--quiet", "--message", "first")
    shutil.copytree(home / "methods" / "activity_norm", folder / METHOD_OUTSIDE)
    wheels = folder / "wheels"
    wheels.mkdir()
    names = [pin.partition("==")[0] for pin in lacking(ROOT, IMAGE_HAS.split(","))]
    assert "pydantic" in names
    for name in names:
        wheel_of(name, wheels)
    outside = str((folder / METHOD_OUTSIDE).parent)
    pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": os.devnull}
    platform = ["--platform", sysconfig.get_platform().replace("-", "_").replace("linux", "manylinux_2_17")]
    made = command(home, "bundle", *ARGUMENTS, "--output", "../bundle", "--methods", outside, *platform, **pip)
    assert (made.returncode, made.stderr) == (0, "")
    return Bundle(folder / "bundle", bare_python(folder, names), small, git(home, "rev-parse", "HEAD"), on_one_core)


def bare_python(folder: Path, lacks: list[str]) -> Path:
    """An interpreter that sees what is installed here but these packages, and this checkout."""
    unseen = {path.parts[0] for name in lacks for path in distribution(name).files or ()}
    image = folder / "image"
    image.mkdir()
    for path in INSTALLED.iterdir():
        if path.name not in unseen and path.suffix != ".pth" and "activation_reproductions" not in path.name:
            (image / path.name).symlink_to(path)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "bare")], check=True)  # it sees ours
    python = folder / "bare" / "bin" / "python"
    where = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
    (Path(where.strip()) / "image.pth").write_text(f"{image}\n", "utf-8")
    return python


def test_the_bundle_holds_what_the_other_machine_lacks(bundle: Bundle) -> None:
    assert {path.name for path in bundle.folder.iterdir()} == {
        *("code", "data", "methods_outside", "packs", "run.sh", "wheels")
    }
    tracked = set(git(bundle.checkout, "ls-files").splitlines())
    code = {path.relative_to(bundle.folder / "code").as_posix() for path in (bundle.folder / "code").rglob("*.*")}
    assert tracked - set(NO_CODE) | {"source.json"} == code
    assert "reports/bench/device.json" in code
    assert (bundle.folder / "methods_outside" / "activity_norm_outside" / "method.py").is_file()
    program = "from importlib.util import find_spec; print(*map(bool, map(find_spec, {!r}.split())))"
    program = program.format("torch typer pandas pip pydantic reproduce")
    bare = subprocess.run([bundle.python, "-c", program], cwd="/", env={}, capture_output=True, text=True, check=True)
    assert bare.stdout == "True True True True False False\n"


@pytest.fixture(scope="module")
def undisturbed(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packs of a run from beginning to end; beside them lies what it installed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    code, stdout, stderr = bundle.run(folder / "work", folder / "out")
    assert (code, stderr) == (0, ""), (stdout, stderr)
    assert stdout.splitlines()[0] == "2 runs, 0 sealed, 2 to train on cpu"
    assert stdout.splitlines()[-1] == "2 Results packed, 0 skipped"
    return folder / "out"


def unpacked(bundle: Bundle, out: Path, runs: Path, sealed_in: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """The Results of a folder's packs, taken at home."""
    done = bundle.at_home("unpack", *map(str, sorted(out.glob("*.xz"))), "--runs", str(runs))
    assert (done.returncode, done.stderr) == (0, "")
    return sealed_in(runs)


def test_results_come_back_with_their_commit_and_are_published(
    bundle: Bundle, undisturbed: Path, tmp_path: Path, sealed_in: Callable[[Path], dict[str, Any]]
) -> None:
    results = unpacked(bundle, undisturbed, tmp_path / "runs", sealed_in)
    assert len(results) == 2
    for result in results.values():
        environment = result["environment"]
        assert (environment["commit"], environment["dirty"]) == (bundle.commit, False)
    where = ["--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "evidence")]
    published = bundle.at_home("publish", "per", "--scale", "quick", *where)
    assert published.stdout == f"2 Results published to {tmp_path / 'evidence'}, 0 already there, 0 not trained yet\n"


@pytest.mark.fault(
    what="a bundle that is killed, again and again",
    injected="`kill -9` at random moments",
    promise="it goes on, and ends with the same numbers",
)
def test_killed_at_random_the_numbers_are_the_same(
    bundle: Bundle,
    numbers: Callable[[dict[str, Any]], dict[str, Any]],
    undisturbed: Path,
    tmp_path: Path,
    sealed_in: Callable[[Path], dict[str, Any]],
    watch: Callable[[subprocess.Popen[str], Callable[[], bool]], None],
    groups: list[subprocess.Popen[str]],
) -> None:
    """Once while it installs or starts, then up to half a second after training went on from where it was."""
    expected = unpacked(bundle, undisturbed, tmp_path / "expected", sealed_in)
    moments = random.Random(10)
    work, out = tmp_path / "work", tmp_path / "out"

    def checkpoints() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in work.glob("runs/*/checkpoint.pt")}

    for kill in range(KILLS):
        before = checkpoints()
        process = bundle.start(work, out)
        groups.append(process)
        if kill > 0:
            watch(process, lambda before=before: checkpoints() != before)  # type: ignore[misc]
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=moments.uniform(0, 0.5))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    code, stdout, stderr = bundle.run(work, out)
    assert (code, stderr) == (0, ""), (stdout, stderr)
    found = unpacked(bundle, out, tmp_path / "found", sealed_in)
    assert max(result["environment"]["resumed"] for result in found.values()) > 0
    assert numbers(found) == numbers(expected)
    script = (bundle.folder / "run.sh").read_text("utf-8")
    assert {path.name for path in work.iterdir()} >= {
        "runs",
        *re.findall(r"^(?:site|data)=(\S+)$", script, re.MULTILINE),
    }


def test_what_is_sealed_at_home_goes_along_and_is_not_trained_again(
    bundle: Bundle, undisturbed: Path, tmp_path: Path, sealed_in: Callable[[Path], dict[str, Any]]
) -> None:
    sealed = unpacked(bundle, undisturbed, tmp_path / "runs", sealed_in)
    image = ["--image-has", f"{IMAGE_HAS},pydantic,latex2mathml,mdit-py-plugins"]
    runs = ["--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "bundle")]
    made = bundle.at_home("bundle", *ARGUMENTS, *runs, *image)
    assert (made.returncode, made.stderr) == (0, "")
    assert "2 runs, 2 of them sealed here" in made.stdout
    assert list((tmp_path / "bundle" / "wheels").iterdir()) == []
    here = replace(bundle, folder=tmp_path / "bundle", python=Path(sys.executable))
    code, stdout, stderr = here.run(tmp_path / "work", tmp_path / "out")
    assert (code, stderr) == (0, "")
    assert "2 runs, 2 sealed, 0 to train on cpu" in stdout
    assert sealed_in(tmp_path / "work" / "runs") == sealed


def test_code_that_differs_from_its_note_is_told_before_anything_trains(
    bundle: Bundle, undisturbed: Path, tmp_path: Path
) -> None:
    shutil.copytree(bundle.folder, tmp_path / "bundle")
    loop = tmp_path / "bundle" / "code" / "reproduce" / "training" / "loop.py"
    loop.write_text(loop.read_text("utf-8") + "# patched on the way\n", "utf-8")
    (tmp_path / "work").mkdir()
    for folder in (undisturbed.parent / "work").glob("site-*"):  # as installed by another bundle of the same wheels
        (tmp_path / "work" / folder.name).symlink_to(folder)
    code, stdout, stderr = replace(bundle, folder=tmp_path / "bundle").run(tmp_path / "work", tmp_path / "out")
    assert code == 2
    (line,) = stderr.splitlines()
    assert line.startswith("error: reproduce/training/loop.py: not as ")
    assert f"from commit {bundle.commit[:12]}: copy the code anew, or remove source.json" in line
    assert stdout == "0 Results packed, 0 skipped\n"
    assert list((tmp_path / "work" / "runs").iterdir()) == []


def test_another_python_is_told(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.folder, tmp_path / "bundle")
    script = tmp_path / "bundle" / "run.sh"
    script.write_text(re.sub("python_version=.*", "python_version=3.10", script.read_text("utf-8")), "utf-8")
    code, _, stderr = replace(bundle, folder=tmp_path / "bundle").run(tmp_path / "work", tmp_path / "out")
    assert code == 2
    assert re.fullmatch(r"error: Python 3\.\d+\.\d+ found, but the wheels are for Python 3\.10: .*\n", stderr)


REFUSED = {
    "error: method per has no experiment 'tinny': did you mean tiny?": ["per", "--only", "tinny"],
    "error: run per --scale paper: nothing to train": ["per", "--scale", "paper"],
    "error: --output methods: it is there already": ["per", "--only", "tiny", "--output", "methods"],
    "Invalid value for '--jobs'": ["per", "--only", "tiny", "--jobs", "many"],
    "No such option: --fast": ["per", "--only", "tiny", "--fast"],
    "error: no wheels of ": [*ARGUMENTS, "--python-version", "3.12"],
}


@pytest.fixture(scope="module")
def refused(bundle: Bundle) -> tuple[set[str], dict[str, Any]]:
    """What lay in the checkout before, and the answers to bad input: one process, since each would load torch."""
    before = {path.name for path in bundle.checkout.iterdir()}
    pip = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    answers = bundle.home.commands(*((["bundle", *arguments], {}) for arguments in REFUSED.values()), **pip)
    return before, dict(zip(REFUSED, answers, strict=True))


@pytest.mark.parametrize("expected", REFUSED)
def test_bad_input_writes_no_bundle(refused: tuple[set[str], dict[str, Any]], expected: str) -> None:
    before, answers = refused
    assert answers[expected].code == 2
    assert expected in answers[expected].stderr
    assert set(answers[expected].left) == before


def test_wheels_that_are_nowhere_are_told(refused: tuple[set[str], dict[str, Any]]) -> None:
    (line,) = refused[1]["error: no wheels of "].stderr.splitlines()
    assert re.match(r"error: no wheels of annotated-types==.* for Python 3\.12 on manylinux.*: pip says: ERROR: ", line)
