import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_oldest_constraints_are_the_floors_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"].values()
    required = [project["project"]["dependencies"], *extras, project["dependency-groups"]["test"]]
    floors = {floor.replace(">=", "==") for floors in required for floor in floors}
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    assert floors == {line for line in lines if not line.startswith("#")}
