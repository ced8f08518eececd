"""Without its library an integration says in one line what to install; the package itself needs neither."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import pytest

from reproduce.experiment.folder import ROOT

LIBRARIES = ("lightning", "transformers")


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_missing_library_is_one_line_with_the_name_of_the_extra(library: str) -> None:
    program = f"""
import sys
sys.modules[{library!r}] = None  # as where it is not installed
try:
    import reproduce.integrations.{library}
except ModuleNotFoundError as error:
    print(error)
"""
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert found == [
        f"{library} is not installed, and reproduce.integrations.{library} needs it: "
        f"pip install 'activation-reproductions[{library}]'"
    ]
    assert library in tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]


def test_the_package_loads_neither() -> None:
    program = f"import sys, reproduce.integrations, reproduce.method.attach; print(set({LIBRARIES}) & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
