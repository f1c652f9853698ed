"""Metadata of measurements, and the format of quartiles."""

import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np


def head(threads: int) -> dict[str, Any]:
    """Return the machine, the date and the number of threads."""
    return {
        "machine": machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "threads": threads,
    }


def machine() -> dict[str, Any]:
    """Return the processor and the system."""
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": next(iter(models), platform.processor()),
        "cores": os.cpu_count(),
        "system": platform.platform(),
    }


def spread(quartiles: np.ndarray, form: Callable[[float], str]) -> list[str]:
    """Return two cells of a table: the median, and the quartiles."""
    low, middle, high = map(form, quartiles)
    return [middle, f"{low} to {high}"]
