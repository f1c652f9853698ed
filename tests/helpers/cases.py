"""A decorator that runs many small cases as one test."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch


def for_each(names: str | tuple[str, ...], values: Iterable[Any]) -> Callable[[Callable], Callable]:
    """Run a test for each value, as one test that reports every case that fails.

    Use it like ``pytest.mark.parametrize``, for cases that are too small to be tests. Every case
    starts from the seed 0. Fixtures are shared by all cases.
    """
    names = tuple(n.strip() for n in names.split(",")) if isinstance(names, str) else names
    cases = [dict(zip(names, v if len(names) > 1 else (v,), strict=True)) for v in values]
    if not cases:
        raise ValueError("for_each expects at least one value, got none")

    def decorate(test: Callable) -> Callable:
        parameters = inspect.signature(test).parameters
        if not set(names) <= parameters.keys():
            raise ValueError(f"for_each expects parameters of {test.__name__}, got {names}")

        @functools.wraps(test)
        def run(**fixtures: Any) -> None:
            failures: list[BaseException] = []
            for case in cases:
                torch.manual_seed(0)
                try:
                    test(**fixtures, **case)
                except (Exception, pytest.fail.Exception) as error:
                    error.add_note(f"case: {case}")
                    failures.append(error)
            if failures:
                raise BaseExceptionGroup(f"{len(failures)} of {len(cases)} cases fail", failures)

        fixtures = [p for p in parameters.values() if p.name not in names]
        run.__signature__ = inspect.Signature(fixtures)
        del run.__wrapped__
        return run

    return decorate
