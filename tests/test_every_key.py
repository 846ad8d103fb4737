"""No dead key: changing any key of config.yml changes something that can be observed."""

import shutil
import threading
from contextlib import suppress

import numpy as np
import pytest
import torch
from helpers import refusing, write_images
from PIL import Image

from utils import (
    choose_pairs,
    explain,
    figure,
    fit,
    gallery,
    history_figure,
    load_splits,
    load_trained,
    saved,
    search_rule,
)
from utils import device as runtime
from utils.config import inference_pair, key_names
from utils.data import cache
from utils.data.batches import evaluation_transform, resident, training_transform
from utils.data.reading import DataError
from utils.data.splits import load_images
from utils.device import Runtime, seed_everything, start
from utils.network.siamese import build_network
from utils.train.runs import current_run, load_checkpoint, run_names
from utils.train.stopping import stopped_early

STEADY = {}  # (what is observed, what else is set) -> what was observed with the tiny config, twice the same
EARLIER = "the name of an earlier run"
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)


def images_seen_in_training(config):
    seed_everything(0)
    pixels = torch.from_numpy(PIXELS).expand(8, -1, -1, -1)
    return training_transform(config.image)(pixels).tolist()


def images_seen_in_evaluation(config):
    return evaluation_transform(config.image)(torch.from_numpy(PIXELS)[None]).tolist()


def pixels_of_16_bits(config, tmp_path):
    for name in "ab":
        (tmp_path / "deep" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 48), 4000, np.uint16)).save(tmp_path / "deep" / name / "0.png")
    _, pixels, _ = load_images(config.model_copy(update={"data_path": tmp_path / "deep"}))
    return pixels[np.array([0])].max()


def split_sizes(config):
    splits = load_splits(config)
    return len(splits.train), len(splits.valid), len(splits.test), len(splits.test_pairs)


def trained_weights(config):
    fit(config)
    weights = load_checkpoint(current_run(config.checkpoints_path) / "last.pt")["network"]
    return {name: value.tolist() for name, value in weights.items() if name.startswith(("embedding", "backbone.conv1"))}


def learning_rates(config):
    return [epoch["learning_rate"] for epoch in fit(config)]


def first_weights(config):
    return next(build_network(config).parameters()).flatten()[:3].tolist()


def what_fit_prints(config, capsys):
    fit(config)
    return [line for line in capsys.readouterr().out.splitlines() if "Learning rate" in line or "Epoch" in line] != []


def files_written(config):
    saved(
        history_figure([{"train_loss": 1.0, "valid_loss": 1.0, "valid_auc": 1.0, "valid_auc_error": 0.0}]),
        config.results_path,
    )
    return str(next(config.results_path.glob("*.png")))


def chosen_device(config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(runtime, "seed_everything", lambda seed: None)
    return start(config).device


def decoding_threads(config, monkeypatch):
    """How many threads decode images at the same time: each waits for the others, if there are any."""
    names, real = set(), cache.decode
    meet = threading.Barrier(3)

    def decode(*arguments):
        names.add(threading.current_thread().name)
        with suppress(threading.BrokenBarrierError):
            meet.wait(0.5)
        return real(*arguments)

    monkeypatch.setattr(cache, "decode", decode)
    load_splits(config)
    monkeypatch.setattr(cache, "decode", real)
    return len(names)


def what_a_broken_image_does(config, monkeypatch):
    monkeypatch.setattr(cache, "decode", refusing(cache.decode, "red_0.png"))
    try:
        return len(load_splits(config).train)
    except DataError as error:
        return str(error)


def what_large_images_do(config):
    try:
        return len(load_splits(config).train)
    except DataError as error:
        return str(error)


def files_tested(config):
    splits = load_splits(config)
    return [splits.folder.paths[index] for index in splits.test]


def near_duplicates_left(config, tmp_path):
    """How many pictures are told apart, where one of 17 is there a second time, encoded again."""
    folder = tmp_path / "copied"
    write_images(folder / "a", 8)
    write_images(folder / "b", 8, seed=1)
    picture = Image.fromarray(PIXELS[:5, :6]).resize((48, 40), Image.Resampling.BICUBIC)
    picture.save(folder / "a" / "picture.png")
    picture.save(folder / "a" / "copy.jpg")
    return len(set(load_splits(config.model_copy(update={"data_path": folder})).duplicates))


def files_of_the_cache(config):
    load_splits(config)
    return str(next(config.cache_path.glob("*.json")))


def place_of_pixels(config, monkeypatch):
    """Which pixels training reads, on a device with room for 30 images of 32 x 40."""
    monkeypatch.setattr(Runtime, "free_memory", lambda self: 30 * 32 * 40 * 3)
    return type(resident(load_splits(config).pixels, start(config), config.gpu_cache_share)).__name__


def compiled(config, monkeypatch):
    stages = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda stage: stages.append(type(stage).__name__))
    fit(config)
    return stages


def algorithms(config):
    start(config)
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic
    return *deterministic, torch.backends.cudnn.benchmark


