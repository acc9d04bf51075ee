"""Typed fields of frozen dataclasses: their accepted values, and reading them from text and plain data.

An error names the field's path, the value, and what is accepted, with the nearest name for a typo.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from lm.errors import ConfigError, did_you_mean


def option(default: Any, *, choices: Sequence[str] = (), ge=None, gt=None, le=None, lt=None, identity: bool = True):
    """A config field with its accepted values. `identity=False`: it cannot change a run's numbers."""
    bounds = {"ge": ge, "gt": gt, "le": le, "lt": lt}
    return dataclasses.field(default=default, metadata={"choices": tuple(choices), "identity": identity, **bounds})


def field_types(section_type: type) -> dict[str, Any]:
    return typing.get_type_hints(section_type)


def unknown_field(path: str, name: str, accepted: Mapping) -> ConfigError:
    return ConfigError(
        f"config.{path} is not a field.{did_you_mean(name, accepted)} Accepted here: {', '.join(sorted(accepted))}."
    )


def bad_value(path: str, value: Any, accepted: str) -> ConfigError:
    return ConfigError(f"config.{path}={value!r}: expected {accepted}.")


def _type_name(kind: Any) -> str:
    if isinstance(kind, types.UnionType):
        return " or ".join(_type_name(part) for part in typing.get_args(kind))
    if kind is type(None):
        return "None"
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)
        return f"a tuple of {_type_name(inner[0])}" if inner[-1] is ... else f"({', '.join(map(_type_name, inner))})"
    names = {int: "an integer", float: "a number", bool: "True or False", str: "a text"}
    return names[kind]


def parse(path: str, text: str, kind: Any) -> Any:
    """Read command-line text as a field's type; `build` then checks it like any other value."""
    import ast

    optional_text = isinstance(kind, types.UnionType) and str in typing.get_args(kind)
    if kind is str or (optional_text and text not in ("None", "none")):
        return text
    if kind == tuple[str, ...] and not text.lstrip().startswith(("(", "[", "'", '"')):
        return (text,)
    spelled = {"true": "True", "false": "False", "none": "None"}.get(text, text)
    if spelled in ("nan", "inf", "-inf"):
        return float(spelled)
    try:
        return ast.literal_eval(spelled)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise bad_value(path, text, _type_name(kind)) from error


def _coerce(path: str, value: Any, kind: Any) -> Any:
    """Return the value as the annotated type, or raise; a bool is not an int, an int is a float."""
    if isinstance(kind, types.UnionType):
        if value is None and type(None) in typing.get_args(kind):
            return None
        (kind_of_value,) = (part for part in typing.get_args(kind) if part is not type(None))
        return _coerce_or(path, value, kind_of_value, kind)
    return _coerce_or(path, value, kind, kind)


def _coerce_or(path: str, value: Any, kind: Any, whole: Any) -> Any:
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)
        if inner[-1] is ... and not isinstance(value, list | tuple):
            value = (value,)  # one value stands for a tuple of one
        if not isinstance(value, list | tuple):
            raise bad_value(path, value, _type_name(whole))
        kinds = [inner[0]] * len(value) if inner[-1] is ... else inner
        if len(kinds) != len(value):
            raise bad_value(path, value, _type_name(whole))
        return tuple(_coerce(path, part, part_kind) for part, part_kind in zip(value, kinds, strict=True))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise bad_value(path, value, _type_name(whole))
    if kind is float and not math.isfinite(value):
        raise bad_value(path, value, "a finite number")
    return value


def _check_bounds(path: str, value: Any, metadata: Mapping) -> None:
    if isinstance(value, tuple):
        for part in value:
            _check_bounds(path, part, metadata)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        tests = {
            "ge": (lambda bound: value >= bound, "at least"),
            "gt": (lambda bound: value > bound, "more than"),
            "le": (lambda bound: value <= bound, "at most"),
            "lt": (lambda bound: value < bound, "less than"),
        }
        active = {name: metadata[name] for name in tests if metadata[name] is not None}
        if not all(tests[name][0](bound) for name, bound in active.items()):
            wanted = " and ".join(f"{tests[name][1]} {bound}" for name, bound in active.items())
            raise bad_value(path, value, f"a number that is {wanted}")
    elif metadata["choices"] and value is not None and value not in metadata["choices"]:
        accepted = ", ".join(metadata["choices"])
        raise ConfigError(
            f"config.{path}={value!r}: expected one of {accepted}.{did_you_mean(str(value), metadata['choices'])}"
        )


def sections_of(kind: Any) -> type | None:
    """Return the dataclass of a field that holds sections by names of the user's own, `dict[str, Section]`."""
    return typing.get_args(kind)[1] if typing.get_origin(kind) is dict else None


def _build_each(section_type: type, values: Any, path: str) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise ConfigError(f"config.{path}={values!r}: expected sections by name.")
    return {name: build(section_type, value, f"{path}.{name}.") for name, value in values.items()}


def build(section_type: type, values: Any, prefix: str):
    """Build one frozen dataclass from a mapping, checking names, types and bounds."""
    hints = field_types(section_type)
    if not isinstance(values, Mapping):
        raise ConfigError(f"config.{prefix.rstrip('.')}={values!r}: expected a section with {', '.join(hints)}.")
    for name in values:
        if name not in hints:
            raise unknown_field(f"{prefix}{name}", name, hints)
    built = {}
    for field in dataclasses.fields(section_type):
        if field.name not in values:
            continue
        path, value, kind = f"{prefix}{field.name}", values[field.name], hints[field.name]
        if dataclasses.is_dataclass(kind):
            built[field.name] = build(kind, value, f"{path}.")
        elif named := sections_of(kind):
            built[field.name] = _build_each(named, value, path)
        else:
            built[field.name] = _coerce(path, value, kind)
            _check_bounds(path, built[field.name], field.metadata)
    return section_type(**built)
