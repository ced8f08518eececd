"""What goes wrong for a user: one line that says what was found, what was expected and what to do; exit code 2."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

UNKNOWN_KEY = "unknown key"
Location = tuple[int | str, ...]

# What else people call a key; spelling mistakes need no entry.
SYNONYMS = {
    "activation_function": "activation",
    "alpha": "strength",
    "batch": "batch_size",
    "beta": "strength",
    "bs": "batch_size",
    "coefficient": "strength",
    "data": "dataset",
    "decay": "weight_decay",
    "gradient_clip": "clip",
    "hidden_size": "width",
    "hyperparameters": "params",
    "l2": "weight_decay",
    "lambda": "strength",
    "license": "licence",
    "lr": "learning_rate",
    "lr_schedule": "schedule",
    "n_epochs": "epochs",
    "name": "title",
    "normalize": "normalise",
    "num_classes": "classes",
    "num_epochs": "epochs",
    "options": "model_options",
    "optim": "optimizer",
    "p": "dropout",
    "penalty": "strength",
    "rate": "learning_rate",
    "scheduler": "schedule",
    "seed": "seeds",
    "url": "source",
    "warmup": "warmup_steps",
    "wd": "weight_decay",
    "weight": "strength",
}


LONGEST = 1000  # characters of a line for the user
SHOWN = 200  # characters of a value in it
OTHERS = 3  # problems in it beside the first


class UserError(Exception):
    """An experiment, card, file or argument that cannot be used; the message is one line for the user.

    ``location``: the key that it is about, below what was given; empty where it is about no key.
    """

    def __init__(self, message: str = "", location: Iterable[int | str] = ()) -> None:
        super().__init__(one_line(message))
        self.location: Location = tuple(location)


@contextmanager
def told(broken: dict[str, str] | None, name: str) -> Iterator[None]:
    """Within it, what a user gave and cannot be used is put into ``broken`` under a name; None: it is an error."""
    try:
        yield
    except UserError as error:
        if broken is None:
            raise
        broken[name] = str(error)


def one_line(text: str) -> str:
    """A text that may quote a file, as one line: what is no printable character as its escape, and no longer than that.

    >>> one_line("a\\nb")
    'a\\\\nb'
    """
    if len(text) > LONGEST:  # its beginning says where, its end what to do
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 3 :]}"
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


ROOM = "make room there, and the same command goes on"


def is_full(error: BaseException | None) -> bool:
    """Whether it comes of a disk that is full, of a quota, or of a limit on the size of files."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        error = error.__cause__ or error.__context__
    return False


def shown(value: object) -> str:
    """A value as Python spells it, or its beginning where that is long.

    >>> shown("a"), len(shown("a" * 10_000))
    ("'a'", 200)
    """
    if isinstance(value, int) and abs(value) >> 64:  # Python refuses to spell thousands of digits
        return f"an integer of {value.bit_length()} bits"
    try:
        spelled = repr(value)
    except (ValueError, RecursionError):
        return type(value).__name__
    return spelled if len(spelled) <= SHOWN else f"{spelled[: SHOWN - 3]}..."


