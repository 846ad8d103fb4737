"""Damage to the checkpoint of a run is refused by the name of the file and of the part."""

import random
import shutil

import pytest
import torch

from utils import load_trained
from utils.train.runs import CheckpointError, current_run, load_checkpoint, load_run, save_checkpoint

GONE = object()


@pytest.fixture
def config(make_config, calibrated_checkpoints, tmp_path):
    """With a copy of a finished run."""
    shutil.copytree(calibrated_checkpoints, tmp_path / "checkpoints")
    return make_config()


@pytest.fixture
def best(config):
    return current_run(config.checkpoints_path) / "best.pt"


def edited(best, path, value):
    """Change one part, by its keys, or delete it."""
    content = load_checkpoint(best)
    part = content
    for key in path[:-1]:
        part = part[key]
    if value is GONE:
        del part[path[-1]]
    else:
        part[path[-1]] = value(part[path[-1]]) if callable(value) else value
    save_checkpoint(best, content)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["network"], GONE),
        (["network"], "text"),
        (["network", "embedding.weight"], lambda weight: weight * torch.nan),
        (["network", "embedding.weight"], lambda weight: weight[:1].expand(10**10, -1)),
        (["network", "embedding.weight"], lambda weight: weight.T),
        (["config"], GONE),
        (["config", "seed"], "text"),
        (["config", "image"], GONE),
        (["fingerprint"], GONE),
        (["fingerprint", "images"], 3),
        (["history"], GONE),
        (["history"], []),
        (["history", 0, "valid_auc"], float("nan")),
        (["history", 0, "valid_loss"], GONE),
        (["validation"], GONE),
        (["validation", "distances"], lambda values: values * torch.nan),
        (["validation", "distances"], lambda values: values + 3),
        (["validation", "distances"], lambda values: values[:0]),
        (["validation", "labels"], lambda values: values + 1),
        (["validation", "labels"], lambda values: values * 0),
        (["validation", "first"], lambda values: values[:-1]),
        (["classes"], GONE),
        (["classes"], "text"),
        (["measurements", "embeddings"], lambda values: values * torch.inf),
        (["measurements", "embeddings"], lambda values: values[:, :3]),
        (["measurements", "embeddings"], lambda values: values[:1]),
        (["measurements", "layer"], "nowhere"),
        (["measurements", "steps"], 0),
        (["measurements", "calibration", "probabilities"], lambda values: values + 1),
        (["measurements", "calibration", "distances"], lambda values: values * 0),
        (["measurements", "auc"], GONE),
    ],
)
def test_a_part_that_is_missing_or_misshapen(config, best, path, value):
    edited(best, path, value)
    before = best.read_bytes()
    with pytest.raises(CheckpointError) as caught:
        load_trained(config)
    said = str(caught.value)
    assert said.startswith(f"{best} is damaged: ")
    assert "network" in said if path[0] == "network" else path[0] in said
    assert f"Move the folder {best.parent} elsewhere" in said
    assert best.read_bytes() == before


def test_every_flipped_bit_of_the_weights_is_noticed(best):
    whole = best.read_bytes()
    weights = load_checkpoint(best)["network"]["embedding.weight"].numpy().tobytes()
    start = whole.index(weights)
    chosen = random.Random(0)
    for _ in range(20):
        content = bytearray(whole)
        content[start + chosen.randrange(len(weights))] ^= 1 << chosen.randrange(8)
        best.write_bytes(content)
        with pytest.raises(CheckpointError, match="does not match its checksum"):
            load_run(best)
    best.write_bytes(whole)
    assert load_run(best)


@pytest.mark.parametrize(("content", "said"), [(b"", "names it"), (b"\xff\xfe", "names it"), (b"../x", "no run ../x")])
def test_the_file_current_is_damaged(config, best, content, said):
    (config.checkpoints_path / "current").write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        load_trained(config)
