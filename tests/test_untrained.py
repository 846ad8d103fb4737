"""A real pretrained network, EfficientNet-lite0 of the package: without training on two files, and trained briefly."""

import re
import sys
import webbrowser

import pytest
import torch
import yaml
from helpers import tiny_settings
from PIL import Image

from utils import (
    SiameseNetwork,
    calibrate,
    fit,
    judge,
    load_config,
    load_splits,
    load_trained,
    pretrained_network,
)
from utils import __main__ as commands
from utils.data.sample import make_sample
from utils.show import words
from utils.show.viewer import view_content
from utils.train.runs import load_checkpoint
from utils.trust.faithfulness import CHANCE, FAITHFUL, HARDLY, WEAK


@pytest.fixture(scope="module")
def butterflies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "Butterflies"
    make_sample(folder, images_per_class=10)
    return folder


@pytest.fixture(scope="module")
def pair(butterflies):
    return str(butterflies / "banded" / "banded_000.bmp"), str(butterflies / "banded" / "banded_001.bmp")


@pytest.fixture(scope="module")
def pretrained():
    return pretrained_network()


def test_two_files_have_a_score_and_no_decision(pretrained, pair):
    explanation = pretrained.explain(pair)
    assert explanation.decision() == "undecided"
    assert explanation.correct() is None
    assert "No decision (similarity 0." in explanation.sentence()
    assert "no threshold was chosen on labelled pairs of your images" in explanation.sentence()
    assert "neither trained nor tested on your images" in explanation.sentence()
    assert re.fullmatch(r"No decision \(similarity 0\.\d\d\)", words.title_of(explanation))
    assert words.titles_of_maps(explanation)["factual"] == "What makes them similar"
    assert view_content(explanation)["same_from"] is None
    assert explanation.factual.amax() == 1


def test_a_copy_is_more_similar_than_another_image(pretrained, pair, tmp_path):
    Image.open(pair[0]).rotate(3).save(tmp_path / "copy.png")
    copy = pretrained.explain((pair[0], str(tmp_path / "copy.png")))
    assert copy.similarity > pretrained.explain(pair).similarity


def test_the_command_writes_one_page_and_opens_it(pair, tmp_path, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.setattr(sys, "argv", ["utils", "explain", *pair, "--out", str(tmp_path / "out")])
    commands.main()
    (page,) = (tmp_path / "out").iterdir()
    assert opened == [page.as_uri()]
    assert capsys.readouterr().out.splitlines()[-1] == str(page)
    assert page.stat().st_size < 2_000_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["banded_000.bmp"], "explain: 1 image files are named; name two"),
        ([], "explain: name two image files, --pairs or --folders"),
        (["a.bmp", "b.bmp", "--pairs", "pairs.csv"], "explain: name two image files, --pairs or --folders"),
        (["--pairs", "pairs.csv"], "--out: name the folder that is written to"),
        (["a.bmp", "b.bmp", "--backbone", "resnet5O"], "--backbone: resnet5O is refused: .*did you mean resnet50"),
        (
            ["a.bmp", "b.bmp", "--backbone", "local-dir:absent"],
            "--backbone: local-dir:absent is refused: .*cannot be read",
        ),
        (["a.bmp", "b.bmp"], "^\na.bmp: No such file"),
    ],
)
def test_what_cannot_be_explained_is_one_clear_error(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["utils", "explain", *arguments])
    with pytest.raises(SystemExit, match=message):
        commands.main()


def test_a_pretrained_network_is_trained_explained_and_judged(butterflies, tmp_path):
    settings = tiny_settings(butterflies, tmp_path) | {"backbone_model": "tf_efficientnet_lite0", "pretrained": True}
    settings["image"]["size"] = [64, 64]
    settings["hyperparameters"] |= {"epochs": 2, "batch_size": 14}
    (tmp_path / "config.yml").write_text(yaml.safe_dump(settings))
    config = load_config(tmp_path / "config.yml", ["explanation.layer=stride16", "explanation.steps=2"])
    splits = load_splits(config)
    history = fit(config, splits)
    assert history[1]["train_loss"] < history[0]["train_loss"]
    trained = load_trained(config)
    trained = calibrate(trained, splits, trained.distances(splits, splits.test_pairs))
    before = SiameseNetwork("tf_efficientnet_lite0", None, True, (64, 64)).backbone.conv_head.weight
    after = load_checkpoint(trained.folder / "best.pt")["network"]["backbone.conv_head.weight"]
    assert 0.9 < torch.cosine_similarity(before.flatten(), after.flatten(), dim=0) < 1
    explanation = trained.explain(*splits.files(splits.test_pairs, 3))
    assert explanation.factual.flatten(1).amax(dim=1).tolist() == pytest.approx([1] * 3)
    verdict = judge(trained.network, explanation)
    assert set(verdict.words()) <= {FAITHFUL, WEAK, CHANCE, HARDLY}