def stops(config):
    history = [{"valid_auc": auc, "valid_loss": 0.1, "valid_auc_error": 0.01} for auc in (0.5, 0.5005, 0.5010)]
    return stopped_early(history, config.early_stopping)


def number_of_runs(config):
    fit(config)
    fit(config)
    return len(run_names(config.checkpoints_path))


def run_that_is_loaded(config):
    fit(config.model_copy(update={"run": None}))
    run = current_run(config.checkpoints_path)
    earlier = f"2020-01-01_00-00-00_{run.name[-12:]}"
    shutil.copytree(run, run.with_name(earlier))
    named = config.model_copy(update={"run": config.run and earlier})
    return load_trained(named).folder.name == earlier


def evidence(config):
    seed_everything(0)
    network = build_network(config).eval()
    images = torch.randn(1, 2, 3, 64, 64)
    return explain(network, images, 0.5, **config.explanation.model_dump()).evidence.tolist()


def pairs_to_compare(config):
    return choose_pairs(load_splits(config), config.explanation.test_pairs)


def explained_pixels(config):
    fit(config)
    trained = load_trained(config)
    paths = load_splits(config).folder.paths
    shown = figure(trained.explain((paths[0], paths[-1])), opacity=config.explanation.opacity)
    return [axes.images[0].get_array().tolist() for axes in shown.axes if axes.images]


def decision(config, checkpoints):
    trained = load_trained(config.model_copy(update={"checkpoints_path": checkpoints}))
    return trained.threshold, trained.band


def search_limit(config, checkpoints):
    trained = load_trained(config.model_copy(update={"checkpoints_path": checkpoints}))
    return search_rule(trained, gallery(trained)).limit


def explained_files(config):
    for path in (config.inference.image1, config.inference.image2):
        Image.fromarray(PIXELS).save(path)
    return inference_pair(config, default=None)


NORMALIZATION = {"mean": [0.4, 0.4, 0.4], "std": [0.2, 0.2, 0.2]}
ONE_EPOCH = {"hyperparameters.epochs": 1}
SGD = {**ONE_EPOCH, "hyperparameters.optimizer": "SGD", "hyperparameters.learning_rate": 0.05}
NEVER_BETTER = {"early_stopping.min_delta": 1.0, "LRScheduler.patience": 0, "hyperparameters.epochs": 4}
NO_GPU_NEEDED = {"cuda": True, "precision": "float32"}
OWN_PAIR = {"inference.image1": "a.png", "inference.image2": "b.png"}

