"""Distributions with one fault each, for tests of the contract checks."""

import torch

from tinyvae.distributions import Normal, Poisson, TorchDistribution


class Logistic(TorchDistribution):
    def __init__(self, base, loc):
        super().__init__(base)
        self.loc = loc

    @property
    def mean(self):
        return self.loc


class Unnormalized(Normal):
    def log_prob(self, value):
        return super().log_prob(value) + 0.9189


class OtherDraws(Normal):
    def sample(self, sample_shape=()):
        return self.mean + 1.1 * (super().sample(sample_shape) - self.mean)


class OtherMean(Normal):
    @property
    def mean(self):
        return super().mean + 0.2


class Coupled(Normal):
    def log_prob(self, value):
        log_prob = super().log_prob(value)
        return log_prob - 0.1 * log_prob.mean(1, keepdim=True)


class Detached(Normal):
    def __init__(self, mean, log_std):
        super().__init__(mean, log_std.detach())


class Widened(Normal):
    def log_prob(self, value):
        return super().log_prob(value).double()


class Imprecise(Normal):
    def log_prob(self, value):
        return super().log_prob(value.bfloat16().to(value.dtype))


class Summed(Normal):
    def log_prob(self, value):
        return super().log_prob(value).sum(-1)


class NoFactorial(Poisson):
    def __init__(self, log_mean, other):
        super().__init__(log_mean + other)

    def log_prob(self, value):
        return super().log_prob(value) + torch.lgamma(value + 1)


class CoupledRows(Normal):
    def log_prob(self, value):
        log_prob = super().log_prob(value)
        return log_prob - 0.1 * log_prob.mean(-2, keepdim=True)


class NotReparameterized(Normal):
    """A distribution whose draws lack gradients although has_rsample is True."""

    def sample(self, sample_shape=()):
        return super().sample(sample_shape).detach()


class SecretlyReparameterized(Normal):
    has_rsample = False


class NoGradientOfScale(Normal):
    def log_prob(self, value):
        fixed = Normal(self.mean, self.log_std.detach())
        return fixed.log_prob(value)


class NoGradientOfValue(Normal):
    def log_prob(self, value):
        return super().log_prob(value.detach())


class SharedNoise(Normal):
    def sample(self, sample_shape=()):
        noise = torch.randn(*sample_shape, 1, self.mean.shape[-1], dtype=self.mean.dtype)
        return self.mean + self.log_std.exp() * noise


class CenterElsewhere(Normal):
    def point_estimate(self, weights=None):
        return super().point_estimate(weights) * float("inf")


class CorrelatedElements(Normal):
    def sample(self, sample_shape=()):
        noise = torch.randn(*sample_shape, *self.mean.shape[:-1], 1, dtype=self.mean.dtype)
        return self.mean + self.log_std.exp() * noise
