"""Estimators for scikit-learn (extra ``sklearn``): impute, detect, embed and synthesize tables.

One fitted model serves all four, because each reads the same density log p(x)::

    imputer = VAEImputer(random_state=0).fit(frame)
    filled = imputer.transform(frame)
    rows = VAESynthesizer.from_fitted(imputer).sample(100)
"""

try:
    import sklearn as _sklearn  # noqa: F401
except ImportError as _error:
    raise ImportError(
        "tinyvae.sklearn needs scikit-learn >= 1.5: install the extra, pip install "
        "'tinyvae[sklearn]'"
    ) from _error

from tinyvae.sklearn.base import TableEstimator as TableEstimator
from tinyvae.sklearn.detector import VAEDetector as VAEDetector
from tinyvae.sklearn.imputer import VAEImputer as VAEImputer
from tinyvae.sklearn.synthesizer import VAESynthesizer as VAESynthesizer
from tinyvae.sklearn.transformer import VAETransformer as VAETransformer
