"""No run is overwritten by another, a finished run is shown again, and any can be loaded by name."""

import os
import shutil
from datetime import datetime as real_datetime

import numpy as np
import pytest
import torch
from PIL import Image

from utils import fit, load_splits, load_trained
from utils.config import ConfigError
from utils.score.decision import choose_threshold
from utils.train import loop, runs
from utils.train.runs import (
    CheckpointError,
    current_run,
    fingerprint_of,
    images_digest,
    load_checkpoint,
    make_current,
    run_names,
    save_checkpoint,
)

ONE = {"hyperparameters.epochs": 1}


def files_in(folder):
    """Every file below a folder with its bytes; `current`, which names a run, left out."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "current"]
    return {path: path.read_bytes() for path in paths}


def without_times(history):
    return [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in history]


def no_training(monkeypatch):
    monkeypatch.setattr(loop, "train_epoch", lambda *_: pytest.fail("trained again"))


def test_a_run_has_a_folder_named_by_date_and_fingerprint(make_config):
    config = make_config(ONE)
    before = real_datetime.now().replace(microsecond=0)
    fit(config)
    (name,) = run_names(config.checkpoints_path)
    date, time, digits = name.split("_")
    assert before <= real_datetime.strptime(f"{date}_{time}", "%Y-%m-%d_%H-%M-%S") <= real_datetime.now()
    assert digits == runs.short_name(fingerprint_of(config, load_splits(config)))
    folder = config.checkpoints_path / name
    assert {path.name for path in folder.iterdir()} == {"best.pt", "last.pt"}
    assert (config.checkpoints_path / "current").read_text() == f"{name}\n"
    assert current_run(config.checkpoints_path) == folder == load_trained(config).folder


def test_a_finished_run_is_loaded_and_not_trained_again(make_config, monkeypatch, capsys):
    first = fit(make_config(ONE))
    assert "Training ended after 1 epochs: all of `epochs`." in capsys.readouterr().out
    before = files_in(make_config(ONE).checkpoints_path)
    no_training(monkeypatch)
    changes = {"decision.rule": "eer", "unreadable": "stop", "explanation.steps": 3, "hyperparameters.verbose": False}
    again = fit(make_config(ONE | changes))  # free settings
    assert again == first
    output = capsys.readouterr().out
    assert "is finished: its results are shown; `retrain: True` trains it again" in output
    assert "Training ended after 1 epochs: all of `epochs`." in output
    assert files_in(make_config(ONE).checkpoints_path) == before


def test_retrain_trains_again_to_the_same_end(make_config):
    config = make_config(ONE)
    first = fit(config)
    earlier = files_in(config.checkpoints_path)
    again = fit(make_config(ONE | {"retrain": True}))
    assert without_times(again) == without_times(first)
    assert len(run_names(config.checkpoints_path)) == 2
    assert earlier.items() <= files_in(config.checkpoints_path).items()
    fit(make_config(ONE))
    assert len(run_names(config.checkpoints_path)) == 2
    assert current_run(config.checkpoints_path).name == run_names(config.checkpoints_path)[-1]


def test_settings_changed_and_changed_back_lose_nothing(make_config, monkeypatch):
    """Train; change the learning rate, start and be stopped; change back: the finished run is there, and current."""
    config = make_config(ONE)
    first = fit(config)
    earlier = files_in(config.checkpoints_path)
    real = loop.train_epoch

    def stopped_in_epoch_two(*arguments):
        if arguments[6] == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    other = make_config({"hyperparameters.epochs": 3, "hyperparameters.learning_rate": 0.002})
    monkeypatch.setattr(loop, "train_epoch", stopped_in_epoch_two)
    with pytest.raises(KeyboardInterrupt):
        fit(other)
    assert load_trained(other).history[-1]["learning_rate"] == 0.002
    no_training(monkeypatch)
    assert fit(make_config(ONE)) == first
    assert earlier.items() <= files_in(config.checkpoints_path).items()
    assert load_trained(config).history[-1]["learning_rate"] == 0.001
    monkeypatch.setattr(loop, "train_epoch", real)
    assert len(fit(other)) == 3  # and the other one goes on
    assert load_trained(other).history[-1]["learning_rate"] == 0.002
    assert len(run_names(config.checkpoints_path)) == 2


def test_more_epochs_go_on_and_what_was_finished_stays(make_config, monkeypatch, capsys):
    config = make_config(ONE)
    first = fit(config)
    earlier = files_in(config.checkpoints_path)
    three = fit(make_config({"hyperparameters.epochs": 3}))
    assert "Resuming after epoch 1 of " in capsys.readouterr().out
    assert three[:1] == first
    assert len(run_names(config.checkpoints_path)) == 2
    assert earlier.items() <= files_in(config.checkpoints_path).items()
    assert load_trained(config).folder.name == run_names(config.checkpoints_path)[-1]
    assert fit(make_config({"hyperparameters.epochs": 4}))[:3] == three  # of the longest
    assert "Resuming after epoch 3 of " in capsys.readouterr().out
    again = make_config({"hyperparameters.epochs": 4, "retrain": True})
    assert without_times(fit(again)[:3]) == without_times(three)
    assert "Resuming" not in capsys.readouterr().out
    no_training(monkeypatch)
    assert fit(make_config(ONE)) == first
    assert fit(make_config({"hyperparameters.epochs": 3})) == three


def test_fewer_epochs_train_again(make_config):
    two = fit(make_config({"hyperparameters.epochs": 2}))
    config = make_config(ONE)
    assert without_times(fit(config)) == without_times(two[:1])
    assert len(run_names(config.checkpoints_path)) == 2


def test_more_epochs_that_bring_nothing_better_keep_the_best(make_config, monkeypatch):
    config = make_config({"hyperparameters.epochs": 1, "early_stopping.patience": 9})
    fit(config)
    best = (current_run(config.checkpoints_path) / "best.pt").read_bytes()
    monkeypatch.setattr(loop, "kept_epoch", lambda history: 1)
    more = make_config({"hyperparameters.epochs": 2, "early_stopping.patience": 9})
    assert len(fit(more)) == 2
    folder = current_run(config.checkpoints_path)
    assert folder.name == run_names(config.checkpoints_path)[1]
    assert (folder / "best.pt").read_bytes() == best
    assert len(load_checkpoint(folder / "last.pt")["history"]) == 2


def test_retrain_goes_on_with_what_was_interrupted(make_config, monkeypatch):
    config = make_config({"hyperparameters.epochs": 2, "retrain": True})
    real = loop.train_epoch
    monkeypatch.setattr(loop, "train_epoch", lambda *arguments: real(*arguments) if arguments[6] == 1 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit(config)
    monkeypatch.setattr(loop, "train_epoch", real)
    assert len(fit(config)) == 2
    assert len(run_names(config.checkpoints_path)) == 1


def test_runs_that_begin_in_one_second_have_folders_of_their_own(tmp_path, monkeypatch):
    class Standing(real_datetime):
        @classmethod
        def now(cls):
            return cls(2026, 11, 24, 16, 42, 30)

    monkeypatch.setattr(runs, "datetime", Standing)
    fingerprint = {"settings": runs.digest("a"), "images": runs.digest("b")}
    names = []
    for _ in range(3):
        folder = runs.begin_run(tmp_path, fingerprint)
        assert runs.begin_run(tmp_path, fingerprint) == folder  # as long as it has had no whole epoch
        (folder / "last.pt").write_bytes(b"")
        names.append(folder.name)
    assert [name[:19] for name in names] == [f"2026-11-24_16-42-{second}" for second in (30, 31, 32)]
    assert len(set(names)) == 3


def test_what_a_killed_run_left_does_not_disturb(make_config, monkeypatch):
    config = make_config(ONE)
    first = fit(config)
    finished = current_run(config.checkpoints_path)
    fingerprint = fingerprint_of(config, load_splits(config))
    empty = config.checkpoints_path / "2020-01-01_00-00-00_0123456789ab"  # killed in its first epoch
    empty.mkdir()
    half = runs.begin_run(config.checkpoints_path, fingerprint)
    shutil.copy(finished / "last.pt", half)  # without best.pt
    no_last = runs.begin_run(config.checkpoints_path, fingerprint)
    shutil.copy(finished / "best.pt", no_last)  # killed before last.pt
    (empty / ".best.pt.123").write_bytes(b"half")
    assert run_names(config.checkpoints_path) == [finished.name, no_last.name]
    no_training(monkeypatch)
    assert fit(make_config(ONE)) == first
    assert load_trained(config).folder == finished
    assert not empty.exists()


def test_a_first_epoch_that_was_half_saved_is_trained_again_in_its_folder(make_config):
    config = make_config(ONE)
    first = fit(config)
    folder = current_run(config.checkpoints_path)
    os.remove(folder / "last.pt")  # as where the disk was full after best.pt
    assert without_times(fit(config)) == without_times(first)
    assert run_names(config.checkpoints_path) == [folder.name]
    assert (folder / "last.pt").exists()


def test_without_the_file_current_the_latest_run_is_loaded(make_config):
    config = make_config(ONE)
    fit(config)
    fit(make_config(ONE | {"seed": 1}))
    os.remove(config.checkpoints_path / "current")
    assert current_run(config.checkpoints_path).name == run_names(config.checkpoints_path)[-1]


def test_an_earlier_run_is_loaded_and_shown_by_its_name(make_config, monkeypatch, capsys):
    config = make_config(ONE)
    first = fit(config)
    name = current_run(config.checkpoints_path).name
    fit(make_config(ONE | {"hyperparameters.learning_rate": 0.002}))
    latest = current_run(config.checkpoints_path)
    assert latest.name != name
    named = make_config(ONE | {"run": name, "hyperparameters.learning_rate": 0.002})
    no_training(monkeypatch)
    assert fit(named) == first
    output = capsys.readouterr().out
    assert f"The run {name} is shown, as `run` says; nothing is trained." in output
    trained = load_trained(named)
    assert trained.folder.name == name
    assert f"Run {name} of" in str(trained)
    assert trained.history[-1]["learning_rate"] == 0.001
    assert current_run(config.checkpoints_path) == latest  # as it was


def test_a_named_run_of_other_splits_is_refused_in_training_and_loaded_elsewhere(make_config):
    config = make_config(ONE)
    fit(config)
    name = current_run(config.checkpoints_path).name
    other = make_config(ONE | {"run": name, "test_size": 0.4, "embedding_size": 4})
    with pytest.raises(
        ConfigError, match=r"had other splits.*\n.*test_size is 0\.4, the network was trained with 0\.3$"
    ):
        fit(other)
    assert load_trained(other).config.test_size == 0.3


def test_a_wrong_name_lists_the_runs_that_are_there(make_config):
    config = make_config(ONE)
    fit(config)
    name = current_run(config.checkpoints_path).name
    for wrong in ("nothing", "..", f"../checkpoints/{name}"):
        with pytest.raises(CheckpointError) as caught:
            load_trained(make_config({"run": wrong}))
        assert f"holds no run {wrong}: set `run` to one of {name}." in str(caught.value)
    with pytest.raises(CheckpointError, match="holds no run nothing"):
        fit(make_config({"run": "nothing"}))
    shutil.rmtree(config.checkpoints_path / name)
    with pytest.raises(CheckpointError, match=r"holds no training run: run 01\.Train_Siamese_model\.ipynb first"):
        load_trained(config)


def test_checkpoints_of_before_are_left_as_they_are(make_config):
    config = make_config(ONE)
    save_checkpoint(config.checkpoints_path / "best.pt", {"threshold": 0.5})
    old = (config.checkpoints_path / "best.pt").read_bytes()
    with pytest.raises(CheckpointError, match=r"holds no training run: run 01\.Train_Siamese_model"):
        load_trained(config)
    fit(config)
    assert (config.checkpoints_path / "best.pt").read_bytes() == old
    assert load_trained(config).folder.parent == config.checkpoints_path


def test_a_checkpoint_holds_the_validation_pairs_of_its_epoch(make_config):
    config = make_config({"hyperparameters.epochs": 3})
    fit(config)
    splits = load_splits(config)
    trained = load_trained(config)
    kept = load_checkpoint(trained.folder / "best.pt")["validation"]
    assert {name: values.dtype for name, values in kept.items()} == {
        "distances": torch.float32,
        "first": torch.int64,
        "second": torch.int64,
        "labels": torch.int64,
    }
    for name in ("first", "second", "labels"):
        assert kept[name].tolist() == getattr(splits.valid_pairs, name).tolist()
    distances = trained.distances(splits, splits.valid_pairs)
    torch.testing.assert_close(kept["distances"], torch.from_numpy(distances), atol=1e-5, rtol=1e-4)
    assert trained.threshold == choose_threshold(kept["distances"].numpy(), kept["labels"].numpy())


def test_weights_count_by_name_and_content_wherever_they_lie(make_config, tmp_path):
    """Weights of one network are always of one size, whatever they were trained on."""
    splits = load_splits(make_config())
    digests = []
    for place, content in (("a/w.pth", b"123"), ("b/w.pth", b"123"), ("a/v.pth", b"123"), ("c/w.pth", b"456")):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(content)
        digests.append(fingerprint_of(make_config({"pretrained": str(tmp_path / place)}), splits)["settings"])
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_make_current_names_another_run(make_config):
    config = make_config(ONE)
    fit(config)
    earlier = current_run(config.checkpoints_path)
    fit(make_config(ONE | {"seed": 1}))
    assert current_run(config.checkpoints_path) != earlier
    make_current(earlier)
    assert current_run(config.checkpoints_path) == earlier


def replaced(root):
    """Every BMP file with the colours of its pixels turned round: as many bytes, other images."""
    for path in root.rglob("*.bmp"):
        before = path.stat().st_size
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
        assert path.stat().st_size == before


def touched(root):
    """Every file with other times, and nothing else."""
    for path in root.rglob("*.bmp"):
        os.utime(path, ns=(1, 1))


@pytest.fixture
def bmp_data(tiny_data, tmp_path):
    """The tiny dataset as BMP files, all of one size."""
    for path in tiny_data.rglob("*.png"):
        target = tmp_path / "bmp" / path.parent.name / f"{path.stem}.bmp"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).save(target)
    return tmp_path / "bmp"


@pytest.mark.parametrize("cached", [True, False])
def test_images_count_by_name_and_content(make_config, bmp_data, tmp_path, cached):
    def images(data):
        own = {} if cached else {"cache_path": None}
        return images_digest(load_splits(make_config({"data_path": str(data), **own})))

    first = images(bmp_data)
    touched(bmp_data)
    assert images(bmp_data) == first
    shutil.copytree(bmp_data, tmp_path / "copied", copy_function=shutil.copyfile)  # as `cp -r`: with times of its own
    assert images(tmp_path / "copied") == first
    replaced(bmp_data)
    assert images(bmp_data) != first
    (tmp_path / "copied" / "red" / "red_0.bmp").rename(tmp_path / "copied" / "red" / "renamed.bmp")
    assert images(tmp_path / "copied") != first


@pytest.mark.parametrize("cached", [True, False])
def test_images_replaced_by_others_of_their_size_are_trained_again(make_config, bmp_data, capsys, cached):
    changes = ONE | {"data_path": str(bmp_data)} | ({} if cached else {"cache_path": None})
    fit(make_config(changes))
    touched(bmp_data)
    fit(make_config(changes))
    assert len(run_names(make_config(changes).checkpoints_path)) == 1
    replaced(bmp_data)
    capsys.readouterr()
    trained = load_trained(make_config(changes))
    trained.load_splits()
    assert "have changed since training" in capsys.readouterr().out
    fit(make_config(changes))
    assert len(run_names(make_config(changes).checkpoints_path)) == 2
    load_trained(make_config(changes)).load_splits()
    assert "have changed since training" not in capsys.readouterr().out
