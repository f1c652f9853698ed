import math

import numpy as np
import pytest
import torch
from helpers.cases import for_each
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.functional import jacobian

from tinyvae import MLP, VAE, BernoulliLikelihood, GaussianEncoder
from tinyvae.distributions import Independent, Normal
from tinyvae.encoders import FlowEncoder
from tinyvae.errors import CheckpointError
from tinyvae.flows import NormalizingFlow, PlanarFlow, RadialFlow, Transformed
from tinyvae.flows.planar import LEAST_STRETCH, _excess
from tinyvae.models.serialization import build_part, describe_part
from tinyvae.priors import FlowPrior
from tinyvae.testing import check_encoder, check_prior

pytestmark = pytest.mark.usefixtures("float64")

kinds = pytest.mark.parametrize("kind", [PlanarFlow, RadialFlow])
context_dims = for_each("context_dim", [0, 2])


def perturbed(kind, dim, spread=1.0, **options):
    flow = kind(dim, **options)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(spread * torch.randn(parameter.shape))
    return flow


def context_of(flow, *batch):
    return torch.randn(*batch, flow.context_dim) if flow.context_dim else None


def gaussian(*shape):
    return Independent(Normal(torch.randn(shape) / 2, torch.randn(shape) / 4), 1)


def close(value, expected, tolerance=1e-10):
    torch.testing.assert_close(value, expected, rtol=0, atol=tolerance)


# Values -------------------------------------------------------------------------------------------


def invertible(x):
    """Return the paper's m(x) = log(1 + exp x) - 1, shifted to the origin, in numpy."""
    return (1 - LEAST_STRETCH) * (np.logaddexp(0, x + np.log(np.e - 1)) - 1)


def planar_in_numpy(numbers, z):
    for number in numbers:
        u, w, b = np.split(number, [z.size, 2 * z.size])
        u = u + (invertible(w @ u) - w @ u) * w / (w @ w)
        z = z + u * np.tanh(w @ z + b)
    return z


def radial_in_numpy(numbers, z):
    for number in numbers:
        point, (alpha, beta) = number[: z.size], invertible(number[z.size :])
        alpha = 1 + alpha
        beta = alpha * beta
        z = z + beta / (alpha + np.linalg.norm(z - point)) * (z - point)
    return z


@for_each(("kind", "oracle"), [(PlanarFlow, planar_in_numpy), (RadialFlow, radial_in_numpy)])
def test_flow_agrees_with_the_paper(kind, oracle):
    flow = perturbed(kind, 3)
    numbers = flow.offset.detach().numpy()
    for z in 2 * torch.randn(5, 3):
        expected = oracle(numbers, z.numpy())
        assert np.abs(expected - z.numpy()).max() > 0.1
        close(flow()(z).detach(), torch.from_numpy(expected), 1e-12)


def test_constraints_keep_flows_invertible():
    x = torch.tensor([-1e4, -50.0, -1.0, -1e-9, 0.0, 1e-9, 1.0, 50.0, 1e4])
    close(_excess(x), torch.from_numpy(invertible(x.numpy())), 1e-11)
    assert _excess(torch.zeros(())) == 0
    assert (_excess(x) >= LEAST_STRETCH - 1).all()
    assert gradcheck(_excess, torch.tensor([-3.0, 0.0, 3.0], requires_grad=True))


@kinds
@for_each("spread", [0.1, 3.0, 10.0])
def test_inverse_undoes_extreme_transforms(kind, spread):
    for _ in range(20):
        flow = perturbed(kind, 2, spread, transforms=1)
        z = torch.cat([3 * torch.randn(500, 2), 100 * torch.randn(500, 2)])
        with torch.no_grad():
            close(flow().inv(flow()(z)), z)


@for_each("along", [-1e4, -7.0, 0.0, 7.0, 1e3, 1e5])
def test_planar_inverse_across_the_hyperplane(along):
    """The hyperplane is the place of the strongest compression, or of the strongest stretch."""
    flow = PlanarFlow(2, transforms=1)
    with torch.no_grad():
        flow.offset.copy_(torch.tensor([along, 0.3, 1.0, 0.0, 0.5]))
        far = torch.logspace(-12, 3, 2000)
        z = torch.stack([torch.cat([-far, far]) - 0.5, torch.zeros(4000)], -1)
        value = flow()(z)
        close(flow().inv(value), z, 1e-10 * max(1, along / 1e3))
        push = value - z
        assert push.abs().max() > 0.2


