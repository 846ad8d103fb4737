"""Each command of `python -m utils`, on a tiny dataset. `run` is tested with the notebooks."""

import json
import sys

import pandas as pd
import pytest
import yaml
from helpers import tiny_settings

from utils import __main__ as commands
from utils import notebooks
from utils.config import CONFIG_VARIABLE


@pytest.fixture(scope="module")
def settings_of_commands(tiny_data, tmp_path_factory):
    """A config file whose run the command `train` trains."""
    folder = tmp_path_factory.mktemp("commands")
    settings = tiny_settings(tiny_data, folder) | {"explanation": {"layer": "last", "steps": 2, "test_pairs": 2}}
    path = folder / "config.yml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture
def command(settings_of_commands, monkeypatch, capsys):
    """command(name, *arguments) runs a command here, and returns what it prints."""

    def run(name, *arguments):
        arguments = [name, *map(str, arguments)]
        if name != "sample":
            arguments += ["--config", str(settings_of_commands)]
        monkeypatch.setattr(sys, "argv", ["utils", *arguments])
        commands.main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def results(settings_of_commands):
    return settings_of_commands.parent / "results"


def test_train_trains_and_measures(command, results):
    output = command("train")
    assert "Epoch 2/2" in output
    metrics = json.loads((results / "metrics.json").read_text())
    assert {"auc", "average_precision", "eer", "threshold", "accuracy", "pairs", "seconds"} <= set(metrics)
    assert output.splitlines()[-1].startswith(f"Test AUC {metrics['auc']['value']:.3f} (")
    assert 0 <= metrics["auc"]["value"] <= 1
    assert "There are few images: 9 in the test" in output  # the diagnosis
    assert "is finished: its results are shown" in command("train")


def test_audit_reports_on_the_images(command):
    assert "30 images" in command("audit")


def test_audit_turns_a_review_into_corrections(command, settings_of_commands, tmp_path):
    """Beside the config, until `corrections` names a file; audits that use it no longer show a dropped image."""
    review = tmp_path / "review.csv"
    review.write_text("image,problem,suggestion,decision\nred/red_0.png,label,blue,wrong\nred/red_1.png,dark,,wrong\n")
    made = settings_of_commands.with_name("corrections.csv")
    output = command("audit", "--apply", review)
    assert "another class: 1, dropped: 1, labels confirmed: 0, left as they are: 0." in output
    assert output.splitlines()[-1] == f"To use {made}, set in {settings_of_commands}: corrections: corrections.csv"
    assert pd.read_csv(made)["class"].tolist() == ["blue", "drop"]
    assert "30 images" in command("audit")
    audit = command("audit", "--set", f"corrections={made}")
    assert "29 images" in audit
    assert "corrections: 1 of another class, 1 left out" in audit
    own = tmp_path / "own.csv"
    output = command("audit", "--apply", review, "--set", f"corrections={own}")
    assert "To use" not in output
    assert own.read_text() == made.read_text()
    made.unlink()
    review.write_text("image,problem,suggestion,decision\nred/red_0.png,label,rose,wrong\n")
    with pytest.raises(SystemExit, match=r"review\.csv, line 2: suggestion rose is no class of"):
        command("audit", "--apply", review)


@pytest.mark.parametrize("source", ["--pairs", "--folders"])
def test_explain_writes_maps_and_a_table(command, tiny_data, tmp_path, source):
    files = sorted((tiny_data / "red").iterdir())[:2]
    (tmp_path / "pairs.csv").write_text(f"image1,image2\n{files[0]},{files[1]}\n")
    arguments = [tmp_path / "pairs.csv"]
    count = 1
    if source == "--folders":
        arguments = [tiny_data / "red", tiny_data / "blue"]
        count = 100
    output = command("explain", "--out", tmp_path / "maps", source, *arguments)
    assert output.splitlines()[-1] == f"{count} pairs: {tmp_path / 'maps'}/scores.csv"
    assert len(pd.read_csv(tmp_path / "maps" / "scores.csv")) == count


def test_explain_judges_maps_where_asked(command, tiny_data, tmp_path):
    (tmp_path / "pairs.csv").write_text(f"image1,image2\n{tiny_data}/red/red_0.png,{tiny_data}/red/red_1.png\n")
    for options in ([], ["--judged"]):
        folder = tmp_path / f"maps{len(options)}"
        command("explain", "--pairs", tmp_path / "pairs.csv", "--out", folder, *options)
        assert ("maps" in pd.read_csv(folder / "scores.csv").columns) == bool(options)


def test_search_lists_the_most_similar_images(command, tiny_data):
    image = tiny_data / "red" / "red_0.png"
    lines = command("search", image, "--folder", tiny_data / "red", "--count", 3).splitlines()
    assert len(lines) == 4  # a heading and three images
    assert all("red_" in line for line in lines[1:])
    assert len(command("search", image).splitlines()) == 6


def test_report_is_one_page(command, results):
    output = command("report")
    assert output.splitlines()[-1].startswith(f"{results}/report.html: ")
    assert len(output.splitlines()[-1]) < 500
    page = (results / "report.html").read_text()
    assert "Worst mistakes" in page
    assert "Shortcuts" in page


def test_settings_are_replaced(command):
    assert "skipped" not in command("audit", "--set", "seed=7", "unreadable=stop")
    with pytest.raises(SystemExit, match="sed: unknown key"):
        command("audit", "--set", "sed=7")


def test_lab_opens_the_notebooks_that_are_named(command, settings_of_commands, tmp_path, monkeypatch):
    monkeypatch.setenv(CONFIG_VARIABLE, "")  # restored afterwards
    opened = []

    def open_lab(paths):
        opened.extend(paths)
        return 3

    monkeypatch.setattr(notebooks, "open_lab", open_lab)
    with pytest.raises(SystemExit) as caught:
        command("lab", tmp_path / "mine.ipynb", "--set", "seed=7")
    assert caught.value.code == 3
    assert opened == [tmp_path / "mine.ipynb"]
    results = settings_of_commands.parent / "results"
    assert yaml.safe_load((results / "config.yml").read_text())["seed"] == 7


def test_sample_is_made_once(command, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr("utils.data.sample.make_sample", made.append)
    command("sample", tmp_path / "Butterflies")
    assert made == [str(tmp_path / "Butterflies")]


def test_a_command_must_be_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["utils"])
    with pytest.raises(SystemExit) as caught:
        commands.main()
    assert caught.value.code == 2
    assert "COMMAND" in capsys.readouterr().err
