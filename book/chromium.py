"""Chromium, which prints the book, tests its pages and measures them; and the book on localhost."""

import contextlib
import functools
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = "chromium chromium-browser google-chrome".split()
QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


def launched(driver: Any) -> Any:
    """Start a Chromium without a window.

    Args:
        driver: what ``playwright.sync_api.sync_playwright`` gives.

    Raises:
        FileNotFoundError: if neither PAI_CHROMIUM nor the PATH has one.
    """
    found = os.environ.get("PAI_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        missing = f"No browser: none of {', '.join(NAMES)} is on the PATH"
        raise FileNotFoundError(f"{missing}. On Debian: apt-get install chromium")
    return driver.chromium.launch(executable_path=found, args=QUIET)


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder, and give its address with a slash at the end."""
    handler = functools.partial(_Silent, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
