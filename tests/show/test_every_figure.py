"""What holds for every public figure and page, by their names, so that a new one cannot be forgotten."""

import base64
import json
import re
import zlib
from dataclasses import replace
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from helpers import explanation_of, network_and_images

import utils
from utils import (
    ask,
    choose_pairs,
    compare,
    dataset_map,
    decompose,
    find_shortcuts,
    find_suspects,
    frozen_baseline,
    gallery,
    identify,
    judge,
    methods_of,
    most_similar,
    scores_table,
    smallest_edit,
    write_metrics,
)
from utils.audit.shortcuts import Shortcuts
from utils.data.splits import Pairs
from utils.score.intervals import Interval

CAUTION = "CAUTION: this network may know nothing: its test AUC is 0.500 (0.400 to 0.600), and 0.5 is guessing."
SHOWN = {name for name in utils.__all__ if getattr(getattr(utils, name), "__module__", "").startswith("utils.show")}
OF_NO_NETWORK = {  # of data alone, or parts that other figures are made of
    "PairChooser",
    "augmentation_figure",
    "duplicates_figure",
    "explain_files",  # of a network that was never tested: tests/test_untrained.py
    "overlay",
    "pairs_figure",
    "pretrained_network",
    "saved",
}
OF_NUMBERS = {  # of the course of training or of the test itself: they show the AUC, or numbers without any network
    "det_figure",
    "distances_figure",
    "history_figure",
    "reliability_figure",
    "roc_figure",
    "sanity_figure",
}


def words_of(shown):
    """All words of a figure or of an element, in one line."""
    if hasattr(shown, "findobj"):
        texts = [text.get_text() for text in shown.findobj(plt.Text)]
    else:
        packed = re.findall(r"await unpack\('([^']+)'\)", shown.html)
        texts = [zlib.decompress(base64.b64decode(data)).decode() for data in packed]
        texts.append(without_scripts(shown))
    return " ".join(" ".join(texts).split())


def without_scripts(element):
    """What stands in a page before anything is clicked, and where scripts do not run."""
    return re.sub(r"<script>.*?</script>", "", element.html, flags=re.DOTALL)


@pytest.fixture
def blind(calibrated):
    """A network whose test AUC may be 0.5, with what it says of two pairs."""
    trained = replace(calibrated, measurements=replace(calibrated.measurements, auc=Interval(0.5, 0.4, 0.6)))
    assert trained.warning == CAUTION
    splits = trained.load_splits()
    pairs = splits.files(splits.test_pairs, 2)
    explanation = trained.explain(*pairs)
    pair = explanation[0]
    return SimpleNamespace(trained=trained, splits=splits, pairs=pairs, explanation=explanation, pair=pair)


def suspects_of(trained, splits):
    """Those of the dataset with two labels flipped."""
    labels = splits.folder.labels.copy()
    labels[splits.test[[0, -1]]] = labels[splits.test[[-1, 0]]]
    return find_suspects(trained, replace(splits, folder=replace(splits.folder, labels=labels)))


def none_suspected(suspects):
    right = suspects.images[suspects.images["label"] == suspects.images["neighbours say"]]
    return replace(suspects, images=right)


def report_of(blind):
    trained, splits = blind.trained, blind.splits
    distances = trained.distances(splits, splits.test_pairs)
    metrics = write_metrics(trained, splits, distances, frozen_baseline(trained.config, splits, trained.runtime))
    methods = {trained.method: methods_of(trained.settings)[trained.method]}
    rows = compare(methods, trained, choose_pairs(splits, 4), splits)
    parts = find_suspects(trained, splits), find_shortcuts(trained, splits)
    return utils.report(trained, splits, distances, metrics, rows, *parts)


def lettering(monkeypatch) -> list[str]:
    """A list that all words come to which pictures of `explain_folder` show."""
    written = []
    lettered = utils.show.folder._lettered

    def noted(text, width):
        written.append(text)
        return lettered(text, width)

    monkeypatch.setattr(utils.show.folder, "_lettered", noted)
    return written


def explained_folder(blind, folder, monkeypatch):
    """The table of `explain_folder` and the words in its pictures, as one figure's would be."""
    written = []
    lettered = utils.show.folder._lettered
    monkeypatch.setattr(
        utils.show.folder, "_lettered", lambda text, *rest: written.append(text) or lettered(text, *rest)
    )
    table = utils.explain_folder(blind.trained, blind.pairs, folder)
    assert sum(CAUTION in text for text in written) == len(blind.pairs)  # each picture
    assert CAUTION in (folder / "scores.csv").read_text()
    return SimpleNamespace(html=table.to_csv())


