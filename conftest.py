"""What all tests share, wherever they lie: `tests/` and the folders of the methods."""

from __future__ import annotations

import gc
import os
import signal
import zlib
from collections.abc import Iterator

import pytest
import torch

# The files that take longest, so that at the end no worker has one of them for itself; the others follow as collected.
LONGEST_FIRST = (
    "tests/contract/test_battery.py",
    "tests/contract/test_types.py",
    "tests/end_to_end/test_committed_pages.py",
    "tests/end_to_end/test_bundle.py",
    "tests/end_to_end/test_command_line.py",
    "tests/end_to_end/test_new_method.py",
    "tests/end_to_end/test_methods_outside.py",
    "tests/end_to_end/test_cookbook.py",
    "tests/end_to_end/test_documented_commands.py",
    "tests/unit/test_integrations_transformers.py",
    "tests/unit/test_integrations_lightning.py",
    "tests/unit/test_method_several_devices.py",
    "tests/unit/test_command_status.py",
    "tests/end_to_end/test_examples.py",
    "tests/end_to_end/test_wheel.py",
    "tests/unit/test_training_engines.py",
    "tests/unit/test_report_page.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--sample", action="store_true", help="Of tests marked sampled(n) every n-th case, the same always."
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--sample"):
        left_out = [item for item in items if not _is_in_sample(item)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if _is_in_sample(item)]
    place = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(place)))


def _is_in_sample(item: pytest.Item) -> bool:
    """By the name of the case, but for its last parameter: what several checks compute of one case is shared."""
    marker = item.get_closest_marker("sampled")
    if marker is None or not isinstance(item, pytest.Function):
        return True
    several = len(item.callspec.params) > 1
    case = item.callspec.id.rpartition("-")[0] if several else item.callspec.id
    return zlib.crc32(case.encode()) % marker.args[0] == 0


def pytest_collection_finish() -> None:
    """What has been imported is no garbage: to look through it again and again takes longer than most tests."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Frozen objects would outlive what they hold, and libraries with an eye on that (nanobind) call it a leak."""
    gc.unfreeze()


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what it puts in the background so; tests that interrupt a training would then wait for ever.
    signal.signal(signal.SIGINT, signal.default_int_handler)


for flags in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):  # of `make test`: what calls make would take them over
    os.environ.pop(flags, None)

torch.set_num_threads(1)  # for fixtures of a module, which come before those of a test


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As `make test` has it: small tensors are fastest so, and one number of threads gives the same last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
