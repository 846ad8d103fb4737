"""The viewer of a pair: both images, their heatmaps, and what each place matches in the other image."""

import numpy as np
import torch
import torch.nn.functional as F

from ..config import LAST
from ..explanations.edits import Edit
from ..explanations.explanation import Explanation, only_pair
from ..explanations.matches import FAINT, Matches, decompose
from ..network.distance import Explainable, similarity
from ..search.gallery import Gallery
from ..trained import Trained
from ..trust.faithfulness import Verdict
from .drawing import OPACITY, SOLID, UNJUDGED, check_verdict, colour_table, file_name, photo, photos, pixels, remark
from .figures import NOTHING, caption, judgement
from .html import Element, component, data_uri, packed

IMAGE_SIDE = 448  # pixels
MAP_SIDE = 64  # cells of a heatmap along a side: finer than the layers that maps are read from
PLACE_SIDE = 16  # cells of matches along a side: neighbouring places are added up to so many
COLOURS = ("viridis", "cividis", "inferno", "turbo")  # the colour-blind see the order of all but the last
KINDS = ("factual", "counterfactual")


def view(explanations, verdicts=None, matches: Matches | None = None, change: Edit | None = None) -> Element:
    """A pair to look at in a notebook or a browser: move over one image, and the other lights up where it matches.

    explanations: of one pair, or those of the same pair by several methods, by name; verdicts likewise, on these.
    matches, change: of the same pair; without them the viewer does without. What is shown first is the method whose
    explanation the matches are of. Below 2 MB for images of any size.

    Raises ValueError when these are not all of the same one pair.
    """
    content = view_content(explanations, verdicts, matches, change)
    first = next(iter(_by_name(explanations).values()))
    name = file_name("view", first)  # its sentence begins with the warning, also where a grid opens it
    return component("mountViewer", content, name, content["title"], ["viewer.js"], ["viewer.css"], "")


def view_content(explanations, verdicts=None, matches=None, change=None) -> dict:
    """The same as JSON, for the script function `mountViewer`."""
    explanations = _by_name(explanations)
    first = only_pair(next(iter(explanations.values())))
    verdicts = {next(iter(explanations)): verdicts} if isinstance(verdicts, Verdict) else verdicts or {}
    others = [*explanations.values(), *(verdict.explanation for verdict in verdicts.values())]
    others += [part.explanation for part in (matches, change) if part is not None]
    if not all(first.of_same_pairs(other) for other in others):
        raise ValueError("these are of different pairs: one viewer shows one pair")
    shown = [name for name, one in explanations.items() if matches is not None and one.same_as(matches.explanation)]
    images = [_image_content(first, number, image) for number, image in enumerate(photos(first))]
    return {
        "title": _title(first),
        "sentence": first.sentence(),
        "similarity": first.similarity.item(),
        "least": similarity(torch.tensor(first.threshold)).item(),
        "right": first.correct(),
        "images": images,
        "methods": [_method_content(name, one, verdicts.get(name)) for name, one in explanations.items()],
        "first": shown[0] if shown else next(iter(explanations)),
        "colours": {name: packed(colour_table(name)) for name in COLOURS},
        "opacity": OPACITY,
        "solid": SOLID,
        "matches": matches and _matches_content(matches),
        "change": change and _change_content(change, [image["source"] for image in images]),
    }


def _by_name(explanations) -> dict[str, Explanation]:
    return {explanations.method: explanations} if isinstance(explanations, Explanation) else explanations


def _title(explanation):
    name1, name2 = explanation.names[0]
    return f"{name1} and {name2}"


def _image_content(explanation, number, image):
    classes = explanation.classes()
    height, width = image.shape[:2]
    return {
        "name": explanation.names[0][number],
        "class": classes and classes[number],
        "height": height,
        "width": width,
        "source": data_uri(image, IMAGE_SIDE),
    }