# key -> (a value other than the tiny config's, what to observe, what else to set in both configs)
KEYS = {
    "data_path": ("OTHER_DATA", lambda config: load_splits(config).folder.paths, {}),
    "number_of_iterations": (3, split_sizes, {}),
    "backbone_model": ("MobileNetV2", lambda config: build_network(config).layers, {"explanation.layer": "last"}),
    "pretrained": ("STATE_DICT", first_weights, {}),
    "checkpoints_path": (
        "ELSEWHERE",
        lambda config: fit(config) and str(current_run(config.checkpoints_path).parent),
        {},
    ),
    "test_size": (0.4, split_sizes, {}),
    "valid_size": (0.4, split_sizes, {}),
    "image.size": ([48, 32], lambda config: np.shape(images_seen_in_evaluation(config)), {}),
    "image.value_range": ([0, 4095], pixels_of_16_bits, {}),
    "image.normalization.mean": ([0.5, 0.5, 0.5], images_seen_in_evaluation, {"image.normalization": NORMALIZATION}),
    "image.normalization.std": ([0.5, 0.5, 0.5], images_seen_in_evaluation, {"image.normalization": NORMALIZATION}),
    "image.Channels": (1, images_seen_in_evaluation, {}),
    "image.HorizontalFlip": (0.0, images_seen_in_training, {}),
    "image.VerticalFlip": (0.0, images_seen_in_training, {}),
    "image.RandomRotationDegrees": (30, images_seen_in_training, {}),
    "image.brightness": (0.5, images_seen_in_training, {}),
    "image.contrast": (0.5, images_seen_in_training, {}),
    "image.saturation": (0.5, images_seen_in_training, {}),
    "image.hue": (0.2, images_seen_in_training, {}),
    "image.RandomCropScale": (0.3, images_seen_in_training, {}),
    "hyperparameters.epochs": (3, lambda config: len(fit(config)), {}),
    "hyperparameters.verbose": (False, what_fit_prints, {}),
    "hyperparameters.batch_size": (4, trained_weights, ONE_EPOCH),
    "hyperparameters.num_workers": (1, decoding_threads, {"hyperparameters.num_workers": 3, "cache_path": None}),
    "hyperparameters.optimizer": ("Adam", trained_weights, ONE_EPOCH),
    "hyperparameters.learning_rate": (0.0005, trained_weights, ONE_EPOCH),
    "hyperparameters.weight_decay": (0.5, trained_weights, ONE_EPOCH),
    "hyperparameters.momentum": (0.5, trained_weights, SGD),
    "hyperparameters.nesterov": (True, trained_weights, SGD),
    "hyperparameters.max_norm": (0.001, trained_weights, SGD),
    "early_stopping.patience": (2, stops, {"early_stopping.min_delta": 0.01}),
    "early_stopping.min_delta": (0.01, stops, {"early_stopping.patience": 2}),
    "LRScheduler.schedule": ("cosine", learning_rates, {}),
    "LRScheduler.patience": (2, learning_rates, NEVER_BETTER),
    "LRScheduler.min_lr": (0.0008, learning_rates, NEVER_BETTER),
    "LRScheduler.factor": (0.9, learning_rates, NEVER_BETTER),
    "LRScheduler.verbose": (False, what_fit_prints, {**NEVER_BETTER, "hyperparameters.verbose": False}),
    "seed": (7, trained_weights, ONE_EPOCH),
    "cuda": (False, chosen_device, NO_GPU_NEEDED),
    "gpu": (1, chosen_device, NO_GPU_NEEDED),
    "split": ("groups", files_tested, {"group_pattern": "_([0-9])"}),
    "group_pattern": ("([a-z]_[0-9])", files_tested, {"split": "groups", "group_pattern": "_([0-9])"}),
    "corrections": ("CORRECTIONS", lambda config: load_splits(config).folder.labels.tolist(), {}),
    "duplicate_radius": (None, near_duplicates_left, {}),
    "unreadable": ("stop", what_a_broken_image_does, {}),
    "max_megapixels": (0.001, what_large_images_do, {"cache_path": None}),
    "retrain": (True, number_of_runs, ONE_EPOCH),
    "run": (EARLIER, run_that_is_loaded, ONE_EPOCH),
    "decision.rule": ("fmr", decision, {"decision.fmr": 0.4}),
    "decision.fmr": (0.8, decision, {"decision.rule": "fmr", "decision.fmr": 0.4}),
    "decision.abstain": (0.3, decision, {}),
    "decision.fpir": (0.4, search_limit, {"decision.fpir": 0.2}),
    "backbone_training": ("frozen", trained_weights, ONE_EPOCH),
    "backbone_rate": (0.1, trained_weights, ONE_EPOCH),
    "embedding_size": (5, lambda config: build_network(config).embedding.weight.shape, {}),
    "margin": (1.5, trained_weights, ONE_EPOCH),
    "pairs": ("paper", trained_weights, ONE_EPOCH),
    "precision": ("bfloat16", trained_weights, ONE_EPOCH),
    "deterministic": (True, algorithms, {}),
    "compile": (True, compiled, ONE_EPOCH),
    "explanation.method": ("gradcam", evidence, {}),
    "explanation.layer": ("layer2", evidence, {}),
    "explanation.output_stride": (16, evidence, {}),
    "explanation.steps": (1, evidence, {"explanation.layer": "layer2"}),  # behind the last one all is linear
    "explanation.test_pairs": (3, pairs_to_compare, {}),
    "explanation.opacity": (0.2, explained_pixels, ONE_EPOCH),
    "inference.image1": ("c.png", explained_files, OWN_PAIR),
    "inference.image2": ("c.png", explained_files, OWN_PAIR),
    "results_path": ("ELSEWHERE", files_written, {}),
    "cache_path": ("ELSEWHERE", files_of_the_cache, {}),
    "gpu_cache_share": (1.0, place_of_pixels, {}),
}


def test_every_key_is_walked():
    assert list(KEYS) == key_names()


@pytest.mark.parametrize("key", KEYS)
def test_changing_the_key_changes_something(key, make_config, tmp_path, request):
    value, observe, common = KEYS[key]
    if value == "OTHER_DATA":
        write_images(tmp_path / "other" / "a", 9)
        write_images(tmp_path / "other" / "b", 9, seed=1)
        value = str(tmp_path / "other")
    elif value == "CORRECTIONS":
        value = str(tmp_path / "corrections.csv")
        (tmp_path / "corrections.csv").write_text("image,class\nred/red_0.png,blue\n")
    elif value == "STATE_DICT":
        seed_everything(123)
        value = str(tmp_path / "weights.pth")
        torch.save(build_network(make_config()).backbone.state_dict(), value)
    elif value == "ELSEWHERE":
        value = str(tmp_path / "elsewhere")
    wanted = observe.__code__.co_varnames[1 : observe.__code__.co_argcount]  # fixtures that the observation needs
    fixtures = {name: request.getfixturevalue(name) for name in wanted}

    def observed(name, changes):
        own = {"checkpoints_path": str(tmp_path / name)} if key != "checkpoints_path" else {}
        seed_everything(0)
        return observe(make_config({**common, **own, **changes}), **fixtures)

    case = observe, str(common)
    if case not in STEADY:
        STEADY[case] = observed("before", {})
        assert observed("again", {}) == STEADY[case]  # the observation itself is steady
    assert observed("after", {key: value}) != STEADY[case]
