"""Tables in notebooks."""

import html
from collections.abc import Iterable, Sequence


def html_table(rows: Iterable[Sequence[str]]) -> str:
    """Return rows of text as an HTML table.

    Example:
        >>> html_table([["a", "b < c"]])
        '<table><tr><td>a</td><td>b &lt; c</td></tr></table>'
    """
    lines = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows)
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
