"""Blocks of the page in the folder of pages, shown between the same two marks in a checkout's README or docs."""

from __future__ import annotations

import os
import re
from pathlib import Path

from reproduce.errors import UserError
from reproduce.report.kept import replace_text

ANSWER, CHOICE = "answer", "choice"  # the blocks there are


def marks(block: str) -> tuple[str, str]:
    """What stands before and after a block."""
    return f"<!-- {block} -->", f"<!-- /{block} -->"


BEGIN, END = marks(ANSWER)
BLOCK = re.compile(f"{BEGIN}.*?{END}", re.S)
ADDRESS = re.compile(r'(\]\(|(?:src|srcset)=")(?!\w+:|#|/)')


def refreshed(text: str, page: str, folder: str, block: str = ANSWER, name: str = "README.md") -> str:
    """A text with a block of a page in place of its own.

    Args:
        page: the page of the folder of pages.
        folder: where that lies, from the text.
        block: which one.
        name: what the text is called.

    Raises:
        UserError: a text without the two marks.
    """
    moved = ADDRESS.sub(rf"\g<1>{folder}/", _only_block(page, f"{folder}/README.md", block))
    return text.replace(_only_block(text, name, block), moved)


def _only_block(text: str, where: str, block: str) -> str:
    begin, end = marks(block)
    blocks = re.findall(f"{begin}.*?{end}", text, re.S)
    if len(blocks) != 1:
        raise UserError(f"{where}: expected one block between {begin} and {end}; found {len(blocks)}")
    return str(blocks[0])


def refresh(shown: Path, page: Path, block: str = ANSWER) -> None:
    """Show a page's block in a checkout's README or docs, if that has a place for it.

    Raises:
        UserError: no permission to write.
    """
    if not shown.is_file() or not page.is_file() or marks(block)[0] not in shown.read_text("utf-8"):
        return
    text = shown.read_text("utf-8")
    folder = Path(os.path.relpath(page.parent, shown.parent)).as_posix()
    new = refreshed(text, page.read_text("utf-8"), folder, block, shown.name)
    if new == text:
        return
    try:
        replace_text(shown, new)
    except OSError as error:
        raise UserError(f"{shown}: the {block} cannot be written ({error.strerror})") from error
