"""What tests of every room may use."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

KEEP = "REPRODUCE_SEEN"  # a file: docs/reliability.json, from `make soak`


@pytest.fixture
def seen(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Keeps what a test of a fault has counted, for docs/reliability.md; in an ordinary run, nothing."""

    def keep(text: str) -> None:
        if KEEP in os.environ:
            path = Path(os.environ[KEEP])
            known = json.loads(path.read_text("utf-8")) if path.exists() else {}
            known[request.node.nodeid.partition("[")[0]] = text
            path.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n", "utf-8")

    return keep
