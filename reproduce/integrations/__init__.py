"""Methods in other libraries' training loops: a callback for Lightning, a mix-in for the Trainer of transformers.

Each needs its library, which the package's extra of the same name brings.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def extra(library: str) -> Iterator[None]:
    """Around the import of a library that an extra of the same name installs.

    Raises:
        ModuleNotFoundError: it is not there; the line says what to install.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != library:
            raise
        raise ModuleNotFoundError(
            f"{library} is not installed, and reproduce.integrations.{library} needs it: "
            f".venv/bin/pip install -e '.[{library}]', in the folder of this repository",
            name=library,
        ) from None
