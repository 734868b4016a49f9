"""Headless Chromium, driven through the pipe of its DevTools protocol (chromedevtools.github.io/devtools-protocol)."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from typing import TYPE_CHECKING, Any, Final, Self

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DEADLINE: Final = 90.0
"""Seconds after which what a test waits for is held not to come."""
PAUSE: Final = 0.05
"""Seconds until the page is asked again: without them the asking takes the CPU of those who work."""


class Chromium:
    """A browser with one page at a time. `log` is every message of the page's console, and the browser's about it."""

    def __init__(self, profile: Path) -> None:
        """`profile` is a folder for the browser's files. Skips the test where Chromium is not installed."""
        found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        if found is None:
            pytest.skip("the status page is tested in a browser: install the Debian package chromium")
        self._program = found
        self._profile = profile
        self._last = 0
        self._buffer = b""
        self._session = ""
        self.log: list[tuple[str, str]] = []
        self.requests: list[str] = []

    def __enter__(self) -> Self:
        their_in, self._out = os.pipe()
        self._in, their_out = os.pipe()
        command = (
            *(self._program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--no-first-run", "--disable-extensions", "--disable-background-networking", "--remote-debugging-pipe"),
            f"--user-data-dir={self._profile}",
        )
        # The browser reads its commands from descriptor 3 and writes to 4.
        shell = f'exec 3<&{their_in} 4>&{their_out}; exec "$@"'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "bash", *command],
            pass_fds=(their_in, their_out),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        os.close(their_in)
        os.close(their_out)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    @contextlib.contextmanager
    def page(self, *, scripts: bool = True) -> Iterator[Self]:
        """A page as of a browser that was just installed: nothing is left of those before."""
        self.log, self.requests = [], []
        context = self._call("Target.createBrowserContext")["browserContextId"]
        target = self._call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        if not scripts:
            self._call("Emulation.setScriptExecutionDisabled", value=True)
        try:
            yield self
        finally:
            self._session = ""
            self._call("Target.disposeBrowserContext", browserContextId=context)

    def open(self, url: str) -> None:
        """Go to a page, and wait until it is loaded."""
        self._call("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def evaluate(self, expression: str) -> Any:  # noqa: ANN401 - JSON
        """The value of an expression in the page."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait until an expression is true in the page."""
        end = time.monotonic() + DEADLINE
        while not self.evaluate(condition):
            assert time.monotonic() < end, (condition, self.log, self.evaluate("document.body.innerText"))
            select.select([self._in], [], [], PAUSE)  # until the browser says something, or a moment

    def size(self, width: int, height: int) -> None:
        """The window's size."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def scheme(self, name: str) -> None:
        """What the reader prefers: `light` or `dark`."""
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def screenshot(self, *, whole: bool = False) -> bytes:
        """A PNG of the window, or of the whole page."""
        return base64.b64decode(self._call("Page.captureScreenshot", captureBeyondViewport=whole)["data"])

    def _call(self, method: str, **parameters: object) -> dict[str, Any]:
        self._last += 1
        message: dict[str, object] = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._last:
            self._note(answer)
        assert "error" not in answer, (method, answer)
        result = answer["result"]
        assert isinstance(result, dict)
        return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            data = os.read(self._in, 1 << 20)
            assert data, "Chromium has ended"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        found = json.loads(message)
        assert isinstance(found, dict)
        return found

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("sessionId", "") != self._session:
            return  # of a page that was closed
        told = event.get("params", {})
        match event.get("method"):
            case "Log.entryAdded":
                self.log.append((told["entry"]["level"], told["entry"]["text"]))
            case "Runtime.consoleAPICalled":
                self.log.append((told["type"], str(told["args"])))
            case "Runtime.exceptionThrown":
                self.log.append(("error", str(told["exceptionDetails"])))
            case "Network.requestWillBeSent":
                self.requests.append(told["request"]["url"])
