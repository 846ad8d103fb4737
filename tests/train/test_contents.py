"""Damage to the checkpoint of a run is refused in one line that names the file."""

import random
import shutil

import pytest

from utils import load_trained
from utils.train.runs import CheckpointError, current_run, load_checkpoint, save_checkpoint

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
        (["network", "embedding.bias"], GONE),
        (["network", "embedding.weight"], lambda weight: weight.T),
        (["config"], GONE),
        (["config", "seed"], "text"),
        (["config", "backbone_model"], "resnet18"),
        (["fingerprint"], GONE),
        (["history"], GONE),
        (["validation"], GONE),
        (["validation", "labels"], GONE),
        (["classes"], GONE),
        (["measurements", "auc"], GONE),
        (["measurements", "calibration"], "text"),
        (["measurements", "names"], GONE),
    ],
)
def test_a_part_that_is_missing_or_does_not_fit(config, best, path, value):
    edited(best, path, value)
    before = best.read_bytes()
    with pytest.raises(CheckpointError) as caught:
        load_trained(config)
    message = str(caught.value)
    assert message.startswith(f"{best} is damaged or of another version (")
    assert message.endswith(f"delete {best.parent} and train again, or set `run` to another run.")
    assert "\n" not in message
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
            load_checkpoint(best)
    best.write_bytes(whole)
    assert load_checkpoint(best)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "names it"), (b"\xff\xfe", "names it"), (b"../x", "no run ../x")]
)
def test_the_file_current_is_damaged(config, best, content, message):
    (config.checkpoints_path / "current").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_trained(config)


def test_weights_that_are_not_finite_are_refused(config, best):
    content = load_checkpoint(best)
    content["network"]["embedding.weight"][0, 0] = float("nan")
    save_checkpoint(best, content)
    with pytest.raises(CheckpointError, match=r"best\.pt is damaged.*embedding\.weight is not finite"):
        load_trained(config)
