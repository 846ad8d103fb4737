import os
import pickle

import pytest
import torch

from utils.train import runs as checkpoint
from utils.train.runs import CheckpointError, load_checkpoint, read_run, save_checkpoint


class Malicious:
    """Unpickling this runs a command."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_round_trip(tmp_path):
    content = {"network": {"weight": torch.randn(3, 4)}, "config": {"seed": 1, "size": [3, 4]}, "threshold": 0.5}
    save_checkpoint(tmp_path / "new" / "best.pt", content)
    loaded = load_checkpoint(tmp_path / "new" / "best.pt")
    torch.testing.assert_close(loaded["network"]["weight"], content["network"]["weight"], rtol=0, atol=0)
    assert loaded["config"] == content["config"]
    assert os.listdir(tmp_path / "new") == ["best.pt"]


def test_an_interrupted_save_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "best.pt", {"epoch": 1})

    def interrupted(content, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path / "best.pt", {"epoch": 2})
    assert load_checkpoint(tmp_path / "best.pt")["epoch"] == 1
    assert os.listdir(tmp_path) == ["best.pt"]


def test_missing(tmp_path):
    with pytest.raises(CheckpointError, match=r"best\.pt does not exist: run 01\.Train_Siamese_model\.ipynb first"):
        load_checkpoint(tmp_path / "best.pt")


@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_truncated(tmp_path, share):
    path = tmp_path / "best.pt"
    save_checkpoint(path, {"weight": torch.randn(1000)})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    cause = r"best\.pt is damaged or of another version \(.+\): delete .* and train again"
    with pytest.raises(CheckpointError, match=cause):
        load_checkpoint(path)


def test_foreign(tmp_path):
    path = tmp_path / "best.pt"
    path.write_text("some text that is no checkpoint")
    with pytest.raises(CheckpointError, match="is damaged or of another version"):
        load_checkpoint(path)
    for content in ({"state_dict": {}}, torch.zeros(3)):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match="is damaged or of another version"):
            read_run(tmp_path)


@pytest.mark.parametrize("as_archive", [True, False])
def test_a_malicious_pickle_is_refused_without_running(tmp_path, as_archive):
    path, marker = tmp_path / "best.pt", tmp_path / "executed"
    content = {"network": Malicious(marker)}
    path.write_bytes(pickle.dumps(content))
    if as_archive:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match="is damaged or of another version") as caught:
        load_checkpoint(path)
    assert "weights_only" not in str(caught.value)  # torch advises to load it all the same
    assert ("more than tensors and plain values" in str(caught.value)) == as_archive
    assert not marker.exists()
    pickle.loads(pickle.dumps(Malicious(marker)))  # the trap itself works
    assert marker.exists()
