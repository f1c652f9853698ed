"""Models, objectives, callbacks and data of the tests of training."""

import torch
from torch import nn
from torch.utils.data import IterableDataset

from tinyvae import (
    MLP,
    VAE,
    BernoulliLikelihood,
    Callback,
    GaussianEncoder,
    Objective,
    Trainer,
)
from tinyvae.core import ObjectiveOutput

BATCH_SIZE = 8
STEPS = 5  # per epoch: 8 + 8 + 8 + 8 + 5 examples


def binary(num_examples=37, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(num_examples, 4, generator=generator) < 0.4).float()


DATA = binary()


def make_vae(*, dropout=0.0):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.Dropout(dropout), nn.ReLU())
    encoder = GaussianEncoder(network, latent_dim=2, features=8)
    return VAE(encoder, MLP(2, hidden=(8,), out_shape=4), BernoulliLikelihood())


def make_linear():
    torch.manual_seed(0)
    return nn.Linear(4, 4)


class LeastSquares(Objective):
    """Squared error of a reconstruction: an objective without noise."""

    def forward(self, model, batch):
        error = (model(batch.x) - batch.x).square().sum(1)
        return ObjectiveOutput({"model": error.mean()}, {"error_nats": error.mean().detach()})


class Recorder(Callback):
    """Copies the weights before the first step, and after every step."""

    def on_fit_start(self, state):
        self.weights = [weights_of(state.model)]

    def on_step_end(self, state, output):
        self.weights.append(weights_of(state.model))


class After(Callback):
    """Calls ``action(state)`` after a step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_end(self, state, output):
        if state.step == self.step:
            self.action(state)


class Unsized(IterableDataset):
    """Rows of a tensor as a stream without a length."""

    def __init__(self, x):
        self.x = x

    def __iter__(self):
        return iter(self.x)


def run(model, objective, train=DATA, validation=None, *, epochs=2, fit=None, **options):
    """Fit on the CPU in batches of 8, and return the Trainer."""
    trainer = Trainer(model, objective, **{"device": "cpu", "progress": False, **options})
    settings = {"epochs": epochs, "batch_size": BATCH_SIZE, **(fit or {})}
    trainer.fit(train, validation, **settings)
    return trainer


def weights_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first, second):
    """Return True if two modules, or two copies of their weights, are bitwise equal."""
    first, second = (m.state_dict() if isinstance(m, nn.Module) else m for m in (first, second))
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def rows(history, part=""):
    """Return the rows of the epochs without the time."""
    return [
        {name: v for name, v in row.items() if name != "time_seconds" and name.startswith(part)}
        for row in history
    ]


def raises(exception):
    """Return an action for :class:`After` that raises."""

    def action(state):
        raise exception

    return action


def flip(x, generator):
    """Flip a tenth of the pixels."""
    return (x - torch.bernoulli(torch.full_like(x, 0.1), generator=generator)).abs()


class Adversarial(Objective):
    """A critic that compares x with its reconstruction. Both losses share the forward pass."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.critic = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))

    def parameter_groups(self, model):
        critic = list(self.critic.parameters())
        return {**super().parameter_groups(model), "discriminator": critic}

    def forward(self, model, batch):
        fake = self.critic(model(batch.x).tanh()).mean()
        real = self.critic(batch.x).mean()
        return ObjectiveOutput({"model": -fake, "discriminator": fake - real}, {})


class Corner(LeastSquares):
    """A finite loss with an infinite slope in one step."""

    def __init__(self, step):
        super().__init__()
        self.step, self.calls = step, 0

    def forward(self, model, batch):
        self.calls += 1
        output = super().forward(model, batch)
        corner = (0 * model.weight).sum().abs().sqrt() if self.calls == self.step else 0.0
        return ObjectiveOutput({"model": output.losses["model"] + corner}, output.metrics)
