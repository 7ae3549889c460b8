# SPDX-License-Identifier: Apache-2.0
"""What a run's page shows of the run's predictions: parts of HTML."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from fastpose.data.causes import CAUSES, LEAST, MISS, MOST, UNCOUNTED
from fastpose.engine.charts import Series, legend, line_chart, said
from fastpose.engine.diagnosis import Diagnosis
from fastpose.engine.drawing import FOUND_MIDDLE
from fastpose.engine.html import Markup, paragraph, shown, table
from fastpose.engine.pictures import GROUND_TRUTH, LEFT, RIGHT, has_sides
from fastpose.engine.predicted import Predicted
from fastpose.engine.thumbnails import thumbnail


def about(predicted: Predicted, found: Diagnosis | None) -> str:
    """What was predicted, and what it is compared with."""
    seen, count = int(predicted.seen.sum()), len(predicted.seen)
    text = f"{count:,} persons to evaluate"
    text += f", {count - seen:,} of them without predictions: their images could not be read" if seen < count else ""
    if found is None:
        why = "no joint is annotated, or what errors are measured by is not known"
        return paragraph(f"{text}. There is nothing to compare with: {why}.")
    joints = int(found.annotated.sum())
    text += f"; {joints:,} annotated joints are compared, and each of them counts the same, which the score may do "
    text += f"otherwise. Right is {predicted.rule}: {found.all_right:.1f} % of them are."
    return paragraph(text + (f" ({predicted.note}.)" if predicted.note else ""))


class Compared(NamedTuple):
    """A run's predictions and their numbers, and what to call it."""

    name: str
    predicted: Predicted
    found: Diagnosis


def thresholds(runs: Sequence[Compared]) -> str:
    """The share of joints that are right, as a curve over the threshold and a table."""
    names, found, predicted = [one.name for one in runs], [one.found for one in runs], runs[0].predicted
    similar = predicted.threshold == 0
    title = "Joints above a similarity" if similar else "Joints within a threshold"
    if len({one.predicted.rule for one in runs}) > 1:
        reason = "The runs count errors of different kinds as right, which are not set side by side."
        return f"<h3>Joints within a threshold</h3>\n{paragraph(reason)}"
    series = [Series(name, one.limits, one.within) for name, one in zip(names, found, strict=True)]
    x_label = "least similarity" if similar else "largest error, in the unit of the score"
    chart = line_chart(
        "thresholds", title, said(series, "threshold"), series, x_label, "joints, %", limits=(0.0, 100.0)
    )
    limits = [limit for limit, _ in found[0].table]
    head = ["threshold", *(names if len(names) > 1 else ["joints, %"])]
    shares = [dict(one.table) for one in found]
    rows = [[f"{limit:g}", *(shown(each.get(limit), ".1f") for each in shares)] for limit in limits]
    text = f"The score's own threshold is {predicted.threshold:g}: {predicted.rule}."
    if similar:
        text = "Joints whose similarity with the annotation is at least the threshold; from 0.5 on they are right here."
    return (
        f"<h3>{title}</h3>\n{paragraph(text)}"
        f'{legend(names)}<div class="row"><div>{chart}</div>\n{table("Share of joints by threshold", head, rows)}</div>'
    )


def joints(predicted: Predicted, found: Diagnosis) -> str:
    """The table of all joints."""
    head = ["joint", "annotated", "right, %", "median error, px"]
    rows = [
        [name, f"{count:,}", shown(right, ".1f"), shown(median, ".1f")]
        for name, count, right, median in zip(
            predicted.skeleton.joints, found.annotated.tolist(), found.right, found.median, strict=True
        )
    ]
    return f"<h3>Joints</h3>\n{table('Each joint over all persons', head, rows)}"


_CAUSES = f"""<p>Each predicted joint is compared with the annotations of the same joint and of its mirrored one, of its
person and of all others on the picture, and what it is most similar to decides. Similarity is 1 where they are the same
and falls as COCO's does, 2<sup>−(d/h)²</sup> for a distance d, where h is the distance at which it is one half.</p>
<dl>
<dt>good</dt><dd>its own joint, similarity at least {MOST}</dd>
<dt>jitter</dt><dd>its own joint, at least {LEAST}: near, but not on it</dd>
<dt>inversion</dt><dd>the mirrored joint of the same person, at least {LEAST}: left and right exchanged</dd>
<dt>swap</dt><dd>that joint, or its mirrored one, of another person, at least {LEAST}</dd>
<dt>miss</dt><dd>nothing is as similar as {LEAST}</dd>
</dl>
"""


def _share(count: int, total: int) -> float:
    return 100.0 * count / total if total else math.nan


def by_cause(predicted: Predicted, found: Diagnosis) -> str:
    """Errors by cause, of all joints and of each."""
    total = found.causes.sum(axis=0)
    if not total.sum():
        return ""
    source = (
        "The definition is Ronchi and Perona's, Benchmarking and Error Diagnosis in Multi-Instance Pose Estimation "
    )
    source += f"(ICCV 2017). Similarity here: {predicted.similarity}."
    shares = [_share(int(n), int(total.sum())) for n in total]
    rows = [
        [cause, f"{int(n):,}", f"{share:.1f}", Markup(f'<span class="bar" style="width:{share / 10:.2f}em"></span>')]
        for cause, n, share in zip(CAUSES, total, shares, strict=True)
    ]
    of_joints = []
    for name, counts in zip(predicted.skeleton.joints, found.causes.tolist(), strict=True):
        of_joints.append([name, f"{sum(counts):,}", *(shown(_share(n, sum(counts)), ".1f") for n in counts)])
    return (
        f"<h3>Errors by cause</h3>\n{_CAUSES}{paragraph(source)}"
        f'<div class="row">{table("All joints", ["cause", "joints", "%", "share"], rows)}\n'
        f"{table('Each joint, %', ['joint', 'counted', *CAUSES], of_joints)}</div>"
    )


