"""Every error gossamer raises on its own account.

::

    GossamerError
    +-- ConfigError(ValueError)        a value, name or combination that cannot work
    |   +-- TargetError                targets that match nothing, or a weight that cannot be made sparse
    |   +-- DataError                  a data set that is absent or not in the expected layout
    +-- AttachError(RuntimeError)      optimizer and sparsifier do not fit each other
    +-- CheckpointError(ValueError)    a file or state that is damaged or belongs to another model
    +-- SyncError(RuntimeError)        ranks of a distributed run disagree
    +-- DivergedError(RuntimeError)    a loss, gradient or score is not finite
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GossamerError(Exception):
    """Base of all errors that gossamer raises on its own account."""


class ConfigError(GossamerError, ValueError):
    """A value, name or combination that cannot work."""


class TargetError(ConfigError):
    """Targets that match nothing, or a weight that cannot be made sparse."""


class DataError(ConfigError):
    """A data set that is absent or not in the expected layout."""


class AttachError(GossamerError, RuntimeError):
    """Optimizer and sparsifier do not fit each other."""


class CheckpointError(GossamerError, ValueError):
    """A file or state that is damaged or belongs to another model."""


class SyncError(GossamerError, RuntimeError):
    """Ranks of a distributed run disagree."""


class DivergedError(GossamerError, RuntimeError):
    """A loss, gradient or score is not finite."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` with the nearest known names, and the full list.

    >>> did_you_mean("rigle", ["rigl", "set"])
    "; did you mean 'rigl'? Known: rigl, set"
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(n) for n in near)}? Known" if near else "known"
    return f"; {hint}: {', '.join(known)}"


def check_number(name: str, value: object, meaning: str, low: float = 0.0, high: float = float("inf")) -> None:
    """Raise ConfigError unless ``value`` is a finite number from ``low`` to ``high``."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and low <= value <= high and abs(value) < float("inf")):  # type: ignore[operator, arg-type]
        bounds = f"from {low:g} on" if high == float("inf") else f"from {low:g} to {high:g}"
        raise ConfigError(f"{name}={value!r}: this is {meaning}, a number {bounds}")


def check_flag(name: str, value: object) -> None:
    """Raise ConfigError unless ``value`` is True or False: any text would count as true."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name}={value!r}: expected True or False")


def check_seed(seed: object) -> None:
    """Raise ConfigError unless ``seed`` is an int; True and 1.0 would draw other numbers than 1."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ConfigError(f"seed={seed!r}: expected an int, the same on every rank")


def check_kept_seed(seed: object) -> None:
    """The same for a seed that a tensor keeps."""
    check_seed(seed)
    if not -(2**63) <= seed < 2**63:  # type: ignore[operator]
        raise ConfigError(f"seed={seed!r:.40}: it is kept in 64 bits; expected an int from -2**63 to 2**63 - 1")


def check_choice(what: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ConfigError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ConfigError(f"{what} is {value!r}; expected one of {', '.join(map(repr, choices))}")
