"""What every record of measurements opens with, and how spreads are written."""

import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["head", "machine", "spread"]


def head(threads: int) -> dict[str, Any]:
    """Machine, date and threads."""
    return {
        "machine": machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "threads": threads,
    }


def machine() -> dict[str, Any]:
    """The processor and the system."""
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": next(iter(models), platform.processor()),
        "cores": os.cpu_count(),
        "system": platform.platform(),
    }


def spread(quartiles: np.ndarray, form: Callable[[float], str]) -> list[str]:
    """Two cells of a table: the median, and the quartiles beside it."""
    low, middle, high = map(form, quartiles)
    return [middle, f"{low} to {high}"]