def test_radial_inverse_near_the_point():
    flow = perturbed(RadialFlow, 3, transforms=1)
    point = flow.offset[0, :3].detach().requires_grad_()
    for bijection in (flow(), flow().inv):
        value, log_det = bijection.call_and_ladj(point)
        close(value, point, 1e-14)
        scale = torch.eye(3) * (log_det / 3).exp()
        close(jacobian(bijection, point), scale)
        assert torch.autograd.grad(log_det, point)[0].isfinite().all()


def test_radial_inverse_near_a_stretched_point():
    flow = RadialFlow(3, transforms=1)
    with torch.no_grad():
        flow.offset.copy_(torch.tensor([0.0, 0.0, 0.0, 0.5, 1e7]))
        z = torch.logspace(-9, 3, 1000)[:, None] * torch.tensor([0.6, 0.0, 0.8])
        value, log_det = flow().call_and_ladj(z)
        back, log_det_back = flow().inv.call_and_ladj(value)
    assert log_det.max() > 40
    close(back, z)
    close(log_det_back, -log_det)


def test_planar_flow_with_zero_direction():
    flow = PlanarFlow(2, transforms=1)
    with torch.no_grad():
        flow.offset.copy_(torch.tensor([1.0, -2.0, 0.0, 0.0, 0.5]))
    z = torch.randn(4, 2)
    value, log_det = flow().call_and_ladj(z)
    close(value, z + torch.tensor([1.0, -2.0]) * math.tanh(0.5))
    close(log_det, torch.zeros(4))
    assert torch.autograd.grad(value.sum(), flow.offset)[0].isfinite().all()


@kinds
@context_dims
def test_bijection_is_unaffected_by_an_optimizer_step(kind, context_dim):
    flow = perturbed(kind, 2, context_dim=context_dim)
    bijection, z = flow(context_of(flow, 5)), torch.randn(5, 2)
    before = bijection(z)
    with torch.no_grad():
        flow.offset += 1
    assert torch.equal(bijection(z), before)


@kinds
@context_dims
def test_flow_trains_every_parameter(kind, context_dim):
    encoder = GaussianEncoder(MLP(4, hidden=(2,)), 2)
    flow = kind(2, context_dim=context_dim, transforms=2)
    posterior, x = FlowEncoder(encoder, flow), torch.randn(50, 4)
    target = gaussian(2)
    optimizer = torch.optim.SGD(posterior.parameters(), lr=0.05)
    for _ in range(2):  # at the identity, only what moves away from it has a say
        optimizer.zero_grad()
        q = posterior(x)
        z = q.sample((20,))
        (q.log_prob(z) - target.log_prob(z)).mean().backward()
        optimizer.step()
        assert flow.offset.grad.any(1).all()
    assert all(p.grad.all() for p in flow.parameters())


# Densities ----------------------------------------------------------------------------------------


@kinds
def test_density_integrates_to_one(kind):
    q = Transformed(gaussian(2), perturbed(kind, 2, 0.5, transforms=4)())
    nodes = torch.linspace(-12, 12, 801)
    with torch.no_grad():
        density = q.log_prob(torch.cartesian_prod(nodes, nodes)).exp()
        assert (density.sum() * (nodes[1] - nodes[0]) ** 2).item() == pytest.approx(1, abs=1e-3)
        # And is that of the draws.
        z = q.sample((20_000,))
        inside = (z < 0).all(1).double()
        below = (torch.cartesian_prod(nodes, nodes) < 0).all(1)
        expected = (density[below].sum() / density.sum()).item()
    assert 0.02 < expected < 0.98
    assert inside.mean().item() == pytest.approx(expected, abs=4 * 0.5 / 20_000**0.5 + 5e-3)


@kinds
@context_dims
def test_gradients_of_flow_and_inverse(kind, context_dim):
    flow = perturbed(kind, 2, 0.7, context_dim=context_dim, transforms=2)
    context = context_of(flow, 3)
    names = [name for name, _ in flow.named_parameters()]
    values = [p.detach().clone().requires_grad_() for p in flow.parameters()]
    z = torch.randn(3, 2, requires_grad=True)

    def mapped(back):
        def function(z, *values):
            parameters = dict(zip(names, values, strict=True))
            bijection = torch.func.functional_call(flow, parameters, (context,))
            return (bijection.inv if back else bijection).call_and_ladj(z)

        return function

    for back in (False, True):
        assert gradcheck(mapped(back), (z, *values))
        assert gradgradcheck(mapped(back), (z, *values))


