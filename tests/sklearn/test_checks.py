import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from tinyvae.sklearn import VAEDetector, VAEImputer, VAESynthesizer, VAETransformer

ESTIMATORS = [VAEImputer, VAEDetector, VAETransformer, VAESynthesizer]


@parametrize_with_checks([estimator(max_epochs=2) for estimator in ESTIMATORS])
def test_estimator_conforms_to_scikit_learn(estimator, check):
    check(estimator)
