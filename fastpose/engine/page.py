# SPDX-License-Identifier: Apache-2.0
"""A sheet as one page of HTML that needs nothing else: pictures are inside it, and no script."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from html import escape

import numpy as np

from fastpose.engine.html import document
from fastpose.engine.pictures import side_colors
from fastpose.engine.sheet import TARGET, Fed, Layout, draw_person, legend_of
from fastpose.skeletons import Skeleton

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5em; background: Canvas; color: CanvasText; }
h1 { font-size: 1.4em; margin: 0 0 .6em; }
table { border-collapse: collapse; margin: 0 2.5em 1.2em 0; font-size: .92em; }
th, td { text-align: left; font-weight: normal; padding: .1em 1.2em .1em 0; vertical-align: top; }
thead th, tbody th { opacity: .75; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.colour { display: inline-block; width: .85em; height: .85em; border: 1px solid GrayText; border-radius: 50%;
          margin-right: .45em; vertical-align: -.08em; }
.facts { display: flex; flex-wrap: wrap; align-items: flex-start; }
.legend span.item { margin-right: 1.6em; white-space: nowrap; }
.persons { display: grid; gap: 1.2em; margin: 1.2em 0; }
figure { margin: 0; min-width: 0; }
img { max-width: 100%; height: auto; display: block; }
figcaption { font-size: .88em; overflow-wrap: anywhere; margin-top: .2em; }
"""


def page(
    title: str,
    facts: Mapping[str, str],
    people: Iterable[Fed],
    skeleton: Skeleton,
    layout: Layout,
    columns: int | None = None,
    *,
    names: bool = False,
    udp: bool = False,
) -> str:
    """The page. Every text is escaped: names of files and joints are a stranger's.

    Args:
        title: its heading.
        facts: a table of what there is to know of all persons.
        people: the persons, who are taken and drawn one after the other.
        skeleton: their joints.
        layout: of one person.
        columns: persons in a row; None: as many as the window has room for.
        names, udp: see draw_sheet.
    """
    counted = np.zeros(skeleton.num_joints, int)
    figures = []
    for person in people:
        counted += person.annotated
        picture = base64.b64encode(draw_person(person, skeleton, layout, names=names, udp=udp)).decode()
        caption = [escape(line) for line in person.caption]
        figures.append(
            f'<figure><img src="data:image/png;base64,{picture}" width="{layout.cell}" height="{layout.height}" '
            f'alt="{", ".join(caption)}"><figcaption>{"<br>".join(caption)}</figcaption></figure>'
        )
    about = "\n".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts.items())
    joints = "\n".join(
        f'<tr><td>{_colour(color)}{escape(joint)}</td><td class="number">{count}</td></tr>'
        for joint, color, count in zip(skeleton.joints, side_colors(skeleton), counted, strict=True)
    )
    meant = [*legend_of(skeleton), *([(TARGET, "targets")] if layout.panels == 2 else [])]
    legend = "".join(f'<span class="item">{_colour(color)}{escape(text)}</span>' for color, text in meant)
    persons = "\n".join(figures)
    in_a_row = f"{columns}, minmax(0, {layout.cell}px)" if columns else f"auto-fill, min(100%, {layout.cell}px)"
    style = f"{STYLE}.persons {{ grid-template-columns: repeat({in_a_row}); }}\n"
    return document(
        title,
        style,
        f"""<h1>{escape(title)}</h1>
<div class="facts">
<table>
{about}
</table>
<details><summary>Joints annotated in these {len(figures)} persons</summary>
<table><thead><tr><th>joint</th><th>persons</th></tr></thead>
<tbody>
{joints}
</tbody></table></details>
</div>
<p class="legend">{legend}</p>
<div class="persons">
{persons}
</div>""",
    )


def _colour(color: str) -> str:
    return f'<span class="colour" style="background:{color}"></span>'
