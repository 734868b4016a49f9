"""Dataclasses that nobody changes, which the type checker sees to.

One that sees to it itself (`frozen=True`) takes eight times as long to make, and a poll makes a hundred.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(kind: type[T]) -> type[T]:
    """A class of such values."""
    return dataclass(slots=True, unsafe_hash=True)(kind)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def frozen_named(kind: type[T]) -> type[T]:
    """The same, whose fields are named where a value is made."""
    return dataclass(slots=True, unsafe_hash=True, kw_only=True)(kind)
