"""The report of a network, one page for a colleague: answers and limitations first, no code."""

import base64
import io
from html import escape

import pandas as pd
import torch

from ..audit.diagnosis import diagnose
from ..audit.images import Audit, audit_images
from ..audit.labels import Suspects
from ..audit.shortcuts import Shortcuts
from ..data.splits import Splits
from ..explanations.matches import decompose_exactly
from ..score.calibration import reliability
from ..score.metrics import Metrics
from ..search.ranked import typical_pairs, worst_mistakes
from ..train import runs
from ..trained import Trained
from ..trust.comparison import Row, table
from ..trust.faithfulness import judge
from .charts import distances_figure, history_figure, reliability_figure, roc_figure, shortcuts_figure
from .figures import figure
from .html import Element
from .viewer import grid, view

SCORES = "A Siamese network scores how similar two images are, from 0 to 1."
TRAINED_HERE = "It was trained on pairs of images of one class and of different classes."
TRAINED_ELSEWHERE = "It was trained elsewhere; here its threshold and probabilities were chosen on validation pairs."
MAPS = "Heatmaps over both images show what supports its decision, and what contradicts it."
FAITHFUL = (
    "Insertion minus deletion: how much more of the decision the strongest pixels of a map carry than all others; near "
    "0, any other pixels would do as well. Where maps are faithful, it is at least four fifths of the best that was "
    "found for the pair, and larger than for random maps and a map of the image's centre."
)
COLUMNS = ["both images", "each image", "share of possible", "faithful pairs"]  # of the table of methods
FEW_FAITHFUL = 0.5  # of pairs
WIDE = 0.05  # of an AUC's interval, from end to end
GENERAL = [
    "Probabilities are for pairs of which half are of one class. Where same pairs are rarer, they are too high.",
    "Maps show what this network uses, correct or not, and nothing of other networks or of the world.",
    "All numbers are of one network on one split of the images.",
]


def report(
    trained: Trained,
    splits: Splits,
    distances,
    metrics: Metrics,
    comparison: list[Row],
    suspects: Suspects,
    shortcuts: Shortcuts,
) -> Element:
    """Make one page about a network; `report(...).saved(folder)` writes report.html.

    Args:
        trained: Of a run, or `trained_elsewhere`.
        splits: Those that it was trained or calibrated on.
        distances: float32 (P,), of the test pairs.
        metrics: Of `write_metrics`.
        comparison: Of `compare`.
        suspects: Of `find_suspects`.
        shortcuts: Of `find_shortcuts`.
    """
    seed = trained.config.seed
    audit = audit_images(splits.folder, splits.pixels, splits.duplicates)
    labels = splits.test_pairs.labels
    calibration = reliability(trained.probabilities(distances), splits.test_pairs, seed)
    row = next((row for row in comparison if row.default), comparison[0])
    distances_image = _image(distances_figure(distances, labels, trained.threshold, trained.band))
    reliability_image = _image(reliability_figure(calibration))
    shortcuts_image = _image(shortcuts_figure(shortcuts))
    score = [
        _table(_metrics(metrics)),
        distances_image,
        _image(roc_figure(distances, labels, trained.threshold)),
        reliability_image,
    ]
    methods = [_paragraphs(FAITHFUL), _table(table(comparison)[COLUMNS])]
    typical_image = ""
    for pair in typical_pairs(trained, splits):
        explanation = trained.explain(pair)
        verdict = judge(trained.network, explanation, seed)
        typical_image = typical_image or _image(figure(explanation, verdict, ["factual"]))
        methods.append(view(explanation, verdict, decompose_exactly(trained.network, explanation)).html)
    mistakes = worst_mistakes(trained, splits)
    warnings = limitations(trained, metrics, row, shortcuts, audit)
    answers = {
        "How good is it?": (f"Test AUC {metrics['auc'].interval}; 1 is perfect, 0.5 is guessing.", distances_image),
        "How sure is it?": (f"Calibration error {metrics['calibration_error'].interval}.", reliability_image),
        "What does it look at?": (f"Heatmaps of {trained.method} are faithful for {_faithful(row)}.", typical_image),
        "What should I watch out for?": (warnings[0], shortcuts_image),
    }
    sections = {
        "Summary": [_tiles(answers), _paragraphs(_what(trained))],
        "Limitations": [_list(warnings)],
        "Images": [_paragraphs(str(audit)), _table(splits.table())],
        "Training": _training(trained, splits, distances),
        "Score": score,
        "Explanations": methods,
        "Worst mistakes": [grid(mistakes, trained.network, judge(trained.network, mistakes, seed)).html],
        "Suspect labels": [_paragraphs(str(suspects)), _table(suspects.table())],
        "Shortcuts": [_paragraphs(str(shortcuts)), shortcuts_image],
        "Settings": [_paragraphs(f"{trained}\ntorch {torch.__version__}"), f"<pre>{escape(_settings(trained))}</pre>"],
    }
    links, body = [], []
    for name, parts in sections.items():
        if not parts:
            continue
        anchor = name.lower().replace(" ", "-")
        links.append(f'<li><a href="#{anchor}">{name}</a></li>')
        body += [f'<h2 id="{anchor}">{name}</h2>', *parts]
    title = f"Image similarity on {trained.config.data_path.name}"
    html = f"<h1>{escape(title)}</h1><nav><ul>{''.join(links)}</ul></nav>{''.join(body)}"
    return Element(html, "report", title)


