import re
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from helpers import drawn, write_images

from utils import figure, images_figure, methods_figure, overlay, sanity_figure, saved
from utils.data.reading import read_image
from utils.explanations.explanation import Explanation, Source
from utils.show.drawing import COLORMAP, file_name, photos
from utils.trust.faithfulness import CHANCE, FAITHFUL, WEAK, Effect, Verdict

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.fixture
def paths(tmp_path):
    write_images(tmp_path / "rose", 2, (40, 48))
    return str(tmp_path / "rose" / "0.png"), str(tmp_path / "rose" / "1.png")


def explanation_of(evidence, paths=None, **source):
    """An explanation, decided "different", of pairs that have this evidence."""
    count = len(evidence)
    if paths is not None:
        source |= {"paths": (paths,) * count}
    images = torch.rand(count, 2, 3, *evidence.shape[-2:], generator=torch.Generator().manual_seed(0))
    distances = torch.full((count,), 0.8)
    return Explanation(
        images,
        distances,
        0.5,
        evidence.clamp(min=0),
        (-evidence).clamp(min=0),
        method="gradcam",
        layer="layer3",
        source=Source(**{"warning": ""} | source),
    )


def verdict_on(explanation, gap=0.4):
    count = len(explanation)
    blind = Effect(*torch.zeros(3, 20, count), explanation.different)
    gaps, spans = (Effect(*torch.full((3, count), value), explanation.different) for value in (gap, 0.5))
    return Verdict(explanation, gaps, spans, blind, spans)


def texts(drawn_figure):
    """All words of a figure, in one line."""
    found = drawn_figure.findobj(plt.Text)
    return " ".join(" ".join(text.get_text().split()) for text in found)


def test_an_undecided_pair_shows_both_sides_whatever_is_asked_for():
    evidence = torch.randn(1, 2, 6, 6)
    decided = figure(explanation_of(evidence), kinds=["factual"])
    assert 'What supports "different" (factual)' in texts(decided)
    assert "contradicts" not in texts(decided)
    open_figure = figure(explanation_of(evidence, band=(0.2, 0.9)), kinds=["factual"])
    words = texts(open_figure)
    assert "factual" not in words
    assert 'supports "different"' in words
    assert 'supports "same"' in words
    assert 'Undecided, closer to "different" (similarity 0.600; undecided from 0.550 to 0.900)' in words


def test_overlay_leaves_the_image_where_the_map_is_zero():
    np.testing.assert_array_equal(overlay(IMAGE, np.zeros((5, 5)), 0.7), IMAGE)


def test_overlay_mixes_image_and_colour():
    red, green, blue = (255 * np.array(plt.get_cmap(COLORMAP)(1.0)[:3])).tolist()
    assert red > green
    assert red > blue  # strong evidence is red: a swapped channel order would make it blue
    full = overlay(IMAGE, np.ones((20, 30)), 1.0)
    np.testing.assert_allclose(full, np.full_like(IMAGE, 1) * [red, green, blue], atol=1)
    half = overlay(IMAGE, np.ones((20, 30)), 0.5)
    np.testing.assert_allclose(half, 0.5 * IMAGE + 0.5 * np.array([red, green, blue]), atol=1)
    faint = 255 * np.array(plt.get_cmap(COLORMAP)(0.1)[:3])  # weak evidence fades: 0.1 / 0.25 of the opacity
    np.testing.assert_allclose(overlay(IMAGE, np.full((20, 30), 0.1), 0.5), 0.8 * IMAGE + 0.2 * faint, atol=1)


def test_overlay_keeps_the_place_of_the_evidence():
    heatmap = np.zeros((10, 10))
    heatmap[2, 7] = 1.5  # beyond the range: clipped, without a warning
    changed = np.abs(overlay(np.zeros((20, 40, 3), np.uint8), heatmap, 1.0).astype(int)).sum(axis=2)
    row, column = np.unravel_index(changed.argmax(), changed.shape)
    assert row in (4, 5)
    assert column in range(28, 32)
    assert changed[10:].sum() == 0


def test_images_and_maps_are_shown_where_they_belong(paths):
    evidence = torch.zeros(1, 2, 32, 40)
    evidence[0, 0, :16] = 1
    shown = figure(explanation_of(evidence, paths))
    axes = [part for part in shown.axes if part.images]
    arrays = [part.images[0].get_array() for part in axes]
    image1, image2 = read_image(paths[0]), read_image(paths[1])
    assert (arrays[0][:10] != image1[:10]).any()
    np.testing.assert_array_equal(arrays[0][-10:], image1[-10:])
    np.testing.assert_array_equal(arrays[1], image2)
    np.testing.assert_array_equal(arrays[2], image1)
    np.testing.assert_array_equal(arrays[3], image2)
    labels = [part.get_xlabel().replace("\n", " ") for part in axes]
    assert labels[0] == "rose/0.png"
    assert labels[1].startswith("rose/1.png blank: the distance does not react")
    assert labels[2] == "no such evidence"
    assert labels[3].startswith("blank: the distance does not react")


