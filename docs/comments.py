"""How sources are read for the site: comments that describe fields, examples in docstrings, what is left out."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from typing import Any

import griffe

EXAMPLE = re.compile(r"^(?P<indent> *)>>> .*(?:\n(?!\s*\n).+)*", re.M)


class FieldsAndExamples(griffe.Extension):
    """A field is described by its comment; examples are code; what ``__init__`` keeps is left out."""

    def on_attribute_instance(self, *, node: ast.AST | griffe.ObjectNode, attr: griffe.Attribute, **_: Any) -> None:
        targets = [*getattr(node, "targets", ()), getattr(node, "target", None)]
        attr.extra["site"]["inner"] = any(isinstance(target, ast.Attribute) for target in targets)  # self.x = ...
        if attr.docstring is None and attr.lineno is not None and attr.endlineno is not None:
            lines = attr.lines_collection[attr.filepath]
            found = comment(lines, attr.lineno, attr.endlineno)
            if found:
                attr.docstring = griffe.Docstring(found, lineno=attr.lineno, parent=attr)

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        for name, member in list(cls.members.items()):
            if member.is_attribute and member.extra["site"].get("inner"):
                del cls.members[name]

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(_fenced, obj.docstring.value)


class AttachIsTheFunction(griffe.Extension):
    """`reproduce.attach` is the function; the module of that name is its former home."""

    def on_module_members(self, *, mod: griffe.Module, **_: Any) -> None:
        if mod.path == "reproduce" and "attach" in mod.members:
            self.attach = mod.members["attach"]

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        if pkg.path == "reproduce":
            pkg.members["attach"] = self.attach


def comment(lines: list[str], first: int, last: int) -> str:
    """The comment at the end of a statement, else the one on the lines above it; lines count from 1."""
    statement = io.StringIO("\n".join(line.strip() for line in lines[first - 1 : last]))
    try:
        tokens = list(tokenize.generate_tokens(statement.readline))
    except tokenize.TokenError:
        return ""
    found = [token.string for token in tokens if token.type == tokenize.COMMENT and token.start[0] == last - first + 1]
    above = first - 1
    while not found and above > 0 and lines[above - 1].lstrip().startswith("# "):
        above -= 1
    texts = found or [line.strip() for line in lines[above : first - 1]]
    said = " ".join(text.lstrip("# ") for text in texts)
    return "" if said.startswith(("noqa", "type:")) else said


def _fenced(found: re.Match[str]) -> str:
    """An example as a block of code, as deep as it stands."""
    return f"{found['indent']}```pycon\n{found[0]}\n{found['indent']}```"
