r"""Penalties on latents, on weights, and on the decoder's Jacobian.

.. math:: \tfrac12 \|z\|^2, \qquad \|\theta\|^2, \qquad
    \Big\| \frac{\partial\, \mathbb{E}[x \mid z]}{\partial z} \Big\|_F^2
"""

import torch
from torch import Tensor

from tinyvae.core.objective import Batch
from tinyvae.models.output import LatentVariableModel, VAEOutput
from tinyvae.objectives.regularizers.base import Regularizer, RegularizerOutput, decoder_and_latent
from tinyvae.schedules import Schedule


class LatentL2Regularizer(Regularizer):
    r"""Half the squared norm of the latent, averaged over samples and examples.

    With a :class:`~tinyvae.encoders.DeterministicEncoder` it is the latent loss of regularized
    autoencoders.

    Args:
        weight: See :class:`Regularizer`.
        latent: See :class:`Regularizer`.

    References:
        Ghosh, Sajjadi, Vergari, Black, Scholkopf (2020). From Variational to Deterministic
        Autoencoders. arXiv:1903.12436, eq. 11.

    Example:
        >>> sorted((ELBO(0.0) + LatentL2Regularizer(0.1))(vae, Batch(x)).metrics)
        ['elbo_nats', 'kl_nats', 'latent_l2', 'log_likelihood_nats']
    """

    couples_batch = False

    def forward(
        self, model: LatentVariableModel, batch: Batch, output: VAEOutput
    ) -> RegularizerOutput:
        """Return the penalty of one pass."""
        z = self.reparameterized_term(output).z
        value = 0.5 * batch.mean(z.flatten(2).square().sum(-1))
        return RegularizerOutput(self.weighted(value), self.reported(latent_l2=value))


class WeightL2Regularizer(Regularizer):
    r"""Squared norm of the parameters of a submodule of the model.

    Args:
        weight: See :class:`Regularizer`.
        part: Name of a submodule of the model, such as ``"decoder"``.

    References:
        Ghosh et al. (2020). From Variational to Deterministic Autoencoders. arXiv:1903.12436,
        section 3.2.

    Example:
        >>> objective = ELBO(0.0) + LatentL2Regularizer(0.1) + WeightL2Regularizer(1e-4)  # RAE-L2
    """

    couples_batch = False

    def __init__(self, weight: float | Schedule, *, part: str = "decoder") -> None:
        super().__init__(weight)
        self.part = part

    def forward(
        self, model: LatentVariableModel, batch: Batch, output: VAEOutput
    ) -> RegularizerOutput:
        """Return the penalty, which does not depend on the pass."""
        try:
            parameters = list(model.get_submodule(self.part).parameters())
        except AttributeError as error:
            names = [name for name, _ in model.named_children()]
            raise ValueError(
                f"WeightL2Regularizer expects part to be one of {names}, got {self.part!r}"
            ) from error
        if not parameters:
            raise ValueError(
                f"WeightL2Regularizer expects a part with parameters, got {self.part!r}, which has "
                "no parameters"
            )
        value = torch.stack([parameter.square().sum() for parameter in parameters]).sum()
        name = f"{self.part.replace('.', '_')}_l2"
        return RegularizerOutput(self.weighted(value), self.reported(**{name: value}))


class GradientPenaltyRegularizer(Regularizer):
    r"""Squared Frobenius norm of the decoder's Jacobian with respect to z.

    .. math:: \Big\| \frac{\partial\, \mathbb{E}[x \mid z]}{\partial z} \Big\|_F^2
        = \mathbb{E}_{v \sim \mathcal{N}(0, I)}
        \Big\| \nabla_z\, v^\top \mathbb{E}[x \mid z] \Big\|^2

    The estimate uses one direction v per sample and is unbiased.

    Args:
        weight: See :class:`Regularizer`.

    References:
        Ghosh et al. (2020). From Variational to Deterministic Autoencoders. arXiv:1903.12436,
        eq. 9. Hutchinson (1989). A stochastic estimator of the trace.

    Example:
        >>> rae_gp = ELBO(0.0) + LatentL2Regularizer(0.1) + GradientPenaltyRegularizer(1e-3)
    """

    couples_batch = False
    needs_inner_autograd = True

    def __init__(self, weight: float | Schedule) -> None:
        super().__init__(weight)

    def forward(
        self, model: LatentVariableModel, batch: Batch, output: VAEOutput
    ) -> RegularizerOutput:
        """Return the penalty of one pass."""
        is_training = torch.is_grad_enabled()
        z, mean = self._decoded(model, batch, output)
        with torch.enable_grad():
            projection = (mean * torch.randn_like(mean)).sum()
            (slope,) = torch.autograd.grad(projection, z, create_graph=is_training)
        value = batch.mean(slope.flatten(2).square().sum(-1))
        return RegularizerOutput(self.weighted(value), self.reported(gradient_penalty=value))

    def _decoded(
        self, model: LatentVariableModel, batch: Batch, output: VAEOutput
    ) -> tuple[Tensor, Tensor]:
        """Return the latent and the mean of the data given it, connected by a graph.

        Without gradients the pass has no graph: the latent is decoded again.
        """
        decoder, z = decoder_and_latent(self, model, output)
        if torch.is_grad_enabled() and z.requires_grad:
            return z, output.likelihood.mean
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            return z, decoder.likelihood_given(z, batch.context).mean
