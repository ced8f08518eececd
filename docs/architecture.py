"""Draw the layers of the house in docs/architecture.md, from the contracts in pyproject.toml: `make architecture`."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = Path(__file__).with_suffix(".md")
BEGIN = "<!-- drawn from pyproject.toml by docs/architecture.py: make architecture -->\n"
END = "<!-- end of what is drawn -->\n"

Contract = dict[str, Any]


def contracts(root: Path) -> list[Contract]:
    """The contracts that import-linter holds."""
    return tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]


def layers(found: list[Contract]) -> list[list[str]]:
    """The rooms, highest layer first, as the contract of kind "layers" names them."""
    (contract,) = (contract for contract in found if contract["type"] == "layers")
    return [[room.strip() for room in layer.split("|")] for layer in contract["layers"]]


def torch_free(found: list[Contract]) -> set[str]:
    """Rooms that a contract keeps from loading torch."""
    forbidding = [contract for contract in found if "torch" in contract.get("forbidden_modules", ())]
    return {room for contract in forbidding for room in contract["source_modules"]}


def picture(found: list[Contract]) -> str:
    """The layers as a Mermaid flowchart, with a dashed arrow from a method to the rooms that it may see."""
    rows = layers(found)
    without_torch = torch_free(found)
    lines = ["flowchart TD"]
    for number, rooms in enumerate(rows):
        lines.append(f'    subgraph layer{number}[" "]')
        for room in rooms:
            lines.append(f"        {short(room)}{':::torch_free' if room in without_torch else ''}")
        lines.append("    end")
    lines += [f"    layer{number} --> layer{number + 1}" for number in range(len(rows) - 1)]
    lines.append('    method_file(["methods/*/method.py"])')
    hidden = {
        room
        for contract in found
        if "methods.*.method" in contract.get("source_modules", ())
        for room in contract["forbidden_modules"]
    }
    lines += [f"    method_file -.-> {short(room)}" for rooms in rows for room in rooms if room not in hidden]
    lines.append("    classDef torch_free stroke-dasharray: 4 3")
    return "\n".join(lines)


def outline(found: list[Contract], root: Path) -> str:
    """The layers as text, the highest first, and the names of the other contracts."""
    lines = []
    for number, rooms in enumerate(layers(found), 1):
        items = [f"- **{short(room)}**: {purpose(room, root)}" for room in rooms]
        lines.append(f"{number}. " + "\n   ".join(items))
    lines += ["", "What is held beside the layers:", ""]
    for contract in found:
        if contract["type"] != "layers":
            lines.append(f"- {contract['name']}.")
        for allowed in contract.get("ignore_imports", ()):
            lines.append(f"  One exception: `{allowed}`.")
    return "\n".join(lines)


def short(room: str) -> str:
    """The room's name in its package."""
    return room.removeprefix("reproduce.")


def purpose(room: str, root: Path) -> str:
    """The first line of the room's own docstring."""
    path = root / room.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    described = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
    return described.partition("\n")[0]


def drawn(page: str, root: Path = ROOT) -> str:
    """The page with what lies between the markers drawn anew."""
    found = contracts(root)
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n```mermaid\n{picture(found)}\n```\n\n{outline(found, root)}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(drawn(PAGE.read_text("utf-8")), "utf-8")
