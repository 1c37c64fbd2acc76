"""Settings as plain values, from which a record's key is made."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """What JSON can hold of a setting.

    A dataclass becomes its name and those of its fields that are not at their defaults, so that records
    keep their keys when a class gets a new field. A partial becomes its function's name and what it is given.

    Raises:
      TypeError: if the value is of another kind.

    Example:
      >>> import pdt_optax
      >>> plain({"accept": pdt_optax.random_subset(like=pdt_optax.agree()), "guard": pdt_optax.rollback(0.5)})
      {'accept': {'name': 'random_subset', 'like': {'name': 'agree'}}, 'guard': {'name': 'rollback', 'tolerance': 0.5}}
    """
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {str(name): plain(v) for name, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(v) for v in value]
    if isinstance(value, functools.partial):
        return {"name": plain(value.func), "given": plain([*value.args, value.keywords])}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"name": type(value).__name__} | plain(changed(value))
    if hasattr(value, "__qualname__") and "<" not in value.__qualname__:  # a function or class with a name
        return f"{value.__module__}.{value.__qualname__}"
    raise TypeError(
        f"A setting must be made of plain values, dataclasses and named functions. Got {value!r}."
    )


def changed(value: Any) -> dict[str, Any]:
    """The fields of a dataclass that are not at their defaults."""
    fields = {f.name: (getattr(value, f.name), f.default) for f in dataclasses.fields(value)}
    return {name: given for name, (given, default) in fields.items() if not _same(given, default)}


def _same(given: Any, default: Any) -> bool:
    return type(given) is type(default) and given == default
