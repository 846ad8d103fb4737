"""All problems of a dataset in one table, before any training: images to drop, and labels to correct."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from cleanlab.rank import get_label_quality_scores
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

from ..config import Config
from ..data.corrections import DROP, reviewed_images
from ..data.duplicates import groups_of_several
from ..data.images import ImageFolder
from ..data.splits import load_images
from ..device import Runtime, find_runtime
from ..files import printable, write_text
from ..network.backbones import LITE0
from ..network.siamese import SiameseNetwork
from ..network.variants import folded
from ..train.evaluation import embed_images
from .images import Audit, audit_images

COLUMNS = ("image", "class", "problem", "evidence", "suggestion", "beside")
FOLDS = 5  # and the least number of different images of a class whose labels are judged
STRENGTH = 10  # inverse of the regularisation of the linear head: 1 and 100 found fewer flipped labels


@dataclass(frozen=True, eq=False)
class Problems:
    """The problems of a folder of images, as a table."""

    audit: Audit
    """What was found without any network."""
    table: pd.DataFrame
    """A row for each problem of an image, with COLUMNS: the file below the root, its class, the kind of problem
    ("unreadable", "near-duplicate", "dark", "size" or "label"), what shows it, the class that the image should have or
    DROP, and a file that is shown beside it. Labels come last, the most suspect first."""
    judged: str
    """Which labels were judged, and by what."""

    def write(self, folder):
        """Write the table to `folder`/problems.csv."""
        write_text(Path(folder) / "problems.csv", self.table.to_csv(index=False))

    def __str__(self):
        suspected = (self.table["problem"] == "label").sum()
        order = ", the most suspect first" if suspected > 1 else ""
        return printable(f"{self.audit}\n{self.judged} Look like another class: {suspected}{order}.")


def find_problems(config: Config, runtime: Runtime | None = None) -> Problems:
    """Look for problems of the images in `data_path`, and judge all labels out of sample, before any training.

    Labels are judged by a linear head on the pretrained embedding, of `backbone_model` if `pretrained` is set and of
    EfficientNet-lite0 otherwise: each image by a head that was fitted to the other four fifths of the images, and to no
    near-duplicate of it. Labels that `corrections` name, changed or confirmed, are not listed again.

    Args:
        config: The settings.
        runtime: Where to compute.

    Raises:
        DataError: The folder cannot be used.
        ConfigError: The `pretrained` weights cannot be loaded.

    Source: Northcutt et al. 2021, Confident learning; the quality of a label is its predicted probability.
    """
    runtime = runtime or find_runtime(config)
    folder, pixels, duplicates = load_images(config)
    audit = audit_images(folder, pixels, duplicates)
    labels = []
    readable = np.setdiff1d(np.arange(len(folder.paths)), list(pixels.unreadable))
    judged = _judgeable(readable, folder.labels, duplicates)
    words = f"{len(judged)} of {len(folder.paths)} labels were judged by cross-validation"
    if len(np.unique(folder.labels[judged])) < 2:
        words = f"No label was judged: that needs two classes of at least {FOLDS} different images each."
    else:
        if not config.pretrained:
            config = _with_lite0(config)
        embeddings = _embed(config, pixels, judged, runtime)
        decided = reviewed_images(config.corrections, config.data_path)
        for row in judge_out_of_sample(embeddings, folder, judged, duplicates, config.seed):
            if row["image"] not in decided:
                labels.append(row)
        words += f" on the pretrained embedding of {config.backbone_model}."
    rows = _rows_of_audit(audit, {row["image"] for row in labels}) + labels
    return Problems(audit, pd.DataFrame(rows, columns=list(COLUMNS)), words)


def judge_out_of_sample(embeddings: np.ndarray, folder: ImageFolder, indices, groups, seed=0) -> list[dict]:
    """Return the images whose label is not the class that the others predict, the most suspect first.

    Args:
        embeddings: Of the judged images, float32 (N, D).
        folder: That they are in.
        indices: Of the judged images, int64 (N,).
        groups: Of all images of the folder, int64: images of one group are never in two folds.
        seed: Of the folds.

    Returns:
        Rows with COLUMNS.
    """
    labels = folder.labels[indices]
    head = LogisticRegression(C=STRENGTH, max_iter=1000)
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    settings = {"groups": groups[indices], "cv": folds, "method": "predict_proba"}
    probabilities = cross_val_predict(head, embeddings, labels, **settings)
    present, codes = np.unique(labels, return_inverse=True)
    predicted = probabilities.argmax(axis=1)
    quality = get_label_quality_scores(codes, probabilities)
    rows = []
    for number in quality.argsort(kind="stable"):
        if predicted[number] == codes[number]:
            continue
        label, suggestion = folder.classes[labels[number]], folder.classes[present[predicted[number]]]
        of_class = np.flatnonzero(codes == predicted[number])
        nearest = of_class[euclidean_distances(embeddings[number][None], embeddings[of_class]).argmin()]
        evidence = f"looks like {suggestion} (probability {probabilities[number, predicted[number]]:.2f}), "
        evidence += f"less like {label} ({quality[number]:.2f})"
        image, beside = _name(folder, indices[number]), _name(folder, indices[nearest])
        rows.append(dict(zip(COLUMNS, (image, label, "label", evidence, suggestion, beside), strict=True)))
    return rows


def _judgeable(readable, labels, groups) -> np.ndarray:
    """The readable images of classes with at least FOLDS different ones, int64."""
    images = pd.DataFrame({"index": readable, "label": labels[readable], "group": groups[readable]})
    different = images.groupby("label")["group"].transform("nunique")
    return images["index"][different >= FOLDS].to_numpy()


def _with_lite0(config: Config) -> Config:
    """The settings with the weights that need no hub."""
    settings = config.model_dump(mode="json") | {"backbone_model": LITE0, "pretrained": True}
    settings["image"] |= {"normalization": "auto"}
    return Config.model_validate(settings).from_source(config.source)


def _embed(config, pixels, indices, runtime) -> np.ndarray:
    """The pretrained embeddings of images, float32 (N, D)."""
    with torch.random.fork_rng(devices=[]):  # every weight is replaced
        network = SiameseNetwork(config.backbone_model, None, config.pretrained, config.image.size)
    network = runtime.place(folded(network, runtime.dtype))
    return embed_images(network, pixels, indices, config, runtime).float().numpy()


def _rows_of_audit(audit: Audit, suspects: set[str]) -> list[dict]:
    """The images that an audit would drop; of copies those whose label is suspect, and all others but the first."""
    folder = audit.folder
    rows = []

    def add(index, problem, evidence, beside=""):
        values = _name(folder, index), folder.classes[folder.labels[index]], problem, evidence, DROP, beside
        rows.append(dict(zip(COLUMNS, values, strict=True)))

    for index, cause in audit.unreadable.items():
        add(index, "unreadable", cause)
    for group in groups_of_several(audit.duplicates):
        first, *copies = sorted(group, key=lambda index: _name(folder, index) in suspects)
        for index in copies:
            kind = "same bytes as" if audit.contents[index] == audit.contents[first] else "same picture as"
            evidence = f"{kind} {_name(folder, first)}"
            if folder.labels[index] != folder.labels[first]:
                evidence += ", in another class: one label is incorrect"
            add(index, "near-duplicate", evidence, _name(folder, first))
    for index, evidence in audit.dark.items():
        add(index, "dark", evidence)
    for index, evidence in audit.odd.items():
        add(index, "size", evidence)
    return rows


def _name(folder, index) -> str:
    return Path(folder.paths[index]).relative_to(folder.root).as_posix()
