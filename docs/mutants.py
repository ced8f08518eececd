"""Mutation checks: formulas that are changed on purpose, and whether the tests nearest to them notice.

`make mutants`. Mutants are drawn by a seed and run by docs/mutant_runs.py in a copy of the tree, so that nothing here
changes. docs/mutants.json keeps what came out, by file and by the hash of its content: a file that has not changed
goes on where it stopped, and only its open survivors run again. docs/mutants.toml, written by hand, says of a survivor
why it computes the same; docs/mutants.md is made from both.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
FOUND = ROOT / "docs/mutants.json"
JUDGED = ROOT / "docs/mutants.toml"
PAGE = ROOT / "docs/mutants.md"
PLACE = re.compile(r"(?P<begin><!-- mutants -->\n).*?(?P<end><!-- end of mutants -->)", re.S)
RESULTS = ("stats", "judge", "record", "scatter")  # of reproduce/results/: what every number of a page goes through
FIRST = ("per", "vcl", "orthogonal", "sparse_autoencoder", "batchnorm")  # methods in this order, then the others
SEED = 0
EACH = 40

Entry = dict[str, Any]  # hash, possible, run, caught, timed_out, survivors


class Change(NamedTuple):
    """A line and what it was changed to: so a survivor is known again, wherever the line has moved."""

    line: str
    changed: str


def targets() -> dict[str, list[str]]:
    """The files that are mutated, in the order in which they run, each with the tests nearest to it."""
    found = {
        f"reproduce/results/{name}.py": _tests(ROOT / "tests/unit", f"test_results_{name}*.py") for name in RESULTS
    }
    folders = {path.name: path for path in sorted((ROOT / "methods").glob("[a-z]*")) if (path / "method.py").exists()}
    for name in (*FIRST, *(name for name in folders if name not in FIRST)):
        for path in sorted(folders[name].glob("*.py")):
            if path.name not in ("figures.py", "__init__.py") and not path.name.startswith("test_"):
                found[path.relative_to(ROOT).as_posix()] = _tests(folders[name], "test_*.py")
    return found


def _tests(folder: Path, pattern: str) -> list[str]:
    return [
        path.relative_to(ROOT).as_posix() for path in sorted(folder.glob(pattern)) if path.name != "test_figures.py"
    ]


def content_hash(file: str, tree: Path = ROOT) -> str:
    return hashlib.sha256((tree / file).read_bytes()).hexdigest()


def judgements() -> dict[str, dict[Change, str]]:
    """By file and change: why it is equivalent."""
    written = tomllib.loads(JUDGED.read_text("utf-8"))
    return {
        file: {Change(one["line"], one["changed"]): one["equivalent"] for one in entries}
        for file, entries in written.items()
    }


def found() -> dict[str, Entry]:
    return json.loads(FOUND.read_text("utf-8")) if FOUND.exists() else {}


def open_survivors(entry: Entry, judged: Mapping[Change, str]) -> list[Entry]:
    return [one for one in entry["survivors"] if Change(one["line"], one["changed"]) not in judged]


def copied_tree(folder: Path) -> Path:
    """What git tracks, and new files that it does not ignore, as they stand here."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def outcomes(tree: Path, file: str, wanted: Entry) -> Iterator[Entry]:
    """Of each mutant, as it is done; before them how many there could be.

    Raises:
        SystemExit: the tests fail without any change, or cannot be run.
    """
    work = {"file": file, "tests": targets()[file], **wanted}
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "docs/mutant_runs.py", json.dumps(work)]
    with subprocess.Popen(command, cwd=tree, env=environment, stdout=subprocess.PIPE, text=True) as running:
        yield from (json.loads(line) for line in running.stdout or ())
    if running.returncode:
        raise SystemExit(f"{file}: its mutants could not be run to the end")


def run_file(tree: Path, file: str, each: int) -> None:
    """Brings the file's entry up to ``each`` mutants, and writes after every one: what is done stays done."""
    entry, content = found().get(file), content_hash(file, tree)
    if entry is None or entry["hash"] != content:
        entry = {"hash": content, "possible": None, "run": 0, "caught": 0, "timed_out": 0, "survivors": []}
    again = [one["number"] for one in open_survivors(entry, judgements().get(file, {}))]
    if not again and entry["possible"] is not None and entry["run"] >= min(each, entry["possible"]):
        return
    for outcome in outcomes(tree, file, {"seed": SEED, "again": again, "first": entry["run"], "end": each}):
        add(entry, outcome)
        FOUND.write_text(json.dumps(found() | {file: entry}, indent=1, sort_keys=True) + "\n", "utf-8")
        write_page()


