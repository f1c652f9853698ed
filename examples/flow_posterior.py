"""A posterior that is not Gaussian, and a flow that fits it.

    python examples/flow_posterior.py

The decoder is fixed and known: z ~ N(0, I) in two dimensions, x = z2 - z1^2 / 2 + noise. Given x,
the posterior is a crescent. The script fits three encoders to draws of x: a diagonal Gaussian, a
full Gaussian, and a flow on top of the diagonal one. Quadrature gives log p(x), and so the gap of
each encoder: log p(x) - ELBO = KL(q(z given x) || p(z given x)).
"""

import torch
from charts import INK, figure
from fitting import arguments, fit
from torch import Tensor, nn

from tinyvae import MLP, VAE, Encoder, GaussianEncoder, GaussianLikelihood, evaluate
from tinyvae.encoders import FlowEncoder, FullGaussianEncoder
from tinyvae.flows import Flow
from tinyvae.plotting import save_figure

NOISE = 0.2


class Crescent(nn.Module):
    """Mean of x given z."""

    def forward(self, z: Tensor) -> Tensor:
        """Map ``(N, 2)`` to ``(N, 1)``."""
        return z[:, 1:] - 0.5 * z[:, :1].square()


def grid(steps: int) -> tuple[Tensor, float]:
    """Return points of the plane, and the area per point."""
    line = torch.linspace(-4.5, 4.5, steps, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)  # (H, W, 2)
    return points, float(line[1] - line[0]) ** 2


def log_joint(vae: VAE, x: Tensor, points: Tensor) -> Tensor:
    """Return log p(x, z) of each x at each point z, ``(N, B)``."""
    rows = points.reshape(-1, 1, 2)
    return vae.prior().log_prob(rows) + vae.decode(rows).log_prob(x)


def density(vae: VAE, x: Tensor, points: Tensor) -> Tensor:
    """Return q(z given x) at each point."""
    with torch.no_grad():
        return vae.encode(x).log_prob(points.reshape(-1, 1, 2)).exp().reshape(points.shape[:-1])


def main() -> None:
    """Fit the encoders, compare them with the true posterior, draw the figure."""
    args = arguments(__doc__, epochs=30, seeds=3)
    torch.manual_seed(100)
    z = torch.randn(21000, 2)
    x, x_test = (Crescent()(z) + NOISE * torch.randn(21000, 1)).split((20000, 1000))

    def network() -> MLP:
        return MLP(1, hidden=(64, 64), activation=nn.SiLU)

    encoders: dict[str, type[Encoder] | object] = {
        "diagonal Gaussian": lambda: GaussianEncoder(network(), 2),
        "full Gaussian": lambda: FullGaussianEncoder(network(), 2),
        "flow": lambda: FlowEncoder(GaussianEncoder(network(), 2), Flow(2, context_dim=64)),
    }
    fitted: dict[str, VAE] = {}
    for name, make in encoders.items():
        gaps = []
        for seed in range(args.seeds):
            torch.manual_seed(seed)
            vae = VAE(make(), Crescent(), GaussianLikelihood(NOISE))
            vae, _ = fit(vae, x, epochs=args.epochs, seed=seed, batch_size=256)
            vae = vae.double()
            points, area = grid(401)
            exact = torch.logsumexp(log_joint(vae, x_test[:200].double(), points), 0)
            exact = exact + torch.log(torch.tensor(area))
            report = evaluate(
                vae, x_test[:200].double(), elbo_samples=1000, importance_samples=None
            )
            gaps.append(exact.mean().item() - report.elbo.mean)
        fitted[name] = vae
        each = "  ".join(f"{gap:.4f}" for gap in gaps)
        print(f"{name:<20} KL to the true posterior, nats: {each}", flush=True)
    draw(fitted, args.output / "gallery_flow.png")


def draw(fitted: dict[str, VAE], path: object) -> None:
    """Draw the true posterior of one x, and the posterior of each encoder."""
    x = torch.tensor([[-1.5]], dtype=torch.float64)
    points, area = grid(301)
    vae = next(iter(fitted.values()))
    joint = log_joint(vae, x, points).reshape(points.shape[:-1]).exp()
    panels = {"true posterior": joint / (joint.sum() * area)}
    panels |= {name: density(vae, x, points) for name, vae in fitted.items()}
    chart, axes = figure(13, 3.8, columns=4, sharex=True, sharey=True)
    top = float(panels["true posterior"].max())
    for panel, (name, values) in zip(axes, panels.items(), strict=True):
        image = values.clamp(max=top).numpy()
        panel.imshow(
            image, origin="lower", extent=(-4.5, 4.5, -4.5, 4.5), cmap="magma_r", vmin=0, vmax=top
        )
        panel.set_title(name, loc="left", fontsize=14, color=INK, pad=10)
        panel.set(xlim=(-3, 3), ylim=(-3, 3))
        panel.set_xlabel("$z_1$", fontsize=13, color=INK)
    axes[0].set_ylabel("$z_2$", fontsize=13, color=INK)
    save_figure(chart, path)


if __name__ == "__main__":
    main()
