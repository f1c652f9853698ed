"""Metrics of codes with known labels or factors, and of samples.

They are functions of arrays or tensors, from any model. :class:`Score` holds a value with its
standard error. Probes, clustering, DCI and SAP need scikit-learn (extra ``sklearn``).
"""

from tinyvae.metrics.clustering import ClusteringScores as ClusteringScores
from tinyvae.metrics.clustering import clustering as clustering
from tinyvae.metrics.clustering import k_means as k_means
from tinyvae.metrics.discrepancy import Discrepancy as Discrepancy
from tinyvae.metrics.discrepancy import kernel_distance as kernel_distance
from tinyvae.metrics.discrepancy import mmd as mmd
from tinyvae.metrics.disentanglement import DCIScores as DCIScores
from tinyvae.metrics.disentanglement import dci as dci
from tinyvae.metrics.disentanglement import factor_vae_score as factor_vae_score
from tinyvae.metrics.disentanglement import (
    separated_attribute_predictability as separated_attribute_predictability,
)
from tinyvae.metrics.features import train_features as train_features
from tinyvae.metrics.frechet import frechet_distance as frechet_distance
from tinyvae.metrics.frechet import gaussian_frechet_distance as gaussian_frechet_distance
from tinyvae.metrics.information import modularity as modularity
from tinyvae.metrics.information import mutual_information as mutual_information
from tinyvae.metrics.information import mutual_information_gap as mutual_information_gap
from tinyvae.metrics.neighbors import NeighborScores as NeighborScores
from tinyvae.metrics.neighbors import neighbor_scores as neighbor_scores
from tinyvae.metrics.probes import knn_probe as knn_probe
from tinyvae.metrics.probes import linear_probe as linear_probe
from tinyvae.metrics.scores import Score as Score
