"""Real data that a clone may have on disk."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def on_disk(relative: str) -> Path:
    """Return the folder with real data of this name, or skip the test."""
    for folder in (ROOT / "data", ROOT.parent / "shared" / "data"):
        if (folder / relative).exists():
            return folder
    pytest.skip(f"{relative} is not in data/")