def identified_folder(blind, folder):
    """The page of `identify_folder`, whose table says the same."""
    data = blind.trained.config.data_path
    utils.identify_folder(blind.trained, data, data, folder, 0.2, explained=0)
    assert CAUTION in (folder / "identified.csv").read_text()
    return SimpleNamespace(html=(folder / "identified.html").read_text())


@pytest.mark.parametrize("name", sorted(SHOWN - OF_NO_NETWORK - OF_NUMBERS))
def test_each_says_that_the_network_may_know_nothing(blind, name, tmp_path, monkeypatch):
    trained, explanation, pair = blind.trained, blind.explanation, blind.pair
    data = trained.config.data_path
    shown = {
        "edit_figure": lambda show: show(smallest_edit(trained.network, pair)),
        "explain_folder": lambda _: explained_folder(blind, tmp_path / "out", monkeypatch),
        "figure": lambda show: show(explanation),
        "grid": lambda show: show(explanation),
        "grid_figure": lambda show: show(explanation),
        "identification_figure": lambda show: show(trained, identify(trained, blind.pairs[0][0], fpir=0.2)),
        "identify_folder": lambda show: identified_folder(blind, tmp_path / "out"),
        "images_figure": lambda show: show(pair),
        "matches_figure": lambda show: show(decompose(trained.network, pair)),
        "methods_figure": lambda show: show({"one": judge(trained.network, pair)}),
        "plane": lambda show: show(trained, gallery(trained), dataset_map(gallery(trained).embeddings)),
        "region_figure": lambda show: show(ask(trained.network, decompose(trained.network, pair), (0, 0, 0.5, 0.5))),
        "report": lambda _: report_of(blind),
        "review": lambda show: show(suspects_of(trained, blind.splits).problems(), data, warning=trained.warning),
        "suspects_figure": lambda show: show(trained, suspects_of(trained, blind.splits)),
        "view": lambda show: show(pair),
    }
    if name == "shortcuts_figure":  # which knows the score, and no AUC
        found = find_shortcuts(trained, blind.splits)
        assert "may be nothing" not in words_of(utils.shortcuts_figure(found))
        nothing = replace(found, score=Interval(0.01, -0.1, 0.1))
        assert "This score may be nothing" in words_of(utils.shortcuts_figure(nothing))
        return
    drawn = shown[name](getattr(utils, name))  # a KeyError: say here how a new figure is made, or above what it is of
    assert CAUTION in words_of(drawn)
    if name in ("grid", "plane", "report"):
        assert CAUTION in without_scripts(drawn)


def test_the_words_are_not_said_twice_and_not_without_need(blind, calibrated):
    assert words_of(utils.figure(blind.pair)).count("CAUTION") == 1
    assert words_of(utils.grid_figure(blind.explanation)).count("CAUTION") == 1
    knowing = replace(blind.explanation, source=replace(blind.explanation.source, warning=""))
    for shown in (utils.grid_figure(knowing), utils.grid(knowing), utils.images_figure(knowing[0])):
        assert "CAUTION" not in words_of(shown)
    assert "warning" not in scores_table(knowing)


def test_of_a_network_that_was_never_tested_all_say_so(trained):
    """Before `calibrate` nothing is known of the test pairs: explanations, map and suspects say the same."""
    assert trained.measurements is None
    said = trained.explain(trained.load_splits().files(trained.load_splits().test_pairs, 1)[0]).source.warning
    assert "not tested" in said
    images = gallery(trained)
    assert said in without_scripts(utils.plane(trained, images, dataset_map(images.embeddings)))
    unsuspected = none_suspected(suspects_of(trained, trained.load_splits()))
    assert said in words_of(utils.suspects_figure(trained, unsuspected))


def test_search_and_its_table_say_it(blind):
    hits = most_similar(blind.trained, blind.pairs[0][0], 2)
    assert hits.source.warning == CAUTION
    assert (scores_table(hits)["warning"] == CAUTION).all()


def test_no_name_is_forgotten():
    known = OF_NO_NETWORK | OF_NUMBERS
    assert not known - SHOWN


