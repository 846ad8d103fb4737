"""Several processes write what one does, each its part; if one dies, the others end, and any number can go on."""

import signal

import explainer
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import write_images
from together import in_processes, start_processes

from utils import explain_folder, gallery
from utils.show import folder

BROKEN = (1, 4)  # images that cannot be decoded; with batches of two pairs, each process has two pairs of them


@pytest.fixture
def path(tmp_path):
    """Where a config would be, beside a list of eight pairs."""
    write_images(tmp_path / "images", 8, (32, 40))
    for number in BROKEN:
        (tmp_path / "images" / f"{number}.png").write_bytes(b"no image")
    lines = "\n".join(f"images/{number}.png,images/{(number + 2) % 8}.png" for number in range(8))
    (tmp_path / "pairs.csv").write_text(f"image1,image2\n{lines}\n")
    return tmp_path / "config.yml"


def content_of(out):
    """The maps in a folder, by file."""
    maps = {}
    for file in sorted(out.glob("*.npz")):
        with np.load(file) as content:
            maps[file.name] = content["factual"].astype(np.float32)
    return maps


def check_same_maps(out, expected):
    ours, theirs = content_of(out), content_of(expected)
    assert ours.keys() == theirs.keys()
    for name, heatmap in ours.items():
        assert np.allclose(heatmap, theirs[name], atol=1e-2), name
        assert (out / name).with_suffix(".png").exists()


def test_the_command_shares_the_pairs_of_a_trained_network(make_config, trained, checkpoints, tmp_path):
    make_config({"checkpoints_path": str(checkpoints)})
    root = trained.load_splits().folder.root
    paths = [*sorted((root / "red").iterdir()), *sorted((root / "green").iterdir())]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    pairs = [(paths[number], paths[(7 * number + 3) % 20]) for number in range(20)] + [(paths[0], broken)] * 2
    lines = "\n".join(f"{first},{second}" for first, second in pairs)
    (tmp_path / "pairs.csv").write_text(f"image1,image2\n{lines}\n")
    printed, results = in_processes(2, explainer.by_command, tmp_path, tmp_path / "config.yml")
    assert printed[0].endswith(f"22 pairs: {tmp_path}/out/scores.csv\n")
    assert printed[1] == ""
    shares = [result[str(tmp_path / "config.yml")] for result in results]
    assert [len(share) for share in shares] == [16, 4]  # batches are dealt
    expected = explain_folder(trained, tmp_path / "pairs.csv", tmp_path / "alone")
    table = pd.read_csv(tmp_path / "out" / "scores.csv")
    assert sorted(shares[0] + shares[1]) == sorted(expected["files"].dropna())
    assert table["error"].notna().tolist() == [False] * 20 + [True] * 2
    pd.testing.assert_frame_equal(table, pd.read_csv(tmp_path / "alone" / "scores.csv"), atol=1e-3)
    check_same_maps(tmp_path / "out", tmp_path / "alone")


def test_a_script_shares_the_pairs_of_any_module(path, tmp_path):
    (_, second), results = in_processes(2, explainer.in_script, tmp_path, path)
    assert second == ""
    ours, theirs = (result[str(path)] for result in results)
    expected = explain_folder(explainer.files(), tmp_path / "pairs.csv", tmp_path / "alone", judged=True)
    assert ours["table"] == theirs["table"] == (tmp_path / "out" / "scores.csv").read_text()
    table = pd.read_csv(tmp_path / "out" / "scores.csv")
    pd.testing.assert_frame_equal(table, pd.read_csv(tmp_path / "alone" / "scores.csv"), atol=1e-3)
    assert table["error"].notna().tolist() == [number in BROKEN or (number + 2) % 8 in BROKEN for number in range(8)]
    assert ours["names"]
    assert theirs["names"]
    assert sorted(ours["names"] + theirs["names"]) == sorted(expected["files"].dropna())
    check_same_maps(tmp_path / "out", tmp_path / "alone")
    images = gallery(explainer.files(), tmp_path / "images")
    for result in (ours, theirs):
        assert tuple(result["paths"]) == images.paths
        assert result["unreadable"] == images.unreadable
        assert len(images.unreadable) == 2
        torch.testing.assert_close(result["embeddings"], torch.from_numpy(images.embeddings))


