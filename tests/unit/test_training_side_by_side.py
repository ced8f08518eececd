"""How many Runs share a device, and how, for machines that are made up here; and whether a daemon listens."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reproduce.errors import UserError
from reproduce.training import side_by_side
from reproduce.training.side_by_side import HEADROOM, DeviceFacts, Room, arrange, listens

GIB = 2**30
CPU = DeviceFacts("cpu", cores=4)
GPU = DeviceFacts("cuda:0", cores=16, free_bytes=lambda: 78 * GIB)


@pytest.mark.parametrize(
    ("asked", "n_runs", "expected"),
    [(0, 9, (4, 1)), (2, 9, (2, 2)), (1, 9, (1, 4)), (99, 9, (9, 1)), (0, 3, (3, 1)), (0, 0, (1, 4))],
)
def test_a_cpu_has_a_process_a_core(asked: int, n_runs: int, expected: tuple[int, int]) -> None:
    how = arrange(asked, n_runs, CPU)
    assert (how.jobs, how.threads) == expected
    assert (how.in_threads, how.free_bytes, how.said) == (False, None, "")


def test_a_gpu_has_processes_where_mps_is_and_threads_where_it_is_not() -> None:
    with_mps = arrange(0, 100, replace(GPU, mps=True, mps_installed=True))
    assert (with_mps.jobs, with_mps.threads, with_mps.in_threads) == (8, 2, False)
    assert with_mps.said == "up to 8 runs side by side on cuda:0 in processes, which the MPS daemon lets share it"
    can_start = arrange(0, 100, replace(GPU, mps_installed=True))
    assert (can_start.jobs, can_start.in_threads) == (8, True)
    assert can_start.said.startswith("up to 8 runs side by side on cuda:0 in threads, no MPS daemon: ")
    assert "`nvidia-cuda-mps-control -d` starts one" in can_start.said
    bare = arrange(3, 100, GPU)
    assert (bare.jobs, bare.threads, bare.in_threads) == (3, 5, True)
    assert bare.said.startswith("up to 3 runs side by side on cuda:0 in threads, no MPS daemon")
    assert all("\n" not in how.said for how in (with_mps, can_start, bare))


def test_one_run_on_a_gpu_has_a_process_and_nothing_to_say() -> None:
    for how in (arrange(1, 100, GPU), arrange(0, 1, GPU)):
        assert (how.jobs, how.in_threads, how.said, how.free_bytes) == (1, False, "", None)


def test_there_are_no_more_threads_than_streams() -> None:
    assert arrange(100, 200, GPU).jobs == 32
    assert arrange(100, 200, replace(GPU, mps=True)).jobs == 100


def test_a_negative_number_of_jobs_is_refused() -> None:
    with pytest.raises(UserError, match="--jobs -1: expected 0 or more"):
        arrange(-1, 9, CPU)


def free_memory(*gib: float) -> Callable[[], int]:
    """Says these numbers, one a call."""
    told = iter(gib)
    return lambda: int(next(told) * GIB)


def test_the_first_run_begins_alone_and_what_it_took_decides() -> None:
    room = Room(8, free_memory(40, 30))
    assert room.places == 1
    said = room.settled()
    fitting = int(30 / (HEADROOM * 10))
    assert room.places == 1 + fitting == 3
    assert said == "3 instead of 8 runs side by side: the first one took 10.0 GiB of 40.0 GiB of free memory"
    assert room.settled() is None  # asked once: later on, several have taken memory


@pytest.mark.parametrize(("after", "places"), [(79.5, 8), (80.0, 8), (81.0, 8), (0.5, 1)])
def test_room_for_all_or_for_one(after: float, places: int) -> None:
    """Memory that did not change, or grew as another process ended, leaves room for all."""
    room = Room(8, free_memory(80, after))
    said = room.settled()
    assert (room.places, said is None) == (places, places == 8)


def test_a_device_whose_memory_nobody_counts_takes_all_at_once() -> None:
    room = Room(4)
    assert room.places == 4
    assert room.settled() is None


def test_who_ran_out_of_memory_makes_room() -> None:
    room = Room(4)
    assert room.ran_out(4) == "out of memory with 4 runs side by side: 3 from here on"
    assert room.ran_out(2) == "out of memory with 2 runs side by side: 1 from here on"
    assert room.ran_out(1) is None
    assert room.places == 1


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_a_daemon_listens_or_its_socket_is_left_over(kind: int, tmp_path: Path) -> None:
    control = tmp_path / "control"
    assert not listens(control)
    with socket.socket(socket.AF_UNIX, kind) as daemon:
        daemon.bind(str(control))
        assert not listens(control)  # there, and nobody accepts
        daemon.listen()
        assert listens(control)
    assert control.exists()
    assert not listens(control)


def test_a_daemon_reads_a_named_pipe_or_it_is_left_over(tmp_path: Path) -> None:
    control = tmp_path / "control"
    os.mkfifo(control)
    assert not listens(control)
    reader = os.open(control, os.O_RDONLY | os.O_NONBLOCK)
    assert listens(control)
    os.close(reader)
    assert not listens(control)
    control.unlink()
    control.write_text("not a pipe", "utf-8")
    assert not listens(control)


def test_the_facts_of_a_gpu_are_asked_of_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(side_by_side.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (7, 9))
    gpu = torch.device("cuda:1")
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(str(tmp_path / "control"))
        daemon.listen()
        found = DeviceFacts.of(gpu)
    assert (found.name, found.mps, found.mps_installed) == ("cuda:1", True, True)
    assert found.free_bytes is not None
    assert found.free_bytes() == 7
    assert not DeviceFacts.of(gpu).mps
    assert DeviceFacts.of(torch.device("cpu")).free_bytes is None