def empty_figures(blind):
    """Each figure that may be asked to show nothing, asked to."""
    trained, nothing = blind.trained, blind.explanation[:0]
    splits = blind.splits
    none = Pairs(*(np.zeros(0, np.int64) for _ in range(3)))
    unsuspected = none_suspected(suspects_of(trained, splits))
    return {
        "duplicates_figure": utils.duplicates_figure(splits.folder, np.arange(len(splits.folder.paths))),
        "figure": utils.figure(nothing),
        "grid_figure": utils.grid_figure(nothing),
        "history_figure": utils.history_figure([]),
        "methods_figure": utils.methods_figure({}),
        "pairs_figure": utils.pairs_figure(splits, none),
        "sanity_figure": utils.sanity_figure({}),
        "shortcuts_figure": utils.shortcuts_figure(Shortcuts((), Interval(1.0, 0.9, 1.1), 0, 0)),
        "suspects_figure": utils.suspects_figure(trained, unsuspected),
    }


ALWAYS_SOMETHING = {  # of one pair, one image, or at least one test pair: without it there is no such thing to show
    "augmentation_figure",
    "edit_figure",
    "det_figure",
    "identification_figure",
    "distances_figure",
    "images_figure",
    "matches_figure",
    "region_figure",
    "reliability_figure",
    "roc_figure",
}


def test_a_figure_of_nothing_says_so(blind):
    """A notebook shows `<Figure size ... with 0 Axes>` of a figure without axes."""
    empty = empty_figures(blind)
    drawing = {name for name in SHOWN if name.endswith("figure")}
    assert set(empty) | ALWAYS_SOMETHING == drawing
    for name, drawn in empty.items():
        assert drawn.axes, name
        words = [text.get_text() for axes in drawn.axes for text in axes.findobj(plt.Text)]
        assert any(len(word) > 5 for word in words), name
        for text in drawn.findobj(plt.Text):
            assert "nan" not in text.get_text(), name
    for name in ("figure", "grid_figure", "suspects_figure"):
        assert CAUTION in words_of(empty[name]), name


def weakly(share):
    """An explanation of one pair whose factual maps hold at most this share of the strongest evidence."""
    network, images = network_and_images(count=1)
    evidence = torch.full((1, 2, 64, 64), -1.0)
    evidence[..., :32] = share
    return explanation_of(network, images, evidence, threshold=0.01), network


@pytest.mark.parametrize("share", [0.16, 0.24])
def test_a_map_too_weak_to_be_seen_is_said_wherever_maps_are_drawn(share, blind, tmp_path, monkeypatch):
    """Below a quarter of the strongest evidence a map is drawn faint, and would be taken for no evidence."""
    explanation, network = weakly(share)
    remark = f"at most {100 * share:.1f}% of the strongest evidence"
    for shown in (
        utils.figure(explanation),
        utils.grid_figure(explanation),
        utils.methods_figure({"one": judge(network, explanation)}),
    ):
        assert words_of(shown).count(remark) == 2, shown.get_label()
    (method,) = json.loads(json.dumps(utils.show.viewer.view_content(explanation)["methods"]))
    assert method["weak"] == {"factual": [remark] * 2, "counterfactual": [""] * 2}
    written = []
    lettered = utils.show.folder._lettered
    monkeypatch.setattr(
        utils.show.folder, "_lettered", lambda text, *rest: written.append(text) or lettered(text, *rest)
    )
    utils.show.folder._picture(explanation, explanation.factual[0].numpy(), "Maps not judged.", "turbo")
    assert written == [remark, remark, "Maps not judged."]


def test_a_strong_map_needs_no_words():
    explanation, network = weakly(0.3)
    for shown in (utils.figure(explanation), utils.methods_figure({"one": judge(network, explanation)})):
        assert "at most" not in words_of(shown)


def test_images_are_shown_as_the_network_sees_them(blind):
    """The files are 40 x 48, the network sees 32 x 40: what is shown has its size, and its pixels back in [0, 255]."""
    pair = blind.pair
    axes = utils.images_figure(pair).axes
    mean, std = (np.array(part) for part in (pair.source.normalization.mean, pair.source.normalization.std))
    for image, place in zip(pair.images[0].numpy(), axes, strict=True):
        expected = 255 * (image.transpose(1, 2, 0) * std + mean)
        assert np.abs(place.images[0].get_array().astype(float) - expected.clip(0, 255)).max() <= 1
        assert "as the network sees it: 32 x 40 pixels" in " ".join(place.get_xlabel().split())
        assert "stretched" not in place.get_xlabel()
    unknown = utils.images_figure(replace(pair, source=replace(pair.source, normalization=None))).axes
    assert all("no normalization is known" in " ".join(place.get_xlabel().split()) for place in unknown)
    assert np.asarray(unknown[0].images[0].get_array()).min() == 0
