"""Runs a program to which the kernel refuses a system call, as under a filter of a service manager or a container.

    python refused_calls.py NUMBER PROGRAM ARGUMENT …

The call of that number fails with EPERM (seccomp(2), with a filter of classic BPF).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from typing import Final

PRLIMIT64: Final = {"x86_64": 302, "aarch64": 261}.get(platform.machine())
"""Number of the call behind `getrlimit` and `setrlimit`; None where nobody has looked it up."""
_NO_NEW_PRIVILEGES, _SECCOMP, _FILTER = 38, 22, 2  # linux/prctl.h, linux/seccomp.h
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
_LOAD, _IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # linux/bpf_common.h


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def refuse(number: int) -> None:
    """Have a system call fail from now on, in this process and those that it becomes."""
    steps = ((_LOAD, 0, 0, 0), (_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW))
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    libc = ctypes.CDLL(None, use_errno=True)
    for call in ((_NO_NEW_PRIVILEGES, 1, 0, 0, 0), (_SECCOMP, _FILTER, ctypes.byref(_Program(len(steps), code)))):
        if libc.prctl(*call):
            raise OSError(ctypes.get_errno(), "no filter of system calls")


if __name__ == "__main__":
    refuse(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - no shell