def test_planar_flow_fits_two_modes():
    """The best Gaussian covers one of two distant modes, at a gap of log 2 nats."""
    modes = torch.tensor([[-2.0, 0.0], [2.0, 0.0]])
    mean, log_std = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    flow = PlanarFlow(2, transforms=4)
    optimizer = torch.optim.Adam([mean, log_std, *flow.parameters()], lr=0.03)
    for _ in range(400):
        q = Transformed(Independent(Normal(mean, log_std), 1), flow())
        z = q.sample((200,))
        distance = (z.unsqueeze(-2) - modes).square().sum(-1)
        log_p = torch.logsumexp(-2 * distance, -1) - math.log(math.pi)
        gap = (q.log_prob(z) - log_p).mean()
        optimizer.zero_grad()
        gap.backward()
        optimizer.step()
    assert -0.05 < gap < math.log(2) / 3


# As posteriors and priors -------------------------------------------------------------------------


def planar_vae(kind, context_dim, dim=2):
    encoder = GaussianEncoder(MLP(4, hidden=(6,)), dim)
    flow = perturbed(kind, dim, 0.5, context_dim=context_dim, transforms=8)
    return VAE(FlowEncoder(encoder, flow), MLP(dim, out_shape=4), BernoulliLikelihood())


@kinds
@for_each("context_dim", [0, 6])
def test_flow_encoder_with_a_frozen_posterior(kind, context_dim):
    vae, x = planar_vae(kind, context_dim), torch.rand(5, 4).round()
    logs = []
    for frozen in (False, True):
        torch.manual_seed(3)
        term = vae(x, num_samples=3, frozen_posterior=frozen).latents[0]
        logs.append(term.log_q)
    close(*logs)
    # Through the draws only.
    parameters = [p for p in vae.encoder.parameters() if p.requires_grad]
    got = torch.autograd.grad(term.log_q.sum(), parameters, retain_graph=True)
    z = term.z.detach().requires_grad_()
    slope = torch.autograd.grad(vae.encode(x).log_prob(z).sum(), z)[0]
    expected = torch.autograd.grad(term.z, parameters, slope)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


@kinds
@pytest.mark.parametrize("context_dim", [0, 6])
def test_flow_round_trips(kind, context_dim, tmp_path):
    vae, x = planar_vae(kind, context_dim), torch.rand(5, 4).round()
    vae.prior = FlowPrior(perturbed(kind, 2))
    vae.save(tmp_path / "vae")
    loaded = VAE.load(tmp_path / "vae")
    assert repr(loaded) == repr(vae)
    weights = []
    for each in (vae, loaded):
        torch.manual_seed(1)
        weights.append(each(x, num_samples=3).log_weight())
    assert torch.equal(*weights)


@kinds
@pytest.mark.parametrize("context_dim", [0, 6])
@pytest.mark.parametrize("dim", [1, 2])
def test_flow_encoder_contract(kind, context_dim, dim):
    encoder = GaussianEncoder(MLP(4, hidden=(6,)), dim)
    check_encoder(
        FlowEncoder(encoder, kind(dim, context_dim=context_dim, transforms=3)), torch.randn(5, 4)
    )


@kinds
@context_dims
def test_flow_prior_contract(kind, context_dim):
    flow = kind(2, context_dim=context_dim, transforms=3)
    check_prior(FlowPrior(flow), context_of(flow, 5))


@kinds
@context_dims
def test_flow_in_single_precision(kind, context_dim):
    flow = perturbed(kind, 3, 0.5, context_dim=context_dim)
    context, z = context_of(flow, 7), torch.randn(7, 3)
    value, log_det = flow(context).call_and_ladj(z)
    flow = flow.float()
    low = None if context is None else context.float()
    for transform, argument in ((flow(low), z), (flow(low).inv, value)):
        got, _ = transform.call_and_ladj(argument.float())
        assert got.dtype == torch.float32
        torch.testing.assert_close(
            got.double(), value if argument is z else z, rtol=1e-3, atol=1e-3
        )
    got = flow(low).call_and_ladj(z.float())[1]
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), log_det, rtol=1e-3, atol=1e-3)


