import pytest
from helpers.frames import mixed_frame

from tinyvae.sklearn import VAEImputer


@pytest.fixture(scope="session")
def frame():
    return mixed_frame()


@pytest.fixture(scope="session")
def imputer(frame):
    return VAEImputer(max_epochs=5, random_state=0).fit(frame)
