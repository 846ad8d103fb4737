"""Each finding on planted distances, and a healthy network on which there is none."""

import re

import numpy as np
import pytest
from helpers import ROOT

from utils import load_config
from utils.audit.diagnosis import diagnose, findings, pairs_of_training, score_pairs
from utils.data.splits import Pairs

IMAGES = 400


def planted(same, different, images=IMAGES, noise=0.15, seed=0):
    """Pairs of images, each twice an anchor, whose distances lie around `same` and `different`."""
    random = np.random.default_rng(seed)
    first = np.repeat(np.arange(images), 2)
    second = (first + random.integers(1, images, len(first))) % images
    labels = np.arange(2 * images) % 2
    distances = np.where(labels == 0, same, different) + random.normal(0, noise, len(labels))
    return score_pairs(np.clip(distances, 0, 2), Pairs(first, second, labels))


HEALTHY = {
    "train": planted(0.3, 1.0),
    "valid": planted(0.4, 0.9, seed=1),
    "test": planted(0.4, 0.9, seed=2),
    "config": load_config(ROOT / "config.yml"),
    "epochs": 20,
    "test_images": IMAGES,
    "images": 2600,
}


MIXED_UP = {"valid": planted(0.6, 0.75, seed=1), "test": planted(0.6, 0.75, seed=2)}


def planted_findings(*settings, **changes):
    """The findings where the shipped config.yml has other settings, "key=value", and the network other pairs."""
    return findings(**(HEALTHY | {"config": load_config(ROOT / "config.yml", settings)} | changes))


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
    ("beginning", "changes"),
    [
        ("The embeddings have collapsed", {"valid": planted(0.005, 0.006, noise=0.001)}),
        ("Labels seem inverted: validation", {"valid": planted(0.9, 0.6), "test": planted(0.9, 0.6)}),
        ("Labels seem inverted: test", {"valid": planted(0.5, 0.5), "test": planted(0.9, 0.6)}),
        ("The network may know nothing", {"test": planted(0.5, 0.5)}),
        (
            "The margin is never reached: the largest distance of a different pair is 0.",
            {"train": planted(0.3, 0.5, noise=0.1), "valid": planted(0.3, 0.5, noise=0.1), "test": planted(0.3, 0.5)},
        ),
        (
            "The margin is nearly always reached: 100% of the different training pairs",
            {"train": planted(1.0, 1.4, noise=0.1), "valid": planted(1.0, 1.3, noise=0.2)},
        ),
        ("The training images are memorised", {"train": planted(0.1, 1.0), **MIXED_UP}),
        ("There are few images: 30 in the test", {"test": planted(0.4, 0.55, images=30), "test_images": 30}),
    ],
)
def test_each_finding_is_named_with_its_cure(beginning, changes):
    found = [sentence for sentence in planted_findings(**changes) if sentence.startswith(beginning)]
    assert len(found) == 1
    assert re.search(r"\. (Lower|Check|Train|Raise|Add|Take|For)", found[0])


def test_of_a_collapsed_network_nothing_else_is_named():
    nothing = planted(0.005, 0.005, noise=0.001)
    assert len(planted_findings(train=nothing, valid=nothing, test=nothing)) == 1


def test_the_images_that_it_takes_make_the_interval_narrow():
    few = planted(0.4, 0.55, images=60)
    (finding,) = planted_findings(test=few, test_images=60, images=400)
    needed = int(re.search(r"takes about (\d+)", finding).group(1))
    assert 60 < needed < 2000
    enough = planted(0.4, 0.55, images=needed, seed=1)
    assert (enough.auc.high - enough.auc.low) / 2 == pytest.approx(0.05, abs=0.015)


def test_without_training_the_margin_means_nothing():
    short = planted(0.1, 0.6, noise=0.08)
    assert planted_findings(train=short, valid=short, epochs=0) == []


NOTHING = {"test": planted(0.5, 0.5)}
SHORT = {"train": planted(0.3, 0.5, noise=0.1), "valid": planted(0.3, 0.5, noise=0.1), "test": planted(0.3, 0.5)}
BEYOND = {"train": planted(1.1, 1.4, noise=0.1), "valid": planted(1.0, 1.3, noise=0.2)}
MEMORISED = {"train": planted(0.1, 1.0)} | MIXED_UP
FEW = {"test": planted(0.4, 0.55, images=30), "test_images": 30}
TRAINED_ON = ("pretrained=True", "hyperparameters.epochs=20")
AUGMENTED = ("image.RandomCropScale=0.5", "image.brightness=0.2", "image.contrast=0.2")


