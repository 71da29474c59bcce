"""A headless Chromium, the system's own: nothing is downloaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ABSENT = "there is no chromium here: install Debian's package `chromium`"


@contextmanager
def open_browser() -> Iterator[Any]:
    """A browser of playwright for the time of a block. Raises FileNotFoundError where there is no Chromium."""
    from playwright.sync_api import sync_playwright

    if CHROMIUM is None:
        raise FileNotFoundError(ABSENT)
    with sync_playwright() as playwright:
        is_root = os.name == "posix" and os.getuid() == 0
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"] if is_root else [])
        yield browser
        browser.close()
