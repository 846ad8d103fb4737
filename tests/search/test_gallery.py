import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import write_images
from PIL import Image

from utils import DataError, gallery, most_similar
from utils.data.reading import read_image
from utils.explanations.regions import embed_region
from utils.files import ExplanationError


def distances_by_loops(trained, path, paths):
    with torch.no_grad():
        one = trained.network(trained.load_images(path))[0].double()
        others = [trained.network(trained.load_images(other))[0].double() for other in paths]
    return [float((one - other).norm()) for other in others]


def test_the_test_images_are_the_gallery_and_hits_are_the_nearest(trained):
    images = gallery(trained)
    splits = trained.load_splits()
    assert images.paths == tuple(splits.folder.paths[index] for index in splits.test)
    assert images.classes == tuple(Path(path).parent.name for path in images.paths)
    hits = most_similar(trained, images.paths[0], 3, images)
    others = images.paths[1:]
    expected = distances_by_loops(trained, images.paths[0], others)
    order = sorted(range(len(others)), key=lambda index: expected[index])[:3]
    assert [pair[1] for pair in hits.source.paths] == [others[index] for index in order]
    assert hits.distance.tolist() == pytest.approx(sorted(expected)[:3], abs=1e-3)
    assert {pair[0] for pair in hits.source.paths} == {images.paths[0]}
    assert hits.classes() == tuple(Path(path).parent.name for path in hits.source.paths[0])


def test_a_region_alone_is_searched_for(trained):
    images = gallery(trained)
    path, others = images.paths[0], images.paths[1:]
    whole = most_similar(trained, path, 3, images)
    assert most_similar(trained, path, 3, images, box=(0, 0, 1, 1)).source.paths == whole.source.paths
    box = 0.1, 0, 0.6, 0.3
    hits = most_similar(trained, path, 3, images, box=box)
    region = embed_region(trained.network, trained.load_images(path), box).numpy()
    distances = np.linalg.norm(images.embeddings[1:] - region, axis=1)
    assert [pair[1] for pair in hits.source.paths] == [others[index] for index in distances.argsort()[:3]]
    assert hits.distance.tolist() == pytest.approx(
        distances_by_loops(trained, path, [pair[1] for pair in hits.source.paths]), abs=1e-3
    )  # of the whole images
    assert "nearest to a region alone, 10% to 60% down and 0% to 30% across, but" in hits.source.warning
    with pytest.raises(ExplanationError, match=r"box: \(0, 0, 0, 1\) is refused"):
        most_similar(trained, path, 3, images, box=(0, 0, 0, 1))


def test_neither_the_image_nor_a_copy_of_its_file_is_a_hit(trained, tmp_path):
    write_images(tmp_path / "deep" / "er", 4)
    write_images(tmp_path / "flat", 3, seed=1)
    query = tmp_path / "flat" / "0.png"
    shutil.copy(query, tmp_path / "copy.png")
    images = gallery(trained, tmp_path)
    assert len(images) == 8
    assert "copy.png" in images.names
    hits = most_similar(trained, query, 20, images)
    assert len(hits) == 6
    assert all(Path(path).read_bytes() != query.read_bytes() for _, path in hits.source.paths)


def test_a_planted_near_copy_is_found_first(trained, tmp_path):
    path = gallery(trained).paths[0]
    folder = tmp_path / "some"
    write_images(folder, 12)
    Image.fromarray(read_image(path)).save(folder / "near.jpg", quality=95)
    hits = most_similar(trained, path, 1, gallery(trained, folder))
    assert Path(hits.source.paths[0][1]).name == "near.jpg"


def test_embeddings_are_computed_once_until_an_image_changes(trained, tmp_path, monkeypatch):
    folder = tmp_path / "some"
    write_images(folder, 5)
    first = gallery(trained, folder)
    calls = []
    network = type(trained.network)
    forward = network.forward
    monkeypatch.setattr(network, "forward", lambda self, images: calls.append(1) or forward(self, images))
    again = gallery(trained, folder)
    assert not calls
    assert again.paths == first.paths
    assert np.array_equal(again.embeddings, first.embeddings)
    write_images(folder, 1, seed=9)  # another 0.png
    changed = gallery(trained, folder)
    assert calls
    assert not np.array_equal(changed.embeddings[0], first.embeddings[0])
    assert np.allclose(changed.embeddings[1:], first.embeddings[1:], atol=1e-5)


def test_only_new_images_are_embedded(trained, tmp_path, monkeypatch):
    write_images(tmp_path / "some", 5)
    first = gallery(trained, tmp_path / "some")
    counts = []
    network = type(trained.network)
    forward = network.forward
    monkeypatch.setattr(network, "forward", lambda self, images: counts.append(len(images)) or forward(self, images))
    write_images(tmp_path / "some" / "more", 2, seed=1)
    grown = gallery(trained, tmp_path / "some")
    assert sum(counts) == 2
    assert len(grown) == 7
    by_path = dict(zip(grown.paths, grown.embeddings, strict=True))
    assert all(np.array_equal(by_path[path], row) for path, row in zip(first.paths, first.embeddings, strict=True))
    (tmp_path / "some" / "0.png").unlink()
    assert len(gallery(trained, tmp_path / "some")) == 6
    assert sum(counts) == 2


