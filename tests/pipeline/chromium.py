"""A page in headless Chromium, driven through its pipe: no driver and no further package."""

import base64
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO

TIMEOUT_S = 120


def chromium() -> str | None:
    """The program that CHROMIUM names, or one on PATH; None without one."""
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome", "chrome")
    return next((found for name in names if name and (found := shutil.which(name))), None)


class Page:
    """One tab.

    Args:
        to, back: pipes that Chromium reads and writes.
    """

    def __init__(self, to: BinaryIO, back: BinaryIO):
        self._to, self._back = to, back
        self._number, self._session = 0, None
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._call("Page.enable")

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def _read(self) -> dict[str, Any]:
        text = bytearray()
        while (byte := self._back.read(1)) != b"\0":
            assert byte, "Chromium ended"
            text += byte
        return json.loads(text)

    def show(self, file: pathlib.Path, width: int, scheme: str) -> None:
        """Lays a file out at a width in CSS pixels, for those who prefer a scheme."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._call("Page.navigate", url=file.as_uri())
        while self._read().get("method") != "Page.loadEventFired":
            pass

    def value(self, expression: str) -> Any:
        """Of a JavaScript expression."""
        return self._call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def screenshot(self, file: pathlib.Path) -> None:
        """Writes the whole page as PNG."""
        taken = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(taken["data"]))


@contextlib.contextmanager
def open_page(program: str) -> Iterator[Page]:
    """Starts Chromium for as long as the block runs."""
    from_us, to_them = os.pipe()
    from_them, to_us = os.pipe()

    def descriptors() -> None:
        # Chromium reads 3 and writes 4. Copies first: one of ours may have such a number.
        ends = [os.dup(from_us), os.dup(to_us)]
        for end, number in zip(ends, (3, 4), strict=True):
            os.dup2(end, number)

    with tempfile.TemporaryDirectory() as profile:
        process = subprocess.Popen(
            [
                program,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--hide-scrollbars",
                f"--user-data-dir={profile}",
                "--remote-debugging-pipe",
            ],
            close_fds=False,
            preexec_fn=descriptors,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(from_us)
        os.close(to_us)
        with os.fdopen(to_them, "wb", buffering=0) as to, os.fdopen(from_them, "rb") as back:
            try:
                yield Page(to, back)
            finally:
                process.terminate()
                process.wait(TIMEOUT_S)
