"""Gradients of a batch in parts."""

import pytest
import torch
from helpers.cases import for_each
from helpers.training import Adversarial, make_linear, make_vae, run, same
from torch import nn

from tinyvae import (
    ELBO,
    VAE,
    Batch,
    GaussianEncoder,
    GaussianLikelihood,
    Objective,
    Optimization,
    Speed,
    Trainer,
)
from tinyvae.core import ObjectiveOutput
from tinyvae.core.objective import perplexity
from tinyvae.likelihoods import OptimalGaussianLikelihood
from tinyvae.objectives import LagrangeMultiplier, MMDRegularizer
from tinyvae.schedules import Linear
from tinyvae.training.accumulation import AccumulatedGradients

pytestmark = pytest.mark.usefixtures("float64")


class Noisy(Objective):
    """Squared error of a reconstruction with the noise that the batch holds in its context."""

    def forward(self, model, batch):
        error = (model(batch.x + batch.context) - batch.x).square().sum(-1)
        loss = batch.mean(error)
        shares = torch.stack([batch.mean((batch.x[:, 0] > 0).to(loss)), loss.new_zeros(())])
        shares = torch.stack([shares[0], 1 - shares[0]])
        metrics = {"error": loss.detach(), "perplexity": perplexity(shares)}
        return ObjectiveOutput({"model": loss}, metrics, {"perplexity": shares})


class NoisyAdversarial(Adversarial):
    """Two groups, whose losses share a pass."""

    def forward(self, model, batch):
        output = super().forward(model, Batch(batch.x + batch.context))
        return ObjectiveOutput(output.losses, {"loss_twice": 2 * output.losses["model"].detach()})


def data(num=37):
    generator = torch.Generator().manual_seed(0)
    return {
        "x": torch.empty(num, 4).normal_(generator=generator),
        "noise": torch.empty(num, 4).normal_(generator=generator),
        "w": torch.empty(num).uniform_(generator=generator),
    }


def pick(rows):
    return Batch(rows["x"], rows["noise"])


def pick_weighted(rows):
    return Batch(rows["x"], rows["noise"], weight=rows["w"])


def fit(objective, size, batch=pick, **options):
    optimization = Optimization(1e-2, microbatch_size=size, clip_norm=1.0, schedule="linear")
    settings = {"batch_size": 16, "batch": batch}  # 16, 16 and 5 examples
    return run(
        make_linear(),
        objective(),
        data(),
        data(),
        optimization=optimization,
        fit=settings,
        **options,
    )


def assert_equal_runs(split, whole, tolerance):
    for module, other in ((split.model, whole.model), (split.objective, whole.objective)):
        for name, values in module.state_dict().items():
            torch.testing.assert_close(values, other.state_dict()[name], rtol=0, atol=tolerance)
    for column in whole.history.to_dict()["epochs"]:
        if column != "time_seconds":
            assert split.history[column] == pytest.approx(whole.history[column], rel=1e-10)
    assert split.step == whole.step


@for_each("objective", [Noisy, NoisyAdversarial])
@for_each("size", [1, 4, 5, 7, 15])
def test_accumulated_run_equals_that_of_whole_batches(objective, size):
    assert_equal_runs(fit(objective, size), fit(objective, None), 1e-13)


@for_each("size", [1, 6])
def test_accumulated_run_equals_that_of_whole_batches_with_weights(size):
    split, whole = (fit(Noisy, n, pick_weighted) for n in (size, None))
    assert_equal_runs(split, whole, 1e-13)


@pytest.mark.slow
def test_accumulated_run_equals_that_of_whole_batches_compiled():
    for objective in (Noisy, NoisyAdversarial):
        split = fit(objective, 4, speed=Speed(compile=True))
        assert split.resolved_speed is not None
        assert_equal_runs(split, fit(objective, None), 1e-12)


def test_parts_that_are_not_smaller_than_the_batch_change_nothing():
    assert same(fit(Noisy, 16).model, fit(Noisy, None).model)


def test_parts_of_weight_zero_have_no_effect():
    weight = torch.tensor([0.0, 0.0, 1.0, 2.0])
    model, rows = make_linear(), data(4)
    batch = Batch(rows["x"], rows["noise"], weight=weight)

    def gradients(examples):
        objective = Noisy()
        for parameter in model.parameters():
            parameter.grad = None
        objective(model, examples).losses["model"].backward()
        return objective(model, examples)

    split = AccumulatedGradients(gradients, model.parameters(), 2)
    output = split(batch)
    grads = [p.grad for p in model.parameters()]
    expected = gradients(batch.part(slice(2, None)))
    torch.testing.assert_close(output.losses, {"model": expected.losses["model"].detach()})
    torch.testing.assert_close(grads, [p.grad for p in model.parameters()])
    nothing = split(Batch(rows["x"], rows["noise"], weight=torch.zeros(4)))
    assert nothing.losses["model"].item() == 0
    assert all(p.grad.abs().sum() == 0 for p in model.parameters())


