"""The answer in a checkout's README: the block of the page in the folder of pages, between the same two marks."""

from __future__ import annotations

import re
from pathlib import Path

from reproduce.errors import UserError
from reproduce.report.kept import replace_text

BEGIN, END = "<!-- answer -->", "<!-- /answer -->"
BLOCK = re.compile(f"{BEGIN}.*?{END}", re.S)
ADDRESS = re.compile(r'(\]\(|(?:src|srcset)=")(?!\w+:|#|/)')


def refreshed(readme: str, page: str, folder: str) -> str:
    """A README with the block of a page in place of its own.

    Args:
        page: the page of the folder of pages.
        folder: where that lies, from the README.

    Raises:
        UserError: a text without the two marks.
    """
    block = _only_block(page, f"{folder}/README.md")
    moved = ADDRESS.sub(rf"\g<1>{folder}/", block)
    return readme.replace(_only_block(readme, "README.md"), moved)


def _only_block(text: str, where: str) -> str:
    blocks = BLOCK.findall(text)
    if len(blocks) != 1:
        raise UserError(f"{where}: expected one block between {BEGIN} and {END}; found {len(blocks)}")
    return str(blocks[0])


def refresh(readme: Path, page: Path) -> None:
    """Show a page's answer in a checkout's README, if that has a place for it.

    Raises:
        UserError: no permission to write.
    """
    if not readme.is_file() or not page.is_file() or BEGIN not in readme.read_text("utf-8"):
        return
    text = readme.read_text("utf-8")
    new = refreshed(text, page.read_text("utf-8"), page.parent.name)
    if new == text:
        return
    try:
        replace_text(readme, new)
    except OSError as error:
        raise UserError(f"{readme}: the answer cannot be written ({error.strerror})") from error
