"""Each finding on planted distances, and a healthy network on which there is none."""

import re

import numpy as np
import pytest

from utils.data import Pairs
from utils.training.doctor import diagnose, findings, measure, pairs_of_training

IMAGES = 400


def planted(same, different, images=IMAGES, noise=0.15, seed=0):
    """Pairs of images, each twice an anchor, whose distances lie around `same` and `different`."""
    random = np.random.default_rng(seed)
    first = np.repeat(np.arange(images), 2)
    second = (first + random.integers(1, images, len(first))) % images
    labels = np.arange(2 * images) % 2
    distances = np.where(labels == 0, same, different) + random.normal(0, noise, len(labels))
    return measure(np.clip(distances, 0, 2), Pairs(first, second, labels))


HEALTHY = {
    "train": planted(0.3, 1.0),
    "valid": planted(0.4, 0.9, seed=1),
    "test": planted(0.4, 0.9, seed=2),
    "margin": 1.0,
    "test_images": IMAGES,
    "images": 2600,
}


def planted_findings(**changes):
    return findings(**(HEALTHY | changes))


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_found_on_a_healthy_network(seed):
    names = ("train", "valid", "test")
    parts = {name: planted(0.35, 0.95, seed=3 * seed + number) for number, name in enumerate(names)}
    assert planted_findings(**parts) == []


def test_nothing_is_found_on_a_perfect_one():
    perfect = planted(0.1, 1.3, noise=0.05)
    assert perfect.auc.value == 1
    assert planted_findings(train=perfect, valid=perfect, test=perfect) == []


@pytest.mark.parametrize(
    ("said", "changes"),
    [
        ("The embeddings have collapsed", {"valid": planted(0.005, 0.006, noise=0.001)}),
        ("Labels seem upside down", {"valid": planted(0.9, 0.6)}),
        ("The network may know nothing", {"test": planted(0.5, 0.5)}),
        (
            "The margin is never reached: no different pair is farther apart than 0.8",
            {"train": planted(0.1, 0.6, noise=0.08), "valid": planted(0.1, 0.6, noise=0.08)},
        ),
        (
            "The margin is nearly always reached: 100% of the different training pairs",
            {"train": planted(1.0, 1.4, noise=0.1), "valid": planted(1.0, 1.3, noise=0.2)},
        ),
        ("The training images are memorised", {"train": planted(0.1, 1.0), "valid": planted(0.6, 0.75)}),
        ("There are few images: 30 in the test", {"test": planted(0.4, 0.55, images=30), "test_images": 30}),
    ],
)
def test_each_finding_is_told_with_its_cure(said, changes):
    found = [sentence for sentence in planted_findings(**changes) if sentence.startswith(said)]
    assert len(found) == 1
    assert re.search(r"\. (Lower|Check|Train|Raise|Add|For)", found[0])


def test_of_a_collapsed_network_nothing_else_is_told():
    nothing = planted(0.005, 0.005, noise=0.001)
    assert len(planted_findings(train=nothing, valid=nothing, test=nothing)) == 1


def test_the_images_that_it_takes_make_the_interval_narrow():
    few = planted(0.4, 0.55, images=60)
    told = planted_findings(test=few, test_images=60, images=400)[0]
    needed = int(re.search(r"takes about (\d+)", told).group(1))
    assert 60 < needed < 2000
    enough = planted(0.4, 0.55, images=needed, seed=1)
    assert (enough.auc.high - enough.auc.low) / 2 == pytest.approx(0.05, abs=0.015)


def test_without_training_the_margin_means_nothing():
    short = planted(0.1, 0.6, noise=0.08)
    assert planted_findings(train=short, valid=short, margin=None) == []


def test_a_trained_network_is_diagnosed(trained):
    splits = trained.load_splits()
    distances = trained.distances(splits, splits.test_pairs)
    text = diagnose(trained, splits, distances)
    assert "\n\n" not in text
    assert max(map(len, text.splitlines())) <= 110
    assert text == diagnose(trained, splits, distances)
    upside_down = diagnose(trained, splits, -distances)
    assert "Labels seem upside down: test pairs" in upside_down
    assert "Labels" not in text


def test_training_pairs_are_of_training_images(trained):
    splits = trained.load_splits()
    pairs = pairs_of_training(splits, trained.config)
    used = np.unique(np.stack([pairs.first, pairs.second]))
    assert set(used) <= set(splits.train)
    for kind in (0, 1):
        assert (pairs.labels == kind).sum() == (splits.valid_pairs.labels == kind).sum()
    same = splits.folder.labels[pairs.first] == splits.folder.labels[pairs.second]
    assert np.array_equal(same, pairs.labels == 0)