@pytest.mark.parametrize(
    ("advice", "pairs", "given_with", "not_with"),
    [
        ("pretrained", NOTHING, (), ("pretrained=True",)),
        ("pretrained", MEMORISED, (), ("pretrained=True",)),
        ("hyperparameters.epochs", NOTHING, (), ("hyperparameters.epochs=60",)),  # later ones were no better
        ("hyperparameters.epochs", SHORT, (), ("hyperparameters.epochs=60",)),
        ("image.size", NOTHING, (), ("image.size=[224, 224]",)),
        ("raise margin", BEYOND, (), ("margin=2",)),
        ("augment more", BEYOND, (), AUGMENTED),
        ("augment more", MEMORISED, (), AUGMENTED),
        ("image.randomcropscale", MEMORISED, (), AUGMENTED[:1]),
        ("image.brightness", MEMORISED, (), AUGMENTED[1:2]),
        ("image.contrast", MEMORISED, (), AUGMENTED[2:]),
        ("backbone_training: last", MEMORISED, TRAINED_ON, ("pretrained=False",)),  # random weights are none to keep
        ("backbone_training: last", MEMORISED, TRAINED_ON, (*TRAINED_ON, "backbone_training=last")),
        ("backbone_training: last", MEMORISED, TRAINED_ON, (*TRAINED_ON, "backbone_training=frozen")),
        ("weight_decay", MEMORISED, (), ("hyperparameters.weight_decay=0.3",)),
        ("test_size", FEW, (), ("test_size=0.4",)),
    ],
)
def test_what_the_settings_do_already_is_no_advice(advice, pairs, given_with, not_with):
    if "margin=2" in not_with:
        pairs = {"train": planted(1.8, 2.4, noise=0.1), "valid": planted(1.0, 1.3, noise=0.2)}
    given = " ".join(planted_findings(*given_with, **pairs))
    without = " ".join(planted_findings(*not_with, **pairs))
    assert advice in given.lower()
    assert advice not in without.lower()
    assert re.sub(r"\. [A-Z].*", "", given)[:25] == re.sub(r"\. [A-Z].*", "", without)[:25]  # the finding itself stays


def test_a_cure_is_left_where_everything_is_done_already():
    done = (*AUGMENTED, "pretrained=True", "margin=2", "image.size=[224, 224]", "hyperparameters.epochs=60")
    done += ("backbone_training=frozen", "hyperparameters.weight_decay=0.3", "test_size=0.4")
    for pairs in (NOTHING, MEMORISED, SHORT, FEW):
        found = planted_findings(*done, **pairs)
        assert found
        assert all(re.search(r"\. (Check|Add|Raise|For)", sentence) for sentence in found)


def test_a_gap_to_validation_alone_is_chance():
    """AUCs of 0.949, 0.799 and 0.920 on training, validation and test pairs were called memorised."""
    train, valid, test = (
        planted(0.4, 0.8, noise=0.17),
        planted(0.4, 0.6, 60, noise=0.17),
        planted(0.4, 0.76, noise=0.17),
    )
    for part, expected in ((train, 0.95), (valid, 0.80), (test, 0.93)):
        assert part.auc.value == pytest.approx(expected, abs=0.03)
    assert valid.auc.high < train.auc.value - 0.05
    assert not [text for text in planted_findings(train=train, valid=valid, test=test) if "memorised" in text]
    assert not [text for text in planted_findings(train=train, valid=test, test=valid) if "memorised" in text]
    assert [text for text in planted_findings(train=train, valid=valid, test=valid) if "memorised" in text]


def test_labels_are_not_inverted_where_the_test_contradicts_validation():
    assert not [text for text in planted_findings(valid=planted(0.9, 0.6)) if "inverted" in text]


def test_an_unreached_margin_does_not_matter_to_a_network_that_separates_all():
    short = planted(0.1, 0.6, noise=0.08)
    assert planted_findings(train=short, valid=short, test=short) == []


def test_what_was_never_trained_is_not_advised_to_train_longer_and_has_memorised_nothing():
    epochs = {"epochs": 0}
    settings = ("pretrained=True", "hyperparameters.epochs=0")
    (sentence,) = planted_findings(*settings, **NOTHING, **epochs)
    assert "Train it (hyperparameters.epochs above 0)" in sentence
    for pairs in (MEMORISED, SHORT, BEYOND):
        assert planted_findings(*settings, **pairs, **epochs) == []


def test_a_trained_network_is_diagnosed(trained):
    splits = trained.load_splits()
    distances = trained.distances(splits, splits.test_pairs)
    text = diagnose(trained, splits, distances)
    assert "\n\n" not in text
    assert max(map(len, text.splitlines())) <= 110
    assert text == diagnose(trained, splits, distances)
    inverted = diagnose(trained, splits, -distances)
    assert "Labels seem inverted: test pairs" in inverted
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
