import inspect
import warnings

import pytest
import torch
from torch import nn

from tinyvae import BernoulliLikelihood
from tinyvae.core.warnings import PACKAGE, warn


def test_warn_points_to_its_caller_outside_the_package():
    with pytest.warns(FutureWarning, match="^gone soon$") as record:
        warn("gone soon", FutureWarning)
    line = inspect.currentframe().f_lineno - 1
    assert [(w.filename, w.lineno) for w in record] == [(__file__, line)]


def test_warn_skips_frames_of_the_package():
    likelihood = BernoulliLikelihood()
    with pytest.warns(UserWarning, match="between 0 and 1") as record:
        likelihood.check_support(torch.full((2, 3), 0.5))
    assert [w.filename for w in record] == [__file__]


def test_warn_skips_frames_of_torch():
    code = compile("def forward(self): warn('wrong')", str(PACKAGE / "made_up.py"), "exec")
    names = {"warn": warn}
    exec(code, names)
    module = type("Inner", (nn.Module,), {"forward": names["forward"]})()
    with pytest.warns(UserWarning, match="^wrong$") as record:
        module()
    assert [w.filename for w in record] == [__file__]


def test_warn_accepts_a_stack_without_outer_frames():
    code = compile("warn('wrong')", str(PACKAGE / "made_up.py"), "exec")
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        exec(code, {"warn": warn})
    assert len(record) == 1


def test_warn_skips_inner_frames_of_the_standard_library():
    code = """
import contextlib
@contextlib.contextmanager
def block():
    warn('wrong')
    yield
def function():
    with block():
        pass
"""
    names = {"warn": warn}
    exec(compile(code, str(PACKAGE / "made_up.py"), "exec"), names)
    with pytest.warns(UserWarning, match="^wrong$") as record:
        names["function"]()
    assert [w.filename for w in record] == [__file__]
