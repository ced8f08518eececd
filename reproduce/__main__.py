"""`python -m reproduce`: the command line."""

from __future__ import annotations

import sys

from reproduce import stopping


def main() -> None:
    """Entry point of the console script."""
    stopping.end_at_once()
    from reproduce.cli.commands import app  # after the line above: it takes a while

    for stream in (sys.stdout, sys.stderr):  # titles and names of files may hold what a terminal's encoding has not
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="reproduce")  # also as `python -m reproduce`, whose completion would complete nothing
    finally:
        stopping.leave()


if __name__ == "__main__":
    main()
