"""What is wrong with a study file, in its own words and not in pydantic's."""

from __future__ import annotations

import difflib
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_UNION_TAGS = (
    *("constrained-str", "dict[constrained-str,constrained-str]"),
    *("literal['voxel','shared']", "constrained-float"),
)
"""What pydantic adds to the paths of a movie, which may be a text or a table, and of alpha."""

_TYPES = {"tuple_type": "a list in brackets", "dict_type": "a table", "model_type": "a table"}
"""What TOML calls that which pydantic calls by JSON's names."""


def describe_problems(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """A line for each problem: its key, what was expected and what was found.

    Parameters
    ----------
    error : ValidationError
    root : type of BaseModel
        Of the whole file: tells which keys are known.
    """
    lines = []
    items = error.errors()
    locs = [tuple(part for part in item["loc"] if part not in _UNION_TAGS) for item in items]
    for item, loc in zip(items, locs, strict=True):
        # Of a key of several forms pydantic tells all, and of a list it counts the valid members only.
        tells_too_much = item["loc"][-1:] != loc[-1:] or item["type"] == "too_short"
        if tells_too_much and any(len(other) > len(loc) and other[: len(loc)] == loc for other in locs):
            continue  # what is inside has lines of its own
        key = ".".join(str(part + 1 if isinstance(part, int) else part) for part in loc)
        if item["type"] == "extra_forbidden":
            known = known_keys(root, loc[:-1])
            near = difflib.get_close_matches(str(loc[-1]), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
            lines.append(f"{key}: unknown key; {hint}")
            continue
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "missing":
            lines.append(f"{key}: required, but absent")
        elif item["type"] == "value_error":
            lines += [f"{key}: {part}" if key else part for part in message.splitlines()]
        elif item["type"] == "string_type" and type(item["input"]) in (int, float) and locs.count(loc) == 1:
            number = item["input"]
            lines.append(f'{key}: a text goes in quotes, "{number}"; found the number {number}')
        else:
            said = [_expected(other) for other, its_loc in zip(items, locs, strict=True) if its_loc == loc]
            forms = ", or ".join([said[0], *(form.removeprefix("input should be ") for form in said[1:])])
            lines.append(f"{key}: {forms}, found {item['input']!r}")
    return list(dict.fromkeys(lines))


def _expected(item: ErrorDetails) -> str:
    """What pydantic expected, in the words of the study file."""
    kind, message = item["type"], item["msg"]
    if kind in ("too_short", "too_long"):
        bound, how = ("min_length", "least") if kind == "too_short" else ("max_length", "most")
        n = item["ctx"][bound]
        return f"input should have at {how} {n} item{'s' if n > 1 else ''}"
    return f"input should be {_TYPES[kind]}" if kind in _TYPES else f"{message[0].lower()}{message[1:]}"


def known_keys(root: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """Keys of the table at a path of the file; fields that are kept from files are none."""
    table = root
    for part in loc:
        field = table.model_fields.get(str(part))
        table = table if field is None else _table_of(field.annotation) or table
    return [key for key, field in table.model_fields.items() if not field.exclude]


def _table_of(annotation: Any) -> type[BaseModel] | None:
    """The table in a type such as ``tuple[Run, ...]`` or ``dict[str, FeatureFile]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _table_of(part))), None)
