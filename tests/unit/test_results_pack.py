"""Packs of sealed Results: small files from which every trustworthy Result comes back, and nothing else does."""

from __future__ import annotations

import json
import lzma
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reproduce.errors import UserError
from reproduce.experiment.folder import ROOT
from reproduce.experiment.identity import RunConfig, canonical_json
from reproduce.experiment.schema import TaskSpec
from reproduce.results.pack import LARGEST, Unpacked, unpack, write_packs
from reproduce.results.record import Result
from reproduce.results.store import read_content, read_result, write_result

# Of middling size: large enough that each is a part of its own, and 240 damaged ones are still read in a moment.
EVIDENCE = sorted((ROOT / "reports" / "evidence").glob("mnist-mlp-vcl-*.json"))[:5]


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    (file,), n_packed, problems = write_packs(EVIDENCE, tmp_path / "packs")
    assert (n_packed, problems) == (5, [])
    return file


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def lines_of(pack: Path) -> list[str]:
    return lzma.decompress(pack.read_bytes()).decode().splitlines()


def repacked(pack: Path, change: Callable[[list[str]], None]) -> Path:
    lines = lines_of(pack)
    change(lines)
    pack.write_bytes(lzma.compress("".join(f"{line}\n" for line in lines).encode()))
    return pack


def everything_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def outcome(pack: Path, runs: Path) -> tuple[int, list[str]]:
    """How many Results of a pack are there now, and what was said."""
    try:
        found = unpack(pack, runs)
    except UserError as error:
        return 0, [str(error)]
    return len(found.new) + found.already, found.problems


def test_what_is_packed_comes_back(packed: Path, runs: Path) -> None:
    found = unpack(packed, runs)
    assert (len(found.new), found.already, found.problems) == (5, 0, [])
    for path in EVIDENCE:
        assert (runs / path.stem / "result.json").read_bytes() == path.read_bytes()
    assert unpack(packed, runs) == Unpacked(already=5)


def test_a_pack_is_a_small_part_of_its_results(packed: Path) -> None:
    assert packed.stat().st_size < 0.5 * sum(path.stat().st_size for path in EVIDENCE) < LARGEST


def test_the_name_of_a_pack_tells_its_content(packed: Path) -> None:
    (again,), _, _ = write_packs(reversed(EVIDENCE), packed.parent)
    (other,), _, _ = write_packs(EVIDENCE[:4], packed.parent)
    assert again == packed
    assert packed.name.startswith("results-5-")
    assert other.name.startswith("results-4-")


def test_what_is_too_large_for_a_file_takes_several(tmp_path: Path, packed: Path, runs: Path) -> None:
    largest = packed.stat().st_size // 2
    files, n_packed, problems = write_packs(EVIDENCE, tmp_path / "parts", largest)
    assert (n_packed, problems) == (5, [])
    assert len(files) >= 3
    assert all(f"-part{number}of{len(files)}." in file.name for number, file in enumerate(files, start=1))
    assert max(file.stat().st_size for file in files) <= largest
    assert sum(len(unpack(file, runs).new) for file in reversed(files)) == 5
    with pytest.raises(UserError, match=r"Result [0-9a-f]{16}: \d+ bytes packed, at most 100 fit"):
        write_packs(EVIDENCE, tmp_path / "none", 100)


def test_only_sealed_results_are_packed(tmp_path: Path, runs: Path) -> None:
    edited = tmp_path / "edited.json"
    edited.write_text(EVIDENCE[0].read_text("utf-8").replace('"seed": ', '"seed": 1'), "utf-8")
    (file,), n_packed, problems = write_packs([edited, *EVIDENCE[1:3], tmp_path / "none.json"], tmp_path)
    assert n_packed == len(unpack(file, runs).new) == 2
    assert [problem.partition(":")[0] for problem in problems] == [str(edited), str(tmp_path / "none.json")]
    assert write_packs([edited], tmp_path / "nothing")[:2] == ([], 0)


def test_what_is_sealed_stays(packed: Path, runs: Path) -> None:
    """Another Result of the same Run, made elsewhere, is told and not taken; a damaged one is no Result."""
    own, torn = (runs / path.stem / "result.json" for path in EVIDENCE[:2])
    theirs = read_result(EVIDENCE[0])
    elsewhere = theirs.environment.model_copy(update={"device": "another"})
    write_result(theirs.model_copy(update={"environment": elsewhere}), own)
    torn.parent.mkdir()
    torn.write_text("{")
    before = own.read_bytes()
    found = unpack(packed, runs)
    assert own.read_bytes() == before
    assert (len(found.new), found.already) == (4, 1)
    assert [f"{own} holds another Result of the same Run, which stays" in problem for problem in found.problems] == [
        True
    ]
    assert read_result(torn) == read_result(EVIDENCE[1])


