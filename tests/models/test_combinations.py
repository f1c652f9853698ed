"""Every encoder with every prior, and joint latents."""

import math

import pytest
import torch
from helpers.cases import for_each
from helpers.models import (
    COMBINATIONS,
    DIVERSE,
    ContextLinear,
    all_images,
    binary,
    combined,
    features,
    features_encoder,
    same_bits,
)

from tinyvae import (
    ELBO,
    MLP,
    VAE,
    Batch,
    BernoulliLikelihood,
    GaussianEncoder,
    StandardNormal,
    Trainer,
    evaluate,
    log_marginal,
)
from tinyvae.encoders import (
    DeterministicEncoder,
    FlowEncoder,
    JointEncoder,
    LaplaceEncoder,
    PowerSphericalEncoder,
)
from tinyvae.encoders.quantized import VectorQuantizedEncoder
from tinyvae.flows import Flow
from tinyvae.models import LatentTerm
from tinyvae.priors import JointPrior

pytestmark = pytest.mark.usefixtures("float64")


HEAVY_TAILED = ("spline, vamp", "affine, vamp")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.float64) for name in COMBINATIONS] + [(name, torch.float32) for name in DIVERSE],
)
def test_vae_composes_every_encoder_with_every_prior(name, dtype, tmp_path):
    vae, x = combined(name, dtype), all_images(4, dtype)
    assert ELBO().check(vae, Batch(x)).endswith(": a lower bound on log p(x)")
    history = Trainer(vae, ELBO(), progress=False).fit(x, x, epochs=2, batch_size=8)
    assert all(math.isfinite(value) for value in history["validation/elbo_nats"])
    vae.eval()
    report = evaluate(vae, x, elbo_samples=64, importance_samples=64)
    assert report.is_bound
    with torch.no_grad():
        log_weight = vae(x, num_samples=500).log_weight()
    assert log_weight.dtype == dtype
    log_weight = log_weight.double()
    elbo = log_weight.mean(0)
    draws = 500 if name in HEAVY_TAILED or dtype == torch.float32 else 5000
    evidence = log_marginal(vae, x, num_samples=draws).double()
    weight = (log_weight - evidence).exp()
    error = (log_weight.var(0) / 500 + weight.var(0) / draws).sum().sqrt() / 16
    assert (elbo - evidence).mean() <= 4 * error + 1e-5
    assert report.elbo.mean == pytest.approx(elbo.mean().item(), abs=0.2)
    # Other importance weights have heavier tails, and a narrow posterior misses most of the mass.
    if draws == 5000 and (name.startswith(("sphere", "classes")) or name.endswith(", normal")):
        spread = (weight.var(0) / draws * (2 * evidence).exp()).sum().sqrt()
        assert abs(evidence.exp().sum().item() - 1) < 4.5 * spread + 1e-3
    assert vae.sample(7).shape == vae.sample(7, mean=True).shape == (7, 4)
    assert vae.sample(7).dtype == dtype
    assert vae.reconstruct(x).shape == x.shape
    vae.save(tmp_path / "vae")
    loaded = VAE.load(tmp_path / "vae")
    states = vae.state_dict(), loaded.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(same_bits(t, states[1][key]) for key, t in states[0].items())
    assert repr(loaded) == repr(vae)
    weights, draws = [], []
    for each in (vae, loaded):
        torch.manual_seed(1)
        weights.append(each(x, num_samples=3).log_weight())
        draws.append(each.sample(5))
    assert same_bits(*weights)
    assert same_bits(*draws)


@pytest.mark.parametrize("name", DIVERSE)
def test_vae_trains_every_parameter_of_a_combination(name):
    vae = combined(name).train()
    if "autoregressive" in name:  # its last layer starts at zero, which hides the others
        torch.nn.init.normal_(vae.prior.layers[-1].weight, std=0.1)
    objective = ELBO(num_samples=3)
    objective(vae, Batch(all_images(4))).losses["model"].backward()
    trained = [(key, p) for key, p in vae.named_parameters() if p.requires_grad]
    # The parameters of the first bin of a flow's last bijection can have no effect.
    assert not [key for key, p in trained if p.grad is None]
    alive = [key for key, p in trained if p.grad.any()]
    assert len(alive) >= len(trained) - 1


def test_elbo_of_a_deterministic_encoder_is_not_a_bound(tmp_path):
    vae, x = combined("gaussian, normal"), all_images(4)
    vae.encoder = DeterministicEncoder(features(), 2)
    assert "not a bound" in ELBO().check(vae, Batch(x))
    history = Trainer(vae, ELBO(), progress=False).fit(x, x, epochs=2)
    assert len(history) == 2
    assert not evaluate(vae, x, elbo_samples=2, importance_samples=None).is_bound
    vae.save(tmp_path / "vae")
    assert torch.equal(VAE.load(tmp_path / "vae").reconstruct(x), vae.reconstruct(x))


