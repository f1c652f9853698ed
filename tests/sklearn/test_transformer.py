import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from tinyvae.sklearn import VAETransformer


def test_transform_returns_posterior_means(frame):
    transformer = VAETransformer(latent_dim=3, max_epochs=1, random_state=0).fit(frame)
    z = transformer.transform(frame)
    x = transformer.columns_.to_tensor(frame).double()
    expected = transformer.vae_.encode(x).mean.detach().numpy()
    np.testing.assert_allclose(z, expected, rtol=1e-9, atol=1e-12)
    assert z.shape == (len(frame), 3)
    assert transformer.set_output(transform="pandas").transform(frame).index.equals(frame.index)


def test_inverse_transform_returns_the_center_of_p_x_given_z(frame, imputer):
    transformer = VAETransformer.from_fitted(imputer)
    z = transformer.transform(frame)
    table = transformer.inverse_transform(z)
    assert table.dtypes.tolist() == frame.dtypes.tolist()
    with torch.no_grad():
        center = transformer.vae_.decode(torch.from_numpy(z)).point_estimate()
    expected = transformer.columns_.to_frame(center)
    pd.testing.assert_frame_equal(table, expected)
    with pytest.raises(ValueError, match="dimensions"):
        transformer.inverse_transform(z[:, 1:])


def test_inverse_transform_of_an_array_is_an_array_of_its_dtype():
    table = np.random.default_rng(0).integers(-99, 99, (30, 3))
    transformer = VAETransformer(max_epochs=1, random_state=0).fit(table)
    inverse = transformer.inverse_transform(transformer.transform(table))
    assert inverse.dtype == table.dtype
    assert inverse.shape == table.shape


def test_transformer_feeds_a_classifier(frame):
    model = make_pipeline(VAETransformer(max_epochs=1, random_state=0), LogisticRegression())
    assert model.fit(frame, np.arange(len(frame)) % 2).predict(frame).shape == (len(frame),)
