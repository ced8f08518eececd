"""Wheels for a machine without network: those of our dependencies that it lacks, in the versions of constraints.txt."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Container, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from reproduce.errors import UserError

# What images for training bring; what these require is there as well.
IMAGE_HAS = (
    "torch,torchvision,numpy,scipy,scikit-learn,pandas,pyarrow,pillow,matplotlib,tensorboard,filelock,packaging,"
    "typer,rich,jinja2,markdown-it-py"
)
# Only downloads need it, which a machine without network cannot make; its own requirements are many and large.
DOWNLOADS_ONLY = "datasets"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def lacking(root: Path, image_has: Iterable[str]) -> list[str]:
    """Our dependencies that an image with these packages lacks, and what they require in turn: "name==version".

    What a package requires is read off the one installed here. Another version in the image may require less, so a
    dependency of ours counts as there only when it is named.

    Raises:
        UserError: constraints.txt has no version of one of them.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    ours = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    named = {canonicalize_name(name.strip()) for name in image_has}
    wanted = ours - named - {DOWNLOADS_ONLY}
    there = _with_requirements(named, but=wanted)
    versions = _versions(root / "constraints.txt")
    found = sorted(_with_requirements(wanted, but=there))
    for name in found:
        if name not in versions:
            raise UserError(f"{root / 'constraints.txt'}: no version of {name}, which the image lacks: add it")
    return [f"{name}=={versions[name]}" for name in found]


def _with_requirements(names: Iterable[str], but: Container[str]) -> set[str]:
    """These packages and all that they require, without those of ``but`` and what only these require."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found or name in but:
            continue
        found.add(name)
        try:
            required = [Requirement(text) for text in requires(name) or ()]
        except PackageNotFoundError:
            continue
        waiting += [
            canonicalize_name(one.name) for one in required if one.marker is None or one.marker.evaluate({"extra": ""})
        ]
    return found


def _versions(constraints: Path) -> dict[str, str]:
    lines = [line.strip() for line in constraints.read_text("utf-8").splitlines()]
    pairs = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def download(pins: Sequence[str], folder: Path, python: str, platforms: Sequence[str]) -> None:
    """Have pip put the wheels of these packages into ``folder``, from where it is set up to look.

    Raises:
        UserError: there is none for that Python and platform.
    """
    folder.mkdir(parents=True)
    if not pins:
        return
    where = [text for platform in platforms for text in ("--platform", platform)]
    what = ["--only-binary=:all:", "--no-deps", "--implementation", "cp", "--python-version", python, *where]
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download"]
    done = subprocess.run([*pip, *what, "--dest", str(folder), *pins], capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise UserError(
            f"no wheels of {', '.join(pins)} for Python {python} on {', '.join(platforms)}: pip says: "
            f"{said[-1] if said else 'nothing'}"
        )
