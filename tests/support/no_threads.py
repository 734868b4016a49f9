"""A system that gives no thread."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def no_threads() -> Iterator[None]:
    """The system refuses every new thread: its stack would be larger than any address space."""
    before = threading.stack_size(1 << 48)
    try:
        yield
    finally:
        threading.stack_size(before)
