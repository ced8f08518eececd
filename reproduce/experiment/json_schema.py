"""JSON Schema (draft 7, which editors of TOML read) of the files that people write. No torch here.

It is what a file may say, not what it is read into: a task's value may be an array, an arm changes some keys of a
recipe, and nothing is null. What it cannot say, that names exist for example, reading the file still checks.
"""

from __future__ import annotations

import copy
from typing import Any

from pydantic import BaseModel

from reproduce.experiment.dataset_card import DatasetCard
from reproduce.experiment.files import Share
from reproduce.experiment.published import Published
from reproduce.experiment.schema import Experiment

Schema = dict[str, Any]

DRAFT = "http://json-schema.org/draft-07/schema#"
WORKLOAD = {
    "type": "string",
    "description": "A file of reproduce/experiment/workloads, by its name: what several methods share.",
}


def experiment_schema() -> Schema:
    """Of a file in ``experiments/``: an experiment of its own, or a method's arms for a workload."""
    definitions = {**_definitions(Experiment), **_definitions(Published), **_definitions(Share)}
    _let_tasks_span(definitions["TaskSpec"])
    _let_arms_change(definitions)
    share, whole = definitions.pop("Share"), definitions.pop("Experiment")
    del whole["properties"]["axes"]  # it is found while reading
    published = _reference("Published", "A table of the paper, from which claims follow.")
    # One table of keys, with what else they ask for below it: from two tables in an anyOf, editors tell no error.
    root = {
        **whole,
        "properties": {**whole["properties"], "published": published, "workload": WORKLOAD},
        "required": ["arms"],
        "if": {"required": ["workload"]},
        "then": {"propertyNames": {"enum": ["workload", *share["properties"]]}},
        "else": {"required": whole["required"]},
    }
    return _document("An experiment of a method: experiments/*.toml", root, definitions)


def matrix_schema() -> Schema:
    """Of a method's ``matrix.toml``."""
    definitions = {**_definitions(Experiment), **_definitions(Share)}
    _let_arms_change(definitions)
    kept = {name: definitions[name] for name in ("Share", "Arm", "Claim", "RecipeChange", "RecipeGrid")}
    kept |= {name: value for name, value in definitions.items() if name.endswith("Rate") or name == "Clip"}
    columns = {"type": "object", "additionalProperties": _reference("Share")}
    return _document("A method's arms in the cross-method matrix: matrix.toml", columns, kept)


def card_schema() -> Schema:
    """Of a card in ``datasets/``."""
    definitions = _definitions(DatasetCard)
    del definitions["DatasetCard"]["properties"]["name"]  # the file's
    return _document("A dataset's card: datasets/*.toml", _reference("DatasetCard"), definitions)


def file_schema(title: str, model: type[BaseModel]) -> Schema:
    """Of a file that is read as it stands into a model."""
    return _document(title, _reference(model.__name__), _definitions(model))


def _document(title: str, root: Schema, definitions: dict[str, Schema]) -> Schema:
    return {"$schema": DRAFT, "title": title, **root, "$defs": dict(sorted(definitions.items()))}


def _definitions(model: type[BaseModel]) -> dict[str, Schema]:
    """The model and all that it holds, by class name."""
    root = model.model_json_schema()
    found = {**root.pop("$defs", {}), model.__name__: root}
    return {name: _as_toml(definition) for name, definition in found.items()}


def _as_toml(node: Any) -> Any:
    """A part of pydantic's schema without null, which TOML does not have, and without titles made of names."""
    if isinstance(node, list):
        return [_as_toml(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {
        key: _as_toml(value)
        for key, value in node.items()
        if key != "discriminator" and not (key == "title" and isinstance(value, str))
    }
    if "default" in node and node["default"] is None:
        del node["default"]
    choices = [choice for choice in node.get("anyOf", ()) if choice != {"type": "null"}]
    if len(choices) == 1:
        del node["anyOf"]
        node = {**choices[0], **node}
    elif choices:
        node["anyOf"] = choices
    if "prefixItems" in node:  # as draft 7 spells it
        node["items"] = node.pop("prefixItems")
    if "$ref" in node and len(node) > 1:  # draft 7 reads nothing beside a reference
        node = {"allOf": [{"$ref": node.pop("$ref")}], **node}
    if isinstance(node.get("description"), str):
        node["description"] = node["description"].replace("``", "`")
    kind = node.get("properties", {}).get("kind", {})
    if "const" in kind:  # it says which of several this is: pydantic asks for it even where it has a default
        node["required"] = ["kind", *(name for name in node.get("required", ()) if name != "kind")]
    return node


def _reference(name: str, description: str = "") -> Schema:
    reference = {"$ref": f"#/$defs/{name}"}
    return {"allOf": [reference], "description": description} if description else reference


def _let_tasks_span(task: Schema) -> None:
    """A task's plain value may be an array of them, an axis: see `reproduce.experiment.files`."""
    for name, value in task["properties"].items():
        if "type" in value and value["type"] != "object":
            described = {key: value[key] for key in ("description", "default") if key in value}
            single = {key: item for key, item in value.items() if key not in described}
            axis = {"type": "array", "items": single, "minItems": 1}
            task["properties"][name] = {"anyOf": [single, axis], **described}


def _let_arms_change(definitions: dict[str, Schema]) -> None:
    """An arm's recipe has any keys of a recipe and needs none; its grid of a recipe, a list of values for each."""
    recipe, arm = definitions["Recipe"], definitions["Arm"]["properties"]
    keys = copy.deepcopy(recipe["properties"])
    for value in keys.values():
        value.pop("default", None)  # what is left out is as the common recipe says
    definitions["RecipeChange"] = {
        "type": "object",
        "properties": keys,
        "additionalProperties": False,
        "description": "What an arm changes in the common recipe.",
    }
    grids = {
        name: {
            "type": "array",
            "minItems": 1,
            "items": {key: item for key, item in value.items() if key != "description"},
            "description": value.get("description", ""),
        }
        for name, value in keys.items()
    }
    definitions["RecipeGrid"] = {
        "type": "object",
        "properties": grids,
        "additionalProperties": False,
        "description": "Values to choose from, for keys of the recipe.",
    }
    for key, name in (("recipe", "RecipeChange"), ("recipe_grid", "RecipeGrid")):
        arm[key] = {**_reference(name, arm[key]["description"]), "default": {}}
