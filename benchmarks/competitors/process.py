"""The driver's side of a worker: start it, run rounds, end it."""

import json
import os
import subprocess
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

# The largest threshold that every glibc takes, above every tensor of the workloads.
_TUNED = {"MALLOC_MMAP_THRESHOLD_": str(1 << 25), "MALLOC_TRIM_THRESHOLD_": str(1 << 32)}


class Worker:
    """A process that trains one competitor, one round at a time.

    Args:
        name: Name of the competitor.
        workload: Name of the workload.
        python: Interpreter.
        threads: Threads of the competitor.
        allocator: ``"default"``, or ``"tuned"`` to have glibc keep the memory it was given.
    """

    def __init__(
        self, name: str, workload: str, *, python: str, threads: int, allocator: str
    ) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [python, "-m", "competitors.worker", name, workload, str(threads)],
            cwd=Path(__file__).parents[1],
            env=_environment(threads, allocator),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._answers: SimpleQueue[dict[str, Any]] = SimpleQueue()
        Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self.process.stdout or ():
            self._answers.put(json.loads(line))
        self._answers.put({"error": f"ended with code {self.process.wait()}"})

    def _say(self, word: str) -> None:
        with suppress(OSError):  # the worker may have ended; the next answer shows it
            print(word, file=self.process.stdin, flush=True)

    def answer(self, limit: float) -> dict[str, Any]:
        """Return the next answer, or the failure after a time limit."""
        try:
            return self._answers.get(timeout=limit)
        except Empty:
            return {"error": f"no answer within {limit:g} s"}

    def round(self, limit: float) -> dict[str, Any]:
        """Run one round."""
        self._say("go")
        return self.answer(limit)

    def end(self) -> None:
        """End the process; kill it if it is busy."""
        self._say("stop")
        try:
            self.process.wait(timeout=3)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _environment(threads: int, allocator: str) -> dict[str, str]:
    """Return the environment of a worker: threads, no GPU, settings of the allocator."""
    inherited = {name: value for name, value in os.environ.items() if name not in _TUNED}
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    devices = {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    return inherited | counts | devices | (_TUNED if allocator == "tuned" else {})
