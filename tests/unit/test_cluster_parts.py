"""What the Ray engine is made of, without Ray: requests, letters, what a node does, a shared store and its leases."""

from __future__ import annotations

import json
import os
import pickle
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reproduce.errors import UserError
from reproduce.experiment.recipe import Recipe
from reproduce.experiment.schema import Arm, Experiment, TaskSpec
from reproduce.results.source import git_state
from reproduce.results.store import read_result
from reproduce.training.cluster.connection import Request, parse_request
from reproduce.training.cluster.node import Answer, Errand, on_node
from reproduce.training.cluster.post import Letter, PostOffice
from reproduce.training.cluster.stores import LEASE, LEASE_SECONDS, PREVIOUS, RESULT, Lease, open_store
from reproduce.training.loop import CHECKPOINT, Interrupted
from reproduce.training.plan import PlannedRun, plan
from reproduce.training.run import RunSettings, execute, result_path
from reproduce.training.workers import Desk, train_one

RECIPE = Recipe(steps=6, batch_size=20, learning_rate=0.1, probe_examples=10)
MLP = {"width": 4, "depth": 2, "dropout": 0.2}
DIGITS = TaskSpec(kind="image_classification", dataset="digits", model="mlp", model_options=MLP, train_examples=60)


@pytest.fixture(scope="module")
def run() -> PlannedRun:
    experiment = Experiment(
        title="t", scale="quick", source="s", seeds=(0,), recipe=RECIPE, tasks={"digits": DIGITS}, arms={"plain": Arm()}
    )
    (found,) = plan({"table1": experiment}, None)
    return found


@pytest.fixture
def settings(tmp_path: Path) -> RunSettings:
    return RunSettings(tmp_path / "runs", None, tmp_path / "cache", "cpu", threads=1)


@pytest.mark.parametrize(
    ("text", "has_gpus", "expected"),
    [
        ("", False, Request(1, 0.0, 0)),
        ("", True, Request(1, 0.125, 0)),
        ("memory=1.5G, cpus=2", False, Request(2, 0.0, 3 * 2**29)),
        ("gpus=1,cpus=8,memory=500M", True, Request(8, 1.0, 500 * 2**20)),
    ],
)
def test_a_request_is_read(text: str, has_gpus: bool, expected: Request) -> None:
    assert parse_request(text, has_gpus) == expected


@pytest.mark.parametrize(
    "text", ["cores=2", "cpus=2,cpus=2", "cpus=0", "cpus=1.5", "cpus=nan", "cpus=", "gpus=2", "gpus=-1", "memory=4"]
)
def test_a_request_that_says_nothing_sensible_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match="--resources") as caught:
        parse_request(text, has_gpus=True)
    assert "\n" not in str(caught.value)


def test_runs_that_fit_a_node_are_counted_by_what_is_scarcest() -> None:
    node = {"CPU": 16.0, "GPU": 2.0, "memory": 64.0 * 2**30}
    assert Request(1).fit(node) == 16
    assert Request(1, 0.125).fit(node) == 16
    assert Request(1, 0.1).fit(node) == 16
    assert Request(2, 0.25).fit(node) == 8
    assert Request(2, 0.5).fit(node) == 4
    assert Request(1, 0.0, 20 * 2**30).fit(node) == 3
    assert Request(1, 0.5).fit({"CPU": 16.0}) == 0


def test_the_post_keeps_all_news_and_of_files_the_newest() -> None:
    office = PostOffice()
    assert office.hand_in(Letter(0, [b"first"], {"a": b"old"})) is False
    office.hand_in(Letter(1, [b"other"]))
    office.hand_in(Letter(0, [b"second"], {"a": b"new", "b": b""}))
    office.hand_in(Letter(2))
    assert office.collect() == [Letter(0, [b"first", b"second"], {"a": b"new", "b": b""}), Letter(1, [b"other"])]
    assert office.collect() == []
    office.stop()
    assert office.hand_in(Letter(0)) is True


def sent(
    run: PlannedRun,
    settings: RunSettings,
    work: Callable[[PlannedRun, RunSettings, Desk], Any] = train_one,
    stops: Callable[[], bool] = lambda: False,
    **given: Any,
) -> tuple[Answer, list[Letter]]:
    """A node's answer and the letters before it."""
    letters: list[Letter] = []

    def hand_in(letter: Letter) -> bool:
        letters.append(letter)
        return stops()

    errand = Errand(0, work, run, settings, **{"commit": git_state()[0], "more_methods": "", "files": {}} | given)
    return on_node(pickle.loads(pickle.dumps(errand)) if work is train_one else errand, hand_in), letters


