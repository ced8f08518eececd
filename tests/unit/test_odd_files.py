"""Odd files and command lines: one line each, never a traceback, nothing written outside the store, bounded memory.

REPRODUCE_FUZZ: so many inputs in place of those of an ordinary run (`make soak`).
"""

from __future__ import annotations

import json
import lzma
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from reproduce.cli.commands import app
from reproduce.errors import LONGEST, UserError, one_line
from reproduce.experiment.dataset_card import DatasetCard
from reproduce.experiment.files import read_experiment
from reproduce.experiment.folder import METHODS, ROOT
from reproduce.experiment.toml import open_toml, read_toml
from reproduce.report.method_card import MethodCard, to_html
from reproduce.results.pack import unpack
from reproduce.results.spelling import content_of
from reproduce.results.store import ResultError, read_result

INPUTS = int(os.environ.get("REPRODUCE_FUZZ") or 60)
fuzzed = settings(
    max_examples=INPUTS,
    deadline=None,
    database=None,
    derandomize=INPUTS < 1000,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)

EXPERIMENT = (METHODS / "per" / "experiments" / "quick_digits.toml").read_bytes()
CARD = (ROOT / "datasets" / "digits.toml").read_bytes()
METHOD_CARD = (METHODS / "per" / "card.md").read_bytes()
RESULT = min((ROOT / "reports" / "evidence").glob("*.json")).read_bytes()

odd = st.sampled_from(
    [
        b"\0",
        b"\xff", b"\xed\xa0\x80", b"[" * 2000, b"{a=" * 2000, b"{" * 2000, b'"', b"'''", b"\n", b"\r", b"$\\frac$",
        b"nan", b"inf", b"NaN", b"Infinity", b"-1", b"1e308", b"1e999", b"9" * 5000, b"9" * 30, b"true", b"null", b"[]",
        b"{}", b"../", b"/etc/passwd", b"1979-05-27", b"a." * 500, b"\\ud800", b"[[a]]", b"\xe2\x80\xae", b" = ",
    ]
)  # fmt: skip


@st.composite
def changed(draw: Any, content: bytes) -> bytes:
    """The file with a few places overwritten, taken out, doubled, or with something odd put in."""
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        length = draw(st.sampled_from([0, 1, 3, 20, 400]))
        put = draw(st.one_of(odd, st.binary(max_size=8), st.just(content[at : at + length] * 2)))
        content = content[:at] + put + content[at + length :]
    return content


def quiet(read: Callable[[], Any]) -> Any:
    """What it returns; or nothing where it refuses in one line of a bearable length."""
    try:
        return read()
    except (UserError, ResultError) as error:
        line = str(error)
    assert line.isprintable()
    assert 0 < len(line) <= LONGEST
    return None


def written(folder: Path, content: bytes, name: str = "file.toml") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.fault(
    what="an odd file: nested, cut, huge, no text",
    injected="experiments are overwritten at random; so are cards, Results, packs and command lines",
    promise="one line, never a traceback; nothing is read beyond a bound, and nothing written outside the store",
)
@fuzzed
@given(changed(EXPERIMENT))
def test_odd_experiments(tmp_path: Path, content: bytes) -> None:
    quiet(lambda: read_experiment(written(tmp_path, content)))


@fuzzed
@given(changed(CARD))
def test_odd_cards_of_data(tmp_path: Path, content: bytes) -> None:
    card = quiet(lambda: read_toml(written(tmp_path, content), DatasetCard))
    for path in (*card.files, *card.archive) if card else ():
        assert (tmp_path / path).resolve().is_relative_to(tmp_path.resolve())


@fuzzed
@given(changed(METHOD_CARD))
def test_odd_cards_of_methods(tmp_path: Path, content: bytes) -> None:
    card = quiet(lambda: MethodCard(written(tmp_path, content, "card.md").parent))
    for text in card.sections.values() if card else ():
        to_html(text)


@fuzzed
@given(changed(RESULT))
def test_odd_results(tmp_path: Path, content: bytes) -> None:
    read = quiet(lambda: read_result(written(tmp_path, content, "result.json")))
    if read is not None:  # spaces may be added where JSON has none
        assert content_of(content.decode()) == content_of(RESULT.decode())


@fuzzed
@given(changed(lzma.compress(b'{"pack":"sealed Results","results":1,"schema_version":1}\n' + RESULT)))
def test_odd_packs(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "runs").mkdir(exist_ok=True)
    quiet(lambda: unpack(written(tmp_path, content, "pack.jsonl.xz"), tmp_path / "runs"))
    assert {path.name for path in tmp_path.iterdir()} <= {"runs", "pack.jsonl.xz"}


words = st.sampled_from(
    ["--seeds", "--only", "--scale",
     "--arms", "--tasks", "--json", "--runs", "--budget", "--jobs", "--data", "per", "all",
     "", "-", "--", "0,1",
     "9" * 5000, "1e9", "nan", "-1", "\0", "../..", "/", "*", "[", "\ud800", "\n", "quick", "é" * 300,
     "--methods", "--results",
     "--output", "--help", "--max-seeds", "--until-decided", "--device", "--every", "1000000000"]
)  # fmt: skip


