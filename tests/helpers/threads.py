"""Calls in other threads of the process."""

import threading

SECONDS = 60  # a thread that is still alive after them hangs


def in_threads(*functions):
    """Call functions in threads at the same time, and return their results or RuntimeErrors."""
    results = [None] * len(functions)

    def call(index, function):
        try:
            results[index] = function()
        except RuntimeError as error:
            results[index] = error

    threads = [
        threading.Thread(target=call, args=pair, daemon=True) for pair in enumerate(functions)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert not any(thread.is_alive() for thread in threads)
    return results
