"""Images identified in a gallery: a figure of one, and a table and a page of many."""

import hashlib
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd

from ..device import progress, rank
from ..explanations.choice import Choice
from ..files import printable, write_text
from ..search.gallery import gallery
from ..search.identify import Identification, check_trained, classes_of, identify_all, search_rule, why
from ..trained import Trained
from ..trust.faithfulness import ChoiceVerdict, judge_choice
from .drawing import (
    OPACITY,
    Drawing,
    colours_of,
    finished,
    named,
    overlay,
    photo,
    set_texts,
    show,
    styled,
    wrapped,
)
from .html import data_uri, page
from .words import maps_in_short

CANDIDATES = 3  # that are shown
COLUMN = 30  # characters that fit the column of an image
SIDE = 200  # pixels of images on the page
THUMBNAIL = 96  # pixels where there are more than FEW, so that a browser can show the page
FEW = 100
EXPLAINED = 10  # images of a page whose choice is explained


@styled
def identification_figure(
    trained: Trained,
    identification: Identification,
    choice: Choice | None = None,
    verdict: ChoiceVerdict | None = None,
    opacity=OPACITY,
):
    """Show an image beside the nearest image of each of its first candidates, and what decides between two of them.

    Args:
        trained: The network.
        identification: Of one image.
        choice: Why the first candidate is nearer than the second, of `why`.
        verdict: On the choice.
        opacity: Of a heatmap over the image, in [0, 1].

    Raises:
        ValueError: The verdict is of another choice.
    """
    if verdict is not None and verdict.explanation is not choice:
        raise ValueError("the verdict is of another choice: pass judge_choice(network, choice)")
    value_range = trained.config.image.value_range
    candidates = identification.candidates.head(CANDIDATES)
    image = photo(identification.path, value_range)
    rows = 1 if choice is None else 2
    drawing = Drawing(10.4, 3.1 * rows + 1)
    panels = drawing.subfigures(rows, 1, squeeze=False)[:, 0]
    axes, *of_candidates = panels[0].subplots(1, 1 + CANDIDATES)
    show(axes, image)
    axes.set_title("image")
    axes.set_xlabel(named(Path(identification.path).name, COLUMN))
    for unused in of_candidates[len(candidates) :]:
        unused.set_axis_off()
    for row, axes in zip(candidates.itertuples(), of_candidates, strict=False):
        show(axes, photo(row.nearest, value_range))
        axes.set_title(wrapped(f"{row.Index}: {row[1]}", COLUMN))
        name = named(Path(row.nearest).name, COLUMN)
        axes.set_xlabel(f"similarity {row.similarity:.3f}\n{name}")
    title = identification.title
    caption = f"Accepted: {identification.rule}."
    if choice is not None:
        first, second = candidates["class"].iloc[:2]
        words = f"What supports {first} rather than {second}", f"What supports {second} rather than {first}"
        empty, left, right, end = panels[1].subplots(1, 4)
        for unused in (empty, end):
            unused.set_axis_off()
        for axes, sign, text in ((left, 1, words[0]), (right, -1, words[1])):
            heatmap = (sign * choice.shares).clamp(min=0).cpu().numpy()
            show(axes, overlay(image, heatmap, opacity, colours_of(verdict)))
            axes.set_title(wrapped(text, COLUMN))
        title += f"\n{maps_in_short(verdict)}"
        caption += f" Method: {choice.description}."
        if verdict is not None:
            caption += f"\n{verdict.sentence()}"
    set_texts(drawing, title, caption)
    shown = printable(identification.path), identification.sentence()
    digest = hashlib.blake2b(repr(shown).encode(), digest_size=4).hexdigest()
    stem = re.sub(r"[^\w.-]+", "_", Path(identification.path).stem)[:24]
    name = f"identified_{stem}_{digest}"
    return finished(drawing, name, identification.warning)


