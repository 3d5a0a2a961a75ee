"""Text and YAML values to typed ones and back, driven by annotations.

One reader serves the command line, YAML files and library calls, so a flag is never described twice. Parts of
a method are spelled ``name:argument,argument``: ``reset:1000`` is ``gossamer.Reset(1000)``.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import types
import typing
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import Parameter, signature
from typing import Any, Literal, Union

from ..errors import ConfigError, did_you_mean

_LISTS = (tuple, list, Sequence)
_NONE = {"none", "null"}
DATA = ("data", "inputs")  # arguments of methods that no text can give: a run fills them in
_BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class _NoMatch(Exception):
    """The value is not of this kind; try the next one."""


def parse(value: object, kind: Any, name: str) -> Any:
    """Return `value` as one of the types in the annotation `kind`; `name` is what messages call it.

    Raises ConfigError if no member of `kind` can read it.

    >>> parse("1e-3", float, "lr"), parse("none", int | None, "every"), parse("inf", int | float, "every")
    (0.001, None, inf)
    >>> parse("300,100", tuple[int, ...], "hidden")
    (300, 100)
    """
    members = _members(kind)
    for member in members:
        try:
            return _parse_one(value, member, name)
        except _NoMatch:
            continue
    parts = [name for member in members if isinstance(member, type) for name in _part_choices(member)]
    only_parts = not {int, float, bool, str} & set(members)
    head = value.partition(":")[0].lower() if isinstance(value, str) and (":" in value or only_parts) else ""
    if head and parts and head not in parts:
        raise ConfigError(f"{name} = {value!r}: unknown {head!r}{did_you_mean(head, parts)}")
    described = dict.fromkeys(_describe(member) for member in members if not (parts and _no_text(member)))
    expected = " or ".join(described)
    raise ConfigError(f"{name} = {value!r}: expected {expected}")


def spell(value: object) -> Any:
    """Return `value` as plain JSON data that `parse` reads back: the inverse of `parse`.

    >>> spell(math.inf), spell((300, 100)), spell(None)
    ('inf', [300, 100], None)
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): spell(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [spell(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _spell_part(value)
    raise ConfigError(f"{value!r} cannot be written to a config; use numbers, text or a part like 'reset:1000'")


def spelled(value: object) -> str:
    """Return `value` as ``--set`` takes it.

    >>> spelled(None), spelled([True, math.inf]), spelled("head.W")
    ('none', 'true,inf', 'head.W')
    """
    value = spell(value)
    if isinstance(value, list):
        return ",".join(map(spelled, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def parameters(function: Callable[..., Any], skip: Sequence[str] = ()) -> dict[str, tuple[Any, Any]]:
    """Return the settable arguments of `function`: name -> (annotation, default), without those in `skip`."""
    hints = typing.get_type_hints(function)
    variadic = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    return {
        name: (hints.get(name, Any), parameter.default)
        for name, parameter in signature(function).parameters.items()
        if name not in skip and parameter.kind not in variadic
    }


def spellings(kind: Any) -> list[str]:
    """The parts that an annotation takes, as text spells them, with the defaults of their arguments.

    >>> from gossamer.topology import Structure
    >>> spellings(Structure | None)[1]
    'block:rows,columns=none,p=inf'
    """
    told = []
    for member in _members(kind):
        for name, choice in _part_choices(member).items() if isinstance(member, type) else ():
            fields = _spelled_fields(choice).items()
            listed = [key if given is Parameter.empty else f"{key}={spelled(given)}" for key, (_, given) in fields]
            told.append(f"{name}:{','.join(listed)}" if listed else name)
    return told


def _members(kind: Any) -> list[Any]:
    """The alternatives of an annotation, the most specific first: '1' is a number, not text."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is Union:
        members = [member for argument in typing.get_args(kind) for member in _members(argument)]
    else:
        members = [kind]
    order = (type(None), bool, int, float)
    return sorted(members, key=lambda m: order.index(m) if m in order else (9 if m in (str, Any) else 5))


def _parse_one(value: object, kind: Any, name: str) -> Any:
    text = value.strip() if isinstance(value, str) else None
    origin = typing.get_origin(kind)
    if kind is type(None):
        return _require(None, value is None or (text or "").lower() in _NONE)
    if kind is bool:
        return value if isinstance(value, bool) else _lookup(_BOOLS, text)
    if kind in (int, float):
        return _number(value, text, kind)
    if kind in (str, Any):
        return _require(value, isinstance(value, str) or kind is Any)
    if origin is Literal:
        return _require(value, value in typing.get_args(kind))
    if origin in _LISTS:
        return _sequence(value, text, typing.get_args(kind), name)
    if origin is Mapping:
        return _require(value, isinstance(value, Mapping))
    if origin is not None or not isinstance(kind, type):
        raise _NoMatch
    return _part(value, text, kind, name)


def _require(value: Any, holds: bool) -> Any:
    if not holds:
        raise _NoMatch
    return value


def _lookup(table: Mapping[str, Any], text: str | None) -> Any:
    return _require(table.get((text or "").lower()), (text or "").lower() in table)


def _number(value: object, text: str | None, kind: Callable[[Any], Any]) -> Any:
    """Whole numbers are spelled without a point, since 1 may mean a step where 1.0 is a fraction."""
    allowed = (int, str) if kind is int else (int, float, str)
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise _NoMatch
    try:
        return kind(value if text is None else text)
    except ValueError:
        raise _NoMatch from None


def _sequence(value: object, text: str | None, arguments: tuple[Any, ...], name: str) -> tuple[Any, ...]:
    kind = arguments[0] if arguments else Any
    if text is not None and text.lower() in _NONE and kind in (int, float, int | float):
        return ()  # as text an empty list is hard to see
    if text is not None:
        items: Sequence[object] = [item for item in text.strip("[]()").split(",") if item.strip()]
    elif isinstance(value, Sequence):
        items = value
    else:
        items = [value]
    return tuple(parse(item, kind, name) for item in items)


def _part(value: object, text: str | None, kind: type, name: str) -> Any:
    """A dataclass of the annotation's kind, handed in or spelled ``name:argument,argument``."""
    choices = _part_choices(kind)
    kinds = [c for c in (kind, *choices.values()) if isinstance(c, type) and dataclasses.is_dataclass(c)]
    if isinstance(value, tuple(kinds)):
        return value
    if text is None or not choices:
        raise _NoMatch
    head, _, tail = text.partition(":")
    choice = choices.get(head.lower())
    if choice is None:
        raise _NoMatch
    fields = _spelled_fields(choice)
    given = [item for item in tail.split(",") if item.strip()]
    named = [item.partition("=") for item in given if "=" in item]
    by_place = [item for item in given if "=" not in item]
    if len(by_place) > len(fields):
        raise ConfigError(f"{name} = {value!r}: {head} takes {len(fields)} arguments at most")
    pairs = [*zip(fields, by_place, strict=False), *((key.strip(), item) for key, _, item in named)]
    texts = dict(pairs)
    twice = [field for field, count in Counter(field for field, _ in pairs).items() if count > 1]
    if twice:
        raise ConfigError(f"{name} = {value!r}: {head} is given {twice[0]!r} twice")
    needed = [field for field, (_, default) in fields.items() if default is Parameter.empty]
    if not set(needed) <= texts.keys():
        raise ConfigError(f"{name} = {value!r}: {head} needs {', '.join(needed)}; write {head}:{','.join(needed)}")
    for field in texts:
        if field not in fields:
            hint = did_you_mean(field, fields) if fields else "; it takes none"
            raise ConfigError(f"{name} = {value!r}: {head} has no argument {field!r}{hint}")
    return choice(**{field: parse(item, fields[field][0], f"{name}.{field}") for field, item in texts.items()})


def _spelled_fields(choice: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """The arguments that text can give, in order: not those by keyword only, and not data."""
    given = {n for n, p in signature(choice).parameters.items() if p.kind is not Parameter.KEYWORD_ONLY}
    return {name: field for name, field in parameters(choice, skip=DATA).items() if name in given}


def _part_choices(kind: type) -> dict[str, Callable[..., Any]]:
    """What can stand for `kind`: what it lists as ``spellings``, itself, or a protocol's implementations beside it."""
    if hasattr(kind, "spellings"):
        return dict(kind.spellings)
    if dataclasses.is_dataclass(kind):
        fields = parameters(kind).values()
        no_text = any(
            typing.get_origin(a) in (Callable, Mapping) for a, default in fields if default is Parameter.empty
        )
        return {} if no_text else {kind.__name__.lower(): kind}
    if not getattr(kind, "_is_protocol", False):
        return {}
    wanted = {n for n in (*vars(kind), *kind.__annotations__) if n == "__call__" or not n.startswith("_")}
    return {
        item.__name__.lower(): item
        for item in vars(sys.modules[kind.__module__]).values()
        if dataclasses.is_dataclass(item) and isinstance(item, type) and not item.__name__.startswith("_")
        if wanted <= {name for base in item.__mro__ for name in vars(base)}
    }


def _no_text(kind: Any) -> bool:
    """Whether `kind` is a dataclass that only Python can make: its name means nothing in a config."""
    return isinstance(kind, type) and dataclasses.is_dataclass(kind) and not _part_choices(kind)


def _spell_part(value: Any) -> str:
    listed = hasattr(value, "spellings")
    name, read = (value.label, value.argument) if listed else (type(value).__name__.lower(), partial(getattr, value))
    choice = value.spellings.get(name) if listed else type(value)
    fields = {} if choice is None else _spelled_fields(choice)
    told = {field: spell(read(field)) for field, (_, default) in fields.items() if read(field) != default}
    if listed:
        arguments = ",".join(f"{field}={item}" for field, item in told.items())
    else:
        last = max((i for i, field in enumerate(fields) if field in told), default=0)
        arguments = ",".join(str(spell(read(field))) for field in list(fields)[: last + 1])
    text = f"{name}:{arguments}" if arguments else str(name)
    if listed and (choice is None or parse(text, type(value), "init") != value):
        raise ConfigError(f"{text}: a config holds {', '.join(value.spellings)} and their arguments, no other objects")
    return text


def _describe(kind: Any) -> str:
    if kind is type(None):
        return "none"
    if typing.get_origin(kind) is Literal:
        return ", ".join(map(repr, typing.get_args(kind)))
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if kind in names:
        return names[kind]
    if typing.get_origin(kind) in _LISTS:
        return "a comma-separated list"
    choices = _part_choices(kind) if isinstance(kind, type) else {}
    ending = "" if hasattr(kind, "spellings") else ":..."
    return ", ".join(f"'{name}{ending}'" for name in choices) or str(getattr(kind, "__name__", kind))
