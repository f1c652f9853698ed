r"""Figures for talks and papers: images, training curves, latent space and evaluation.

Long curves are drawn with the running mean over the neighbors on both sides

.. math:: \bar y_i = \frac{1}{|W_i|} \sum_{j \in W_i} y_j, \qquad
          W_i = \{j < n : |j - i| \leq \min(h, i / 4),\ y_j \text{ finite}\}.

Latent means of more than two dimensions are drawn by their first two principal components, with
the share :math:`\lambda_k / \sum_j \lambda_j` of the variance that each explains.

Every function returns a new :class:`matplotlib.figure.Figure`. The functions use neither
``pyplot`` nor random numbers, and change no global settings of matplotlib. matplotlib is optional
(``pip install 'tinyvae[examples]'``) and imported with the first figure.
"""

from tinyvae.plotting._style import save_figure as save_figure
from tinyvae.plotting.curves import curves as curves
from tinyvae.plotting.diagnostics import kl_bars as kl_bars
from tinyvae.plotting.diagnostics import rate_distortion_curve as rate_distortion_curve
from tinyvae.plotting.images import image_grid as image_grid
from tinyvae.plotting.images import image_rows as image_rows
from tinyvae.plotting.latent import latent_scatter as latent_scatter
from tinyvae.plotting.latent_page import latent_page as latent_page
from tinyvae.plotting.neighbors import nearest_neighbors as nearest_neighbors
from tinyvae.plotting.walks import interpolate as interpolate
from tinyvae.plotting.walks import interpolations as interpolations
from tinyvae.plotting.walks import latent_map as latent_map
from tinyvae.plotting.walks import traversals as traversals
