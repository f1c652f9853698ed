"""for_each runs every case and reports every failure."""

import inspect

import pytest
import torch
from helpers.cases import for_each


def test_for_each_reports_every_failure():
    seen = []

    @for_each("left", [1, 2])
    @for_each("right, noise", [(1, 0.0), (2, 0.5), (3, 1.0)])
    def multiply(left, right, noise, fixture):
        seen.append((left, right, fixture, torch.rand(()).item()))
        assert right == 3

    assert list(inspect.signature(multiply).parameters) == ["fixture"]
    with pytest.raises(BaseExceptionGroup, match="2 of 2 cases fail") as group:
        multiply(fixture="f")
    notes = [
        note for outer in group.value.exceptions for e in outer.exceptions for note in e.__notes__
    ]
    expected = [{"right": 1, "noise": 0.0}, {"right": 2, "noise": 0.5}]
    assert notes == [f"case: {case}" for case in expected * 2]
    assert [case[:3] for case in seen] == [(a, b, "f") for a in (1, 2) for b in (1, 2, 3)]
    assert len({case[3] for case in seen}) == 1


def test_for_each_reports_a_missing_error():
    @for_each("value", ["1", "a"])
    def parse(value):
        with pytest.raises(ValueError, match="invalid literal"):
            int(value)

    with pytest.raises(BaseExceptionGroup, match="1 of 2 cases fail") as group:
        parse()
    assert "DID NOT RAISE" in str(group.value.exceptions[0])


def test_for_each_needs_a_case():
    with pytest.raises(ValueError, match="at least one value"):
        for_each("value", [])


def test_for_each_needs_parameters_of_the_test():
    with pytest.raises(ValueError, match=r"expects parameters of abs, got \('value',\)"):
        for_each("value", [1])(abs)
