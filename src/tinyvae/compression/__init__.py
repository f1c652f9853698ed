r"""Lossless compression of data by a model (extra ``compression``): bits-back coding.

A file takes about minus the ELBO. So the bound that training maximizes is measured, as the size of
a file::

    file = compress(vae, x)  # bytes
    read_header(file).nats_per_datum  # next to -evaluate(vae, x).elbo
    decompress(vae, file)  # equals x
"""

try:
    import constriction as _constriction  # noqa: F401
except ImportError as _error:
    raise ImportError(
        "tinyvae.compression needs constriction >= 0.5: install the extra, pip install "
        "'tinyvae[compression]'"
    ) from _error

from tinyvae.compression.coding import compress as compress
from tinyvae.compression.coding import decompress as decompress
from tinyvae.compression.container import Header as Header
from tinyvae.compression.container import read_header as read_header