def test_a_node_trains_in_a_folder_of_its_own_and_sends_result_and_logs(
    run: PlannedRun, settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    answer, letters = sent(run, settings)
    assert answer.error is None
    files = {name: content for letter in [*letters, answer.last] for name, content in letter.files.items()}
    (tmp_path / RESULT).write_bytes(files.pop(RESULT))
    assert read_result(tmp_path / RESULT) == answer.found
    assert [name.startswith("events.out.tfevents") for name in files] == [True]
    news = [one for letter in [*letters, answer.last] for few in letter.news for one in pickle.loads(few)]
    assert news[0] == (run.id, "started")
    assert not settings.runs.exists()
    assert list((tmp_path / "scratch").glob("reproduce-*")) == []


def test_a_node_that_is_told_to_stop_sends_its_checkpoint_and_goes_on_from_it(
    run: PlannedRun, settings: RunSettings, tmp_path: Path
) -> None:
    answer, _ = sent(run, settings, stops=lambda: True)  # it is told before its first step
    assert isinstance(answer.error, Interrupted)
    assert str(answer.error) == "stopped at step 1 of 6"
    again, _ = sent(run, settings, files={CHECKPOINT: answer.last.files[CHECKPOINT]})
    assert again.found.environment.resumed == 1
    whole = execute(run, replace(settings, runs=tmp_path / "alone"))
    assert again.found.final == whole.final
    assert [one.train_loss for one in again.found.epochs] == [one.train_loss for one in whole.epochs]


def test_what_fails_on_a_node_comes_back_as_it_is_or_as_its_text(run: PlannedRun, settings: RunSettings) -> None:
    class OfThisTest(Exception):
        """Which no other process can unpickle."""

    def fails(run: PlannedRun, settings: RunSettings, desk: Desk) -> Any:
        raise OfThisTest("no luck")

    answer, _ = sent(run, settings, work=fails)
    assert type(answer.error) is RuntimeError
    assert str(answer.error) == "OfThisTest: no luck"


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_a_run_in_a_shared_store_goes_on_elsewhere_and_is_fetched(
    kind: str, run: PlannedRun, settings: RunSettings, tmp_path: Path
) -> None:
    url = f"file://{tmp_path}/shared" if kind == "file" else f"memory://{tmp_path.name}"
    store, folder = open_store(url), run.config.folder
    answer, letters = sent(run, settings, stops=lambda: True, store=url)
    assert isinstance(answer.error, Interrupted)
    assert {name for letter in [*letters, answer.last] for name in letter.files} == set()
    assert store.read(folder, CHECKPOINT) is not None
    assert store.fetch_results(settings.runs) == []
    answer, _ = sent(run, settings, store=url)
    assert answer.found.environment.resumed == 1
    assert store.read(folder, CHECKPOINT) is store.read(folder, PREVIOUS) is None
    assert store.fetch_results(settings.runs) == []
    assert read_result(result_path(settings.runs, run.config)) == answer.found
    store.write(folder, RESULT, b"{}")
    assert store.fetch_results(settings.runs) == []  # what is here already is not asked for again
    result_path(settings.runs, run.config).unlink()
    (problem,) = store.fetch_results(settings.runs)
    assert problem.endswith("schema version None, expected 1")
    assert not list(settings.runs.rglob("*.json"))


def test_the_checkpoint_before_the_last_is_kept_in_a_shared_store(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/shared")
    for content in (b"first", b"second", b"third"):
        store.write("run", CHECKPOINT, content)
    assert (store.read("run", PREVIOUS), store.read("run", CHECKPOINT)) == (b"second", b"third")


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_a_lease_is_one_drivers_until_released_or_not_renewed(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(f"file://{tmp_path}/shared" if kind == "file" else f"memory://{tmp_path.name}-lease")
    first, second = Lease(store, "run"), Lease(store, "run")
    assert (first.take(), second.take()) == (True, False)
    second.release()  # which is not its own
    assert second.take() is False
    first.release()
    assert second.take() is True
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 0.9 * LEASE_SECONDS)
    assert first.take() is False
    second.renew()
    monkeypatch.setattr(time, "time", lambda: now + 1.8 * LEASE_SECONDS)
    assert first.take() is False
    monkeypatch.setattr(time, "time", lambda: now + 2 * LEASE_SECONDS)
    assert first.take() is True
    second.release()
    assert json.loads(store.read("run", LEASE) or b"")["owner"] == first._owner


def test_a_lease_that_does_not_read_is_held_until_it_is_old(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/shared")
    store.write("run", LEASE, b"")
    assert Lease(store, "run").take() is False
    os.utime(tmp_path / "shared" / "run" / LEASE, (time.time() - 2 * LEASE_SECONDS,) * 2)
    assert Lease(store, "run").take() is True


@pytest.mark.parametrize("url", ["nowhere://runs", "file:///proc/none"])
def test_a_store_that_cannot_be_opened_is_one_line(url: str) -> None:
    with pytest.raises(UserError) as caught:
        open_store(url)
    assert str(caught.value).startswith(f"--store {url}: cannot be opened (")
    assert "\n" not in str(caught.value)


def test_an_s3_server_keeps_checkpoints_results_and_leases(
    run: PlannedRun, settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of moto, on loopback: what it refuses, such as to make an object twice, S3 refuses."""
    server = pytest.importorskip("moto.server", reason="moto is not installed: pip install 'moto[server]' s3fs")
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'moto[server]' s3fs")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "of this test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3 = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    s3.start()
    try:
        host, port = s3.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        import s3fs

        s3fs.S3FileSystem().mkdir("bucket")
        url, folder = "s3://bucket/runs", run.config.folder
        answer, _ = sent(run, settings, stops=lambda: True, store=url)
        assert isinstance(answer.error, Interrupted)
        answer, _ = sent(run, settings, store=url)
        assert answer.found.environment.resumed == 1
        store = open_store(url)
        assert store.read(folder, CHECKPOINT) is store.read(folder, PREVIOUS) is None
        assert store.fetch_results(settings.runs) == []
        assert read_result(result_path(settings.runs, run.config)) == answer.found
        first, second = Lease(store, folder), Lease(store, folder)
        assert (first.take(), second.take()) == (True, False)
        first.release()
        assert second.take() is True
    finally:
        s3.stop()
