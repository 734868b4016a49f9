"""One reading of all GPUs in a process of its own, as JSON: as another user, or on the stub.

    python -m device.listing [USER_ID]

Everything is imported before the user changes, who may not be allowed to read the source tree.
"""

from __future__ import annotations

import json
import os
import sys

from llm_headroom.gpu import GpuError, Gpus, Reading


def main() -> None:
    """Print {"series": {name and labels: value}, "processes": {pid: bytes}} or {"error": why}."""
    import pynvml  # noqa: F401, PLC0415 - see above; Gpus imports it when it reads

    if len(sys.argv) > 1:
        os.setgroups([])
        os.setgid(int(sys.argv[1]))
        os.setuid(int(sys.argv[1]))
    gpus = Gpus()
    try:
        print(json.dumps(listed(gpus.read())))
    except GpuError as error:
        print(json.dumps({"error": error.failure.message}))
    finally:
        gpus.close()


def listed(reading: Reading) -> dict[str, dict[str, float | None]]:
    """A reading's series and processes."""
    series = {
        repr(point.series): float(point.value) for point in reading.points if isinstance(point.value, float | int)
    }
    processes = {str(each.pid): each.memory for device in reading.processes for each in device.processes}
    return {"series": {**series}, "processes": {**processes}}


if __name__ == "__main__":
    main()
