# SPDX-License-Identifier: Apache-2.0
"""A run, or several side by side, as one page of HTML that needs nothing else: no other file, and no script."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fastpose.engine import charts
from fastpose.engine import predictions_page as predictions
from fastpose.engine.charts import Series, legend, line_chart, said
from fastpose.engine.diagnosis import Diagnosis, diagnose
from fastpose.engine.html import NOTHING, details, document, paragraph, shown, table
from fastpose.engine.run_files import RunFiles, number, read_run_files
from fastpose.files import write_text
from fastpose.models.hf import is_hf
from fastpose.progress import duration

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _colours(theme: Sequence[str], grid: str, quiet: str) -> str:
    lines = "".join(f" --s{place}: {color};" for place, color in enumerate(theme))
    return f"--grid: {grid}; --quiet: {quiet};{lines}"


STYLE = (
    f"""
:root {{ color-scheme: light dark; {_colours(charts.LIGHT, "#dcdfe4", "#5b6270")} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_colours(charts.DARK, "#3a3f47", "#a7aeba")} }} }}
"""
    + """
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1em 1.2em 3em; max-width: 84em;
       background: Canvas; color: CanvasText; overflow-wrap: anywhere; }
h1 { font-size: 1.5em; line-height: 1.25; margin: .4em 0; }
h2 { font-size: 1.2em; margin: 1.8em 0 .5em; border-bottom: 1px solid var(--grid); padding-bottom: .2em; }
h3 { font-size: 1em; margin: 1em 0 .4em; }
p { margin: .5em 0; max-width: 60em; }
.score { font-size: 1.15em; }
.score strong { font-size: 1.35em; }
code, pre { font-family: ui-monospace, monospace; font-size: .92em; }
pre { padding: .7em .9em; border: 1px solid var(--grid); border-radius: 4px; white-space: pre-wrap; margin: .5em 0; }
.wide { overflow-x: auto; max-width: 100%; margin: .7em 0; }
table { border-collapse: collapse; font-size: .93em; }
caption { text-align: left; font-weight: 600; padding-bottom: .3em; }
th, td { text-align: left; vertical-align: top; padding: .18em 1.1em .18em 0; overflow-wrap: normal; }
th { font-weight: normal; }
tbody th, caption { white-space: nowrap; }
thead th { font-weight: 600; border-bottom: 1px solid var(--grid); vertical-align: bottom; }
td { min-width: 3.5em; max-width: 34em; overflow-wrap: anywhere; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
:focus-visible { outline: 3px solid var(--s0); outline-offset: 2px; }
summary { cursor: pointer; width: fit-content; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15em 1.2em; margin: .5em 0; max-width: 60em; }
dt { font-weight: 600; }
dd { margin: 0; }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20em), 1fr)); gap: 1em 1.6em; }
.persons { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 9.5em), 1fr)); gap: 1em; }
figure { margin: 0; min-width: 0; }
.persons img { max-width: 100%; height: auto; display: block; border-radius: 3px; }
figcaption { font-size: .88em; margin-top: .25em; }
.legend { list-style: none; padding: 0; margin: .5em 0; display: flex; flex-wrap: wrap; gap: .3em 1.6em; }
.legend svg { vertical-align: -.2em; }
.swatch .line { stroke-width: 2; fill: none; }
.missing { border-left: 4px solid var(--s1); padding-left: .8em; }
td .bar { display: block; margin-top: .4em; height: .7em; background: var(--s0); border-radius: 2px; }
.key { display: inline-block; width: 1.5em; height: .55em; border: 1px solid GrayText; vertical-align: middle; }
"""
    + charts.STYLE
)


def write_page(folders: Sequence[Path], file: Path, defaults: Mapping[str, Any]) -> None:
    """Writes the page of one run, or of several side by side.

    Args:
        folders: of the runs.
        file: the page.
        defaults: of all settings, by name.

    Raises:
        ValueError: a folder is not that of a run.
        OSError: the page cannot be written.
    """
    runs = [read_run_files(folder) for folder in folders]
    write_text(file, page_of_run(runs[0], defaults) if len(runs) == 1 else page_of_runs(runs))


def page_of_run(run: RunFiles, defaults: Mapping[str, Any]) -> str:
    """The page of one run."""
    found = diagnose(run.predicted) if run.predicted else None
    parts = [f"<h1>{escape(run.name)}</h1>", _headline(run), _missing(run)]
    parts += ["<h2>The run</h2>", table("What it was", [], _facts(run), numbers=False), _again(run)]
    parts += ["<h2>Settings</h2>", _settings(run, defaults), _changes(run)]
    parts += ["<h2>Training</h2>", _training([run]), _numbers(run)]
    if run.predicted is not None:
        parts += [f"<h2>Predictions of {escape(run.predicted.network)}</h2>", predictions.about(run.predicted, found)]
        if found is not None:
            parts += [
                predictions.thresholds([predictions.Compared(run.name, run.predicted, found)]),
                predictions.joints(run.predicted, found),
            ]
            parts += [
                predictions.by_cause(run.predicted, found),
                predictions.persons(run.predicted, found),
                predictions.calibrated(found),
            ]
    return document(f"{run.name}: a run of fastpose", STYLE, "\n".join(part for part in parts if part))


def page_of_runs(runs: Sequence[RunFiles]) -> str:
    """The page of several runs. Each has a letter, as many are called alike."""
    names = [f"{_letter(place)}: {run.name}" for place, run in enumerate(runs)]
    found = [diagnose(run.predicted) if run.predicted else None for run in runs]
    parts = [f"<h1>{len(runs)} runs side by side</h1>"]
    for name, run in zip(names, runs, strict=True):
        parts.append(_missing(run, f"{name}: "))
    parts += ["<h2>Scores and speed</h2>", _side_by_side(runs, names, found)]
    parts += ["<h2>Settings that differ</h2>", _differing(runs)]
    parts += ["<h2>Training</h2>", _training(runs, names)]
    compared = [
        predictions.Compared(name, run.predicted, one)
        for name, run, one in zip(names, runs, found, strict=True)
        if run.predicted is not None and one is not None
    ]
    if len(compared) > 1:
        parts += ["<h2>Predictions</h2>", predictions.thresholds(compared)]
        parts += [predictions.causes_of_runs(compared), predictions.joints_of_runs(compared)]
    return document(f"{len(runs)} runs of fastpose", STYLE, "\n".join(part for part in parts if part))


def _letter(place: int) -> str:
    return _LETTERS[place] if place < len(_LETTERS) else str(place + 1)


def _headline(run: RunFiles) -> str:
    best, last = run.best(), run.last()
    if best is None:
        return paragraph("No score: no epoch of the training was evaluated, or nothing is annotated to compare with.")
    label = escape(run.label)
    text = f'<p class="score">{label} <strong>{best[1]:.2f}</strong> in epoch {best[0]}'
    text += f"; in the end {last:.2f}" if last is not None else ""
    return f"{text}</p>"


def _missing(run: RunFiles, before: str = "") -> str:
    return "\n".join(f'<p class="missing">{escape(before + text)}</p>' for text in run.missing)


def _facts(run: RunFiles) -> list[tuple[str, str]]:
    epochs = run.lines[-1]["epoch"] if run.lines else 0
    facts = [("state", "complete" if run.summary else "not complete")]
    facts.append(
        ("epochs", f"{number(run.summary.get('epochs')) or epochs:g} of {run.config.get('epochs', 'unknown')}")
    )
    for name, key in (("persons to train on", "train_persons"), ("persons to evaluate", "valid_persons")):
        if (count := number(run.summary.get(key))) is not None:
            facts.append((name, f"{count:,.0f}"))
    if (seconds := number(run.summary.get("seconds"))) is not None:
        facts.append(("time", f"{duration(seconds)} ({seconds:,.0f} s)"))
    facts += [("samples/s", _rate(run)), ("input wait", _wait(run))]
    for name in ("device", "machine", "torch", "commit"):
        facts.append((name, str(run.summary.get(name) or "unknown")))
    if (skipped := number(run.summary.get("skipped_persons"))) or _list(run, "bad_images"):
        bad = len(_list(run, "bad_images"))
        facts.append(("left out", f"{skipped or 0:.0f} persons to evaluate; {bad} images that could not be read"))
    return facts


def _list(run: RunFiles, name: str) -> list[Any]:
    found = run.summary.get(name)
    return found if isinstance(found, list) else []


def _rate(run: RunFiles) -> str:
    rate = run.figure("samples_per_second")
    return NOTHING if rate is None else f"{rate:,.1f}"


def _wait(run: RunFiles) -> str:
    wait = run.figure("input_wait_fraction")
    return NOTHING if wait is None else f"{100 * wait:.1f} % of the training time"


def _again(run: RunFiles) -> str:
    if not run.config:
        return ""
    words = ["--recipe", str(run.folder / "config.yaml"), "--run", f"{run.folder}-again"]
    if isinstance(model := run.config.get("model"), str) and model and not is_hf(model):
        words += ["--model", model]
    command = f"fastpose train {' '.join(map(shlex.quote, words))}"
    return f"<p>To repeat it:</p>\n<pre><code>{escape(command)}</code></pre>"


def _settings(run: RunFiles, defaults: Mapping[str, Any]) -> str:
    rows = []
    for name, value in run.config.items():
        if name not in defaults:
            rows.append((str(name), _value(value), "no option of this version"))
        elif _plain(value) != _plain(defaults[name]):
            rows.append((name, _value(value), _value(defaults[name])))
    if not run.config:
        return paragraph("They are not known.")
    if not rows:
        return paragraph("All settings have their defaults.")
    return table("Settings that differ from their defaults", ["setting", "this run", "default"], rows, numbers=False)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _value(value: Any) -> str:
    value = _plain(value)
    if value in ("", None, []):
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _changes(run: RunFiles) -> str:
    changes = [one for one in _list(run, "changes") if isinstance(one, dict)]
    rows = [[str(one.get("option")), *(_value(one.get(n)) for n in ("was", "now", "epoch", "step"))] for one in changes]
    head = ["what", "was", "became", "in epoch", "after step"]
    return table("What changed when the run was resumed", head, rows, numbers=False) if rows else ""


def _training(runs: Sequence[RunFiles], names: Sequence[str] = ("",)) -> str:
    """Loss, score and learning rate over the epochs of the runs."""
    if not any(run.lines for run in runs):
        return paragraph("No epoch has been finished, so there are no curves.")

    def of_lines(key: str) -> list[Series]:
        return [
            Series(name, [line["epoch"] for line in run.lines], [number(line.get(key)) for line in run.lines])
            for run, name in zip(runs, names, strict=True)
        ]

    scores = [
        Series(name, [e for e, _ in run.evaluations()], [v for _, v in run.evaluations()])
        for run, name in zip(runs, names, strict=True)
    ]
    labels = list(dict.fromkeys(run.label for run in runs if run.label))
    label = ", ".join(labels) or "score"
    of = "" if len(runs) == 1 else f" of {len(runs)} runs"
    drawn: list[tuple[str, str, str, list[Series], dict[str, Any]]] = [
        ("loss", "Training loss", "loss", of_lines("loss"), {"log": True}),
        ("score", f"Validation {label}", f"{label}, %", scores, {"limits": (0.0, 100.0)}),
        ("lr", "Learning rate", "learning rate", of_lines("lr"), {"log": True}),
    ]
    figures = []
    for key, title, y_label, series, how in drawn:
        chart = line_chart(key, f"{title}{of}", said(series, "epoch"), series, "epoch", y_label, whole=True, **how)
        chart = chart or paragraph("No number to show.")
        figures.append(f"<figure><h3>{escape(title)}</h3>\n{chart}</figure>")
    return f'{legend(names)}\n<div class="row">\n{"".join(figures)}\n</div>'


def _numbers(run: RunFiles) -> str:
    if not run.lines:
        return ""
    scores = dict(run.evaluations())
    head = ["epoch", "loss", run.label or "score", "learning rate", "samples/s", "input wait, %"]
    rows = []
    for line in run.lines:
        wait = number(line.get("input_wait_fraction"))
        rows.append(
            [
                str(line["epoch"]),
                shown(number(line.get("loss")), ".6f"),
                shown(scores.get(line["epoch"]), ".2f"),
                shown(number(line.get("lr")), ".3g"),
                shown(number(line.get("samples_per_second")), ".1f"),
                shown(None if wait is None else 100 * wait, ".1f"),
            ]
        )
    return details("The numbers of each epoch", table("Epochs", head, rows))


def _side_by_side(runs: Sequence[RunFiles], names: Sequence[str], found: Sequence[Diagnosis | None]) -> str:
    head = ["run", "score", "best", "in epoch", "last", "epochs", "samples/s", "input wait, %", "time", "device"]
    rows = []
    for run, name in zip(runs, names, strict=True):
        best, wait, seconds = run.best(), run.figure("input_wait_fraction"), number(run.summary.get("seconds"))
        rows.append(
            [
                name,
                run.label or "none",
                shown(best[1] if best else None, ".2f"),
                str(best[0]) if best else NOTHING,
                shown(run.last(), ".2f"),
                str(run.lines[-1]["epoch"]) if run.lines else "0",
                _rate(run),
                shown(None if wait is None else 100 * wait, ".1f"),
                duration(seconds) if seconds is not None else NOTHING,
                str(run.summary.get("device") or NOTHING),
            ]
        )
    gaps = [shown(one.gap if one else None, ".3f") for one in found]
    head.append("calibration error")
    labels = {run.label for run in runs if run.label}
    warning = "These runs have different scores, which cannot be compared." if len(labels) > 1 else ""
    rows = [[*row, gap] for row, gap in zip(rows, gaps, strict=True)]
    return table("Runs", head, rows) + (paragraph(warning) if warning else "")


def _differing(runs: Sequence[RunFiles]) -> str:
    names = dict.fromkeys(name for run in runs for name in run.config)
    rows = []
    for name in names:
        values = [_value(run.config[name]) if name in run.config else NOTHING for run in runs]
        if len(set(values)) > 1:
            rows.append([str(name), *values])
    if not rows:
        return paragraph("None.")
    letters = [_letter(place) for place in range(len(runs))]
    return table("Settings that are not the same in all runs", ["setting", *letters], rows, numbers=False)
