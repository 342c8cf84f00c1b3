"""Checks of values that a user wrote, with messages that name the key, the value and what would be right."""
import difflib
import math
from typing import Any, Callable, Iterable, Sequence

from lowrank_d2.errors import ConfigError


def one_of(key: str, value: object, allowed: Sequence[str]) -> str:
    """Returns `value` if it is among `allowed`.

    Raises:
        ConfigError: naming all allowed values and the nearest.
    """
    if isinstance(value, str) and value in allowed:
        return value
    listed = ", ".join(repr(name) for name in allowed)
    raise ConfigError(f"{key} is {value!r}. Use one of {listed}{nearest(value, allowed)}.")


def nearest(value: object, allowed: Iterable[str]) -> str:
    """' (nearest: ...)', or nothing when no allowed word resembles `value`."""
    found = difflib.get_close_matches(str(value).lower(), list(allowed), n=1, cutoff=0.4)
    return f" (nearest: {found[0]!r})" if found else ""


def count(key: str, value: object) -> int:
    """Returns `value` if it is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{key} is {value!r}. Use an integer of 1 or more.")
    return value


def positive(key: str, value: object) -> float:
    """Returns a finite number above 0 as a float."""
    if not _is_number(value) or not value > 0:
        raise ConfigError(f"{key} is {value!r}. Use a number above 0.")
    return float(value)


def not_negative(key: str, value: object) -> float:
    """Returns a finite number of at least 0 as a float."""
    if not _is_number(value) or value < 0:
        raise ConfigError(f"{key} is {value!r}. Use a number of 0 or more.")
    return float(value)


def probability(key: str, value: object) -> float:
    """Returns a number in [0, 1) as a float."""
    if not _is_number(value) or not 0 <= value < 1:
        raise ConfigError(f"{key} is {value!r}. Use a number from 0 up to, but not including, 1.")
    return float(value)


def boolean(key: str, value: object) -> bool:
    """Returns `value` if it is True or False."""
    if not isinstance(value, bool):
        raise ConfigError(f"{key} is {value!r}. Use True or False.")
    return value


def words(key: str, value: object) -> tuple[str, ...]:
    """Returns a list or tuple of non-empty strings as a tuple."""
    if isinstance(value, str):
        raise ConfigError(f"{key} is the text {value!r}, not a list. Write [{value!r}].")
    if not isinstance(value, (list, tuple)) or not all(isinstance(word, str) and word for word in value):
        raise ConfigError(f"{key} is {value!r}. Use a list of names, for example ['value_proj'].")
    return tuple(value)


def pairs(key: str, value: object, check: Callable[[str, object], Any]) -> tuple[tuple[str, Any], ...]:
    """Returns a list of (name, value) pairs as a tuple of tuples, each value as `check` returns it."""
    if not isinstance(value, (list, tuple)) or not all(_is_pair(entry) for entry in value):
        raise ConfigError(f"{key} is {value!r}. Use a list of pairs, for example [['value_proj', 4]].")
    return tuple((name, check(f"{key}[{name}]", entry)) for name, entry in value)


def _is_pair(value: object) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and isinstance(value[0], str) and bool(value[0])


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
