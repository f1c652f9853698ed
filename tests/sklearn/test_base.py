import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest

import tinyvae.sklearn
from tinyvae.sklearn import VAEDetector, VAEImputer

SOURCE = Path(tinyvae.sklearn.__file__).parents[2]


def by_joblib(estimator):
    file = io.BytesIO()
    joblib.dump(estimator, file)
    file.seek(0)
    return joblib.load(file)


@pytest.mark.parametrize(
    "roundtrip", [lambda e: pickle.loads(pickle.dumps(e)), by_joblib, copy.deepcopy]
)
def test_pickled_estimator_gives_bitwise_the_same_scores(imputer, frame, roundtrip):
    detector = VAEDetector.from_fitted(imputer, frame)
    loaded = roundtrip(detector)
    assert loaded.vae_ is not detector.vae_
    assert type(loaded.vae_) is type(detector.vae_)
    np.testing.assert_array_equal(loaded.score_samples(frame), detector.score_samples(frame))
    np.testing.assert_array_equal(loaded.reference_scores_, detector.reference_scores_)
    assert loaded.offset_ == detector.offset_
    assert loaded.describe() == detector.describe()
    assert loaded.history_.epochs == detector.history_.epochs


def test_pickle_holds_the_model_as_bytes_of_its_file(imputer):
    assert b"torch" not in pickle.dumps(imputer).replace(imputer.__getstate__()["_vae_file"], b"")
    assert VAEImputer().__getstate__().keys() >= {"latent_dim"}  # also before fit
    assert pickle.loads(pickle.dumps(VAEImputer(latent_dim=2))).latent_dim == 2


def test_score_is_the_mean_log_density(imputer, frame):
    assert imputer.score(frame) == pytest.approx(imputer.score_samples(frame).mean())


def test_describe_names_every_column(imputer, frame):
    lines = imputer.describe().splitlines()
    assert [line.split()[0] for line in lines[1:]] == frame.columns.tolist()


def test_import_without_scikit_learn_names_the_extra():
    code = "import sys; sys.modules['sklearn'] = None; import tinyvae; import tinyvae.sklearn"
    output = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
    )
    assert output.returncode == 1
    assert "ImportError" in output.stderr
    assert "pip install 'tinyvae[sklearn]'" in output.stderr


@pytest.mark.parametrize(
    ("data", "remedy"), [({"x": [1.0, 2.0]}, r"pandas.DataFrame\(X\)"), ("x.csv", "read_csv")]
)
def test_fit_names_the_remedy_for_dictionaries_and_paths(data, remedy):
    with pytest.raises(TypeError, match=f"VAEImputer expects a DataFrame or an array, .*{remedy}"):
        VAEImputer().fit(data)
