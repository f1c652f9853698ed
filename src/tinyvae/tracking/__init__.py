"""Trackers: a callback that sends a run to files, TensorBoard, W&B, MLflow or trackio.

A :class:`Log` mirrors the history of a run through a :class:`Writer`::

    from tinyvae.tracking import Log, TensorBoardWriter, image_figures

    log = Log(TensorBoardWriter("runs/a"), figures=image_figures(test[:8]))
    Trainer(vae, ELBO(), callbacks=[log]).fit(train, test, epochs=50)

The packages of the trackers are imported by the writers that need them.
"""

from tinyvae.tracking.cloud import TrackioWriter as TrackioWriter
from tinyvae.tracking.cloud import WandbWriter as WandbWriter
from tinyvae.tracking.files import CSVWriter as CSVWriter
from tinyvae.tracking.files import JSONLinesWriter as JSONLinesWriter
from tinyvae.tracking.log import Log as Log
from tinyvae.tracking.log import image_figures as image_figures
from tinyvae.tracking.mlflow import MLflowWriter as MLflowWriter
from tinyvae.tracking.tensorboard import TensorBoardWriter as TensorBoardWriter
from tinyvae.tracking.writer import Writer as Writer
