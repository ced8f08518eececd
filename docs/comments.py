"""How sources are read for the site: comments that describe fields, examples in docstrings, what is left out."""

from __future__ import annotations

import ast
import re
from typing import Any

import griffe

COMMENT = re.compile(r"\S\s+# (?!noqa|type:)(?P<text>[^#\"']+)$")
EXAMPLE = re.compile(r"^(?P<indent> *)>>> .*(?:\n(?!\s*\n).+)*", re.M)


class FieldsAndExamples(griffe.Extension):
    """A field is described by the comment at its line's end; examples are code; what ``__init__`` keeps is left out."""

    def on_attribute_instance(self, *, node: ast.AST | griffe.ObjectNode, attr: griffe.Attribute, **_: Any) -> None:
        targets = [*getattr(node, "targets", ()), getattr(node, "target", None)]
        attr.extra["site"]["inner"] = any(isinstance(target, ast.Attribute) for target in targets)  # self.x = ...
        if attr.docstring is None and attr.endlineno is not None:
            found = COMMENT.search(attr.lines_collection[attr.filepath][attr.endlineno - 1])
            if found:
                attr.docstring = griffe.Docstring(found["text"], lineno=attr.endlineno, parent=attr)

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        for name, member in list(cls.members.items()):
            if member.is_attribute and member.extra["site"].get("inner"):
                del cls.members[name]

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(_fenced, obj.docstring.value)


def _fenced(found: re.Match[str]) -> str:
    """An example as a block of code, as deep as it stands."""
    return f"{found['indent']}```pycon\n{found[0]}\n{found['indent']}```"


class AttachIsTheFunction(griffe.Extension):
    """`reproduce.attach` is the function; the module of that name is its former home."""

    def on_module_members(self, *, mod: griffe.Module, **_: Any) -> None:
        if mod.path == "reproduce" and "attach" in mod.members:
            self.attach = mod.members["attach"]

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        if pkg.path == "reproduce":
            pkg.members["attach"] = self.attach
