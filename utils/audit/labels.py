"""Suspect labels: images that the network never trained on and whose nearest neighbours are of another class."""

from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
import pandas as pd
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from ..data.splits import Splits
from ..files import write_text
from ..train.evaluation import embed_images
from ..trained import Trained

NEIGHBOURS = 200
TEMPERATURE = 0.07
WORST = 20  # suspects in a table
MANY = 0.2  # of the images: more suspects than wrong labels are likely
_lock = Lock()  # around `find_label_issues`, which works in global variables
COLUMNS = ("image", "label", "neighbours say", "quality", "nearest image of that class", "label issue")


@dataclass(frozen=True, eq=False)
class Suspects:
    """Every image that was judged, worst first.

    root: the folder of the dataset. images: a row for each, with COLUMNS: files below the root, the quality of the
    label in [0, 1], and whether cleanlab counts it as an issue. untouched: how many training images were not judged.
    alone: how many images could not be, being the only one of their class that the network was not trained on.
    """

    root: Path
    images: pd.DataFrame
    untouched: int
    alone: int = 0

    @property
    def suspected(self) -> pd.DataFrame:
        """The images whose neighbours are of another class, worst first."""
        return self.images[self.images["label"] != self.images["neighbours say"]]

    def table(self, count=WORST) -> pd.DataFrame:
        """The worst suspects, `count` at most, from 1 on."""
        worst = self.suspected.head(count).reset_index(drop=True)
        return worst.set_index(worst.index + 1)

    def pairs(self, count: int) -> list[tuple[str, str]]:
        """The files of the worst suspects, each beside its nearest image of the class that its neighbours suggest."""
        columns = self.suspected.head(count)[["image", "nearest image of that class"]]
        return [(str(self.root / image), str(self.root / nearest)) for image, nearest in columns.to_numpy()]

    def write(self, folder):
        """Write all judged images to `folder`/suspects.csv, whole."""
        write_text(Path(folder) / "suspects.csv", self.images.to_csv(index=False))

    def __str__(self):
        issues = int(self.suspected["label issue"].sum())
        many = len(self.suspected) > MANY * len(self.images)
        doubt = " So many say more of the network, which confuses classes, than of the labels." if many else ""
        alone = f"\n{self.alone} could not be judged, being the only ones of their class there." if self.alone else ""
        return (
            f"{len(self.images)} validation and test images were judged by their neighbours among them: "
            f"{len(self.suspected)} look like another class, {issues} of which are label issues to cleanlab.{doubt}\n"
            f"The {self.untouched} training images were not judged, for the network was taught their labels: train "
            f"with another `seed`, and other images will be.{alone}"
        )


def find_suspects(trained: Trained, splits: Splits) -> Suspects:
    """Judge the labels of all validation and test images.

    Neighbours are looked for among these images alone: embeddings of training images have taken in their labels, wrong
    ones too, and with `split: classes` they are of other classes.
    """
    unseen = np.sort(np.concatenate([splits.valid, splits.test]))
    labels = splits.folder.labels[unseen]
    judged = unseen[np.bincount(labels)[labels] > 1]
    embeddings = embed_images(trained.network, splits.pixels, judged, trained.config, trained.runtime).numpy()
    files = [Path(splits.folder.paths[index]).relative_to(splits.folder.root).as_posix() for index in judged]
    classes = np.array(splits.folder.classes)
    images = judge_labels(embeddings, classes[splits.folder.labels[judged]], np.array(files))
    return Suspects(splits.folder.root, images, len(splits.train), len(unseen) - len(judged))


def judge_labels(embeddings: np.ndarray, labels: np.ndarray, files: np.ndarray) -> pd.DataFrame:
    """How well the label of each image goes with its neighbours: a row for each, with COLUMNS, worst first.

    embeddings: float (N, D), of length 1. labels, files: str (N,), of two classes at least, each of two images or more.
    Neighbours vote as in Wu et al. (2018, Unsupervised feature learning via non-parametric instance discrimination,
    section 3.4): NEIGHBOURS images, each weighted by exp(cosine / TEMPERATURE), so that many far images do not outvote
    a small class. Quality and issues are cleanlab's (Northcutt et al. 2021, Confident learning).
    """
    count = min(NEIGHBOURS, len(labels) - 1)
    neighbours = KNeighborsClassifier(count, weights=_weights).fit(embeddings, labels)
    probabilities = neighbours.predict_proba(None)  # None: no image is its own neighbour
    numbers = np.searchsorted(neighbours.classes_, labels)
    suggested = neighbours.classes_[probabilities.argmax(axis=1)]
    quality = get_label_quality_scores(numbers, probabilities)
    with _lock:
        issues = find_label_issues(numbers, probabilities, n_jobs=1)
    nearest = files[_nearest_of(embeddings, labels, suggested)]
    columns = (files, labels, suggested, quality, nearest, issues)
    images = pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)))
    return images.sort_values("quality", kind="stable", ignore_index=True)


def _weights(distances):
    """exp(cosine / TEMPERATURE), up to a factor, of distances between embeddings of length 1."""
    nearest = distances.min(axis=1, keepdims=True)
    return np.exp((nearest**2 - distances**2) / (2 * TEMPERATURE))


def _nearest_of(embeddings, labels, suggested) -> np.ndarray:
    """The nearest image, int64 (N,), of the class suggested for each, other than itself."""
    nearest = np.empty(len(labels), np.int64)
    for name in np.unique(suggested):
        members = np.flatnonzero(labels == name)
        asking = np.flatnonzero(suggested == name)
        found = NearestNeighbors(n_neighbors=min(2, len(members))).fit(embeddings[members])
        rows = members[found.kneighbors(embeddings[asking], return_distance=False)]  # (A, 2)
        itself = rows[:, 0] == asking
        nearest[asking] = np.where(itself, rows[:, -1], rows[:, 0])
    return nearest
