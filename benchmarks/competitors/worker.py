"""Process of one competitor: an epoch per "go" on stdin, its seconds on stdout.

    python -m competitors.worker COMPETITOR WORKLOAD THREADS

Run by the driver, in the folder above. Every answer is a line of JSON: the versions when ready,
then the seconds of an epoch, or what is missing, or what went wrong. The first epoch has the
start-up in it.
"""

import json
import os
import platform
import sys
import time
from importlib.metadata import version
from typing import Any, TextIO

from workloads import WORKLOADS, images

from competitors import COMPETITORS

__all__: list[str] = []

LIBRARIES = ("tinyvae", "torch", "pythae", "lightning", "jax", "numpy")


class Rounds:
    """Function called after every epoch: it reports the seconds and waits for the next "go"."""

    def __init__(self, channel: TextIO) -> None:
        self.channel = channel
        self.started = 0.0

    def send(self, **answer: Any) -> None:
        """Write an answer to the driver."""
        print(json.dumps(answer), file=self.channel, flush=True)

    def wait(self) -> bool:
        """Wait for a line and start the clock; return True if the line is "go"."""
        goes_on = sys.stdin.readline().strip() == "go"
        self.started = time.perf_counter()
        return goes_on

    def __call__(self) -> bool:
        """End the round."""
        self.send(seconds=time.perf_counter() - self.started)
        return self.wait()


def use_cores(count: int) -> None:
    """Restrict the process to some cores, which also limits thread pools of that size."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def take_stdout() -> TextIO:
    """Reserve stdout for answers; redirect the output of libraries to stderr."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return channel


def versions() -> dict[str, str]:
    """Return versions of Python and of the libraries in use."""
    loaded = {name: version(name) for name in LIBRARIES if name in sys.modules}
    return {"python": platform.python_version(), **loaded}


def main(name: str, workload_name: str, threads: str) -> None:
    """Serve rounds until the driver ends them."""
    rounds = Rounds(take_stdout())
    use_cores(int(threads))
    competitor, workload = COMPETITORS[name], WORKLOADS[workload_name]
    try:
        run, data = competitor.load(), images(workload)
        rounds.send(versions=versions())
        if rounds.wait():
            run(workload, data, rounds)
    except ImportError as error:
        rounds.send(absent=f"{error} (pip install {competitor.requirement})")
    except Exception as error:
        rounds.send(error=f"{type(error).__name__}: {error}")
    os._exit(0)  # immediately, without the library's threads and exit hooks


if __name__ == "__main__":
    main(*sys.argv[1:])