def identify_folder(
    trained: Trained, queries, references, folder, fpir: float | None = None, explained=EXPLAINED
) -> pd.DataFrame:
    """Identify every image of a folder, and all below it, in a gallery; write a table and a page to `folder`.

    identified.csv has a row for each image: the decision, and class, similarity, nearest image and probability of its
    first candidates. identified.html shows them, the least certain first. Embeddings are stored as `gallery` stores
    them, so a run that was stopped continues, and a gallery grows by adding files. Under torchrun all processes embed,
    and the first one writes.

    Args:
        trained: The network.
        queries: The folder of the images that are identified.
        references: The folder of the gallery, with a folder for each class.
        folder: Where the files go.
        fpir: As `search_rule` takes it.
        explained: How many images the page explains: those nearest to the limit.

    Returns:
        The table.

    Raises:
        DataError: A folder is missing or holds no image that can be decoded.
        ExplanationError: `trained` is no Trained.
        ValueError: `fpir` lies outside (0, 1).
    """
    check_trained(trained)
    images = gallery(trained, references)
    searched = gallery(trained, queries)
    rule = search_rule(trained, images, fpir)
    identified = identify_all(trained, searched.paths, searched.embeddings, images, rule)
    results = list(identified.values())
    rows = [_row(result) for result in results]
    for path in searched.paths:
        if path not in identified:
            rows.append({"image": path, "error": "the gallery has no image besides it"})
    for path, cause in searched.unreadable.items():
        rows.append({"image": path, "error": cause})
    table = pd.DataFrame(rows).dropna(axis="columns", how="all").round(4)
    if rank() == 0:
        folder = Path(folder)
        write_text(folder / "identified.csv", table.to_csv(index=False))
        write_text(folder / "identified.html", _page(trained, results, searched, images, rule, explained))
    return table


def _row(result: Identification) -> dict:
    """The line of identified.csv of one image."""
    row = {"image": result.path, "decision": result.decision}
    for number, values in result.candidates.head(CANDIDATES).to_dict("index").items():
        for column, value in values.items():
            row[f"{column} {number}"] = value
    row["warning"] = result.warning or None
    return row


def _page(trained, results, searched, images, rule, explained) -> str:
    """The page of identified images, the least certain first."""
    similarities = np.array([result.candidates["similarity"].iloc[0] for result in results])
    order = np.abs(similarities - (1 - rule.limit / 2)).argsort(kind="stable")  # as they are, where there is no limit
    files = set()
    for result in results:
        files.update([result.path, *result.candidates["nearest"].head(CANDIDATES)])
    files = sorted(files)
    value_range = trained.config.image.value_range

    side = SIDE if len(results) <= FEW else THUMBNAIL

    def thumbnail(path):
        return data_uri(photo(path, value_range), side)

    with ThreadPoolExecutor() as pool:
        thumbnails = dict(zip(files, pool.map(thumbnail, files), strict=True))
    reasons = {}
    for index in progress(order[:explained], "Reasons"):
        if len(results[index].candidates) > 1:
            reasons[index] = _reason(trained, results[index])
    articles = [_article(results[index], thumbnails, reasons.get(index, "")) for index in order]
    decisions = Counter(result.decision for result in results)
    counts = ", ".join(f"{name}: {count}" for name, count in decisions.most_common())
    title = f"{len(results)} images searched for in a gallery of {len(images)}"
    intro = [
        f"{len(set(classes_of(images)))} classes in {images.root}. Accepted: {rule}.",
        f"{counts}.",
        f"That lets at most {rule.fpir:.0%} of images of other classes pass, on average (false positive identification "
        "rate, FPIR). It is stricter than the limit of a pair, as an image is compared with every class: known images "
        "beyond it are unknown too.",
        "The least certain images come first. A class stands with the mean similarity to its nearest images. What "
        f"decides between the first two classes is shown for the first {min(explained, len(results))}.",
    ]
    if trained.warning:
        intro.insert(0, trained.warning)
    paragraphs = "".join(f"<p>{escape(printable(text))}</p>" for text in intro)
    for path, cause in searched.unreadable.items():
        articles.append(f"<p>{escape(printable(f'{path} was left out: {cause}'))}</p>")
    return page(title, f"<h1>{escape(title)}</h1>{paragraphs}{''.join(articles)}")


def _reason(trained, result) -> str:
    """What decides between the first two candidates of an image, as HTML."""
    choice = why(trained, result)
    verdict = judge_choice(trained.network, choice, trained.config.seed)
    heatmap = choice.shares.clamp(min=0).cpu().numpy()
    image = photo(result.path, trained.config.image.value_range)
    source = data_uri(overlay(image, heatmap, OPACITY, colours_of(verdict)), SIDE)
    first, second = result.candidates["class"].iloc[:2]
    words = f"What supports {first} rather than {second}. {maps_in_short(verdict)}"
    return _figure(source, words)


def _article(result, thumbnails, reason) -> str:
    """One image with its candidates, as HTML."""
    sign = "\u2713" if result.accepted else "?"
    figures = [_figure(thumbnails[result.path], f"{sign} {result.decision}: {Path(result.path).name}")]
    for number, candidate in result.candidates.head(CANDIDATES).iterrows():
        words = f"{number}: {candidate['class']}, {candidate['similarity']:.3f}"
        figures.append(_figure(thumbnails[candidate["nearest"]], words))
    return f'<article class="row">{"".join(figures)}{reason}</article>'


def _figure(source, words) -> str:
    words = escape(printable(words))
    return f'<figure><img src="{source}" alt=""><figcaption>{words}</figcaption></figure>'
