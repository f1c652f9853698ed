"""Pages in headless Chromium."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


def run_chromium(page: Path, *options: str, profile: Path) -> tuple[str, list[str]]:
    """Return what Chromium prints for a page, such as its DOM, and the errors of its console."""
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
        *("--hide-scrollbars", f"--user-data-dir={profile}", "--virtual-time-budget=4000"),
        *(*options, page.absolute().as_uri()),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    errors = re.findall(r'CONSOLE.*?"(.*)", source', result.stderr)
    return result.stdout, errors
