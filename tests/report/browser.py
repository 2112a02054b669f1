"""A real browser, Chromium without a window, driven by its DevTools protocol over two pipes: nothing to install for it.

    --remote-debugging-pipe    Chromium reads commands from descriptor 3 and writes answers and events to 4: JSON, each
                               ended by a zero byte
https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_SECONDS = 60.0
Scheme = Literal["light", "dark"]


def find() -> str | None:
    """The browser's path, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@dataclass(frozen=True)
class Seen:
    """A page as a reader meets it.

    requests    addresses that it asked for, its own first
    complaints  what the console shows: errors, warnings, exceptions
    screenshot  PNG of the whole page
    ask         evaluates an expression of JavaScript in it
    """

    requests: list[str]
    complaints: list[str]
    screenshot: bytes
    ask: Callable[[str], Any]


class Browser:
    """One browser for many pages, for a `with` block.

    folder  for its profile
    """

    def __init__(self, path: str, folder: Path) -> None:
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        # Away from 3 and 4, where the browser is to have its ends.
        theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (to_browser, from_browser)]

        def place() -> None:
            os.dup2(theirs[0], 3)
            os.dup2(theirs[1], 4)

        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"]
        options += ["--hide-scrollbars", "--disable-background-networking", f"--user-data-dir={folder}"]
        self._process = subprocess.Popen(
            [path, *options, "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(3, 4),
            preexec_fn=place,
        )
        for fd in (to_browser, from_browser, *theirs):
            os.close(fd)
        self._read, self._number, self._session = b"", 0, ""
        self._events: list[dict[str, Any]] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(OSError):
            self._session = ""
            self._send("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def look(self, file: Path, *, width: int = 1200, scheme: Scheme = "light") -> Seen:
        """Open a file of this machine in a window of so many pixels, for a reader with that preference."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self._call("Emulation.setEmulatedMedia", features=[feature])
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        for url in ("about:blank", file.as_uri()):
            self._events.clear()
            opened = self._call("Page.navigate", url=url)
            assert "errorText" not in opened, f"{url}: {opened['errorText']}"
            self._wait("Page.loadEventFired")
        size = self._call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": width, "height": size["height"], "scale": 1}
        shot = self._call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        events = list(self._events)
        return Seen(
            [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"],
            [complaint for event in events if (complaint := _complaint(event))],
            base64.b64decode(shot["data"]),
            self._ask,
        )

    def _ask(self, expression: str) -> Any:
        return self._call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def _send(self, method: str, **arguments: Any) -> int:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": arguments}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        return self._number

    def _call(self, method: str, **arguments: Any) -> dict[str, Any]:
        number = self._send(method, **arguments)
        while True:
            message = self._receive()
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                result: dict[str, Any] = message["result"]
                return result

    def _wait(self, method: str) -> None:
        while not any(event["method"] == method for event in self._events):
            self._receive()

    def _receive(self) -> dict[str, Any]:
        """The next message; an event is kept."""
        end = time.monotonic() + _SECONDS
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._in], [], [], max(0, end - time.monotonic()))
            data = os.read(self._in, 1 << 16) if ready else b""
            assert data, "the browser has gone, or has nothing to say for a minute"
            self._read += data
        text, _, self._read = self._read.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        if "method" in message:
            self._events.append(message)
        return message


def _complaint(event: dict[str, Any]) -> str | None:
    """What an event says on the console, if it is no mere remark."""
    details = event["params"]
    match event["method"]:
        case "Runtime.exceptionThrown":
            return str(details["exceptionDetails"]["text"])
        case "Runtime.consoleAPICalled" if details["type"] in ("error", "warning", "assert"):
            return " ".join(str(value.get("value")) for value in details["args"])
        case "Log.entryAdded" if details["entry"]["level"] in ("error", "warning"):
            return str(details["entry"]["text"])
    return None
