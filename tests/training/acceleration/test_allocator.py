import ctypes
import os
import platform
import shutil
import subprocess
import sys

import pytest

from tinyvae.training.acceleration import allocator
from tinyvae.training.acceleration.allocator import tune_malloc

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")

COUNTING = """
import resource
import torch
from tinyvae.training.acceleration.allocator import tune_malloc

def step(mebibytes):
    buffers = [torch.zeros(mebibytes << 18) for _ in range(4)]
    return [buffer.add_(1) for buffer in buffers]

def faults(mebibytes, warm_up=3):
    for _ in range(warm_up):  # until the heap is large enough
        step(mebibytes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        step(mebibytes)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
"""


def run(code: str, **variables: str) -> str:
    """Return the output of a new interpreter with the default allocator."""
    ours = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**inherited, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@glibc
def test_tune_malloc_avoids_page_faults():
    # By default, glibc may keep 16 MiB in the heap, but never more than 32 MiB.
    code = "print(faults(40), tune_malloc(), faults(16, 10), tune_malloc(), faults(16, 10))"
    before, kept, after, again, after_again = run(COUNTING + code).split()
    assert (kept, again) == ("True", "True")
    assert int(before) >= 4 * 4 * 20  # with the largest pages, of 2 MiB
    assert max(int(after), int(after_again)) < int(before) / 50


@glibc
def test_import_does_not_tune_malloc():
    assert int(run(COUNTING + "import tinyvae; print(faults(40))")) >= 4 * 4 * 20


@glibc
@pytest.mark.skipif(
    tuple(map(int, platform.libc_ver()[1].split(".") or (0,))) < (2, 35),
    reason="older versions take no more than 32 MiB",
)
def test_tune_malloc_keeps_buffers_beyond_32_mebibytes():
    code = "print(faults(40), tune_malloc(), faults(40, 10))"
    before, _, after = run(COUNTING + code).split()
    assert int(after) < int(before) / 50


@pytest.mark.parametrize("accepted", [1 << 30, 1 << 25, 0])
def test_tune_malloc_uses_the_largest_accepted_threshold(monkeypatch, accepted):
    calls = []

    class Library(ctypes.CDLL):
        def __init__(self, name):
            super().__init__(None)

        @staticmethod
        def mallopt(parameter, value):
            calls.append((parameter, value))
            return int(value <= accepted)

    monkeypatch.setattr(allocator.ctypes, "CDLL", Library)
    assert tune_malloc() is (accepted > 0)
    tried = {1 << 30: [1 << 30], 1 << 25: [1 << 30, 1 << 25], 0: [1 << 30, 1 << 25]}[accepted]
    assert calls == [(-3, size) for size in tried] + [(-1, -1)] * (accepted > 0)


def test_tune_malloc_returns_false_without_glibc(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(allocator.ctypes, "CDLL", missing)
    assert tune_malloc() is False


def test_tune_malloc_returns_false_without_mallopt(monkeypatch):
    class Library:
        def __init__(self, name):
            self.malloc = ctypes.c_void_p(1)

    monkeypatch.setattr(allocator.ctypes, "CDLL", Library)
    assert tune_malloc() is False


@glibc
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_tune_malloc_leaves_other_allocators_alone(tmp_path):
    source, library = tmp_path / "other.c", tmp_path / "other.so"
    source.write_text(
        "#include <stddef.h>\n"
        "void *__libc_malloc(size_t size);\n"
        "void *malloc(size_t size) { return __libc_malloc(size); }\n"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    code = "from tinyvae.training.acceleration.allocator import tune_malloc; print(tune_malloc())"
    assert run(code, LD_PRELOAD=str(library)) == "False"