@contextmanager
def errors_in(where: str) -> Iterator[None]:
    """Say of a ValueError where it happened: ``where`` before its message."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


@contextmanager
def located(*keys: int | str) -> Iterator[None]:
    """Note of a UserError that what was given stands below these keys."""
    try:
        yield
    except UserError as error:
        error.location = (*keys, *error.location)
        raise


class Misplaced(ValueError):
    """A broken rule between keys, and the key to look at."""

    def __init__(self, location: Location, message: str) -> None:
        super().__init__(message)
        self.location = location


def nearest(wanted: object, known: Iterable[str], at_most: int = 1) -> list[str]:
    """The names that were probably meant, the nearest first: by what else they are called, or by spelling.

    >>> nearest("lr", ["momentum", "learning_rate"]), nearest("widht", ["depth", "width"]), nearest("x", ["width"])
    (['learning_rate'], ['width'], [])
    """
    names, asked = list(known), str(wanted)
    meant = SYNONYMS.get(asked.lower())
    if meant in names:
        return [meant]
    by_lower = {name.lower(): name for name in names}
    return [by_lower[name] for name in difflib.get_close_matches(asked.lower(), by_lower, n=at_most)]


def did_you_mean(wanted: object, known: Iterable[str], at_most: int = 1, shown: int | None = None) -> str:
    """The names that were probably meant, or all that there are.

    Args:
        at_most: so many of those that were meant.
        shown: so many of all; None: each.
    """
    names = list(known)
    if near := nearest(wanted, names, at_most):
        return f"did you mean {' or '.join(near)}?"
    more = f" and {len(names) - shown} more" if shown is not None and len(names) > shown else ""
    return f"there are {', '.join(names[:shown]) or 'none'}{more}"


def none_of(wanted: str, what: str, known: Iterable[str]) -> str:
    """That a name is none of the known ones, which are listed, and which was probably meant."""
    names = list(known)
    near = nearest(wanted, names)
    return f"{wanted!r} is none of {what} {', '.join(names)}{f': did you mean {near[0]}?' if near else ''}"


Problem = tuple[list[int | str], str]  # where it lies, and what it is


def problems_in(error: ValidationError, content: Any, model: type[BaseModel] | None = None) -> list[Problem]:
    """Where each problem lies and what it is, unknown keys first; a key that is missing for being misspelled is none.

    Args:
        error: what validating ``content`` raised.
        content: what was validated.
        model: as what; of an unknown key, it says which one was probably meant.
    """
    given = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    found, meant = [], set()
    for problem in given:
        is_unknown, loc = problem["type"] == "extra_forbidden", problem["loc"]
        known = fields_at(model, loc[:-1]) if is_unknown and model is not None else []
        near = next(iter(nearest(loc[-1], known)), "") if is_unknown else ""
        meant |= {(*loc[:-1], near)} if near else set()
        if problem["type"] != "missing" or loc not in meant:
            found.append(_problem(problem, content, near))
    return found


def first_problem(error: ValidationError, content: Any, model: type[BaseModel] | None = None) -> Problem:
    """The first of `problems_in`."""
    return problems_in(error, content, model)[0]


def _problem(problem: Any, content: Any, near: str) -> Problem:
    cause = problem.get("ctx", {}).get("error")
    at = _location(problem["loc"], content)
    if isinstance(cause, Misplaced):
        return [*at, *cause.location], str(cause)
    match problem["type"]:
        case "extra_forbidden":
            return at, f"{UNKNOWN_KEY}: did you mean {near}?" if near else UNKNOWN_KEY
        case "missing":
            return [*at, problem["loc"][-1]], "missing key"
        case "tuple_type":
            return at, _array_expected(problem["input"], at)
        case "dict_type" | "model_type":
            return at, f"expected a table, found {shown(problem['input'])}"
    found = "" if isinstance(problem["input"], dict | BaseModel) else f", found {shown(problem['input'])}"
    return at, problem["msg"].removeprefix("Value error, ") + found + _choice_meant(problem)


def with_others(first: str, others: Sequence[str]) -> str:
    """The first problem, and what else is wrong, as far as a line is read.

    >>> with_others("a: unknown key", ["b: missing key"])
    'a: unknown key; also b: missing key'
    """
    told = "".join(f"; also {other}" for other in others[:OTHERS])
    return f"{first}{told}" + (f" (and {len(others) - OTHERS} more)" if len(others) > OTHERS else "")


def explained(error: ValidationError, content: Mapping[str, Any], owner: str, model: type[BaseModel]) -> UserError:
    """The problems of ``owner`` ("model 'mlp'") in one line, and the location of the first below ``content``.

    Args:
        error: what validating ``content`` raised.
        content: the values by name.
        owner: who was given them, as the line should call it.
        model: what the owner takes, for the reader who misspelled a name.
    """
    (location, message), *others = problems_in(error, content, model)
    key = ".".join(str(part) for part in location)
    more = [f"{'.'.join(map(str, at))}: {what}" if at else what for at, what in others]
    if message.startswith(UNKNOWN_KEY) and len(location) == 1:
        taken, meant = ", ".join(model.model_fields) or "nothing", message.removeprefix(UNKNOWN_KEY)
        first = f"{owner} takes {taken} and no {key!r}, found {shown(content[key])}{meant}"
    else:
        first = f"{owner}: {f'{key}: ' if key else ''}{message}"
    return UserError(with_others(first, more), location)


def fields_at(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """The keys that a table takes that lies there in a model: of all alternatives, where there are several."""
    kinds: list[Any] = [model]
    for part in location:
        inside = [inner for kind in kinds for inner in _step(kind, part)]
        kinds = inside or _alternatives(kinds, part)
    tables = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return list(dict.fromkeys(name for table in tables for name in table.model_fields))


def _step(kind: Any, part: int | str) -> list[Any]:
    """What lies in an annotation under a key or place; nothing where pydantic's part is only the name of a choice."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return _unwrapped(kind.model_fields[part].annotation) if part in kind.model_fields else []
    origin, inner = get_origin(kind), get_args(kind)
    if origin is dict:
        return _unwrapped(inner[1])
    return _unwrapped(inner[0]) if origin in (tuple, list) and isinstance(part, int) else []


def _unwrapped(annotation: Any) -> list[Any]:
    """The alternatives of an annotation."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _unwrapped(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [kind for inner in get_args(annotation) if inner is not NoneType for kind in _unwrapped(inner)]
    return [annotation]


def _alternatives(kinds: Sequence[Any], tag: int | str) -> list[Any]:
    """Those that a choice is called after: by a field of theirs that takes nothing else."""
    tables = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    named = [
        table
        for table in tables
        if any(
            get_origin(f.annotation) is Literal and get_args(f.annotation) == (tag,)
            for f in table.model_fields.values()
        )
    ]
    return named or list(kinds)


def _array_expected(found: Any, location: Sequence[int | str]) -> str:
    """``seeds = 3`` asks for three seeds; any other value, for an array of itself."""
    key = next((part for part in reversed(location) if isinstance(part, str)), "")
    counts = type(found) is int and key.endswith("seeds") and 0 < found <= 20
    meant = list(range(found)) if counts else [found]
    spelled = str(meant).replace("'", '"').replace("True", "true").replace("False", "false")
    return f"expected an array, found {shown(found)}: write {key} = {spelled}"


def _choice_meant(problem: Any) -> str:
    """Of a word that is none of those that a key takes, the one that was probably meant."""
    if problem["type"] != "literal_error" or not isinstance(problem["input"], str):
        return ""
    choices = problem["ctx"]["expected"].replace(" or ", ", ").split(", ")
    near = nearest(problem["input"], [choice.strip("'") for choice in choices])
    return f": did you mean {near[0]}?" if near else ""


def _location(named: Location, content: Any) -> list[int | str]:
    """The keys that lead to the problem, without pydantic's own names for the alternatives of a union."""
    keys: list[int | str] = []
    for part in named:
        inside = range(len(content)) if isinstance(content, tuple) else content
        if isinstance(inside, dict | range) and part in inside:
            content = content[part]
            keys.append(part)
    return keys