def add(entry: Entry, outcome: Entry) -> None:
    """One line of docs/mutant_runs.py: what it says of a mutant replaces what was known of it."""
    if "possible" in outcome:
        entry["possible"] = outcome["possible"]
        return
    known = len(entry["survivors"])
    entry["survivors"] = [one for one in entry["survivors"] if one["number"] != outcome["number"]]
    if len(entry["survivors"]) == known:
        entry["run"] += 1
    if outcome["outcome"] == "survived":
        entry["survivors"].append({key: outcome[key] for key in ("number", "at", "line", "changed")})
        entry["survivors"].sort(key=lambda one: one["number"])
    else:
        entry["timed_out" if outcome["outcome"] == "timed out" else "caught"] += 1


def made(page: str) -> str:
    """The page with its tables made anew."""
    text = "\n".join(_lines(found(), judgements()))
    return PLACE.sub(lambda place: place["begin"] + "\n" + text + "\n\n" + place["end"], page)


def write_page() -> None:
    PAGE.write_text(made(PAGE.read_text("utf-8")), "utf-8")


def _lines(kept: Mapping[str, Entry], judged: Mapping[str, Mapping[Change, str]]) -> Iterator[str]:
    yield "| File | Mutants there could be | Run | Caught | Out of time | Equivalent | Open | Content |"
    yield f"|:---|{'---:|' * 6}:---|"
    listed = [file for file in targets() if file in kept]
    for file in listed:
        entry = kept[file]
        left = len(open_survivors(entry, judged.get(file, {})))
        numbers = (entry[name] for name in ("possible", "run", "caught", "timed_out"))
        cells = (f"[{file}](../{file})", *numbers, len(entry["survivors"]) - left, left, f"`{entry['hash'][:12]}`")
        yield f"| {' | '.join(map(str, cells))} |"
    missing = [file for file in targets() if file not in kept]
    yield ""
    yield f"Not run yet: {', '.join(f'`{file}`' for file in missing) or 'none, every file has been run'}."
    for file in listed:
        if kept[file]["survivors"]:
            yield from ("", f"## Survivors of {file}", "")
            yield from _table(kept[file]["survivors"], judged.get(file, {}))


def _table(survivors: Sequence[Entry], judged: Mapping[Change, str]) -> Iterator[str]:
    yield from ("| Line | As it is | Changed to | Judgement |", "|---:|:---|:---|:---|")
    for one in survivors:
        why = judged.get(Change(one["line"], one["changed"]))
        code = (f"`{one[key]}`".replace("|", r"\|") for key in ("line", "changed"))
        yield f"| {one['at']} | {' | '.join(code)} | {'*open*' if why is None else f'*equivalent*: {why}'} |"


def sample(tree: Path, file: str, each: int, seed: int) -> list[Entry]:
    """Survivors of another seed's mutants that nobody has judged; nothing is written."""
    ran = list(outcomes(tree, file, {"seed": seed, "again": [], "first": 0, "end": each}))
    survivors = [one for one in ran if one.get("outcome") == "survived"]
    return open_survivors({"survivors": survivors}, judgements().get(file, {}))


def main() -> None:
    """With another seed than that of the page, only what survives is printed, and the exit code is 1 if anything does.

    Raises:
        SystemExit: as above; or --only is no file of the list.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--each", type=int, default=EACH, help="mutants a file, at most")
    parser.add_argument("--only", action="append", metavar="FILE", help="these files alone")
    parser.add_argument("--seed", type=int, default=SEED, help=f"{SEED}: that of the page, which is written")
    parser.add_argument("--page", action="store_true", help="run nothing: make the page from what is known")
    given = parser.parse_args()
    if given.page:
        write_page()
        return
    if unknown := set(given.only or ()) - targets().keys():
        raise SystemExit(f"not among the files that are mutated: {', '.join(sorted(unknown))}")
    alive = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = copied_tree(Path(folder))
        for file in given.only or targets():
            if given.seed == SEED:
                run_file(tree, file, given.each)
                continue
            for one in sample(tree, file, given.each, given.seed):
                alive += 1
                print(f"{file}:{one['at']}: survived\n  {one['line']}\n  {one['changed']}")
    sys.exit(1 if alive else 0)


if __name__ == "__main__":
    main()
