"""The code and the commands of the README and of the documentation's pages run as they are."""

import re
import tomllib
from pathlib import Path

import pytest
from helpers.names import public_names

from tinyvae.datasets import digits, threshold
from tinyvae.testing import check_likelihood

ROOT = Path(__file__).parents[1]
# Pages whose code runs, and the files that it writes.
PAGES = {
    "quickstart": {"elbo.png", "vae.safetensors"},
    "likelihoods": set(),
    "latents": set(),
    "objectives": set(),
    "training": set(),
    "tables": {"table.safetensors"},
    "evaluation": set(),
    "metrics": {"traversals.png", "interpolations.png", "neighbors.png"},
    "evaluation_checks": set(),
    "compression": set(),
    "checkpointing": {"runs"},
    "tracking": {"runs"},
    "sharing": {"digits", "encoder.pt2", "decoder.pt2"},
    "extending": set(),
}
README = (ROOT / "README.md").read_text()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
REPOSITORY = PYPROJECT["project"]["urls"]["Repository"]
FILES = [  # addresses of the repository's files, and of images
    f"{REPOSITORY}/blob/main/",
    f"{REPOSITORY.replace('github', 'raw.githubusercontent')}/main/",
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_ci_runs_the_development_commands_of_the_readme():
    (block,) = [block for block in blocks("bash") if "pytest" in block]
    assert block.startswith("python3 -m venv")
    assert f"\n{block}\n" in (ROOT / ".ci" / "run").read_text()


def test_first_example_prints_its_number(capsys: pytest.CaptureFixture[str]):
    code = blocks("python")[0]
    assert len(code.splitlines()) <= 15
    exec(code, {})
    printed = capsys.readouterr().out
    stated = re.search(r"# (-\d+\.\d+) \+- (\d+\.\d+)", code)
    measured = re.match(r"(-\d+\.\d+) \+- (\d+\.\d+)", printed)
    # Another machine rounds differently and so trains slightly different weights.
    assert abs(float(measured[1]) - float(stated[1])) < float(stated[2])


def test_first_example_is_on_the_first_screen():
    assert README[: README.index("```python")].count("\n") < 29


def test_composition_example_makes_a_model():
    namespace = public_names() | {"train": threshold(digits().images, level=8)}
    exec(blocks("python")[1], namespace)
    assert namespace["vae"].sample(2).shape == (2, 1, 8, 8)


def test_likelihood_example_keeps_the_contract():
    namespace: dict[str, type] = {}
    exec(blocks("python")[2], namespace)
    likelihood = namespace["GumbelLikelihood"]()
    assert likelihood.param_shape((1, 8, 8)) == (2, 1, 8, 8)
    check_likelihood(likelihood)


@pytest.mark.slow
def test_table_example_fills_missing_values():
    namespace: dict[str, object] = {}
    exec(blocks("python")[3], namespace)
    assert namespace["filled"]["age"][0] == 41.0
    assert set(namespace["filled"]["smokes"]) <= {"no", "yes"}
    assert not namespace["filled"].isna().any(axis=None)
    assert len(namespace["p_values"]) == 200


@pytest.mark.slow
@pytest.mark.parametrize(("page", "files"), PAGES.items())
def test_page_code_runs_from_top_to_bottom(page, files, tmp_path, monkeypatch: pytest.MonkeyPatch):
    text = (ROOT / "docs" / f"{page}.rst").read_text()
    snippets = re.findall(r"::\n\n((?:    .*\n|\n)+)", text)
    assert len(snippets) >= 2
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": page}
    for snippet in snippets:
        code = "\n".join(line[4:] for line in snippet.splitlines())
        exec(re.sub(r"epochs=\d+", "epochs=2", code), namespace)
    assert {path.name for path in tmp_path.iterdir()} >= files


def test_source_distribution_holds_what_the_readme_and_tests_name():
    sdist = PYPROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]
    included = {*sdist["include"], "/LICENSE", "/README.md"}  # always there
    links = re.findall(rf"\]\({FILES[0]}(\w+)", README)
    needed = {*links, "src", "tests", "tools", "examples", "benchmarks", "constraints", ".ci"}
    missing = {name for name in needed if not any(i.startswith(f"/{name}") for i in included)}
    assert missing == set()


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README))
def test_link_works_on_the_index_of_packages(link: str):
    assert link.startswith("https://")  # a page of PyPI has no files next to it
    for start in FILES:
        if link.startswith(start):
            assert (ROOT / link.removeprefix(start)).exists()