@kinds
def test_flow_is_finite_far_away(kind):
    """An inverse by differences would cancel, and divide by zero in the branch not taken."""
    flow = perturbed(kind, 2, 0.5).float()
    z = (10 ** torch.linspace(0, 12, 100)[:, None] * torch.tensor([0.6, 0.8])).float()
    z.requires_grad_()
    for bijection in (flow(), flow().inv):
        value, log_det = bijection.call_and_ladj(z)
        torch.testing.assert_close(value[50:], z[50:], rtol=1e-4, atol=0)
        gradients = torch.autograd.grad(value.sum() + log_det.sum(), [z, flow.offset])
        assert all(gradient.isfinite().all() for gradient in gradients)


# Errors -------------------------------------------------------------------------------------------


@kinds
@for_each(
    ("arguments", "message"),
    [
        ({"dim": 0}, "expects dim >= 1, .* got 0, 0 and 8"),
        ({"dim": 2, "context_dim": -1}, "context_dim >= 0 .* got 2, -1 and 8"),
        ({"dim": 2, "transforms": 0}, "1 to 100 transforms, got 2, 0 and 0"),
        ({"dim": 2, "transforms": 10**7}, "1 to 100 transforms"),
        ({"dim": 10**5, "context_dim": 10**5}, "expects at most 100,000,000 weights"),
    ],
)
def test_flow_size_errors(kind, arguments, message):
    with pytest.raises(ValueError, match=f"{kind.__name__} .*{message}"):
        kind(**arguments)
    with pytest.raises(CheckpointError, match=message):
        build_part({"part": kind.__name__, "config": describe_part(kind(2))["config"] | arguments})


@kinds
def test_flow_context_errors(kind):
    with pytest.raises(
        ValueError, match=r"expects a context of 2 values, got 0: give context_dim=0"
    ):
        kind(2, context_dim=2)()
    with pytest.raises(
        ValueError, match=r"expects a context of 2 values, got 3: give context_dim=3"
    ):
        kind(2, context_dim=2)(torch.zeros(5, 3))
    with pytest.raises(
        ValueError, match=r"expects a context of 0 values, got 3: give context_dim=3"
    ):
        kind(2)(torch.zeros(5, 3))


@kinds
def test_flow_encoder_errors(kind):
    encoder = GaussianEncoder(MLP(4, hidden=(6,)), 3)
    with pytest.raises(ValueError, match="FlowEncoder expects an encoder of vectors of 2"):
        FlowEncoder(encoder, kind(2))
    with pytest.raises(ValueError, match="features of the network, or 0, got context_dim=5"):
        FlowEncoder(encoder, kind(3, context_dim=5))
    for owner in (lambda: FlowEncoder(encoder, nn.Tanh()), lambda: FlowPrior(nn.Tanh())):
        with pytest.raises(TypeError, match=r"expects a flow such as Flow\(dim\), got a Tanh"):
            owner()


class Shift(NormalizingFlow):
    """A user-defined flow that shifts the posterior by a vector."""

    def __init__(self, dim):
        super().__init__()
        self.dim, self.context_dim = dim, 0
        self.shift = nn.Parameter(torch.zeros(dim))

    def forward(self, context=None):
        return Shifted(self.shift)

    def config(self):
        return {"dim": self.dim}


class Shifted:
    def __init__(self, shift):
        self.shift = shift

    def __call__(self, value):
        return value + self.shift

    def call_and_ladj(self, value):
        return self(value), value.new_zeros(value.shape[:-1])

    @property
    def inv(self):
        return Shifted(-self.shift)


def test_user_defined_flow(tmp_path):
    flow = Shift(2)
    encoder = FlowEncoder(GaussianEncoder(MLP(4, hidden=(6,)), 2), flow)
    nn.init.ones_(flow.shift)
    x, z = torch.randn(5, 4), torch.randn(5, 2)
    close(encoder(x).log_prob(z), encoder.encoder(x).log_prob(z - 1))
    vae = VAE(encoder, MLP(2, out_shape=4), BernoulliLikelihood())
    vae.save(tmp_path / "vae")
    loaded = VAE.load(tmp_path / "vae", parts=[Shift])
    assert torch.equal(loaded.encoder.flow.shift, torch.ones(2))
