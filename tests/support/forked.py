"""The program in processes forked from one that has imported it: each starts with a tenth of the CPU time.

They are real processes: with a number, log, environment and exit status of their own, ended by signals. What a process
has only from its start (a limit on descriptors, LD_* variables, warnings while importing) they lack: tests of these
start `exporter_process.COMMAND`.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import warnings
from multiprocessing.reduction import DupFd
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_FORKS: Final = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["llm_headroom.commands.run", "llm_headroom.commands.simulate"])


class _Opened:
    """A descriptor of this process that will be open in the other one, too, where it arrives as its number."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __reduce__(self) -> tuple[Any, ...]:
        return _number, (DupFd(self._descriptor),)


def _number(opened: Any) -> int:  # noqa: ANN401 - multiprocessing does not export its type
    number: int = opened.detach()
    return number


def _main(
    arguments: Sequence[str], environment: Mapping[str, str], cwd: Path | None, outputs: Mapping[int, int]
) -> None:
    """What the process does instead of `python -W error -m llm_headroom`."""
    from llm_headroom.commands.cli import main  # noqa: PLC0415 - here, not in the process that asks

    for number, sent in outputs.items():
        os.dup2(sent, number, inheritable=True)
        os.close(sent)
    os.environ.clear()
    os.environ.update(environment)
    if cwd is not None:
        os.chdir(cwd)
    sys.argv = ["llm-headroom", *arguments]
    warnings.simplefilter("error")
    main(prog_name="llm-headroom")


class Forked:
    """`llm-headroom` with some arguments; `outputs` are descriptors for its standard output (1) and error (2)."""

    def __init__(
        self, arguments: Sequence[str], environment: Mapping[str, str], cwd: Path | None, outputs: Mapping[int, int]
    ) -> None:
        opened = {number: _Opened(descriptor) for number, descriptor in outputs.items()}
        self._process = _FORKS.Process(target=_main, args=(arguments, environment, cwd, opened), daemon=True)
        self._process.start()
        assert self._process.pid is not None
        self.pid: Final = self._process.pid

    def poll(self) -> int | None:
        """The exit status; None while it runs."""
        return self._process.exitcode

    def wait(self, seconds: float) -> int:
        """The exit status, when it is there."""
        self._process.join(seconds)
        status = self.poll()
        assert status is not None, "it has not ended"
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)
