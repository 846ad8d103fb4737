"""Pages that answer to the pointer: the viewer of a pair, a grid of pairs, and a map of images."""

import numpy as np
import torch.nn.functional as F
from matplotlib import colormaps
from scipy.spatial.distance import cdist

from ..explanations.edits import Edit
from ..explanations.explanation import Explanation, only_pair
from ..explanations.matches import FAINT, Matches, decompose_exactly
from ..explanations.regions import Windows, scores_at
from ..network.distance import Explainable
from ..search.gallery import Gallery
from ..trained import Trained
from ..trust.faithfulness import Verdict
from .drawing import COLORMAP, GREY, OPACITY, check_verdict, file_name, photo, photos, pixels
from .html import Element, component, data_uri, packed
from .words import KINDS, NOTHING, SOLID, UNJUDGED, caption, is_believed, maps_in_short, remark, titles_of_maps

IMAGE_SIDE = 448  # pixels
MAP_SIDE = 64  # cells of a heatmap along a side: finer than the layers that maps are read from
PLACE_SIDE = 16  # cells of matches along a side, most; neighbouring places are added up
COLOURS = (COLORMAP, "viridis", "cividis", "inferno")  # colour-blind readers see the order of all but the first


def view(
    explanations,
    verdicts=None,
    matches: Matches | None = None,
    edit: Edit | None = None,
    windows: Windows | None = None,
) -> Element:
    """Make the viewer of a pair: move over one image, or draw a box, and the other lights up where it matches.

    Args:
        explanations: Of one pair, or several of it by the name of their method.
        verdicts: On the explanation, or on those by the same names.
        matches: Of the pair. The method whose explanation these are of is shown first.
        edit: Of the pair.
        windows: Of the pair: what the network says when the window nearest to the box is hidden.

    Returns:
        An element below 2 MB for images of any size.

    Raises:
        ValueError: These are not all of the same one pair.
    """
    content = view_content(explanations, verdicts, matches, edit, windows)
    pair = next(iter(_by_name(explanations).values()))
    # the sentence that the viewer shows begins with the warning
    return component("viewer", content, file_name("view", pair), content["title"])


def view_content(explanations, verdicts=None, matches=None, edit=None, windows=None) -> dict:
    """Return what `view` shows as JSON, for the script function `mountViewer`."""
    explanations = _by_name(explanations)
    pair = only_pair(next(iter(explanations.values())))
    if isinstance(verdicts, Verdict):
        verdicts = {next(iter(explanations)): verdicts}
    verdicts = verdicts or {}
    _check_same_pair(pair, explanations, verdicts, matches, edit, windows)
    methods = []
    of_matches = []
    for name, explanation in explanations.items():
        methods.append(_method_content(name, explanation, verdicts.get(name)))
        if matches is not None and explanation.same_as(matches.explanation):
            of_matches.append(name)
    return {
        "title": "{} and {}".format(*pair.names[0]),
        "sentence": pair.sentence(),
        "similarity": pair.similarity.item(),
        "same_from": pair.limit if pair.source.decides else None,
        "correct": pair.correct(),
        "images": [_image_content(pair, number, image) for number, image in enumerate(photos(pair))],
        "methods": methods,
        "first": next(iter(of_matches), methods[0]["name"]),
        "grey": packed(colormaps[GREY](np.arange(256), bytes=True)[:, :3]),
        "colours": {name: packed(colormaps[name](np.arange(256), bytes=True)[:, :3]) for name in COLOURS},
        "opacity": OPACITY,
        "solid": SOLID,
        "matches": matches and _matches_content(matches),
        "edit": edit and _edit_content(edit),
        "windows": windows and _windows_content(windows),
    }


def _by_name(explanations) -> dict[str, Explanation]:
    if isinstance(explanations, Explanation):
        return {explanations.method: explanations}
    return explanations


def _check_same_pair(pair, explanations, verdicts, *others):
    parts = list(explanations.values())
    for part in (*verdicts.values(), *others):
        if part is not None:
            parts.append(part.explanation)
    if not all(pair.of_same_pairs(part) for part in parts):
        raise ValueError("these are of different pairs: one viewer shows one pair")


def _image_content(pair, number, image):
    classes = pair.classes() or (None, None)
    height, width = image.shape[:2]
    source = data_uri(image, IMAGE_SIDE)
    name = pair.names[0][number]
    return {"name": name, "class": classes[number], "height": height, "width": width, "source": source}


def _method_content(name, explanation, verdict):
    """The maps of a method, coarse, in 256 steps, and what they show in words."""
    content = {
        "name": name,
        "description": explanation.description,
        "headings": titles_of_maps(explanation),
        "believed": is_believed(verdict),
        "verdict": UNJUDGED,
        "verdicts": None,
        "maps": {},
        "weak": {},
    }
    if verdict is not None:
        content["verdict"], *content["verdicts"] = verdict.sentence().splitlines()
    for kind in KINDS:
        maps = _coarse(getattr(explanation, kind)[0])
        steps = (255 * maps.clamp(0, 1)).round().byte().numpy()
        content["height"], content["width"] = steps.shape[1:]
        content["maps"][kind] = [packed(steps[0]), packed(steps[1])]
        content["weak"][kind] = [remark(explanation, 0, maps[0]), remark(explanation, 1, maps[1])]
    return content