def test_a_gallery_is_embedded_by_both_and_stored_by_the_first(make_config, trained, checkpoints, tmp_path):
    make_config({"checkpoints_path": str(checkpoints)})
    _, results = in_processes(2, explainer.embedded, tmp_path, tmp_path / "config.yml")
    ours, theirs = (result[str(tmp_path / "config.yml")] for result in results)
    assert [ours["counts"], theirs["counts"]] == [[15, 1], [15, 0]]  # and the second time nothing
    expected = torch.from_numpy(gallery(trained, trained.config.data_path).embeddings)
    for embeddings in (*ours["embeddings"], *theirs["embeddings"]):
        torch.testing.assert_close(embeddings, expected, atol=1e-3, rtol=0)
    (tmp_path / "cache" / "embeddings").rename(tmp_path / "cache" / "other")
    alone = torch.from_numpy(gallery(trained, trained.config.data_path).embeddings)
    torch.testing.assert_close(expected, alone, atol=1e-3, rtol=0)


def test_both_identify_and_the_first_writes(make_config, checkpoints, tmp_path):
    make_config({"checkpoints_path": str(checkpoints)})
    (first, second), results = in_processes(2, explainer.identified, tmp_path, tmp_path / "config.yml")
    assert first.endswith(f"30 images: {tmp_path}/out/identified.csv, {tmp_path}/out/identified.html\n")
    assert second == ""
    assert [result[str(tmp_path / "config.yml")] for result in results] == [1, 0]
    assert len(pd.read_csv(tmp_path / "out" / "identified.csv")) == 30


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_and_one_process_goes_on(path, tmp_path, victim):
    task = (explainer.first_killed, explainer.second_killed)[victim]
    started = start_processes(2, task, tmp_path, path)
    for process, _ in started:
        process.join(60)
    assert started[victim][0].exitcode == -signal.SIGKILL
    assert started[1 - victim][0].exitcode == 0
    (message,) = torch.load(tmp_path / f"{1 - victim}.pt", weights_only=True).values()
    assert message.startswith(f"UserError: Process {1 - victim} stops: another one has ended")
    assert not (tmp_path / "out" / "scores.csv").exists()
    complete = {file.stem for file in (tmp_path / "out").glob("*.npz")}
    times = {name: (tmp_path / "out" / f"{name}.npz").stat().st_mtime_ns for name in complete}
    whole = explain_folder(explainer.files(), tmp_path / "pairs.csv", tmp_path / "alone")
    names = set(whole["files"].dropna())
    assert complete
    assert complete < names
    patched, written = explainer.written()
    with patched:
        explain_folder(explainer.files(), tmp_path / "pairs.csv", tmp_path / "out")
    assert sorted(written) == sorted(names - complete)
    assert {name: (tmp_path / "out" / f"{name}.npz").stat().st_mtime_ns for name in complete} == times
    table = pd.read_csv(tmp_path / "out" / "scores.csv")
    pd.testing.assert_frame_equal(table, pd.read_csv(tmp_path / "alone" / "scores.csv"), atol=1e-3)
    check_same_maps(tmp_path / "out", tmp_path / "alone")


@pytest.mark.parametrize(
    ("task", "messages"),
    [
        (explainer.of_other_networks, ["UserError: Process 0 stops", "DataError: process 1 has another network"]),
        (explainer.without_pairs, ["DataError", "UserError: Process 1 stops"]),
    ],
)
def test_an_error_of_one_process_ends_the_other(path, tmp_path, task, messages):
    _, results = in_processes(2, task, tmp_path, path)
    for result, message in zip(results, messages, strict=True):
        assert result[str(path)].startswith(message)


def test_batches_are_dealt_in_turn(path, tmp_path, monkeypatch):
    """Whatever the number of processes, each pair has its turn once, in the same batch as with one process."""
    waiting = [(str(number), ("a", "b")) for number in range(37)]
    dealt = []
    monkeypatch.setattr(folder, "_explained", lambda trained, batch, rows: dealt.append(batch) or [])
    folder._explain_share(None, [], waiting, tmp_path, judged=False)
    alone, dealt[:] = list(dealt), []
    monkeypatch.setattr(folder, "world", lambda: 3)
    for number in range(3):
        monkeypatch.setattr(folder, "rank", lambda number=number: number)
        folder._explain_share(None, [], waiting, tmp_path, judged=False)
    assert dealt == alone
    assert [len(batch) for batch in dealt] == [16, 16, 5]