def test_parameter_without_a_gradient_in_some_parts():
    class Halves(Objective):
        """The first layer gets a gradient from negative data only."""

        def forward(self, model, batch):
            layer = model[0] if (batch.x < 0).all() else model[1]
            loss = layer(batch.x).square().mean()
            return ObjectiveOutput({"model": loss}, {})

    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    x = torch.tensor([[-1.0, -2.0], [1.0, 2.0]])
    objective, grads = Halves(), []
    for part in x.split(1):
        model.zero_grad()
        objective(model, Batch(part)).losses["model"].backward()
        grads.append([None if p.grad is None else p.grad / 2 for p in model.parameters()])
    expected = [a if b is None else b for a, b in zip(*grads, strict=True)]

    def gradients(batch):
        output = objective(model, batch)
        output.losses["model"].backward()
        return output

    model.zero_grad()
    AccumulatedGradients(gradients, model.parameters(), 1)(Batch(x))
    torch.testing.assert_close([p.grad for p in model.parameters()], expected)


def test_embedding_with_sparse_gradients():
    torch.manual_seed(0)

    class Lookup(Objective):
        def forward(self, model, batch):
            return ObjectiveOutput({"model": model(batch.x).square().sum(-1).mean()}, {})

    def trained(size):
        torch.manual_seed(0)
        model = nn.Embedding(10, 3, sparse=True)
        optimization = Optimization(optimizer=torch.optim.SparseAdam, microbatch_size=size)
        return run(model, Lookup(), torch.arange(10), optimization=optimization).model.weight

    torch.testing.assert_close(trained(3), trained(None))


# Refusals -----------------------------------------------------------------------------------------


def vae_of(encoder_layer=None, decoder_layer=None, likelihood=GaussianLikelihood):
    def network(in_size, out_size, layer):
        return nn.Sequential(nn.Linear(in_size, out_size), *([] if layer is None else [layer]))

    encoder = GaussianEncoder(network(4, 6, encoder_layer), 2, features=6)
    return VAE(encoder, nn.Sequential(network(2, 6, decoder_layer), nn.Linear(6, 4)), likelihood())


COUPLED = {
    "regularizer": (vae_of, ELBO() + MMDRegularizer(2.0), "got MMDRegularizer, which"),
    "capacity": (vae_of, ELBO(capacity=1.0), "got ELBO, which"),
    "free bits": (vae_of, ELBO(free_bits=0.1), "got ELBO, which"),
    "multiplier": (vae_of, ELBO(LagrangeMultiplier(1.0)), "buffer 'objective.beta.value'"),
    "scale": (
        lambda: vae_of(likelihood=OptimalGaussianLikelihood),
        ELBO(),
        "got OptimalGaussianLikelihood, which",
    ),
    "encoder": (lambda: vae_of(nn.BatchNorm1d(6)), ELBO(), "got BatchNorm1d, which"),
    "decoder": (lambda: vae_of(None, nn.BatchNorm1d(6)), ELBO(), "got BatchNorm1d, which"),
    "without statistics": (
        lambda: vae_of(nn.BatchNorm1d(6, track_running_stats=False)),
        ELBO(),
        "got BatchNorm1d, which",
    ),
    "buffer": (lambda: vae_of(Counter()), ELBO(), "buffer 'encoder.network.1.count', which"),
}


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.count += 1
        return x


@for_each("model, objective, message", COUPLED.values())
def test_fit_refuses_parts_of_a_batch_that_is_coupled(model, objective, message):
    trainer = Trainer(
        model(), objective, Optimization(microbatch_size=4), device="cpu", progress=False
    )
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        trainer.fit(data()["x"], epochs=1)
    assert same(trainer.model, before)


def test_fit_accepts_parts_with_frozen_batch_normalization():
    vae = vae_of(nn.BatchNorm1d(6))
    vae.encoder.requires_grad_(False)
    objective = ELBO(Linear(0.0, 1.0, steps=3))
    run(vae, objective, data()["x"], optimization=Optimization(microbatch_size=4))


@for_each("size", [0, -1, 2.0, "4"])
def test_optimization_refuses_wrong_microbatch_sizes(size):
    with pytest.raises(ValueError, match="microbatch_size as an integer >= 1 or None, got"):
        Optimization(microbatch_size=size)


def test_resumed_run_in_parts_is_bitwise_that_without_interruption(tmp_path):
    from tinyvae import Checkpoint

    optimization = Optimization(microbatch_size=3)
    whole = run(make_vae(), ELBO(), epochs=3, optimization=optimization)
    folder = Checkpoint(tmp_path, every_steps=1)
    run(make_vae(), ELBO(), epochs=2, optimization=optimization, callbacks=[folder])
    with pytest.warns(UserWarning, match="was begun for 2 epochs"):
        again = run(
            make_vae(),
            ELBO(),
            epochs=3,
            optimization=optimization,
            callbacks=[Checkpoint(tmp_path)],
            fit={"resume": "auto"},
        )
    assert same(again.model, whole.model)
