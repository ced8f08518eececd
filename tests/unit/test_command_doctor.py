"""`doctor` looks at what is here; `--version`, completion and hints are as a shell needs them."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

import reproduce
from reproduce.cli import doctor as doctor_module
from reproduce.cli.commands import app
from reproduce.cli.doctor import data_found, findings, where_found
from reproduce.cli.options import as_typed
from reproduce.experiment.dataset_card import card_names, read_card
from reproduce.experiment.folder import ROOT


def invoke(*arguments: str) -> tuple[int, str]:
    answer = CliRunner().invoke(app, list(arguments), env={"REPRODUCE_DATA": ""})
    return answer.exit_code, answer.stdout


def test_the_version() -> None:
    code, said = invoke("--version")
    assert code == 0
    assert said.startswith(f"reproduce {reproduce.__version__} (Python ")


def test_doctor_looks_without_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from reproduce.cli.doctor import findings\n"
        "print(len(list(findings('', Path('runs'), quickly=True))), 'torch' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    n_findings, loads_torch = done.stdout.split()
    assert int(n_findings) >= 8
    assert loads_torch == "False"


def legend(said: str) -> str:
    """Of the sign that lines bear for data that are not here."""
    return "; - marks what some experiments need or wait for" if "\n- " in said else ""


def test_doctor_says_what_it_finds(tmp_path: Path) -> None:
    code, said = invoke("doctor", "--quickly", "--json", "--runs", str(tmp_path / "runs"))
    assert code == 0
    found = {one["what"]: one["found"] for one in json.loads(said)}
    assert found["Python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert found["torch"].startswith("2.")
    assert " GiB free for " in found["disk"]
    code, said = invoke("doctor", "--quickly", "--runs", str(tmp_path / "runs"))
    assert said.splitlines()[-1] == "no problems" + legend(said)


@pytest.mark.slow
def test_doctor_says_what_the_machine_can_run(tmp_path: Path) -> None:
    found = {one.what: one.found for one in findings("", tmp_path)}
    assert "runs side by side" in found["device"]
    for scale in ("quick", "reduced", "paper"):
        assert " to train" in found[scale]


def test_problems_end_in_exit_code_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "SMALLEST_DISK", 1e9)
    monkeypatch.setattr(doctor_module, "LIBRARIES", ("no_such_library",))
    code, said = invoke("doctor", "--quickly", "--runs", str(tmp_path))
    assert code == 1
    assert "! no_such_library: not installed: make setup, or pip install the project" in " ".join(said.split())
    assert "! disk:" in said
    assert said.splitlines()[-1] == "2 problems, marked with !" + legend(said)


def test_every_card_is_somewhere(tmp_path: Path) -> None:
    card = read_card("mnist")
    for path in card.files:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    lines = {finding.found.partition(":")[0]: finding.found for finding in data_found(tmp_path, tmp_path / "cache")}
    assert lines[f"in {tmp_path}"].endswith(": mnist")
    assert "digits" in lines["comes along"]
    named = {name for line in lines.values() for name in line.partition(": ")[2].split(", ")}
    assert named == set(card_names())
    assert where_found(read_card("uci_car"), [tmp_path]).startswith("not here, to be put into --data")
    (missing,) = [one for one in data_found(tmp_path / "none", tmp_path) if one.state == "problem"]
    assert missing.found.endswith("none: no such folder")


def completed(*words: str) -> Sequence[str]:
    """What the shell is offered for the last word."""
    environment = {
        **os.environ,
        "_REPRODUCE_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["reproduce", *words]),
        "COMP_CWORD": str(len(words)),
    }
    program = "import sys; sys.argv[0] = 'reproduce'; from reproduce.__main__ import main; main()"
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True).stdout.split()


def test_the_shell_completes_commands_options_and_methods() -> None:
    assert completed("pl") == ["plan"]
    assert completed("plan", "--sca") == ["--scale"]
    assert completed("run", "activity-") == ["activity-norm", "activity-prior"]


def test_completion_is_of_the_command_however_it_is_shown() -> None:
    """Asked for by name: `--show-completion` looks for the shell above it, and a service has none."""
    command = [sys.executable, "-m", "reproduce"]
    environment = {**os.environ, "_REPRODUCE_COMPLETE": "source_bash"}
    shown = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True).stdout
    assert "_REPRODUCE_COMPLETE=complete_bash" in shown


def test_a_hint_can_be_typed_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / ".venv" / "bin" / "reproduce"
    script.parent.mkdir(parents=True)
    script.touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(script)])
    monkeypatch.setattr(sys, "executable", str(script.with_name("python")))
    monkeypatch.setenv("PATH", "/nowhere")
    assert as_typed() == ".venv/bin/reproduce"
    monkeypatch.setenv("PATH", str(script.parent))
    assert as_typed() == "reproduce"
    monkeypatch.setattr(sys, "argv", ["/x/reproduce/__main__.py"])
    assert as_typed() == ".venv/bin/python -m reproduce"


@pytest.mark.parametrize("command", ["list", "plan", "run", "status", "doctor"])
def test_a_terminal_hears_something_before_torch_is_loaded(command: str, tmp_path: Path) -> None:
    """Loading it takes seconds. Here it ends the program, and something was said all the same."""
    (tmp_path / "torch.py").write_text("raise SystemExit(99)", "utf-8")
    rest = {"list": [], "doctor": []}.get(command, ["vanilla"])
    rest += [] if command == "list" else ["--runs", str(tmp_path / "runs")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "TERM": "xterm"}
    terminal, end = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, "-m", "reproduce", command, *rest],
        cwd=tmp_path,
        env=environment,
        stdin=end,
        stdout=end,
        stderr=end,
    )
    os.close(end)
    said = b""
    while len(said) < 100:
        try:
            said += os.read(terminal, 1000)
        except OSError:  # the program has ended
            break
    done.kill() if command == "list" else None
    assert done.wait() in ((0, -9) if command == "list" else (99,))
    os.close(terminal)
    assert len(said.strip()) > 20
