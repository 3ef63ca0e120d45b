"""Chromium without a window, driven by its DevTools protocol over two pipes: no port, no library."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = (
    *("--headless", "--no-sandbox", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
)
"""Options under which it runs as root, draws WebGL without a GPU, and asks the network for nothing."""

TIMEOUT_S = 120.0
HARMLESS = ("willReadFrequently", "GPU stall due to ReadPixels")
"""Advice on the speed of plotly's drawing."""


class Browser:
    """One page of a fresh Chromium.

    Attributes
    ----------
    complaints : list of str
        What the console said, scripts that failed, and requests that failed, of the page that is open.
    requests : list of str
        Addresses that the page asked for.
    """

    def __init__(self, folder: Path, width: int = 1280, height: int = 900) -> None:
        """Start it with its own files in a folder that is not there yet."""
        assert CHROMIUM is not None
        its_in, self._out = _pipe()
        self._in, its_out = _pipe()
        self._log = (folder.parent / f"{folder.name}.log").open("wb")

        def connect() -> None:
            os.dup2(its_in, 3)
            os.dup2(its_out, 4)

        self._process = subprocess.Popen(
            [CHROMIUM, *QUIET, "--remote-debugging-pipe", f"--user-data-dir={folder}",
             f"--window-size={width},{height}", "about:blank"],
            stdout=self._log, stderr=self._log, pass_fds=(3, 4), preexec_fn=connect,
        )  # fmt: skip
        os.close(its_in)
        os.close(its_out)
        self._number, self._buffer, self._session = 0, b"", ""
        self._events: list[dict[str, Any]] = []
        self._poll = select.poll()  # select itself takes no descriptor over 1,023
        self._poll.register(self._in, select.POLLIN)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.resize(width, height)

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session = ""
        try:
            self.call("Browser.close")
            self._process.wait(20)
        except (OSError, EOFError, TimeoutError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        for end in (self._in, self._out):
            os.close(end)
        self._log.close()

    def resize(self, width: int, height: int = 900) -> None:
        """Give the window another size, in pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip

    def open(self, path: Path, ready: str = "true") -> None:
        """Open a file, and wait until it is loaded and an expression of its own is true."""
        self.complaints, self.requests = [], []
        found = self.call("Page.navigate", url=path.as_uri())
        assert "errorText" not in found, found
        self.wait_for(
            f"location.href === {json.dumps(path.as_uri())} && document.readyState === 'complete' && {ready}"
        )

    def wait_for(self, condition: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + TIMEOUT_S
        while not self.evaluate(f"Boolean({condition})"):
            if time.monotonic() > end:
                raise TimeoutError(
                    f"not true in {TIMEOUT_S:g} s: {condition}; the page says {self.complaints}"
                )
            time.sleep(0.05)

    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression on the page, after any promise."""
        found = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def click(self, element: str) -> None:
        """Click with the mouse on what an expression gives: the middle of an element's first line."""
        x, y = self.evaluate(
            f"""(() => {{
              const element = {element};
              element.scrollIntoView({{ block: "center", inline: "center" }});
              const box = element.getClientRects()[0];
              return [box.x + box.width / 2, box.y + box.height / 2];
            }})()"""
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol, and take note of what happens meanwhile."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + TIMEOUT_S
        while True:
            answer = self._receive(end)
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer)
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer.get("method", ""), answer.get("params", {}))

    def _receive(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready = self._poll.poll(1000 * max(0.0, end - time.monotonic()))
            if not ready:
                raise TimeoutError(f"Chromium was silent for {TIMEOUT_S:g} s")
            part = os.read(self._in, 1 << 20)
            if not part:
                raise EOFError(f"Chromium ended: {Path(self._log.name).read_text(errors='replace')[-2000:]}")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def _note(self, event: str, what: dict[str, Any]) -> None:
        said = ""
        if event == "Runtime.consoleAPICalled":
            parts = [str(part.get("value", part.get("description"))) for part in what["args"]]
            said = f"console.{what['type']}: {' '.join(parts)}"
        elif event == "Runtime.exceptionThrown":
            details = what["exceptionDetails"]
            said = f"{details['text']} {details.get('exception', {}).get('description', '')}"
        elif event == "Log.entryAdded":
            said = f"{what['entry']['level']}: {what['entry']['text']} {what['entry'].get('url', '')}"
        elif event == "Network.loadingFailed":
            said = f"failed: {what['errorText']}"
        elif event == "Network.requestWillBeSent":
            self.requests.append(what["request"]["url"])
        if said and not any(advice in said for advice in HARMLESS):
            self.complaints.append(said)


def _pipe() -> tuple[int, int]:
    """Ends of a pipe, neither of which is one of the two numbers that Chromium talks over."""
    ends = os.pipe()
    first, second = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return first, second
