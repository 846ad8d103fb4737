"""Suspect labels: images that the network was not trained on and whose nearest neighbours have another class."""

from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
import pandas as pd
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from sklearn.neighbors import KNeighborsClassifier

from ..data.corrections import DROP
from ..data.splits import Splits
from ..explanations.explanation import Explanation
from ..files import write_text
from ..train.evaluation import embed_images
from ..trained import Trained
from .problems import COLUMNS as PROBLEM_COLUMNS

NEIGHBOURS = 200
TEMPERATURE = 0.07
MANY = 0.2  # of the images: more suspects than incorrect labels are likely
COLUMNS = ("image", "label", "neighbours say", "quality", "nearest image of that class", "label issue")
_lock = Lock()  # around `find_label_issues`, which works in global variables


@dataclass(frozen=True, eq=False)
class Suspects:
    """Every image that was judged, worst first."""

    root: Path
    """The folder of the dataset."""
    images: pd.DataFrame
    """A row for each, with COLUMNS: files below the root, the quality of the label in [0, 1], and whether cleanlab
    counts it as an issue."""
    training: int
    """How many training images were not judged; 0 for a network that was trained elsewhere."""
    single: int = 0
    """How many images were not judged because no other image of their class was."""

    @property
    def suspected(self) -> pd.DataFrame:
        """The images whose neighbours have another class, worst first."""
        return self.images[self.images["label"] != self.images["neighbours say"]]

    def table(self, count=20) -> pd.DataFrame:
        """Return the worst suspects, `count` at most, numbered from 1."""
        worst = self.suspected.head(count)
        return worst.set_index(pd.RangeIndex(1, len(worst) + 1))

    def pairs(self, count: int) -> list[tuple[str, str]]:
        """Return the files of the worst suspects, each with its nearest image of the class that its neighbours have."""
        columns = self.suspected.head(count)[["image", "nearest image of that class"]]
        return [(str(self.root / image), str(self.root / nearest)) for image, nearest in columns.to_numpy()]

    def problems(self) -> pd.DataFrame:
        """Return the suspected images as a table of problems, as `find_problems` makes it."""
        rows = []
        for image, label, suggestion, quality, beside, _ in self.suspected[list(COLUMNS)].itertuples(index=False):
            evidence = f"labelled {label}, its neighbours are {suggestion} (quality of the label {quality:.2f})"
            rows.append((image, label, "label", evidence, suggestion, beside))
        return pd.DataFrame(rows, columns=list(PROBLEM_COLUMNS))

    def write(self, folder):
        """Write all judged images to `folder`/suspects.csv."""
        write_text(Path(folder) / "suspects.csv", self.images.to_csv(index=False))

    def __str__(self):
        issues = int(self.suspected["label issue"].sum())
        kind = "validation and test images" if self.training else "images"
        text = (
            f"{len(self.images)} {kind} were judged by their neighbours among them: "
            f"{len(self.suspected)} look like another class, {issues} of which are label issues to cleanlab. "
            "Look at them: the label or the network may be wrong."
        )
        if len(self.suspected) > MANY * len(self.images):
            text += " So many are more likely mistakes of the network, which confuses classes, than of the labels."
        if self.training:
            text += (
                f"\nThe {self.training} training images were not judged, because the network learned their labels: "
                "train with another `seed` to judge other images."
            )
        if self.single:
            text += f"\n{self.single} could not be judged: no other image of their class was."
        return text


def pairs_to_review(pairs: Explanation, root) -> pd.DataFrame:
    """Return both images of each pair as a table of problems, as `find_problems` makes it, in the order of the pairs.

    Of two images of different classes, each may be of the class of the other, which is suggested. Of two of one class,
    each may be of no class: what is suggested is to drop it.

    Args:
        pairs: Of image files of the dataset, from `worst_mistakes` or `most_uncertain`; of other files, pairs are left
            out.
        root: The folder of the dataset.
    """
    rows = []
    for pair in pairs:
        classes = pair.classes()
        if classes is None:
            continue
        names = [Path(path).relative_to(root).as_posix() for path in pair.source.paths[0]]
        evidence = f"{pair.decision()} (similarity {pair.similarity[0]:.2f}); {pair.classes_in_words()}"
        for own, other in ((0, 1), (1, 0)):
            suggestion = classes[other] if classes[0] != classes[1] else DROP
            rows.append((names[own], classes[own], "label", evidence, suggestion, names[other]))
    return pd.DataFrame(rows, columns=list(PROBLEM_COLUMNS))


def find_suspects(trained: Trained, splits: Splits) -> Suspects:
    """Judge the labels of all validation and test images; of all images by a network that was trained elsewhere.

    Neighbours are searched among these images only: embeddings of training images have learned their labels, also
    incorrect ones, and with `split: classes` they have other classes.
    """
    unseen = [splits.valid, splits.test]
    training = len(splits.train)
    if trained.folder is None:
        unseen.append(splits.train)
        training = 0
    unseen = np.sort(np.concatenate(unseen))
    labels = splits.folder.labels[unseen]
    judged = unseen[np.bincount(labels)[labels] > 1]
    embeddings = embed_images(trained.network, splits.pixels, judged, trained.config, trained.runtime).numpy()
    root = splits.folder.root
    files = np.array(splits.folder.names)[judged]
    names = np.array(splits.folder.classes)[splits.folder.labels[judged]]
    return Suspects(root, judge_labels(embeddings, names, files), training, len(unseen) - len(judged))


def judge_labels(embeddings: np.ndarray, labels: np.ndarray, files: np.ndarray) -> pd.DataFrame:
    """Judge how well the label of each image agrees with its neighbours.

    Args:
        embeddings: float (N, D), of length 1.
        labels: str (N,), of at least two classes, each of two images or more.
        files: str (N,).

    Returns:
        A row for each image, with COLUMNS, worst first.

    NEIGHBOURS images vote, each weighted by exp(cosine / TEMPERATURE), so that many distant images do not outvote a
    small class (Wu et al. 2018, Unsupervised feature learning via non-parametric instance discrimination, section 3.4).
    Quality and issues are cleanlab's (Northcutt et al. 2021, Confident learning).
    """
    count = min(NEIGHBOURS, len(labels) - 1)
    neighbours = KNeighborsClassifier(count, weights=_weights).fit(embeddings, labels)
    probabilities = neighbours.predict_proba(None)  # None: no image is its own neighbour
    numbers = np.searchsorted(neighbours.classes_, labels)
    suggested = neighbours.classes_[probabilities.argmax(axis=1)]
    with _lock:
        issues = find_label_issues(numbers, probabilities, n_jobs=1)
    quality = get_label_quality_scores(numbers, probabilities)
    nearest_first = neighbours.kneighbors(None, return_distance=False)  # (N, count)
    first_of_class = (labels[nearest_first] == suggested[:, None]).argmax(axis=1)
    nearest = files[nearest_first[np.arange(len(files)), first_of_class]]
    columns = (files, labels, suggested, quality, nearest, issues)
    images = pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)))
    return images.sort_values("quality", kind="stable", ignore_index=True)


def _weights(distances):
    """exp(cosine / TEMPERATURE), up to a factor, of distances between embeddings of length 1."""
    nearest = distances.min(axis=1, keepdims=True)
    return np.exp((nearest**2 - distances**2) / (2 * TEMPERATURE))