def test_one_bad_result_does_not_stop_the_others(packed: Path, runs: Path) -> None:
    def damage(lines: list[str]) -> None:
        lines[1] = lines[1].replace('"seed":', '"seed":1')
        lines[2] = lines[2][:-9]
        lines[3] = lines[3].replace('"schema_version":1', '"schema_version":7')

    found = unpack(repacked(packed, damage), runs)
    assert len(found.new) == 2
    first, second, third = found.problems
    assert (
        first == f"{packed}: Result 1 of 5: its seal does not match its content; it was edited or damaged after the run"
    )
    assert second.startswith(f"{packed}: Result 2 of 5: not a readable Result")
    assert third == f"{packed}: Result 3 of 5: schema version 7, expected 1"
    assert len(everything_in(runs)) == 2


def test_a_pack_of_another_schema_is_refused_whole(packed: Path, runs: Path) -> None:
    def older(lines: list[str]) -> None:
        lines[0] = lines[0].replace('"schema_version":1', '"schema_version":2')

    with pytest.raises(
        UserError, match="its Results have schema version 2, expected 1: unpack it with the code"
    ) as caught:
        unpack(repacked(packed, older), runs)
    assert "\n" not in str(caught.value)
    assert not runs.exists()


@pytest.mark.parametrize("first", ["[]", '{"pack":"other"}', '{"pack":"sealed Results","schema_version":1}', "no JSON"])
def test_something_else_is_no_pack(packed: Path, runs: Path, first: str) -> None:
    def replace(lines: list[str]) -> None:
        lines[0] = first

    with pytest.raises(UserError, match="not a pack of Results"):
        unpack(repacked(packed, replace), runs)
    packed.write_text("text")
    with pytest.raises(UserError, match="not a pack of Results"):
        unpack(packed, runs)


def test_truncated_anywhere_it_is_told_in_one_line(packed: Path, runs: Path) -> None:
    """What came before the damage is whole and sealed, and is taken."""
    whole = packed.read_bytes()
    taken = set()
    for length in range(0, len(whole) - 1, len(whole) // 40):
        packed.write_bytes(whole[:length])
        n_taken, problems = outcome(packed, runs)
        assert len(problems) == (n_taken < 5)  # a cut through the last bytes, which are xz's own, loses nothing
        for problem in problems:
            assert re.match(f"{packed}: (not a pack of Results, or damaged|damaged or cut off: [0-4] of)", problem)
        taken.add(n_taken)
    assert {0, 4} < taken
    assert all(read_result(path) for path in runs.glob("*/result.json"))


@pytest.mark.fault(
    what="Results that come home damaged",
    injected="bits of a pack are flipped",
    promise="each is opened only where its seal and its id hold",
)
def test_a_flipped_bit_never_makes_a_result(packed: Path, runs: Path) -> None:
    whole = packed.read_bytes()
    for position in range(0, len(whole), len(whole) // 40):
        packed.write_bytes(whole[:position] + bytes([whole[position] ^ 16]) + whole[position + 1 :])
        assert not [problem for problem in outcome(packed, runs)[1] if "\n" in problem]
    originals = {read_result(path).id: read_result(path) for path in EVIDENCE}
    for path in runs.glob("*/result.json"):
        assert read_result(path) == originals[read_result(path).id]


@pytest.mark.fault(
    what="a pack that wants to write elsewhere",
    injected="a sealed Result whose names lead elsewhere, or are longer than a file's may be",
    promise="nothing is written outside the store",
)
@pytest.mark.parametrize("dataset", ["../outside", "/tmp/outside", "a/b", "a\0b", "a" * 300])
def test_nothing_is_written_outside(tmp_path: Path, packed: Path, runs: Path, dataset: str) -> None:
    """A config is sealed by whoever writes it: its names may lead anywhere."""
    honest = read_result(EVIDENCE[0])
    task = TaskSpec.model_validate({**honest.config.task.model_dump(), "dataset": dataset})
    config: RunConfig = honest.config.model_copy(update={"task": task})
    forged: Result = honest.model_copy(update={"config": config, "id": config.id})
    write_result(forged, tmp_path / "forged.json")
    content: dict[str, Any] = read_content(tmp_path / "forged.json")

    def add(lines: list[str]) -> None:
        lines[1] = canonical_json(content)

    before = everything_in(tmp_path)
    found = unpack(repacked(packed, add), runs)
    assert len(found.new) == 4
    (problem,) = found.problems
    assert "is not the name of one folder" in problem or "File name too long" in problem
    assert "\n" not in problem
    written = everything_in(tmp_path) - before
    assert written == {f"runs/{path.stem}/result.json" for path in EVIDENCE[1:]}
    assert json.loads(lines_of(packed)[1])["id"] == config.id  # it was there to be taken
