"""What is wrong with a file, in words."""

import re
from pathlib import Path

__all__ = ["DAMAGED", "CheckpointError", "damaged"]

DAMAGED = "the file is damaged or forged, copy it again or go back to an older one"


class CheckpointError(RuntimeError):
    """A file is damaged, hostile, foreign or from another version; nothing of it was used."""


def damaged(path: Path, expected: str, got: object, remedy: str = DAMAGED) -> CheckpointError:
    """Error of a file that is not what it should be; what it holds is quoted with care."""
    text = re.sub("[^ -~]", "?", str(got)[:200])  # foreign: kept short and off the terminal's codes
    return CheckpointError(f"{path}: expected {expected}, got {text}: {remedy}")