def _matches_content(matches):
    """All pairs of cells, each the sum over its places, as int16 steps of `scale`."""
    places = matches.places.float().cpu().numpy()  # (h, w, h, w)
    height, width = places.shape[:2]
    rows = np.arange(0, height, -(-height // PLACE_SIDE))  # where cells begin
    columns = np.arange(0, width, -(-width // PLACE_SIDE))
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
        "layer": matches.layer,
    }


def _edit_content(edit):
    """Both images before and after the edit, at the resolution of the network, so that only the edit differs."""
    pair = edit.explanation
    regions = _coarse(edit.regions.float()) > 0.5
    height, width = regions.shape[1:]
    return {
        "sentence": edit.sentence(),
        "before": [data_uri(image, IMAGE_SIDE) for image in pixels(pair.images[0], pair)],
        "after": [data_uri(image, IMAGE_SIDE) for image in pixels(edit.edited, pair)],
        "similarities": [edit.before, edit.after],
        "height": height,
        "width": width,
        "regions": [packed(region) for region in regions.numpy().astype(np.uint8)],
    }


def _windows_content(windows):
    """What the network says as it is, and with each window of image 1, then of image 2, hidden."""
    pair = windows.explanation
    after = []
    for distances in windows.distances.flatten(1):
        after.append(scores_at(pair, distances).to_dict("records"))
    (before,) = scores_at(pair, pair.distance).to_dict("records")
    return {"boxes": windows.boxes, "before": before, "after": after}


def _coarse(maps):
    """Maps (2, H, W), float32 on the CPU, of at most MAP_SIDE cells along each side."""
    height, width = maps.shape[-2:]
    size = min(height, MAP_SIDE), min(width, MAP_SIDE)
    return F.interpolate(maps[None].float().cpu(), size=size, mode="area")[0]


def grid(explanation: Explanation, network: Explainable | None = None, verdict: Verdict | None = None) -> Element:
    """Make a page of many pairs; a click, or Enter, opens the viewer of one, Escape closes it.

    Args:
        explanation: Of any number of pairs.
        network: The one that was explained. With it, viewers show what matches what at its last feature map, if the
            sum over places is exact: if there are only average pooling and one linear layer behind it.
        verdict: On this explanation.

    Raises:
        ValueError: The verdict is of another explanation, or the network is another one.
    """
    check_verdict(verdict, explanation)
    pairs = []
    for index, pair in enumerate(explanation):
        matches = network and decompose_exactly(network, pair)
        content = view_content(pair, verdict and verdict[index], matches)
        text = f"{content['title']}. {caption(pair)} {maps_in_short(verdict, index)}"
        pairs.append({"caption": text, "view": content})
    name, title = "pairs_nothing", NOTHING
    if pairs:
        name, title = file_name("pairs", explanation[0], str(len(pairs))), f"{len(pairs)} pairs"
    return component("grid", {"pairs": pairs, "nothing": NOTHING}, name, title, explanation.source.warning)


MOST_POINTS = 400  # whose distances to each other fit a page
THUMBNAIL = 64  # pixels
STEPS = 1000  # of a distance of 1
FARTHEST = 2.0  # distance of embeddings of length 1


def plane(trained: Trained, images: Gallery, coordinates: np.ndarray) -> Element:
    """Make a map of images: points, in colour and shape by class; hover to see one, click two to compare them.

    Args:
        trained: The network.
        images: Images with their embeddings by this network. Where there are more than MOST_POINTS, points are left
            out at equal intervals, and the page says so.
        coordinates: float (N, 2), of `dataset_map`.
    """
    shown = np.linspace(0, len(images) - 1, min(len(images), MOST_POINTS)).round().astype(int)
    places = coordinates[shown] - coordinates[shown].min(axis=0)
    places = places / max(places.max(), 1e-12)  # one scale for both axes
    places += (1 - places.max(axis=0)) / 2  # the shorter one in the middle
    points = []
    for index, (x, y) in zip(shown, places.astype(float).tolist(), strict=True):
        picture = photo(images.paths[index], trained.config.image.value_range)
        source = data_uri(picture, THUMBNAIL)
        point = {"name": images.names[index], "class": images.classes[index], "path": str(images.paths[index])}
        points.append(point | {"source": source, "x": x, "y": y})
    embeddings = np.asarray(images.embeddings)[shown].astype(np.float64)
    distances = cdist(embeddings, embeddings).clip(max=FARTHEST)
    probabilities = trained.probabilities(np.linspace(0, FARTHEST, round(FARTHEST * STEPS) + 1, dtype=np.float32))
    band = trained.band or (trained.threshold, trained.threshold)
    content = {
        "points": points,
        "classes": sorted(set(images.classes)),
        "images": len(images),
        "distances": packed((distances * STEPS).round().astype(np.uint16)),
        "steps": STEPS,
        "probabilities": None if probabilities is None else probabilities.round(3).tolist(),
        "band": np.clip(band, 0, FARTHEST).tolist(),
    }
    return component("plane", content, "map", f"A map of {len(images)} images", trained.warning)
