import pytest
import torch

from tinyvae import ELBO, VAE, Trainer
from tinyvae.datasets import digits, split
from tinyvae.likelihoods import FeatureDistance, PerceptualLikelihood
from tinyvae.metrics import frechet_distance, knn_probe, train_features

IMAGES_AND_ROWS = [pytest.param(False, marks=pytest.mark.slow), True]


def data(flat):
    parts = split(digits(), (0.6, 0.4))
    images = [part.images.float() / 16 for part in parts]
    x, test = (rows.flatten(1) if flat else rows for rows in images)
    return x, parts[0].labels, test, parts[1].labels


@pytest.mark.parametrize("flat", IMAGES_AND_ROWS)
@pytest.mark.parametrize(("with_labels", "gain"), [(True, 0.05), (False, 0.03)])
def test_features_beat_those_of_random_weights(flat, with_labels, gain):
    x, labels, test, test_labels = data(flat)
    labels = labels if with_labels else None
    random = train_features(x, labels, epochs=0)
    trained = train_features(x, labels)
    scores = [knn_probe(network(test), test_labels).value for network in (random, trained)]
    assert scores[1] > scores[0] + gain
    assert scores[1] > 0.9


def test_frechet_distance_of_features_orders_noise():
    x, labels, test, _ = data(flat=True)
    network = train_features(x, labels, num_features=16)
    first, second = network(test[:350]), test[350:700]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(second.shape, generator=generator)
    values = [frechet_distance(first, network(second + s * noise)).value for s in (0, 0.1, 0.4)]
    assert values == sorted(values)
    assert values[2] > 3 * values[0]


def test_features_depend_on_the_seed_only_and_are_frozen():
    x = torch.rand(50, 6)
    state = torch.get_rng_state()
    first, second, other = (train_features(x, epochs=2, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first(x), second(x))
    assert not torch.equal(first(x), other(x))
    assert first(x).var(0).mean().item() == pytest.approx(1, rel=1e-5)
    assert not first.training
    assert not any(p.requires_grad for p in first.parameters())
    with torch.no_grad():
        assert torch.equal(train_features(x, epochs=2)(x), first(x))
    double = train_features(x.double(), torch.arange(50) % 2, num_features=3)
    assert double(x.double()).shape == (50, 3)


def test_features_serve_a_perceptual_likelihood_that_is_saved(tmp_path):
    x = torch.rand(64, 1, 8, 8)
    network = train_features(x, epochs=1)
    likelihood = PerceptualLikelihood(FeatureDistance(network), weight=10.0)
    vae = VAE.from_shapes((1, 8, 8), latent_dim=2, likelihood=likelihood)
    before = [p.clone() for p in network.parameters()]
    Trainer(vae, ELBO()).fit(x, epochs=1)
    assert all(map(torch.equal, before, network.parameters()))
    vae.save(tmp_path / "vae.safetensors")
    loaded = VAE.load(tmp_path / "vae.safetensors").likelihood.distance.network
    assert torch.equal(loaded(x), network(x))


def test_train_features_checks_its_data():
    with pytest.raises(ValueError, match="finite floats"):
        train_features(torch.zeros(5, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="classes as labels"):
        train_features(torch.rand(5, 3), torch.rand(5))
    with pytest.raises(ValueError, match="labels of shape"):
        train_features(torch.rand(5, 3), torch.arange(4))
