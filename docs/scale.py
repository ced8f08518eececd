"""The tables of docs/scale.md: the campaign on 1, 8 and 64 devices of each kind that was timed, as `plan --on` has it.

`make scale`, when experiments or the evidence have changed. Only committed times count: everybody gets the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reproduce.cli.campaign import planned_runs
from reproduce.cli.chosen import SCALES, chosen_experiments, committed_results
from reproduce.cli.durations import duration
from reproduce.cli.estimates import Timer, known_times
from reproduce.cli.fleet import NO_SOONER, Fleet, schedule
from reproduce.experiment.folder import WORKING_FOLDER
from reproduce.results.memory import collector_paused
from reproduce.results.record import device_kind
from reproduce.training.plan import most_valuable_first
from reproduce.training.run import RunSettings

PAGE = Path(__file__).with_suffix(".md")
PLACE = re.compile(r"(?P<begin><!-- scale -->\n).*?(?P<end><!-- end of scale -->)", re.S)
DEVICES = (1, 8, 64)
NO_GPU = """\
## What is missing: a GPU

No step was timed on a GPU yet, so of GPUs nothing is said here. On a machine that has one, `make check DEVICE=cuda`
writes step times into `runs/check/`, and `plan all --scale paper --device cuda --pilot` into `runs/pilots/`. Their
files, committed in `reports/bench/`, give that GPU its table here with `make scale`, and with
`plan all --scale paper --on 64xH100` its hours everywhere.
"""


@dataclass(frozen=True)
class Campaign:
    """All runs of all methods at a scale, in the order in which they start; none is sealed yet."""

    scale: str
    seconds: Mapping[
        str, Sequence[float | None]
    ]  # by kind of device: of each run, None where nothing like it was timed

    def known(self, kind: str) -> list[float]:
        return [seconds for seconds in self.seconds[kind] if seconds is not None]

    @property
    def n_runs(self) -> int:
        return max((len(seconds) for seconds in self.seconds.values()), default=0)


def campaigns() -> tuple[list[Campaign], list[str]]:
    """One for each scale, and the kinds of device that are processors."""
    committed = committed_results()
    nowhere = WORKING_FOLDER / "docs"  # no pilot of this machine lies there
    settings = RunSettings(nowhere, None, WORKING_FOLDER / "data", "cpu", threads=1)
    timer = Timer(known_times(committed, nowhere), settings)
    found = []
    for scale in SCALES:
        planned = most_valuable_first(planned_runs(chosen_experiments("all", scale), "", "", results=[]), committed)
        seconds = {kind: [timer.seconds_of(run, kind) for run in planned] for kind in timer.times.devices}
        found.append(Campaign(scale, seconds))
    devices = {result.environment.device for result in committed}
    return found, sorted({device_kind(device) for device in devices if device.startswith("cpu")})


def tables(found: Sequence[Campaign], processors: Sequence[str]) -> str:
    """A section for each kind of device that something was timed on, GPUs first; or what is to be done for one."""
    kinds = sorted({kind for campaign in found for kind in campaign.seconds if campaign.known(kind)})
    gpus = [kind for kind in kinds if kind not in processors]
    sections = ["\n".join(_section(found, kind, "a GPU with one run at a time")) for kind in gpus]
    sections += [] if gpus else [NO_GPU.rstrip("\n")]
    sections += ["\n".join(_section(found, kind, "one core")) for kind in kinds if kind in processors]
    return "\n\n".join(sections)


def _section(found: Sequence[Campaign], kind: str, device: str) -> Iterator[str]:
    yield from (f"## {kind}", "", f"A device is {device}.", "")
    heads = ["Scale", "Runs", "Timed", *map(str, DEVICES), f"Longest run, and devices for {NO_SOONER:g} times it"]
    yield from (f"| {' | '.join(heads)} |", f"|:---|{'---:|' * (len(heads) - 1)}")
    for campaign in found:
        yield f"| {' | '.join(_row(campaign, kind))} |"
    example = Fleet(DEVICES[-1], kind)
    yield from ("", f'`.venv/bin/reproduce plan all --scale paper --on "{example.devices}x{example.kind}"`')


def _row(campaign: Campaign, kind: str) -> list[str]:
    known = campaign.known(kind)
    row = [campaign.scale, str(campaign.n_runs), str(len(known))]
    if not known:
        return [*row, *[""] * (len(DEVICES) + 1)]
    schedules = [schedule(known, devices) for devices in DEVICES]
    row += [f"{duration(one.seconds)}, {100 * one.idle_share:.0f} % idle" for one in schedules]
    return [*row, f"{duration(schedules[0].longest)}, {schedules[0].enough_devices}"]


def made(page: str) -> str:
    """The page with its tables made anew."""
    with collector_paused():
        text = tables(*campaigns())
    return PLACE.sub(lambda found: found["begin"] + "\n" + text + "\n\n" + found["end"], page)


if __name__ == "__main__":
    PAGE.write_text(made(PAGE.read_text("utf-8")), "utf-8")