def test_joint_latents_give_one_term_each():
    vae, x = combined("joint").eval(), binary(6, 4)
    output = vae(x, num_samples=3)
    style, kind = output.latents
    assert (style.name, kind.name) == ("style", "kind")
    assert style.z.shape == (3, 6, 2)
    assert kind.z.shape == (3, 6, 3, 1)
    assert style.has_analytic_kl
    assert kind.has_analytic_kl
    z = torch.cat([style.z, kind.z.flatten(2)], 2)
    torch.testing.assert_close(output.log_px, vae.decode(z).log_prob(x))
    read = vae.encoder.network(x)
    torch.testing.assert_close(style.log_q, vae.encoder.encoders["style"](read).log_prob(style.z))
    torch.testing.assert_close(kind.log_q, vae.encoder.encoders["kind"](read).log_prob(kind.z))
    joint_term = LatentTerm("z", z, vae.encode(x), vae.prior())
    torch.testing.assert_close(style.log_q + kind.log_q, joint_term.log_q)
    torch.testing.assert_close(style.log_p + kind.log_p, joint_term.log_p)
    expected = output.log_px + joint_term.log_p - joint_term.log_q
    torch.testing.assert_close(output.log_weight(), expected)
    metrics = ELBO(num_samples=3)(vae, Batch(x)).metrics
    kl_sum = metrics["kl_style_nats"] + metrics["kl_kind_nats"]
    assert kl_sum.item() == pytest.approx(metrics["kl_nats"].item(), abs=1e-12)
    q = vae.encode(x).parts["kind"].mean.squeeze(2)
    p = vae.prior().parts["kind"].mean.squeeze(1)
    assert metrics["kl_kind_nats"].item() == pytest.approx((q * (q / p).log()).sum(1).mean().item())
    history = Trainer(vae, ELBO(), progress=False).fit(x, x, epochs=1)
    assert {"train/kl_style_nats", "validation/kl_kind_nats"} <= history.epochs[0].keys()


def joint_of_normals():
    return JointPrior({"a": StandardNormal(1), "b": StandardNormal(1)})


def test_joint_latents_with_a_plain_prior_give_one_term():
    encoder = JointEncoder(
        {"a": GaussianEncoder(features(), 2), "b": LaplaceEncoder(features(), 1)}
    )
    vae, x = VAE(encoder, MLP(3, (5,), 4), BernoulliLikelihood()), binary(6, 4)
    (term,) = vae(x, num_samples=3).latents
    assert term.name == "z"
    assert term.z.shape == (3, 6, 3)
    a, b = (encoder.encoders[name](x) for name in "ab")
    log_q = a.log_prob(term.z[..., :2]) + b.log_prob(term.z[..., 2:])
    torch.testing.assert_close(term.log_q, log_q)
    assert not term.has_analytic_kl
    assert torch.equal(term.kl(), (term.log_q - term.log_p).mean(0))
    assert "kl_z_nats" not in ELBO()(vae, Batch(x)).metrics
    one = VAE(features_encoder(), MLP(2, (5,), 4), BernoulliLikelihood(), joint_of_normals())
    (term,) = one(x).latents
    assert term.name == "z"


def concatenating_network():
    class OfBoth(MLP):
        def forward(self, x, context=None):
            return super().forward(torch.cat([x, context], 1))

    return OfBoth(6, (5,))


def test_joint_latents_read_the_context():
    encoder = JointEncoder(
        {
            "a": GaussianEncoder(ContextLinear(4, 2, 5), 1, features=5),
            "b": LaplaceEncoder(concatenating_network(), 1),
        }
    )
    vae = VAE(encoder, ContextLinear(2, 2, 4), BernoulliLikelihood(), joint_of_normals())
    x, context = binary(5, 4), torch.randn(5, 2)
    assert vae(x, context, num_samples=3).log_weight().shape == (3, 5)
    assert vae.sample(7, context).shape == (7, 5, 4)
    assert evaluate(vae, x, context, elbo_samples=2, importance_samples=2).is_bound


@for_each(
    "encoder",
    [
        lambda: PowerSphericalEncoder(features(), 3),
        lambda: VectorQuantizedEncoder(features(), num_codes=5, latent_dim=3),
    ],
)
def test_flow_encoder_refuses_other_spaces(encoder):
    flow = FlowEncoder(encoder(), Flow(3, transforms=1, hidden=(4,)))
    with pytest.raises(TypeError, match=r"densities on R\^D"):
        flow(binary(5, 4))
