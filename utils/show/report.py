"""The report of a run: one page for a colleague, with what to beware of first and no code."""

import base64
import io
from html import escape

import pandas as pd
import torch

from ..audit.diagnosis import diagnose
from ..audit.images import audit_images
from ..audit.labels import Suspects
from ..audit.shortcuts import Shortcuts
from ..data.splits import Splits
from ..explanations.matches import decompose
from ..score.calibration import reliability
from ..score.metrics import Metrics
from ..search.ranked import worst_mistakes
from ..trained import Trained, typical_pairs
from ..trust.comparison import Row, table
from ..trust.faithfulness import judge
from .charts import distances_figure, history_figure, reliability_figure, roc_figure, shortcuts_figure
from .html import Element
from .viewer import grid, view

WHAT = (
    "A Siamese network says how alike two images are, as a similarity from 0 to 1. It has learnt from pairs of images "
    "of one class and of different classes; heatmaps over both images show what speaks for its decision and against it."
)
FAITHFUL = (
    "Insertion minus deletion: how much more of the decision the strongest pixels of a map carry than they leave "
    "behind; near 0, any other pixels would do. Faithful are maps that carry at least half of what hiding "
    "everything changes, more than random maps and a map of the image's centre."
)
COLUMNS = ["both images", "each image", "share of span", "faithful pairs"]  # of the table of methods
MISTAKES = 6
FEW_FAITHFUL = 0.5  # of pairs
WIDE = 0.05  # of an AUC's interval, from end to end


def report(
    trained: Trained,
    splits: Splits,
    distances,
    metrics: Metrics,
    comparison: list[Row],
    suspects: Suspects,
    shortcuts: Shortcuts,
) -> Element:
    """One page about a run, of what notebook 01 has measured: `report(...).saved(folder)` writes report.html.

    distances: float32 (P,), of the test pairs. The others are those of `write_metrics`, `compare`, `find_suspects` and
    `find_shortcuts`, of the same run.
    """
    found = audit_images(splits.folder, splits.pixels, splits.duplicates)
    calibration = reliability(trained.probabilities(distances), splits.test_pairs, trained.config.seed)
    labels = splits.test_pairs.labels
    curves = (
        distances_figure(distances, labels, trained.threshold, trained.band),
        roc_figure(distances, labels, trained.threshold),
        reliability_figure(calibration),
    )
    rows = [row for row in comparison if row.default] or comparison[:1]
    sections = {
        "What to beware of": _list(cautions(trained, metrics, rows[0], shortcuts, found)),
        "What this is": _paragraphs(f"{WHAT}\n{trained}"),
        "Images": _paragraphs(str(found)) + _table(splits.table()),
        "Training": _paragraphs(" ".join(diagnose(trained, splits, distances).split())) + _history(trained),
        "Score": _table(_metrics(metrics)) + "".join(map(_image, curves)),
        "Explanations": _explanations(trained, splits, comparison),
        "Worst mistakes": _mistakes(trained, splits),
        "Suspect labels": _paragraphs(str(suspects)) + _table(suspects.table()),
        "Shortcuts": _paragraphs(str(shortcuts)) + _image(shortcuts_figure(shortcuts)),
        "How to make it again": _paragraphs(f"Run {trained.folder.name}, torch {torch.__version__}")
        + f"<pre>{escape(str(trained.config))}</pre>",
    }
    title = f"Image similarity on {trained.config.data_path.name}"
    return Element(f"<h1>{escape(title)}</h1>{_contents(sections)}{_body(sections)}", "report", title)


def cautions(trained: Trained, metrics: Metrics, row: Row, shortcuts: Shortcuts, found) -> list[str]:
    """What a reader must know before believing the rest, in sentences."""
    auc = metrics["auc"].interval
    said = [trained.warning] if trained.warning else []
    if auc.high - auc.low > WIDE:
        said.append(f"The test AUC is {auc}: with {metrics.facts['images']} test images it is not known better.")
    if row.faithful < FEW_FAITHFUL:
        said.append(
            f"Heatmaps of the default method are faithful for {row.faithful:.0%} of {row.pairs} test pairs only: read "
            "the verdict above each map before the map."
        )
    said += [sentence for one in shortcuts.found if (sentence := one.sentence())]
    if len(found.contradictions()):
        said.append("Some pictures stand under two classes: see Images.")
    said += [
        "Probabilities are for pairs of which half are of one class. Where same pairs are rarer, they are too high.",
        "Maps show what this network uses, right or wrong, and nothing of other networks or of the world.",
        "All numbers are of one training run on one split of the images.",
    ]
    return said


def _explanations(trained, splits, comparison):
    """The faithfulness of all methods, and a typical pair of each decision."""
    parts = [_paragraphs(FAITHFUL), _table(table(comparison)[COLUMNS])]
    for pair in typical_pairs(trained, splits):
        explanation = trained.explain(pair)
        verdict = judge(trained.network, explanation, trained.config.seed)
        parts.append(view(explanation, verdict, decompose(trained.network, explanation)).html)
    return "".join(parts)


def _mistakes(trained, splits):
    mistakes = worst_mistakes(trained, splits, MISTAKES)
    return grid(mistakes, trained.network, judge(trained.network, mistakes, trained.config.seed)).html


def _metrics(metrics):
    rows = [(metric.name.replace("_", " "), metric.shown, metric.meaning) for metric in metrics.metrics]
    return pd.DataFrame(rows, columns=["metric", "test value (95 % interval)", "meaning"]).set_index("metric")


def _history(trained):
    return _image(history_figure(trained.history)) if trained.history else ""


def _contents(sections):
    links = [f'<li><a href="#{_anchor(name)}">{escape(name)}</a></li>' for name in sections]
    return f"<nav><ul>{''.join(links)}</ul></nav>"


def _body(sections):
    parts = [f'<h2 id="{_anchor(name)}">{escape(name)}</h2>{content}' for name, content in sections.items()]
    return "".join(parts)


def _anchor(name):
    return name.lower().replace(" ", "-")


def _paragraphs(text):
    return "".join(f"<p>{escape(line)}</p>" for line in text.splitlines() if line)


def _list(sentences):
    return f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in sentences)}</ul>"


def _table(frame: pd.DataFrame):
    if frame.empty:
        return ""
    named = frame.reset_index(names=frame.index.name or "")
    return f'<div class="wide">{named.to_html(index=False, border=0, na_rep="", float_format="{:.3f}".format)}</div>'


def _image(drawn):
    """A figure as an image in the page, its file name as what is read out."""
    file = io.BytesIO()
    drawn.savefig(file, format="png", dpi=80)
    text = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{escape(drawn.get_label())}" src="data:image/png;base64,{text}">'