def test_a_run_that_was_stopped_continues(trained, tmp_path, monkeypatch):
    """After two images, and then four, what was embedded is stored."""
    write_images(tmp_path / "some", 10)
    monkeypatch.setattr("utils.search.gallery.CHUNK", 2)
    counts = []
    network = type(trained.network)
    forward = network.forward

    def stopped(self, images):
        if sum(counts) >= 6:
            raise KeyboardInterrupt
        counts.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(network, "forward", stopped)
    with pytest.raises(KeyboardInterrupt):
        gallery(trained, tmp_path / "some")
    counts.clear()
    monkeypatch.setattr(network, "forward", lambda self, images: counts.append(len(images)) or forward(self, images))
    assert len(gallery(trained, tmp_path / "some")) == 10
    assert sum(counts) == 4


def test_what_cannot_be_decoded_is_left_out_and_named(trained, tmp_path):
    write_images(tmp_path / "a", 3)
    (tmp_path / "a" / "broken.png").write_bytes(b"no image")
    for _ in range(2):  # computed, then read
        images = gallery(trained, tmp_path)
        assert len(images) == 3
        assert "broken.png" in str(images)
        assert np.isfinite(images.embeddings).all()


@pytest.mark.parametrize("damage", ["cut", "missing", "a flipped bit"])
def test_a_stored_file_that_is_damaged_is_computed_again(trained, tmp_path, damage):
    write_images(tmp_path / "first" / "a", 3)
    first = gallery(trained, tmp_path / "first")
    (file,) = (trained.config.cache_path / "embeddings").glob("*.npz")
    content = file.read_bytes()
    if damage == "cut":
        file.write_bytes(content[:100])
    elif damage == "missing":
        file.unlink()
    else:
        place = content.index(first.embeddings.tobytes()) + 9
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    assert np.array_equal(gallery(trained, tmp_path / "first").embeddings, first.embeddings)


def test_folders_that_cannot_be_searched(trained, tmp_path):
    with pytest.raises(DataError, match="absent is not a folder"):
        gallery(trained, tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        gallery(trained, tmp_path / "empty")
    (tmp_path / "empty" / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="none of its 1 images can be decoded"):
        gallery(trained, tmp_path / "empty")
    write_images(tmp_path / "one", 1)
    with pytest.raises(DataError, match="no image besides"):
        most_similar(trained, tmp_path / "one" / "0.png", 1, gallery(trained, tmp_path / "one"))
    with pytest.raises(ValueError, match="at least 1"):
        most_similar(trained, tmp_path / "one" / "0.png", 0)


def test_linked_classes_are_among_the_images_and_what_is_skipped_is_said(trained, tmp_path, capsys):
    root = tmp_path / "some"
    write_images(root / "a", 2)
    write_images(tmp_path / "elsewhere", 3, seed=1)
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "b" / "loop").symlink_to(root)
    write_images(root / "a" / ".ipynb_checkpoints", 1)
    write_images(root / "__MACOSX", 1)
    images = gallery(trained, root)
    assert images.names == ("a/0.png", "a/1.png", "b/0.png", "b/1.png", "b/2.png")
    assert images.classes == ("a", "a", "b", "b", "b")
    said = capsys.readouterr().out
    assert f"{root}: skipped: 1 __MACOSX, 1 hidden, 1 links to folders that are listed already" in said
    hits = most_similar(trained, root / "a" / "0.png", 4, images)
    assert {path for _, path in hits.source.paths} == set(images.paths[1:])


def test_cures_of_folders_end_their_errors(trained, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "one.cr2").write_bytes(b"")
    with pytest.raises(DataError, match=r"holds no image \(skipped: 1 \.cr2\): name a folder with some"):
        gallery(trained, tmp_path / "raw")
    (tmp_path / "raw" / "one.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"none of its 1 images can be decoded.*Replace them, or name another folder"):
        gallery(trained, tmp_path / "raw")
    write_images(tmp_path / "raw", 1)
    (tmp_path / "raw" / "0.png").rename(tmp_path / "raw" / "one.png")
    assert len(gallery(trained, tmp_path / "raw")) == 1


def test_a_gallery_is_saved_for_other_programs(trained, tmp_path):
    write_images(tmp_path / "a", 2)
    write_images(tmp_path / "b", 1, seed=1)
    images = gallery(trained, tmp_path)
    images.save(tmp_path / "saved")
    assert np.array_equal(np.load(tmp_path / "saved" / "embeddings.npy"), images.embeddings)
    table = pd.read_csv(tmp_path / "saved" / "names.csv")
    assert table.columns.tolist() == ["name", "class"]
    assert tuple(table["name"]) == images.names == ("a/0.png", "a/1.png", "b/0.png")
    assert tuple(table["class"]) == images.classes


def test_the_library_of_the_search_is_chosen(trained):
    images = gallery(trained)
    hits = most_similar(trained, images.paths[0], 3, images)
    assert most_similar(trained, images.paths[0], 3, images, backend="faiss").source.paths == hits.source.paths
    with pytest.raises(ValueError, match="backend"):
        most_similar(trained, images.paths[0], 3, images, backend="annoy")
