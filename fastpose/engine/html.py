# SPDX-License-Identifier: Apache-2.0
"""Pages of HTML that need nothing else: what is in them is escaped, and no script can run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

NOTHING = "–"  # instead of a number


class Markup(str):
    """Text that is HTML already: it is not escaped."""


def document(title: str, style: str, body: str) -> str:
    """A page with its title, style and body; the last two are HTML already."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def text(value: str) -> str:
    """The value as HTML."""
    return value if isinstance(value, Markup) else escape(value)


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = True) -> str:
    """A table whose rows begin with their names, in a container that scrolls if the window is narrow.

    Args:
        caption: what it is.
        head: a name for each column; none: the table has two columns, names and values.
        rows: cells, escaped unless they are `Markup`.
        numbers: whether all cells but the first are numbers.
    """
    kind = ' class="number"' if numbers else ""
    lines = [f"<caption>{text(caption)}</caption>"]
    if head:
        cells = "".join(f'<th scope="col"{kind if place else ""}>{text(name)}</th>' for place, name in enumerate(head))
        lines.append(f"<thead><tr>{cells}</tr></thead>")
    lines.append("<tbody>")
    for first, *others in rows:
        cells = "".join(f"<td{kind}>{text(cell)}</td>" for cell in others)
        lines.append(f'<tr><th scope="row">{text(first)}</th>{cells}</tr>')
    lines.append("</tbody>")
    body = "\n".join(lines)
    label = escape(caption, quote=True)
    return f'<div class="wide" role="region" tabindex="0" aria-label="{label}"><table>\n{body}\n</table></div>'


def paragraph(value: str) -> str:
    """A paragraph."""
    return f"<p>{text(value)}</p>"


def details(summary: str, inside: str) -> str:
    """Something that is shown when its summary is clicked; `inside` is HTML."""
    return f"<details><summary>{text(summary)}</summary>\n{inside}\n</details>"


def shown(value: float | None, how: str) -> str:
    """A number as its format says; a dash for none."""
    return NOTHING if value is None or math.isnan(value) else f"{value:{how}}"
