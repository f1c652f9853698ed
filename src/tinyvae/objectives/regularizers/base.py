"""What a regularizer is: a term of a training's loss that is read off the record of a pass."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tinyvae.core.objective import Batch, Scheduled
from tinyvae.distributions import Distribution
from tinyvae.models.base import DecoderModel
from tinyvae.models.output import LatentTerm, LatentVariableModel, VAEOutput
from tinyvae.schedules import Schedule


@dataclass(frozen=True)
class RegularizerOutput:
    """What a regularizer makes of a pass.

    Attributes:
        loss: What is added to the model's loss, 0-d.
        metrics: Scalars to report, detached.
        adversary: Loss of the regularizer's own parameters, where it has some.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    adversary: Tensor | None = None


class Regularizer(Scheduled, ABC):
    """A term that is added to any bound: ``ELBO() + MMDRegularizer(10.0)``.

    Args:
        weight: Its weight, a number or a :class:`~tinyvae.schedules.Schedule`.
        latent: Name of the latent that it is about; None where there is only one.

    Attributes:
        group: Name of the parameter group of its own parameters, None where it has none.
        couples_batch: Whether it is something other than a mean over examples.
        differentiates: Whether it asks for gradients by itself.
    """

    group: str | None = None
    couples_batch: bool = True
    differentiates: bool = False
    weight: Tensor

    def __init__(self, weight: float | Schedule, *, latent: str | None = None) -> None:
        super().__init__()
        self.schedule("weight", weight)
        self.latent = latent

    @abstractmethod
    def forward(
        self, model: LatentVariableModel, batch: Batch, record: VAEOutput
    ) -> RegularizerOutput:
        """Compute the penalty of one pass."""

    def term(self, record: VAEOutput) -> LatentTerm:
        """The latent that it is about."""
        terms = {term.name: term for term in record.latents}
        if self.latent is None and len(terms) == 1:
            return record.latents[0]
        if self.latent not in terms:
            raise ValueError(
                f"{type(self).__name__} got a model with the latents {list(terms)}: expected "
                f"latent= one of them, got {self.latent!r}"
            )
        return terms[self.latent]

    def drawn(self, record: VAEOutput) -> LatentTerm:
        """The latent, refused where its draws carry no gradients."""
        term = self.term(record)
        if not term.posterior.has_rsample:
            raise ValueError(
                f"{type(self).__name__} trains a posterior by its draws, and those of "
                f"{term.posterior} of latent {term.name!r} carry no gradients: use a "
                "reparameterized one"
            )
        return term

    def weighted(self, value: Tensor) -> Tensor:
        """A 0-d value times the weight."""
        return self.weight.to(value.dtype) * value

    def reported(self, **values: Tensor) -> dict[str, Tensor]:
        """Metrics, detached, with the latent's name before theirs where one was chosen."""
        prefix = "" if self.latent is None else f"{self.latent}_"
        return {f"{prefix}{name}": value.detach() for name, value in values.items()}

    def checked(self, model: LatentVariableModel, batch: Batch, record: VAEOutput) -> list[str]:
        """Names of the metrics; raises, with the remedy, if it cannot be computed.

        Args:
            model: The model.
            batch: The first two examples.
            record: Their record, of the posteriors' centers instead of draws.
        """
        penalty: RegularizerOutput = self(model, batch, record)
        for loss in (penalty.loss, penalty.adversary):
            if loss is not None and not torch.isfinite(loss):
                raise ValueError(
                    f"{self} of the first two examples is {loss.item()}: the latent "
                    f"{[term.posterior for term in record.latents]}, the data or the mean of "
                    f"{record.likelihood} do not suit it"
                )
        return list(penalty.metrics)

    def own_parameters(self) -> list[nn.Parameter]:
        """Parameters of the group of its own."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def __repr__(self) -> str:
        first, *others = self.schedules
        named = "".join(f", {name}={self.format_weight(name)}" for name in others)
        return f"{type(self).__name__}({self.format_weight(first)}{named})"


def given_data_alone(owner: str, term: LatentTerm) -> Distribution:
    """The posterior q(z given x) of a latent, refused where it hangs on other latents."""
    if len(term.posterior.batch_shape) != 1:
        raise ValueError(
            f"{owner} needs posteriors given the data alone, that of latent {term.name!r} is given "
            "other latents too: choose the layer that is drawn first"
        )
    return term.posterior


def prior_draws(owner: str, term: LatentTerm) -> Tensor:
    """As many draws of the prior as there are of the posterior, ``(K, B, *L)``."""
    given = len(term.prior.batch_shape)
    if given > 1:
        raise ValueError(
            f"{owner} draws from the prior, and that of latent {term.name!r} is given the draws of "
            "the layers above: choose the top layer"
        )
    return term.prior.sample(term.z.shape[: 2 - given])


def decoder_and_latent(
    owner: Regularizer, model: LatentVariableModel, record: VAEOutput
) -> tuple[DecoderModel, Tensor]:
    """The model, and what its decoder read."""
    if not isinstance(model, DecoderModel) or record.z is None:
        name = type(owner).__name__
        raise TypeError(f"{name} expects a model with a decoder, got a {type(model).__name__}")
    return model, record.z
