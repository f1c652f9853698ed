"""Figure that a notebook shows."""

import io

from matplotlib.figure import Figure

NOTEBOOK_DPI = 80


class NotebookFigure(Figure):
    """Figure that a notebook shows without ``pyplot``."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=NOTEBOOK_DPI, metadata={"Software": None})
        return buffer.getvalue()
