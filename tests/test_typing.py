"""Parts of the user's own, as the documentation shows them, pass strict mypy."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ("quickstart", "likelihoods", "objectives", "training", "extending")
KEPT = (ast.Import, ast.ImportFrom, ast.ClassDef)

# Parts that no page shows, with the types that a user would write.
OTHERS = """
from dataclasses import dataclass
from torch import Generator, Tensor, rand
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, StepLR
from tinyvae import ELBO, VAE, Batch, BernoulliLikelihood, Objective, Optimization, Trainer
from tinyvae.core import ObjectiveOutput
from tinyvae.objectives import Regularizer, RegularizerOutput
from tinyvae.models import VAEOutput
from tinyvae.schedules import Schedule

@dataclass(frozen=True)
class LabeledBatch(Batch):
    labels: Tensor | None = None

class Supervised(Objective):
    def forward(self, model: VAE, batch: LabeledBatch) -> ObjectiveOutput:
        return ObjectiveOutput({"model": model.encoder(batch.x).mean.sum()}, {})

class Penalty(Regularizer):
    def forward(self, model: VAE, batch: LabeledBatch, output: VAEOutput) -> RegularizerOutput:
        return RegularizerOutput(self.weighted(output.latents[0].z.sum()), {})

class Step(Schedule):
    def __init__(self, steps: int) -> None:
        super().__init__(steps=steps, fraction=None)

    def value_at(self, step: int, length: int) -> float:
        return float(step >= length)

def flip(x: Tensor, generator: Generator) -> Tensor:
    return (x - (rand(x.shape, generator=generator) < 0.1).float()).abs()

def first(item: tuple[Tensor, Tensor]) -> LabeledBatch:
    return LabeledBatch(item[0], labels=item[1])

def decay(optimizer: Optimizer) -> LRScheduler:
    return StepLR(optimizer, 10)

vae = VAE.from_shapes(4, latent_dim=2, likelihood=BernoulliLikelihood())
optimization = Optimization(optimizer=lambda p: SGD(p, lr=0.1), scheduler=decay)
trainer = Trainer(vae, ELBO(beta=Step(3)) + Penalty(1.0), optimization)
trainer.fit((rand(8, 4), rand(8)), epochs=1, batch=first, transform=flip)
"""


def own_classes(code: str) -> str:
    """Return the classes and the imports of a page's code, "" if it has no class."""
    body = [node for node in ast.parse(code).body if isinstance(node, KEPT)]
    has_class = any(isinstance(node, ast.ClassDef) for node in body)
    return ast.unparse(ast.Module(body, [])) if has_class else ""


def snippets() -> dict[str, str]:
    """Return the classes of the pages, by name."""
    codes = {}
    for page in PAGES:
        text = (ROOT / "docs" / f"{page}.rst").read_text()
        lines = "".join(re.findall(r"::\n\n((?:    .*\n|\n)+)", text)).splitlines()
        codes[page] = "\n".join(line[4:] for line in lines)
    classes = {name: own for name, code in codes.items() if (own := own_classes(code))}
    assert {"quickstart", "extending"} <= set(classes)
    return classes | {"others": OTHERS}


@pytest.mark.slow
def test_own_parts_of_the_documentation_pass_strict_mypy(tmp_path):
    pytest.importorskip("mypy")
    for name, code in snippets().items():
        (tmp_path / f"{name}.py").write_text(code)
    options = ["--strict", "--config-file=", "--follow-imports=silent", "--cache-dir=.cache"]
    options.append("--disable-error-code=import-untyped")  # pandas has its types in a package apart
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *sorted(tmp_path.glob("*.py"))],
        cwd=tmp_path,
        env={"MYPYPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert checked.stdout == f"Success: no issues found in {len(snippets())} source files\n"
