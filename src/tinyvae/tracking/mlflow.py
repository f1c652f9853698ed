"""Writer for MLflow."""

import re
import time
from collections.abc import Mapping
from typing import Any

from tinyvae.tracking.writer import Pixels, Setting, Writer, import_tracker

TAG = "tinyvae.run_id"
IMAGE_FILE = re.compile(r"images/(?P<name>.+?)%step%(?P<step>\d+)%")  # as log_image names it
MAX_VALUE = 500  # characters of a parameter that every version of MLflow stores


class MLflowWriter(Writer):
    """Write a run of an MLflow experiment: metrics, parameters, images and texts.

    The run has the tag ``tinyvae.run_id``, by which a resumed run finds it. MLflow cannot remove
    metrics, so a resumed run keeps those after its step and does not write them again.

    Args:
        experiment: Name of the experiment. A missing one is made.
        tracking_uri: Address of the store, such as ``"sqlite:///mlflow.db"`` or
            ``"http://localhost:5000"``; None for MLflow's own setting.
        name: Name of the run; None for one that MLflow makes.

    Raises:
        ImportError: If mlflow is not installed.
    """

    def __init__(
        self, experiment: str, *, tracking_uri: str | None = None, name: str | None = None
    ) -> None:
        self.experiment, self.tracking_uri, self.name = experiment, tracking_uri, name
        self._package = import_tracker("mlflow", "MLflowWriter")
        self._client: Any = None
        self._run = ""

    def open(
        self, run_id: str, settings: Mapping[str, Setting], step: int, *, resume: bool
    ) -> Mapping[str, int]:
        """Create the run, or find it by its tag. See :class:`Writer`."""
        self._client = client = self._package.MlflowClient(self.tracking_uri)
        experiment = client.get_experiment_by_name(self.experiment)
        number = (
            client.create_experiment(self.experiment)
            if experiment is None
            else experiment.experiment_id
        )
        runs = client.search_runs([number], f"tags.`{TAG}` = '{run_id}'") if resume else []
        if runs:
            self._run = runs[0].info.run_id
            client.update_run(self._run, status="RUNNING")
            return self._last_steps(runs[0].data.metrics)
        self._run = client.create_run(number, tags={TAG: run_id}, run_name=self.name).info.run_id
        parameter = self._package.entities.Param
        params = [parameter(_key(n), str(v)[:MAX_VALUE]) for n, v in settings.items()]
        for start in range(0, len(params), 100):  # the largest number per call
            client.log_batch(self._run, params=params[start : start + 100])
        return {}

    def _last_steps(self, metrics: Mapping[str, float]) -> dict[str, int]:
        client = self._client
        last = {n: max(m.step for m in client.get_metric_history(self._run, n)) for n in metrics}
        for file in client.list_artifacts(self._run, "images"):
            if found := IMAGE_FILE.match(file.path):
                name, step = found["name"], int(found["step"])
                last[name] = max(step, last.get(name, 0))
        return last

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Write metrics."""
        now, metric = int(time.time() * 1000), self._package.entities.Metric
        metrics = [metric(_key(name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def write_image(self, name: str, pixels: Pixels, step: int) -> None:
        """Write an image, which MLflow shows over the steps."""
        self._client.log_image(self._run, pixels, key=name, step=step)

    def write_text(self, name: str, text: str) -> None:
        """Write the artifact ``NAME.txt``."""
        self._client.log_text(self._run, text, f"{name}.txt")

    def close(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self._run)


def _key(name: str) -> str:
    """Return a name with the characters that MLflow allows."""
    return re.sub(r"[^\w\-. :/]", "_", name)
