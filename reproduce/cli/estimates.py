"""How long Runs will take here and elsewhere, and what starts in the time that there is."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reproduce.cli.durations import duration, runs_text
from reproduce.errors import UserError
from reproduce.experiment.folder import WORKING_FOLDER
from reproduce.results.record import Result, device_kind

if TYPE_CHECKING:
    from reproduce.training.agenda import Agenda
    from reproduce.training.estimate import Estimates, StepTime, Work
    from reproduce.training.plan import PlannedRun
    from reproduce.training.run import RunSettings

BENCHES = WORKING_FOLDER / "reports" / "bench"  # step times of devices that were seen once, committed
HOW_TO_TIME = "`plan --pilot` times some steps of each kind"


def known_times(results: Iterable[Result], runs: Path) -> Estimates:
    """What Results, pilots on this machine and committed benches say of step times; a damaged file stops none."""
    from reproduce.training.estimate import Estimates

    files = [*BENCHES.glob("*.json"), *(runs / "pilots").glob("*.json")]
    return Estimates(results, [file for file in files if _can_be_read(file)])


@cache
def _can_be_read(file: Path) -> bool:
    """Said once where it cannot."""
    from reproduce.training.estimate import read_step_times

    try:
        read_step_times(file)
    except UserError as error:
        print(f"passed over: {error}", file=sys.stderr)
        return False
    return True


def pilot_file(runs: Path, kind: str) -> Path:
    """Where the pilots of one kind of device are kept; copied to `BENCHES`, `plan` knows them everywhere."""
    return runs / "pilots" / f"{in_file_names(kind)}.json"


def in_file_names(kind: str) -> str:
    """A kind of device as files are called after it: "NVIDIA H100 80GB HBM3" is nvidia-h100-80gb-hbm3."""
    return re.sub(r"[^A-Za-z0-9]+", "-", kind).strip("-").lower()


class Timer:
    """Estimates for Runs under the settings that they are to have here; of other devices, as they were timed there.

    Args:
        device_name: gives the device's, where it is not that of this machine.
    """

    def __init__(self, times: Estimates, settings: RunSettings, device_name: Callable[[], str] | None = None) -> None:
        self.times = times
        self._settings = settings
        self._device_name = device_name
        self._works: dict[str, Work] = {}
        self._answers: dict[tuple[str, str], float | None] = {}  # until a pilot has found more

    @cached_property
    def _device(self) -> str:
        from reproduce.training.run import device_name, torch_device

        return self._device_name() if self._device_name else device_name(torch_device(self._settings.device))

    @property
    def kind(self) -> str:
        """Of the device here."""
        return device_kind(self._device)

    @property
    def kinds(self) -> list[str]:
        """The device here, and all of which something is known."""
        return list(dict.fromkeys([self.kind, *self.times.devices]))

    def work(self, run: PlannedRun) -> Work:
        from reproduce.training.estimate import Work

        if run.id not in self._works:
            self._works[run.id] = Work.of(run.config)
        return self._works[run.id]

    def seconds_of(self, run: PlannedRun, kind: str = "") -> float | None:
        """None: nothing like it was timed on this kind of device; "" is the one here."""
        key = run.id, kind
        if key not in self._answers:
            at_once = self._settings.at_once if self._settings.device.startswith("cuda") else 1
            self._answers[key] = self.times.seconds(self.work(run), kind or self.kind, self._settings.threads, at_once)
        return self._answers[key]

    def learn(self, found: StepTime) -> None:
        """What a pilot here has found: it is kept for later commands as well."""
        from reproduce.training.estimate import write_step_times

        self.times.add(self.kind, found)
        self._answers.clear()
        machine: dict[str, Any] = {"device": self._device, "kind": self.kind}
        write_step_times(pilot_file(self._settings.runs, self.kind), machine, [found])

    def time_pilots(self, missing: Iterable[PlannedRun]) -> None:
        """A pilot, in this process, of each kind of work that has no estimate here; what fails is said."""
        from reproduce.training.pilot import pilot

        for run in missing:
            if self.times.seconds(self.work(run), self.kind) is not None:
                continue
            try:
                found = pilot(run, self._settings)
            except (UserError, ValueError) as error:
                print(f"no pilot of {run.label}: {error}", file=sys.stderr)
                continue
            self.learn(found)


def agenda_of(missing: list[PlannedRun], budget: float | None, started: float, timer: Timer) -> Agenda:
    """What starts next.

    Args:
        budget: seconds from ``started``, on the monotonic clock: planning is part of them.
    """
    from reproduce.training.agenda import Agenda

    if budget is None:
        return Agenda(missing)
    return Agenda(missing, started + budget - time.monotonic(), timer.seconds_of)


def too_short(budget: str, agenda: Agenda) -> str:
    """Why nothing was started."""
    known = [seconds for run in agenda.left if (seconds := agenda.seconds_of(run)) is not None]
    shortest = f"the shortest is estimated at {duration(min(known))}" if known else "there was no time to time one"
    return f"--budget {budget}: none of the {len(agenda.left)} runs to train would finish in it: {shortest}"


def time_lines(missing: Sequence[PlannedRun], timer: Timer, jobs: int = 1) -> list[str]:
    """Of each kind of device of which something is known, and first of this one; nothing where nothing is to train."""
    lines = []
    for kind in timer.kinds if missing else ():
        known = [seconds for run in missing if (seconds := timer.seconds_of(run, kind)) is not None]
        unknown = len(missing) - len(known)
        here = kind == timer.kind
        if known:
            together = f", {duration(sum(known) / jobs)} of {jobs}" if here and jobs > 1 else ""
            of_some = f" for {runs_text(len(known))}" if unknown else ""
            lines.append(f"{kind}: about {duration(sum(known))} of one worker{together}{of_some}")
        if unknown and (known or here):
            place = "  " if known else f"{kind}: "
            lines.append(f"{place}{runs_text(unknown)} of unknown length")
            lines += [f"  {HOW_TO_TIME}"] if here else []
    return lines