def limitations(trained: Trained, metrics: Metrics, row: Row, shortcuts: Shortcuts, audit: Audit) -> list[str]:
    """Return what a reader must know first, in sentences. row: of the default method."""
    sentences = []
    if trained.warning:
        sentences.append(trained.warning)
    if trained.folder is None:
        sentences.append("The network was trained elsewhere: test images may be among its training images.")
    auc = metrics["auc"].interval
    if auc.high - auc.low > WIDE:
        images = metrics.facts["images"]
        sentences.append(f"The test AUC is {auc}: more than {images} test images are needed to know it better.")
    if row.faithful.value < FEW_FAITHFUL:
        sentences.append(
            f"Heatmaps of the default method are faithful for {_faithful(row)} only: read the verdict above each map "
            "before the map."
        )
    sentences += [shortcut.sentence() for shortcut in shortcuts.properties if shortcut.sentence()]
    if audit.contradictions():
        sentences.append("Some pictures have two classes: see Images.")
    return sentences + GENERAL


def _what(trained) -> str:
    """What the network does, and where it was trained."""
    return f"{SCORES} {TRAINED_ELSEWHERE if trained.folder is None else TRAINED_HERE} {MAPS}"


def _training(trained, splits, distances) -> list[str]:
    """The section about the training; empty for a network that was trained elsewhere."""
    if trained.folder is None:
        return []
    parts = [_paragraphs(" ".join(diagnose(trained, splits, distances).split()))]
    if trained.history:
        parts.append(_image(history_figure(trained.history)))
    return parts


def _settings(trained) -> str:
    """The settings that count."""
    if trained.folder is None:
        return trained.config.as_text(without=runs.COURSE_KEYS | {"backbone_model", "embedding_size", "margin"})
    return str(trained.config)


def _faithful(row: Row) -> str:
    """How many pairs have faithful heatmaps, in words."""
    return f"{round(row.faithful.value * row.pairs)} of {row.pairs} test pairs"


def _tiles(answers: dict[str, tuple[str, str]]) -> str:
    """Questions, each with a sentence and a picture, as HTML."""
    parts = []
    for question, (answer, picture) in answers.items():
        parts.append(f"<section><h3>{question}</h3><p>{escape(answer)}</p>{picture}</section>")
    return f'<div class="answers">{"".join(parts)}</div>'


def _metrics(metrics):
    rows = [(metric.name.replace("_", " "), metric.shown, metric.meaning) for metric in metrics.metrics]
    return pd.DataFrame(rows, columns=["metric", "test value (95 % interval)", "meaning"]).set_index("metric")


def _paragraphs(text):
    lines = escape(text).split("\n")
    return "".join(f"<p>{line}</p>" for line in lines if line)


def _list(sentences):
    return "<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>"


def _table(frame: pd.DataFrame):
    if frame.empty:
        return ""
    named = frame.reset_index(names=frame.index.name or "")
    return f'<div class="wide">{named.to_html(index=False, border=0, na_rep="", float_format="{:.3f}".format)}</div>'


def _image(figure):
    """A figure as an image in the page, with the name of its file for screen readers."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=80)
    text = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{escape(figure.get_label())}" src="data:image/png;base64,{text}">'