def _method_content(name, explanation, verdict):
    """The maps of a method, coarse, in 256 steps; what is said of them."""
    lean = explanation.closer_to()
    other = "same" if lean == "different" else "different"
    maps = {kind: _coarse(getattr(explanation, kind)[0], MAP_SIDE) for kind in KINDS}
    height, width = maps["factual"].shape[1:]
    return {
        "name": name,
        "source": explanation.description,
        "headings": {"factual": f'what speaks for "{lean}"', "counterfactual": f'what speaks for "{other}"'},
        "verdict": UNJUDGED if verdict is None else verdict.sentence().splitlines()[0],
        "verdicts": verdict and verdict.sentence().splitlines()[1:],
        "height": height,
        "width": width,
        "maps": {kind: [packed(_bytes(one)) for one in both] for kind, both in maps.items()},
        "weak": {kind: [remark(explanation, image, one) for image, one in enumerate(maps[kind])] for kind in KINDS},
    }


def _matches_content(matches):
    """All pairs of cells, each the sum over its places, as int16 steps of `scale`."""
    places = matches.places.float().cpu().numpy()  # (h, w, h, w)
    height, width = places.shape[:2]
    down, across = (-(-side // PLACE_SIDE) for side in (height, width))  # places a cell
    rows, columns = np.arange(0, height, down), np.arange(0, width, across)
    for axis, starts in enumerate((rows, columns, rows, columns)):
        places = np.add.reduceat(places, starts, axis=axis)
    scale = float(np.abs(places).max()) / 32767 or 1.0
    return {
        "rows": [*(rows / height).tolist(), 1],
        "columns": [*(columns / width).tolist(), 1],
        "values": packed((places / scale).round().astype(np.int16)),
        "scale": scale,
        "faint": FAINT,
        "cosine": matches.cosine,
        "places": float(matches.places.cpu().double().sum()),
        "residual": matches.residual,
        "layer": matches.description,
    }


def _change_content(change, sources):
    """Both images before and after at the network's own resolution, so that only the change differs.

    None before where that is the source shown anyway, and None after where nothing was changed.
    """
    explanation = change.explanation
    before = [data_uri(image, IMAGE_SIDE) for image in pixels(explanation.images[0], explanation)]
    after = [data_uri(image, IMAGE_SIDE) for image in pixels(change.edited, explanation)]
    regions = _coarse(change.regions.float(), MAP_SIDE)
    return {
        "sentence": change.sentence(),
        "flipped": change.flipped,
        "before": [None if one == source else one for one, source in zip(before, sources, strict=True)],
        "after": [None if one == two else one for one, two in zip(after, before, strict=True)],
        "similarities": [change.before, change.after],
        "height": regions.shape[1],
        "width": regions.shape[2],
        "regions": [packed((one > 0.5).numpy().astype(np.uint8)) for one in regions],
    }


def _coarse(maps, side):
    """Maps (2, H, W), float32 on the CPU, of at most `side` cells along each side."""
    size = [min(length, side) for length in maps.shape[-2:]]
    return F.interpolate(maps[None].float().cpu(), size=size, mode="area")[0]


def _bytes(values):
    """Values in [0, 1] as uint8."""
    return (255 * values.clamp(0, 1)).round().byte().numpy()


def grid(explanation: Explanation, network: Explainable | None = None, verdict: Verdict | None = None) -> Element:
    """The pairs of an explanation side by side; a click, or Enter, opens the viewer of one, Escape closes it.

    Args:
        explanation: Of any number of pairs.
        network: The one that was explained; with it, viewers show what matches what at its last feature map, where the
            sum over places is exact.
        verdict: On this explanation; without one, each pair says that its maps were not judged.

    Raises:
        ValueError: The verdict is of another explanation; or the network is another one, or has more than average
            pooling and one linear layer behind its last feature map.
    """
    check_verdict(verdict, explanation)
    pairs = []
    for index, pair in enumerate(explanation):
        matches = network and decompose(network, pair, LAST)
        content = view_content(pair, verdict and verdict[index], matches)
        words = f"{caption(pair).strip()} {judgement(verdict, index)}"
        pairs.append({"caption": words, "right": pair.correct(), "view": content})
    name = file_name("pairs", explanation[0], str(len(pairs))) if pairs else "pairs_nothing"
    title = f"{len(pairs)} pairs" if pairs else NOTHING
    content = {"pairs": pairs, "nothing": NOTHING}
    scripts, styles = ["viewer.js", "grid.js"], ["viewer.css", "grid.css"]
    return component("mountGrid", content, name, title, scripts, styles, explanation.source.warning)


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
    return component("mountPlane", content, "map", title, scripts, styles, trained.warning)
