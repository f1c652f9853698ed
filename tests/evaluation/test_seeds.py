"""Random streams of evaluation: none is that of the data, of training or of another function."""

import torch

from tinyvae import ELBO, MLP, VAE, GaussianEncoder, GaussianLikelihood, Trainer
from tinyvae.evaluation import active_units, evaluate, impute, log_marginal
from tinyvae.likelihoods import MaskedLikelihood


def make_vae(likelihood):
    torch.manual_seed(5)
    return VAE(GaussianEncoder(MLP(3, (4,)), 3), MLP(3, (4,), out_shape=3), likelihood).double()


def test_evaluation_functions_have_streams_of_their_own():
    vae, x, seeds = make_vae(MaskedLikelihood(GaussianLikelihood())), torch.randn(8, 3), []
    vae.encoder.register_forward_hook(lambda *_: seeds.append(torch.initial_seed()))
    used = []
    for call in (
        lambda: torch.manual_seed(0) and vae(x.double()),
        lambda: evaluate(vae, x, elbo_samples=1, importance_samples=None, latents=False),
        lambda: log_marginal(vae, x, num_samples=1),
        lambda: impute(vae, x, num_samples=1),
        lambda: active_units(vae, x, num_samples=2),
        lambda: Trainer(vae, ELBO(), device="cpu", progress=False).fit(x, epochs=1),
        lambda: Trainer(vae, ELBO(), device="cpu", progress=False).fit(x, x, epochs=1),
    ):
        call()
        used.append(seeds[-1])  # the last pass: checks come before it
    assert len(set(used)) == len(used)


def test_evaluate_is_independent_of_data_that_were_drawn_with_its_seed():
    vae = make_vae(GaussianLikelihood(0.5))
    torch.manual_seed(0)
    x = vae.sample(2000)
    elbos = [
        evaluate(vae, x, elbo_samples=1, importance_samples=None, seed=seed).elbo for seed in (0, 1)
    ]
    assert abs(elbos[0].mean - elbos[1].mean) < 4 * elbos[0].standard_error
