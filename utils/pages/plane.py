"""The map of a gallery: images as points; two of them, clicked, are a pair."""

import numpy as np

from utils.figures.drawing import photo
from utils.pages.html import Element, component, data_uri, packed
from utils.search import Gallery
from utils.trained import Trained

MOST_POINTS = 400  # whose distances to each other fit a page
THUMB = 64  # pixels
STEPS = 1000  # of a distance of 1
FARTHEST = 2.0  # embeddings of length 1


def plane(trained: Trained, images: Gallery, coordinates: np.ndarray) -> Element:
    """Images as points, in colour and shape by class: hover to see one, click two to see how alike they are.

    images: whose embeddings are of this network. coordinates: float (N, 2), of `dataset_map`. Of more than MOST_POINTS
    images every so-and-so-many-th is shown, and the page says so.
    """
    shown = np.linspace(0, len(images) - 1, min(len(images), MOST_POINTS)).round().astype(int)
    embeddings = np.array(images.embeddings[shown], np.float64)
    apart = np.sqrt(np.clip(2 - 2 * embeddings @ embeddings.T, 0, FARTHEST**2))  # (P, P)
    steps = np.linspace(0, FARTHEST, round(FARTHEST * STEPS) + 1, dtype=np.float32)
    probabilities = trained.probabilities(steps)
    places = coordinates[shown] - coordinates[shown].min(axis=0)
    places = places / max(places.max(), 1e-12)  # one scale for both axes
    places += (1 - places.max(axis=0)) / 2  # the shorter one in the middle
    points = [
        {
            "name": images.names[index],
            "class": images.classes[index],
            "source": data_uri(photo(images.paths[index], trained.config.image.value_range), THUMB),
            "x": float(x),
            "y": float(y),
        }
        for index, (x, y) in zip(shown, places, strict=True)
    ]
    content = {
        "points": points,
        "classes": sorted(set(images.classes)),
        "images": len(images),
        "distances": packed((apart * STEPS).round().astype(np.uint16)),
        "steps": STEPS,
        "probabilities": None if probabilities is None else probabilities.round(3).tolist(),
        "threshold": trained.threshold,
        "band": [float(np.clip(edge, 0, FARTHEST)) for edge in trained.band or ()],
    }
    title = f"A map of {len(images)} images"
    scripts, styles = ["viewer.js", "plane.js"], ["viewer.css", "plane.css"]
    return component("mountPlane", content, "map", title, scripts, styles, trained.caution)