def persons(predicted: Predicted, found: Diagnosis) -> str:
    """The worst and the best predictions, as pictures."""
    right, left = ("right", "left") if has_sides(predicted.skeleton) else ("one side", "the other side")
    colors = (
        (RIGHT, f"blue: {right} joints of the prediction"),
        (LEFT, f"pink: {left}"),
        (FOUND_MIDDLE, "white: joints of neither side"),
        (GROUND_TRUTH, "yellow, below it: annotation"),
    )
    keys = "; ".join(f'<span class="key" style="background:{color}"></span> {text}' for color, text in colors)
    text = (
        "<p>By the mean similarity of their joints, of the persons with at least half as many joints as anybody has. "
        f"{keys}.</p>"
    )
    parts, lost = [f"<h3>Worst and best persons</h3>\n{text}"], ""
    for title, rows in (("Worst", found.worst), ("Best", found.best)):
        figures = []
        for row in rows:
            figure, reason = _figure(predicted, found, row)
            lost = lost or reason
            figures.append(figure)
        if figures:
            persons = "\n".join(figures)
            parts.append(f'<h4>{title}</h4>\n<div class="persons">\n{persons}\n</div>')
    if lost:
        parts.insert(1, f'<p class="missing">{escape(f"Pictures are missing: {lost}")}</p>')
    return "\n".join(parts)


def _figure(predicted: Predicted, found: Diagnosis, row: int) -> tuple[str, str]:
    """A person's figure, and why it has no picture."""
    image = Path(predicted.images[predicted.image_index[row]])
    counts = [int((found.found[row] == cause).sum()) for cause in range(len(CAUSES))]
    joints = int((found.found[row] != UNCOUNTED).sum())
    wrong = ", ".join(f"{n} {name}" for name, n in zip(CAUSES, counts, strict=True) if n)
    caption = f"{image.name}, row {predicted.row[row]}: similarity {found.persons[row]:.2f}, {joints} joints: {wrong}"
    try:
        data, width, height = thumbnail(predicted, row)
    except (OSError, ValueError) as error:
        return f"<figure><figcaption>{escape(caption)}</figcaption></figure>", str(error)
    alt = f"Person with annotation and prediction, {counts[MISS]} of {joints} joints missed"
    source = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
    picture = f'<img src="{source}" width="{width}" height="{height}" alt="{alt}">'
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>", ""


def calibrated(found: Diagnosis) -> str:
    """The mean score of joints against the share of them that is right."""
    used = [one for one in found.bins if one.joints]
    if not used:
        return ""
    title = "What scores say"
    text = (
        "A joint's score is what the network returned at its place, not a probability. If it were one, of the joints "
        "with scores around 0.7 a share of 0.7 would be right, and the points would be on the dotted line. The "
        f"expected calibration error, the mean distance from it over all joints, is {found.gap:.3f}. Scores below 0 "
        "and above 1 are in the first and the last row."
    )
    points = Series("", [one.score for one in used], [one.right for one in used])
    chart = line_chart(
        "calibration", title, said([points], "score"), [points], "mean score", "share that is right", ideal=True
    )
    rows = [
        [f"{one.low:.1f} to {one.high:.1f}", f"{one.joints:,}", shown(one.score, ".3f"), shown(one.right, ".3f")]
        for one in found.bins
    ]
    head = ["scores", "joints", "mean score", "share that is right"]
    return (
        f"<h3>{title}</h3>\n{paragraph(text)}"
        f'<div class="row"><div>{chart}</div>\n{table("Scores and right joints", head, rows)}</div>'
    )


def causes_of_runs(runs: Sequence[Compared]) -> str:
    """Errors by cause of several runs."""
    rows = []
    for one in runs:
        total = one.found.causes.sum(axis=0)
        joints = int(total.sum())
        rows.append([one.name, f"{joints:,}", *(shown(_share(int(n), joints), ".1f") for n in total)])
    sources = dict.fromkeys(one.predicted.similarity for one in runs)
    which = {text: ", ".join(one.name for one in runs if one.predicted.similarity == text) for text in sources}
    said_of = [f"Similarity here: {text}." if len(which) == 1 else f"{of}: {text}." for text, of in which.items()]
    shares = table("All joints of each run, %", ["run", "joints", *CAUSES], rows)
    return f"<h3>Errors by cause</h3>\n{_CAUSES}{''.join(map(paragraph, said_of))}{shares}"


def joints_of_runs(runs: Sequence[Compared]) -> str:
    """The share of each joint that is right, of several runs with the same joints."""
    joints = {one.predicted.skeleton.joints for one in runs}
    if len(joints) > 1:
        return f"<h3>Joints</h3>\n{paragraph('The runs have different joints, which are not set side by side.')}"
    rows = [
        [joint, *(shown(float(one.found.right[place]), ".1f") for one in runs)]
        for place, joint in enumerate(next(iter(joints)))
    ]
    head = ["joint", *(one.name for one in runs)]
    return f"<h3>Joints</h3>\n{table('Right, % of each joint', head, rows)}"
