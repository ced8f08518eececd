"""Write the JSON schemas in docs/, and the tables of keys in docs/experiment_file.md and docs/dataset_card.md.

`make references`. The pages' other text is written by hand, between what is made here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reproduce.cli.run_json import RunAnswer
from reproduce.cli.schema import SCHEMAS, schema_text

DOCS = Path(__file__).parent
SCHEMA_FILES = {DOCS / "schemas" / f"{name}.json": name for name in SCHEMAS}
# A place in a page: <!-- keys of NAME in SCHEMA --> and what is made, up to <!-- end of keys -->.
PLACE = re.compile(
    r"(?P<begin><!-- keys of (?P<name>\w+) in (?P<schema>\w+) -->\n).*?(?P<end><!-- end of keys -->)", re.S
)
PAGES = (DOCS / "experiment_file.md", DOCS / "dataset_card.md")
# Where on the page the keys of a definition stand, for links from the keys that hold it.
ANCHORS = {
    "TaskSpec": "tasksname",
    "HostSpec": "tasksnamehost",
    "CorruptedSpec": "tasksnamecorrupted",
    "TargetSpec": "tasksnametarget_domain",
    "WordCacheSpec": "tasksnameword_cache",
    "Recipe": "recipe",
    **dict.fromkeys(
        ("ConstantRate", "StepRate", "DecayRate", "PlateauRate", "CosineRate", "LinearRate"), "recipeschedule"
    ),
    "AugmentedLoss": "recipeaugmented_loss",
    "Averaging": "recipeaveraging",
    "Clip": "recipeclip",
    "Arm": "armsname",
    "RecipeChange": "recipe",
    "RecipeGrid": "recipe",
    "Claim": "claims",
    "Published": "published",
    "Row": "publishedrows",
    "Variant": "variantsname",
    "FunctionPair": "functions",
    "File": "filespath",
    "Statistics": "statistics",
    "Words": "words",
    "Table": "table",
    "HuggingFace": "hugging_face",
}
BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "pattern": "like `{}`",
}
PLAIN = {"string": "text", "integer": "integer", "number": "number", "boolean": "true or false", "object": "table"}
PLURALS = {"text": "texts", "integer": "integers", "number": "numbers", "table": "tables", "list": "lists"}


def type_in_words(value: dict[str, Any]) -> str:
    """What a key may hold, for a cell of a table."""
    if "allOf" in value:
        return type_in_words(value["allOf"][0])
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return f"[table](#{ANCHORS[name]})"
    if "const" in value or "enum" in value:
        return _either([f"`{choice}`" for choice in value.get("enum", [value.get("const")])])
    if "anyOf" in value and value["anyOf"][1:] == [{"type": "array", "items": value["anyOf"][0], "minItems": 1}]:
        return f"{type_in_words(value['anyOf'][0])}; or an axis"
    if "anyOf" in value or "oneOf" in value:
        return _either(list(dict.fromkeys(type_in_words(choice) for choice in value.get("anyOf") or value["oneOf"])))
    if value.get("type") == "array":
        return _array(value)
    words = PLAIN.get(value.get("type", ""), "anything")
    held = value.get("additionalProperties")
    if isinstance(held, dict):
        return f"by name: {type_in_words(held)}"
    limits = [words.format(_cell(str(value[key]))) for key, words in BOUNDS.items() if key in value]
    return ", ".join([words, *limits])


def _array(value: dict[str, Any]) -> str:
    if isinstance(value.get("items"), list):
        kinds = list(dict.fromkeys(type_in_words(item) for item in value["items"]))
        return f"list of {len(value['items'])} {_plural(_either(kinds))}"
    of = type_in_words(value.get("items", {}))
    kind, comma, limits = of.partition(", ")
    return f"list of {_plural(kind)}{comma}{limits}" if of != "anything" else "list"


def _plural(kind: str) -> str:
    return re.sub(r"^(\[?)(\w+)", lambda found: found[1] + PLURALS.get(found[2], found[2]), kind)


def _either(choices: list[str]) -> str:
    return choices[0] if len(choices) == 1 else f"{', '.join(choices[:-1])} or {choices[-1]}"


def table_of_keys(definition: dict[str, Any]) -> str:
    """Key, type, default and meaning, a row a key in the order of the code."""
    needed = definition.get("else", definition).get("required", ())
    rows = [["Key", "Type", "Default", "Meaning"], [":---", ":---", ":---", ":---"]]
    for name, value in definition["properties"].items():
        rows.append([f"`{name}`", type_in_words(value), _default(value, name in needed), value.get("description", "")])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _default(value: dict[str, Any], needed: bool) -> str:
    if needed:
        return "needed"
    if value.get("default") in (None, "", [], {}):
        return ""
    return f"`{_cell(_toml(value['default']))}`"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {_toml(item)}' for key, item in value.items())} }}"
    return json.dumps(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def made(page: str) -> str:
    """The page with its tables made anew."""

    def fill(found: re.Match[str]) -> str:
        schema = SCHEMAS[found["schema"]]()
        definition = schema["$defs"].get(found["name"], schema)  # the whole file is none of its definitions
        parts = [definition.get("description", "").strip(), table_of_keys(definition)]
        return "\n".join([found["begin"], *(f"{part}\n" for part in parts if part), found["end"]])

    return PLACE.sub(fill, page)


def contents() -> Iterator[tuple[Path, str]]:
    """Each file that is made, and what it should hold."""
    for path, name in SCHEMA_FILES.items():
        yield path, schema_text(name)
    yield DOCS / "run_schema.json", json.dumps(RunAnswer.model_json_schema(mode="serialization"), indent=1) + "\n"
    for path in PAGES:
        yield path, made(path.read_text("utf-8"))


if __name__ == "__main__":
    for path, text in contents():
        path.write_text(text, "utf-8")
