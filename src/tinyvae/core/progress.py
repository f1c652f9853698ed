"""Progress bar that the library shows on a terminal."""

from tqdm import tqdm


class Bar(tqdm):  # type: ignore[type-arg]
    """Progress bar without tqdm's monitor thread."""

    monitor_interval = 0