def test_opacity_is_that_of_the_heatmap(paths):
    explanation = explanation_of(torch.ones(1, 2, 32, 40), paths)
    images = [read_image(path).astype(int) for path in paths]
    changes = []
    for opacity in (0.2, 0.6):
        axes = figure(explanation, opacity=opacity).axes
        changes.append(np.abs(axes[0].images[0].get_array().astype(int) - images[0]).mean())
    assert changes[1] == pytest.approx(3 * changes[0], rel=0.05)


def test_without_files_the_explained_pixels_are_shown():
    explanation = explanation_of(torch.rand(1, 2, 8, 8))
    expected = (255 * explanation.images[0]).round().byte().permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(photos(explanation), expected)
    beyond = Explanation(4 * explanation.images - 1, explanation.distance, 0.5, *torch.zeros(2, 1, 2, 8, 8))
    low, high = beyond.images.min(), beyond.images.max()
    for image, pixels in zip(beyond.images[0], photos(beyond), strict=True):
        stretched = (255 * (image - low) / (high - low)).round().byte().permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(pixels, stretched)


def test_every_figure_of_a_pair_says_what_made_it_and_of_what(paths):
    explanation = explanation_of(torch.randn(1, 2, 8, 8), paths, classes=(("rose", "rose"),))
    verdict = verdict_on(explanation)
    figures = {
        "factual": figure(explanation, verdict, ["factual"]),
        "explanation": figure(explanation, verdict),
        "methods": methods_figure({"gradcam at layer3": verdict, "two": verdict}),
    }
    for name, shown in figures.items():
        words = texts(shown)
        for part in ("rose/0.png", "rose/1.png", "Different (similarity 0.600; limit 0.750); incorrect: both are rose"):
            assert part in words, (name, part)
        assert "gradcam at layer3" in words, name
        assert name in shown.get_label()
        assert "0_1" in shown.get_label()
        assert drawn(shown).std() > 5
    assert "rose/0.png" in texts(images_figure(explanation))
    assert plt.get_fignums() == []


def test_no_two_pairs_and_no_two_methods_share_a_file(paths):
    first = explanation_of(torch.randn(1, 2, 8, 8), paths)
    others = [
        explanation_of(torch.randn(1, 2, 8, 8), paths[::-1]),
        explanation_of(torch.randn(1, 2, 8, 8), ("elsewhere/rose/0.png", paths[1])),
        replace(first, method="layercam"),
        explanation_of(torch.randn(1, 2, 8, 8)),
        explanation_of(torch.randn(3, 2, 8, 8))[1],
        replace(explanation_of(torch.randn(1, 2, 8, 8)), images=torch.rand(1, 2, 3, 8, 8)),
        replace(first, details="4 steps"),
        replace(first, threshold=0.6),
    ]
    labels = [first, *others]
    names = {_label(explanation) for explanation in labels}
    assert len(names) == len(labels)


def _label(explanation):
    return file_name("explanation", explanation, explanation.method, explanation.layer)


def test_the_verdict_stands_above_and_must_be_of_the_same_explanation(paths):
    explanation = explanation_of(torch.randn(2, 2, 8, 8), paths)
    verdict = verdict_on(explanation)
    shown = texts(figure(explanation[1], verdict[1]))
    assert "0.80 of what is possible (insertion minus deletion +0.400 of +0.500)" in shown
    assert "Image 2 alone: 0.80 of what is possible" in shown
    other = explanation_of(torch.randn(2, 2, 8, 8), paths)
    with pytest.raises(ValueError, match="the verdict is of another explanation"):
        figure(other, verdict)
    with pytest.raises(ValueError, match="the verdict is of another explanation"):
        figure(explanation[0], verdict_on(other)[0])


def test_several_pairs_stand_below_each_other():
    explanation = explanation_of(torch.randn(3, 2, 8, 8))
    shown = figure(explanation, verdict_on(explanation))
    assert len([axes for axes in shown.axes if axes.images]) == 3 * 4
    words = texts(shown)
    assert all(f"pair {number}, image 2" in words for number in range(3))
    with pytest.raises(ValueError, match="9 pairs are too many for one figure"):
        figure(explanation_of(torch.randn(9, 2, 8, 8)))
    with pytest.raises(ValueError, match="one pair, not 3"):
        images_figure(explanation)


def test_long_names_are_wrapped_and_signs_are_shown_as_they_are():
    name = "a_very_long_name_" * 6 + "$x_1$.png"
    explanation = replace(explanation_of(torch.randn(1, 2, 8, 8)), names=((name, name),))
    shown = figure(explanation)
    assert drawn(shown).std() > 5  # a dollar sign would open a formula that does not end
    label = shown.axes[0].get_xlabel()
    assert max(map(len, label.splitlines())) <= 40
    assert label.replace("\n", "").replace("\\$", "$") == name


