"""Without its library an integration says in one line what to install; the package itself needs neither."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib

from reproduce.experiment.folder import ROOT

LIBRARIES = ("lightning", "transformers")


PROGRAM = """
import importlib, json, sys
import reproduce.integrations, reproduce.method.attach
libraries = json.loads(sys.argv[1])
loaded = [library for library in libraries if library in sys.modules]
said = {}
for library in libraries:
    sys.modules[library] = None  # as where it is not installed
    try:
        importlib.import_module(f"reproduce.integrations.{library}")
    except ModuleNotFoundError as error:
        said[library] = str(error)
print(json.dumps([loaded, said]))
"""


def test_the_package_loads_no_library_and_a_missing_one_is_one_line_with_the_name_of_the_extra() -> None:
    command = [sys.executable, "-c", PROGRAM, json.dumps(LIBRARIES)]
    loaded, said = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert loaded == []
    assert said == {
        library: f"{library} is not installed, and reproduce.integrations.{library} needs it: "
        f".venv/bin/pip install -e '.[{library}]', in the folder of this repository"
        for library in LIBRARIES
    }
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert set(LIBRARIES) <= set(extras)
