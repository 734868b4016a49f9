"""The host's clock is set while the exporter runs: how long ago something was stays right."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any, Final

import pytest

from engine_server import EngineServer, Reply
from exporter_process import Exporter
from llm_headroom.clock import LEAST_STEP, Clock

HOUR: Final = 3600.0
SERVED: Final = b'vllm:num_requests_running{model_name="m"} 1.0\n'


class Hands:
    """Two clocks that a test moves."""

    def __init__(self) -> None:
        self.unix, self.monotonic = 1_795_000_000.0, 1000.0
        self.clock = Clock(lambda: self.unix, lambda: self.monotonic)

    def pass_(self, seconds: float) -> None:
        """Time passes."""
        self.unix += seconds
        self.monotonic += seconds


@pytest.mark.parametrize("step", [-30 * HOUR, -HOUR, -LEAST_STEP, LEAST_STEP, 7.0, HOUR, 56 * 365 * 24 * HOUR])
def test_a_set_clock_changes_no_duration_and_moves_what_is_shown(step: float) -> None:
    hands = Hands()
    before = hands.clock.now()
    hands.pass_(10.0)
    hands.unix += step
    hands.pass_(5.0)

    assert hands.clock.now() - before == 15.0
    assert hands.clock.set_by() == step
    assert hands.clock.shown(hands.clock.now()) == hands.unix
    assert hands.unix - hands.clock.shown(before) == 15.0


def test_what_is_shown_stays_the_same_while_a_clock_is_not_set() -> None:
    hands = Hands()
    begin = hands.clock.now()
    for drift in (0.4, -0.9, 0.99, 0.0):
        hands.pass_(100.0)
        hands.unix += drift
        assert hands.clock.shown(begin) == begin
        hands.unix -= drift


def test_several_small_steps_are_one_large_one() -> None:
    hands = Hands()
    for _ in range(10):
        hands.unix += 0.3
        hands.pass_(1.0)
        assert abs(hands.clock.shown(hands.clock.now()) - hands.unix) < LEAST_STEP


def preloaded(folder: Path, shift: Path) -> dict[str, str]:
    """The variables by which a program's clock is ahead by what a file says."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("setting a program's clock needs a C compiler (Debian: gcc)")
    library = folder / "set_clock.so"
    source = Path(__file__).parent / "support" / "set_clock.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source)], check=True)
    return {"LD_PRELOAD": str(library), "CLOCK_SHIFT": str(shift)}


def view(exporter: Exporter) -> dict[str, Any]:
    """What the page shows, as JSON."""
    with urllib.request.urlopen(f"{exporter.url}/api/v1/stream", timeout=90) as answer:  # noqa: S310 - our own server
        for line in answer:
            if line.startswith(b"data: "):
                return dict(json.loads(line[6:]))
    raise AssertionError("the stream has ended")


@pytest.mark.parametrize("steps", [(7200, 0), (-7200, 86_400)])
def test_how_long_a_state_has_held_and_what_was_read_do_not_follow_the_clock(
    steps: tuple[int, int], tmp_path: Path
) -> None:
    shift = tmp_path / "shift"
    shift.write_text("0")
    preload = preloaded(tmp_path, shift)
    targets = ("--target=vllm=http://127.0.0.1:9", "--interval=100ms", "--no-gpu")
    with (
        EngineServer({"/metrics": Reply(SERVED)}) as engine,
        Exporter(f"--target=vllm={engine.url}", *targets, extra=preload) as exporter,
    ):
        begun = time.monotonic()

        def right(step: float) -> bool:
            """Whether all is dated by the clock as it is set, and as old as it is."""
            seen = view(exporter)
            if abs(seen["time"] - step - time.time()) > 60.0:
                return False
            cards = {each["state"]["name"]: each for each in seen["engines"]}
            dates = [at for each in cards.values() for at in (each["state"]["since"], each["source"]["taken"])]
            oldest = time.monotonic() - begun + 60.0
            return all(-1.0 < seen["time"] - at < oldest for at in dates)

        def remembered() -> int:
            """Readings of the engine that its history has."""
            return max(len(each["ages"]) for each in view(exporter)["engines"])

        exporter.until(lambda: len(view(exporter)["engines"]) == len(targets) - 1 and right(0.0))
        for step in steps:
            before = remembered()
            shift.write_text(str(step))
            exporter.until(lambda: right(step))  # noqa: B023 - used at once
            exporter.until(lambda: remembered() > before)  # noqa: B023
        success = exporter.metrics()["llm_source_last_success_timestamp_seconds"]

    assert abs(max(success.values()) - steps[-1] - time.time()) < 60.0