def test_methods_of_one_curve_share_a_line():
    curve = {"embedding": 0.4, "layer4": 0.1}
    shown = sanity_figure({"one": curve, "two": {**curve, "layer4": 0.3}, "three": curve})
    labels = [text.get_text() for text in shown.legends[0].get_texts()]
    assert labels == ["one\nthree", "two"]


@pytest.mark.parametrize("count", [3, 4, 5])
def test_every_method_is_shown_once(paths, count):
    verdicts = {
        f"method {number}": verdict_on(explanation_of(torch.randn(1, 2, 8, 8), paths), gap=number / 10)
        for number in range(count)
    }
    shown = [axes for axes in methods_figure(verdicts).axes if axes.axison and axes.get_label() != "<colorbar>"]
    best_first = [f"method {number}" for number in range(count - 1, -1, -1)]
    assert [axes.get_title() for axes in shown if axes.get_title()] == best_first
    assert len(shown) == 2 * count
    labels = [axes.get_xlabel() for axes in shown if axes.get_xlabel()]
    best = [f"✓ {FAITHFUL} (0.80)", f"~ {WEAK} (0.60)", f"~ {WEAK} (0.40)", f"~ {WEAK} (0.20)", f"✗ {CHANCE}"]
    assert labels == best[-count:]


def test_maps_are_grey_where_they_are_not_better_than_chance(paths):
    explanation = explanation_of(torch.ones(1, 2, 32, 40), paths)
    for gap, grey in ((0.4, False), (-0.4, True)):
        verdict = verdict_on(explanation, gap)
        for shown in (figure(explanation, verdict, opacity=1.0), methods_figure({"gradcam": verdict}, 1.0)):
            pixels = np.asarray(shown.axes[0].images[0].get_array()).astype(int)
            assert (np.ptp(pixels, axis=2).max() == 0) == grey


def test_the_default_method_is_marked(paths):
    verdict = verdict_on(explanation_of(torch.rand(1, 2, 8, 8), paths))
    shown = methods_figure({"gradcam": verdict, "layercam": verdict}, default="layercam")
    titles = [axes.get_title() for axes in shown.axes]
    assert [title for title in titles if title] == ["gradcam", "layercam (default)"]


def test_an_opacity_of_zero_outlines_the_strongest_tenth_and_leaves_the_photograph(paths):
    evidence = torch.zeros(1, 2, 20, 24)
    evidence[..., :6, :8] = 1  # a tenth
    axes = figure(explanation_of(evidence, paths), opacity=0).axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), read_image(paths[0]))
    lines = [path for part in axes.collections for path in part.get_paths()]
    ends = np.concatenate([line.vertices for line in lines]).max(axis=0)
    assert ends == pytest.approx([16, 12], abs=1.5)  # of 48 x 40 pixels


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_figures_are_saved_for_screens_and_for_papers(kind, tmp_path):
    shown = figure(explanation_of(torch.rand(1, 2, 8, 8)))
    assert saved(shown, tmp_path, kind) is shown
    (file,) = tmp_path.iterdir()
    assert file.suffix == f".{kind}"
    begins = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[kind]
    assert file.read_bytes().startswith(begins)
    captions = [part.get_supxlabel() for part in shown.subfigs]
    assert all("limit" in caption for caption in captions)  # in the notebook as before
    if kind == "svg":
        text = file.read_text()
        assert 72 * 6 < float(re.search(r'<svg .*width="([0-9.]+)pt"', text.replace("\n", " "))[1]) <= 72 * 7.3
        assert "limit" not in text
    with pytest.raises(ValueError, match="format: 'bmp' is refused: it must be one of png, pdf, svg"):
        saved(shown, tmp_path, "bmp")


def test_a_blank_map_of_a_method_says_why(paths):
    verdicts = {"blind": verdict_on(explanation_of(torch.zeros(1, 2, 8, 8), paths))}
    labels = [axes.get_xlabel() for axes in methods_figure(verdicts).axes if axes.get_xlabel()]
    assert len(labels) == 2
    assert all("does not react" in label.replace("\n", " ") for label in labels)


def test_portrait_photographs_fit_a_screen():
    tall = figure(explanation_of(torch.randn(1, 2, 160, 90)))
    assert tall.get_figheight() * 72 < 720  # pixels; of these the larger maps and their title take 450


def test_methods_of_different_pairs_are_refused(paths):
    verdicts = {
        "one": verdict_on(explanation_of(torch.randn(1, 2, 8, 8), paths)),
        "two": verdict_on(explanation_of(torch.randn(1, 2, 8, 8))),
    }
    with pytest.raises(ValueError, match="of different pairs"):
        methods_figure(verdicts)
    one, two = (explanation_of(torch.randn(1, 2, 8, 8)) for _ in range(2))
    two = replace(two, images=1 - two.images)  # both are called pair 0
    with pytest.raises(ValueError, match="of different pairs"):
        methods_figure({"one": verdict_on(one), "two": verdict_on(two)})
