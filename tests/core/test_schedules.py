import math

import pytest
from helpers.cases import for_each
from hypothesis import given
from hypothesis import strategies as st

from tinyvae.schedules import Constant, Cosine, Cyclical, Linear, Schedule

# name: a schedule from 0.25 to 1.5
SCHEDULES = {
    "linear": lambda **length: Linear(0.25, 1.5, **length),
    "cosine": lambda **length: Cosine(0.25, 1.5, **length),
    "cyclical": lambda **length: Cyclical(0.25, 1.5, cycles=3, ramp=0.7, **length),
    "falling": lambda **length: Linear(1.5, 0.25, **length),
}
schedules = for_each("name", SCHEDULES)


@for_each(
    ("schedule", "values"),
    [
        (Constant(4), {0: 4, 1: 4, 10**9: 4}),
        (Linear(0.5, 2.5, steps=8), {0: 0.5, 2: 1.0, 4: 1.5, 7: 2.25, 8: 2.5, 9: 2.5, 10**9: 2.5}),
        (Linear(1, 0, steps=1), {0: 1, 1: 0, 2: 0}),
        (
            Cosine(1, 3, steps=8),
            {0: 1, 2: 2 - math.cos(math.pi / 4), 4: 2, 6: 2 + math.cos(math.pi / 4), 8: 3, 99: 3},
        ),
        (
            Cyclical(0, 1, cycles=2, ramp=0.5, steps=16),
            {0: 0, 2: 0.5, 4: 1, 7: 1, 8: 0, 10: 0.5, 15: 1, 16: 1, 17: 1},
        ),
        (Cyclical(0, 2, cycles=2, ramp=1, steps=8), {0: 0, 3: 1.5, 4: 0, 6: 1, 7: 1.5, 8: 2}),
    ],
)
def test_schedule_values(schedule, values):
    assert {step: schedule(step) for step in values} == pytest.approx(values, abs=1e-12)


@schedules
@given(step=st.integers(0, 10**6), steps=st.integers(1, 10**6))
def test_schedule_stays_in_range(name, step, steps):
    assert 0.25 - 1e-12 <= SCHEDULES[name](steps=steps)(step) <= 1.5 + 1e-12


@schedules
@given(fraction=st.floats(0.01, 1), total=st.integers(1, 10**6), share=st.floats(0, 1.5, width=16))
def test_schedule_fraction_agrees_with_steps(name, fraction, total, share):
    by_fraction = SCHEDULES[name](fraction=fraction)
    steps = by_fraction.length(total)
    assert abs(steps - max(1, fraction * (total - 1))) <= 0.5
    step = round(share * steps)
    assert by_fraction(step, total) == SCHEDULES[name](steps=steps)(step)


@schedules
@given(steps=st.integers(1, 10**6), beyond=st.integers(0, 10**6))
def test_schedule_ends_exactly(name, steps, beyond):
    schedule = SCHEDULES[name](steps=steps)
    assert schedule(steps + beyond) == schedule.end
    assert schedule(0) == schedule.start


@given(cycles=st.integers(1, 12), length=st.integers(1, 50), data=st.data())
def test_cyclical_repeats(cycles, length, data):
    schedule = Cyclical(0.25, 1.5, cycles=cycles, steps=cycles * length)
    cycle, step = data.draw(st.integers(0, cycles - 1)), data.draw(st.integers(0, length - 1))
    assert schedule(cycle * length + step) == pytest.approx(schedule(step), abs=1e-9)


@for_each("cls", [Linear, Cosine, Cyclical])
@for_each(
    ("length", "message"),
    [
        ({}, "either steps or fraction, got steps=None, fraction=None"),
        ({"steps": 5, "fraction": 0.5}, "either steps or fraction, got steps=5, fraction=0.5"),
        ({"steps": 0}, "steps >= 1, got 0"),
        ({"fraction": 0.0}, "0 < fraction <= 1, got 0.0"),
        ({"fraction": 1.5}, "0 < fraction <= 1, got 1.5"),
        ({"fraction": math.nan}, "0 < fraction <= 1, got nan"),
    ],
)
def test_schedule_refuses_invalid_lengths(cls, length, message):
    with pytest.raises(ValueError, match=f"{cls.__name__} expects {message}"):
        cls(0.0, 1.0, **length)


@for_each("options", [{"cycles": 0}, {"ramp": 0.0}, {"ramp": 1.1}])
def test_cyclical_refuses_invalid_arguments(options):
    with pytest.raises(ValueError, match="cycles >= 1 and 0 < ramp <= 1, got"):
        Cyclical(0.0, 1.0, steps=8, **options)


def test_schedule_fraction_needs_the_length_of_the_run():
    with pytest.raises(ValueError, match=r"Linear\(fraction=0.5\) needs the length.*use steps="):
        Linear(0.0, 1.0, fraction=0.5)(3)


def test_schedule_length():
    assert Constant(1.0).length(None) == 0
    assert Linear(0, 1, steps=7).length(None) == Linear(0, 1, steps=7).length(3) == 7
    assert Linear(0, 1, fraction=0.25).length(100) == 25
    assert Linear(0, 1, fraction=0.001).length(10) == 1


def test_schedule_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Schedule(steps=1, fraction=None)


def test_schedule_fraction_of_one_ends_with_the_last_update():
    schedule = Linear(0.0, 1.0, fraction=1.0)
    assert [schedule(step, 5) for step in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]


@given(cycles=st.integers(1, 50), length=st.integers(2, 50))
def test_cyclical_cycles_begin_at_the_start(cycles: int, length: int):
    schedule = Cyclical(0.0, 1.0, cycles=cycles, steps=cycles * length)
    assert {schedule(cycle * length) for cycle in range(cycles)} == {0.0}
