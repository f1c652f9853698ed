r"""Figures for talks and papers: images, training curves and latent space.

Long curves are drawn with the mean over the neighbors on both sides, fewer near the borders,

.. math:: \bar y_i = \frac{1}{|W_i|} \sum_{j \in W_i} y_j, \qquad
          W_i = \{j < n : |j - i| \leq \min(h, i / 4),\ y_j \text{ finite}\},

and latent means of more than two dimensions by their first two principal components, with the
share :math:`\lambda_k / \sum_j \lambda_j` of the variance that each explains.

Every function returns a :class:`matplotlib.figure.Figure` that belongs to the caller. Neither
``pyplot`` nor the global settings of matplotlib nor any random numbers are involved. matplotlib
is optional (``pip install 'tinyvae[examples]'``) and imported when the first figure is made.
"""

from tinyvae.plotting._style import save_figure as save_figure
from tinyvae.plotting.curves import curves as curves
from tinyvae.plotting.images import image_grid as image_grid
from tinyvae.plotting.images import image_rows as image_rows
from tinyvae.plotting.latent import latent_scatter as latent_scatter
