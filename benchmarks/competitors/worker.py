"""One competitor in a process of its own: an epoch at every "go" on stdin, its seconds on stdout.

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
    """Called at the end of every epoch: reports its seconds, and waits for the next "go"."""

    def __init__(self, channel: TextIO) -> None:
        self.channel = channel
        self.started = 0.0

    def send(self, **answer: Any) -> None:
        """Answer the driver."""
        print(json.dumps(answer), file=self.channel, flush=True)

    def wait(self) -> bool:
        """Wait for a line, and start the clock; False unless it says "go"."""
        goes_on = sys.stdin.readline().strip() == "go"
        self.started = time.perf_counter()
        return goes_on

    def __call__(self) -> bool:
        """End a round."""
        self.send(seconds=time.perf_counter() - self.started)
        return self.wait()


def use_cores(count: int) -> None:
    """Keep to so many cores, which also sizes the pools of threads that ask for their number."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def take_stdout() -> TextIO:
    """Keep stdout for the answers; what libraries print goes where errors go."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return channel


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries in use."""
    loaded = {name: version(name) for name in LIBRARIES if name in sys.modules}
    return {"python": platform.python_version(), **loaded}


def main(name: str, workload_name: str, threads: str) -> None:
    """Serve rounds until told otherwise."""
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
    os._exit(0)  # at once, whatever threads and hooks the library leaves


if __name__ == "__main__":
    main(*sys.argv[1:])