@settings(fuzzed, max_examples=min(INPUTS, 100_000) // 3)
@given(st.sampled_from(["list", "status", "unpack", "pack", "publish", "new", "nothing"]), st.lists(words, max_size=4))
def test_odd_command_lines(tmp_path: Path, command: str, arguments: list[str]) -> None:
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        found = CliRunner().invoke(app, [command, *arguments])
    finally:
        os.chdir(before)
        os.environ.pop("REPRODUCE_METHODS", None)
    if not isinstance(found.exception, SystemExit | type(None)):
        raise found.exception
    assert found.exit_code in (0, 1, 2)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a=" + b"[" * 100_000, "inside each other more than 32 deep"),
        (b"a=" + b"{a=" * 100_000, "inside each other more than 32 deep"),
        (b".".join([b"a"] * 100_000) + b"=1", "a key of more than 32 parts"),
        (b"[" + b".".join([b"'a'"] * 100_000) + b"]", "a key of more than 32 parts"),
        (b"a=" + b"1" * 5000, "5000 digits"),
        (b"a=" + b"1" * 30, "an integer of 97 bits, expected at most 64"),
        (b"#" * (2**20 + 1), "larger than 1048576 bytes"),
        (b"\xff", "can't decode byte 0xff"),
    ],
)
def test_toml_is_bounded(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(UserError, match=words):
        open_toml(written(tmp_path, content))


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(UserError, match="not a regular file"):
        open_toml(tmp_path / "pipe.toml")
    with pytest.raises(ResultError, match="not a regular file"):
        read_result(tmp_path / "pipe.toml")


def test_axes_and_grids_are_counted_before_they_are_spelled_out(tmp_path: Path) -> None:
    hundreds = list(range(1000))
    axes = "".join(f"{key} = {hundreds}\n" for key in ("fold", "validation", "train_examples"))
    with pytest.raises(UserError, match=r"tasks\.t: its axes span 1000000000 tasks, expected at most 10000"):
        read_experiment(written(tmp_path, f"title='x'\n[tasks.t]\n{axes}".encode()))
    grid = "".join(f"x{number} = {hundreds}\n" for number in range(3))
    with pytest.raises(UserError, match=r"arms\.big\.grid: 1000000000 points, expected at most 10000"):
        read_experiment(written(tmp_path, EXPERIMENT + f"\n[arms.big.grid]\n{grid}".encode()))


@pytest.mark.parametrize(
    ("seeds", "words"),
    [
        ("1000000000", "1000000000 seeds, expected at most 10000"),
        ("9" * 4000, r"an integer of \d+ bits seeds, expected at most 10000"),
        (f"0,{2**63}", r"expected seeds below 2\*\*63"),
    ],
)
def test_seeds_are_counted_before_they_are_spelled_out(seeds: str, words: str) -> None:
    from reproduce.experiment.cells import parse_seeds

    with pytest.raises(UserError, match=words):
        parse_seeds(seeds)


@pytest.mark.parametrize("path", ["../x.csv", "/etc/x.csv", "a/../../x.csv", "a\\x.csv", "**/x.csv", ""])
def test_a_card_names_no_file_outside_its_folder(tmp_path: Path, path: str) -> None:
    card = CARD + f"\n[files.{json.dumps(path)}]\n".encode()
    with pytest.raises(UserError, match="a path inside the data folder"):
        read_toml(written(tmp_path, card), DatasetCard)


def test_a_pack_that_unpacks_to_much_is_given_up(tmp_path: Path) -> None:
    """A line without end, and a line of nothing a million times; in a process that may have 600 MB of memory more."""
    first = b'{"pack":"sealed Results","results":1,"schema_version":1}\n'
    for name, bomb in (("long", b"x" * 2**28), ("many", b"\n" * 2**26)):
        written(tmp_path, lzma.compress(first + bomb, preset=0), f"{name}.xz")
    program = (
        "import sys; from pathlib import Path; from reproduce.results.pack import unpack\n"
        "for name in sys.argv[1:]: print(len(unpack(Path(name), Path('runs')).problems))\n"
        "print(int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) // 1024)"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, "long.xz", "many.xz"],
        cwd=tmp_path, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    n_long, n_many, mebibytes = map(int, found.stdout.split())
    assert (n_long, n_many) == (1, 1001)
    assert mebibytes < 400


@pytest.mark.fault(
    what="a full disk",
    injected="a limit on the size of files, while Results are packed",
    promise="one line that names the file and what to do; no half-written file stays",
)
def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    """A limit on the size of files stands for it: the same call fails."""
    (tmp_path / "found").mkdir()
    written(tmp_path / "found", RESULT, "result.json")
    program = "import sys; from reproduce.__main__ import main; main()"
    command = [
        sys.executable,
        "-c",
        program,
        "pack",
        "--results",
        "found",
        "--output",
        "out",
    ]
    limited = ["sh", "-c", 'ulimit -f 1; exec "$@"', "sh", *command]
    found = subprocess.run(
        limited, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert found.returncode == 2
    assert found.stderr.startswith("error: ")
    assert found.stderr.endswith("File too large: make room there, and the same command goes on\n")
    assert found.stderr.count("\n") == 1
    assert [*(tmp_path / "out").iterdir()] == []


def test_lines_for_the_user_are_lines() -> None:
    assert str(UserError("a\nb\x1b[2J\ud800")) == "a\\nb\\x1b[2J\\ud800"
    assert one_line("häß 𝛼") == "häß 𝛼"
    long = one_line("begin" + "x" * 10**6 + "end")
    assert len(long) < LONGEST
    assert long.startswith("begin")
    assert long.endswith("end")


def test_an_option_that_is_given_twice_is_refused() -> None:
    found = CliRunner().invoke(app, ["status", "per", "--only", "a", "--only", "b"])
    assert found.exit_code == 2
    assert "error: --only is given 2 times: expected once" in found.output
