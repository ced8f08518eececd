"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from reproduce.bench.measure import Row


def bench_table(rows: Sequence[Row], show_header: bool) -> Table:
    """The rows of one method, in columns of one width for all."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold", show_header=show_header)
    widths = {"measured": 27, "on": 11, "ratio": 5, "quartiles": 11, "ms": 7, "limit": 7, "": 6}  # 80 in all
    for heading, width in widths.items():
        table.add_column(heading, justify="right" if heading in ("ratio", "quartiles", "ms") else "left", width=width)
    for row in rows:
        kept = "" if row.kept is None else "kept" if row.kept else "MISSED"
        spread = f"{row.low:.2f}-{row.high:.2f}"
        table.add_row(row.what, row.where, f"{row.ratio:.2f}", spread, f"{row.milliseconds:.4g}", row.limit, kept)
    return table
