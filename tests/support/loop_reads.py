"""Runs a module and says which files its event loop's thread looks at: while one of these hangs, all else waits.

    python loop_reads.py MODULE ARGUMENT …

Each look is a line of JSON on standard error. What OpenSSL opens by itself is not seen; whoever has it do so
reads the file before, for an error that names it.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import runpy
import sys
import threading
from typing import Any

SAID = "the event loop looks at a file"
_LOOP = threading.get_ident()
_EVENTS = frozenset({"open", "os.listdir", "os.scandir"})


def _look(path: object) -> None:
    if threading.get_ident() != _LOOP or asyncio._get_running_loop() is None or isinstance(path, int):  # noqa: SLF001 - as in net/files.py
        return
    os.write(2, f"{json.dumps({'msg': SAID, 'file': os.fsdecode(path)})}\n".encode())  # type: ignore[arg-type]


def _heard(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _EVENTS:
        _look(arguments[0])


def _seen(call: Any) -> Any:  # noqa: ANN401 - any call that takes a path first
    @functools.wraps(call)
    def wrapped(path: Any, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - as the call
        _look(path)
        return call(path, *arguments, **options)

    return wrapped


if __name__ == "__main__":
    for name in ("stat", "lstat", "access", "readlink"):
        setattr(os, name, _seen(getattr(os, name)))
    sys.addaudithook(_heard)
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
