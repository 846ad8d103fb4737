"""Any module on image files: what README says of "any module" holds for a tiny one that nobody trained."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import write_images
from PIL import Image
from torch import nn

from utils import (
    Cut,
    DataError,
    FromFiles,
    SiameseNetwork,
    Source,
    ask,
    decompose,
    edit_figure,
    embed_references,
    explain_folder,
    figure,
    gallery,
    grid,
    grid_figure,
    hide_windows,
    images_figure,
    judge,
    judge_all,
    matches_figure,
    methods_figure,
    methods_of,
    most_similar,
    read_image,
    region_figure,
    saved,
    scores_table,
    smallest_edit,
    view,
)
from utils.config import ExplanationSettings
from utils.files import ExplanationError


def load(path):
    """Grey is 0: float (3, 32, 40)."""
    return torch.from_numpy(read_image(path)).permute(2, 0, 1) / 127.5 - 1


@pytest.fixture
def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 5, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.fixture
def files(module):
    return FromFiles(Cut(module, "1"), load, threshold=0.3)


@pytest.fixture
def paths(tmp_path):
    write_images(tmp_path / "a", 4, (32, 40))
    return [str(tmp_path / "a" / f"{number}.png") for number in range(4)]


@torch.no_grad()
def distances_by_loops(module, path, others):
    """By the module itself, without Cut."""
    vectors = []
    for one in [path, *others]:
        vector = module(load(one)[None])[0].double()
        vectors.append(vector / vector.square().sum().sqrt())
    return [float((vectors[0] - vector).square().sum().sqrt()) for vector in vectors[1:]]


def test_paths_in_named_files_and_a_table_out(module, files, paths, tmp_path):
    pairs = [(paths[0], path) for path in paths[1:]]
    table = explain_folder(files, pairs, tmp_path / "out", judged=True)
    assert table["distance"].tolist() == pytest.approx(distances_by_loops(module, paths[0], paths[1:]), abs=1e-4)
    assert [str(Path(path).relative_to(tmp_path)) for path in paths[1:]] == table["image 2"].tolist()
    assert table["maps"].notna().all()
    for name in table["files"]:
        assert read_image(tmp_path / "out" / f"{name}.png").ndim == 3
        with np.load(tmp_path / "out" / f"{name}.npz", allow_pickle=False) as content:
            assert content["factual"].shape == (2, 32, 40)


def test_a_pair_that_cannot_be_loaded_has_a_line_and_others_go_on(files, paths, tmp_path):
    (tmp_path / "a" / "broken.png").write_bytes(b"no image")
    pairs = [(paths[0], paths[1]), (paths[0], str(tmp_path / "a" / "broken.png")), (paths[0], paths[2])]
    table = explain_folder(files, pairs, tmp_path / "out")
    assert table["error"].notna().tolist() == [False, True, False]
    assert "broken.png" in table["error"][1]
    assert len(list((tmp_path / "out").glob("*.npz"))) == 2


def test_what_would_make_other_maps_is_noticed(module, files, paths, tmp_path):
    """Other weights, another cut, threshold, method, way of loading, references, band: each is refused by its name."""
    pairs = [(paths[0], paths[1])]
    explain_folder(files, pairs, tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    explain_folder(FromFiles(Cut(module, "1"), load, 0.3), pairs, tmp_path / "out")  # the same goes on
    references = embed_references(files.network, torch.stack([load(path) for path in paths]))
    others = {
        "threshold": FromFiles(files.network, load, 0.4),
        "explanation": FromFiles(files.network, load, 0.3, method="gradcam"),
        "references": FromFiles(files.network, load, 0.3, references),
        "band": FromFiles(files.network, load, 0.3, source=Source(band=(0.1, 0.5))),
        "warning": FromFiles(files.network, load, 0.3, source=Source(warning="BEWARE.")),
    }
    for key, other in others.items():
        with pytest.raises(DataError, match=f"of other settings \\(.*{key}"):
            explain_folder(other, pairs, tmp_path / "out")
    networks = [
        FromFiles(Cut(module, "0"), load, 0.3),
        FromFiles(files.network, lambda path: load(path) / 2, 0.3),
    ]
    for other in networks:
        with pytest.raises(DataError, match=r"of other settings \(network\)"):
            explain_folder(other, pairs, tmp_path / "out")
    with torch.no_grad():
        module[0].bias.add_(1)
    with pytest.raises(DataError, match=r"of other settings \(network\)"):
        explain_folder(files, pairs, tmp_path / "out")
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert json.loads(before[tmp_path / "out" / "made_by.json"])["threshold"] == 0.3


def test_search_finds_the_nearest_and_leaves_out_what_cannot_be_loaded(module, files, paths, tmp_path):
    (tmp_path / "a" / "broken.png").write_bytes(b"no image")
    images = gallery(files, tmp_path / "a")
    assert images.names == ("0.png", "1.png", "2.png", "3.png")
    assert "broken.png" in str(images)
    hits = most_similar(files, paths[0], 3, images)
    expected = distances_by_loops(module, paths[0], paths[1:])
    order = sorted(range(3), key=lambda index: expected[index])
    assert [pair[1] for pair in hits.source.paths] == [paths[1:][index] for index in order]
    assert hits.distance.tolist() == pytest.approx(sorted(expected), abs=1e-4)


def test_every_function_for_any_module_takes_a_cut(files, paths, tmp_path):
    explanation = files.explain(*((paths[0], path) for path in paths[1:]))
    pair = explanation[0]
    verdict = judge(files.network, explanation)
    references = embed_references(files.network, explanation.images[:, 0], ["a/0.png", "a/1.png", "b/2.png"])
    matches = decompose(files.network, pair)
    change = smallest_edit(files.network, pair, references)
    images = explanation.images[:1]
    by_all = {}
    for name, method in methods_of(ExplanationSettings()).items():
        by_all[name] = method(files.network, images, 0.3, references)
    for drawn in (
        figure(explanation, verdict),
        grid_figure(explanation, verdict),
        images_figure(pair),
        methods_figure(judge_all(files.network, by_all)),
        matches_figure(matches),
        region_figure(ask(files.network, matches, box1=(0.2, 0.3, 0.6, 0.7))),
        edit_figure(change),
    ):
        saved(drawn, tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == 7
    assert len(scores_table(explanation, verdict)) == 3
    windows = hide_windows(files.network, pair)
    for element in (view(pair, verdict[0], matches, change, windows), grid(explanation, files.network, verdict)):
        element.saved(tmp_path)
    assert len(list(tmp_path.glob("*.html"))) == 2


@pytest.mark.parametrize("kind", ["Cut", "Sequential", "SiameseNetwork"])
def test_a_network_without_a_loader_is_refused(module, paths, tmp_path, kind):
    networks = {"Cut": Cut(module, "1"), "Sequential": module, "SiameseNetwork": SiameseNetwork("test_resnet", 8)}
    calls = [
        lambda network: explain_folder(network, [(paths[0], paths[1])], tmp_path / "out"),
        lambda network: gallery(network, tmp_path / "a"),
        lambda network: most_similar(network, paths[0]),
    ]
    for call in calls:
        with pytest.raises(ExplanationError, match=f"{kind} does not say .*pass FromFiles"):
            call(networks[kind])
    assert not (tmp_path / "out").exists()


def test_what_load_gives_is_checked(files, paths, tmp_path):
    numbers = iter(range(100))
    wrong = {
        r"load\(.*0.png\) cannot be explained: .*Image.* gives float \(C, H, W\)": lambda path: Image.fromarray(
            read_image(path)
        ),
        "cannot be explained: images of NoneType are refused: pass floats": lambda path: None,
        "images of uint8 are refused: pass floats": read_image,
        r"images \(1, 32, 40, 3\) have their channels last": lambda path: read_image(path) / np.float32(255),
        r"\(1, 32, 40, 3\) have their channels last.*movedim": lambda path: load(path).movedim(0, 2),
        "torch.uint8": lambda path: torch.zeros(3, 8, 8, dtype=torch.uint8),
        r"images \(1, 8, 8\) must be \(N, C, H, W\)": lambda path: torch.zeros(8, 8),
        r"images \(1, 1, 3, 8, 8\) must be \(N, C, H, W\)": lambda path: torch.zeros(1, 3, 8, 8),
        "stretch or crop all to one size": lambda path: torch.zeros(3, 8, 8 + next(numbers)),
    }
    for cause, function in wrong.items():
        with pytest.raises(ExplanationError, match=cause):
            FromFiles(files.network, function, 0.3).explain((paths[0], paths[1]))
    with pytest.raises(ExplanationError, match="name a folder"):
        gallery(files)
    with pytest.raises(ValueError, match="a pair is a tuple"):
        files.explain(*paths[:2])


@pytest.mark.parametrize(("channels", "named"), [(1, None), (2, None), (4, (3, 2, 1)), (12, (0, 5, 11))])
def test_files_of_any_number_of_channels(channels, named, tmp_path):
    """Bands of satellites in files of numbers, which `load` alone reads, as an array of 64 bits."""
    torch.manual_seed(0)
    first = nn.Conv2d(channels, 6, 5, stride=2)
    module = nn.Sequential(first, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    random = np.random.default_rng(0)
    bands = [random.random((channels, 32, 40)) for _ in range(3)]
    paths = [str(tmp_path / f"{number}.npy") for number in range(3)]
    for path, image in zip(paths, bands, strict=True):
        np.save(path, image)
    files = FromFiles(Cut(module, "1"), np.load, 0.3, source=Source(channels=named), method="hirescam")
    table = explain_folder(files, [(paths[0], paths[1]), (paths[0], paths[2])], tmp_path / "out")
    with torch.no_grad():
        vectors = [module(torch.tensor(image, dtype=torch.float32)[None])[0].double() for image in bands]
    vectors = [vector / vector.norm() for vector in vectors]
    expected = [float((vectors[0] - vector).norm()) for vector in vectors[1:]]
    assert table["distance"].tolist() == pytest.approx(expected, abs=1e-4)
    explanation = files.explain((paths[0], paths[1]))
    assert explanation.images.dtype == torch.float32
    assert explanation.source.channels == named
    picture = read_image(tmp_path / "out" / f"{table['files'][0]}.png").astype(int)
    uncoloured = (explanation.factual[0, 0] == 0).numpy()  # below, and to the left, the image alone
    shown = bands[0][list(named)] if named else bands[0].mean(axis=0, keepdims=True).repeat(3, axis=0)
    found = picture[-32:, :40][uncoloured]
    assert uncoloured.any()
    assert abs(found - 255 * shown.transpose(1, 2, 0)[uncoloured]).max() <= 1


def test_grey_images_are_searched(paths, tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 6, 5, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    grey = {path: read_image(path)[None, :, :, 0].astype(np.float32) / 255 for path in paths}
    files = FromFiles(Cut(module, "1"), grey.get, 0.3)
    images = gallery(files, tmp_path / "a")
    hits = most_similar(files, paths[0], 3, images)
    with torch.no_grad():
        vectors = [module(torch.tensor(image)[None])[0].double() for image in grey.values()]
    vectors = [vector / vector.norm() for vector in vectors]
    expected = sorted(float((vectors[0] - vector).norm()) for vector in vectors[1:])
    assert hits.distance.tolist() == pytest.approx(expected, abs=1e-5)


def test_a_format_that_load_alone_reads_is_shown_as_it_was_explained(files, tmp_path):
    """Files of numbers: no figure can read them, so the explained pixels are drawn."""
    for number in range(2):
        np.save(tmp_path / f"{number}.npy", np.random.default_rng(number).random((3, 32, 40), np.float32))
    own = FromFiles(files.network, lambda path: torch.from_numpy(np.load(path)), 0.3)
    table = explain_folder(own, [(str(tmp_path / "0.npy"), str(tmp_path / "1.npy"))], tmp_path / "out")
    assert (tmp_path / "out" / f"{table['files'][0]}.png").exists()


def test_a_loader_that_knows_its_own_files_only_and_one_of_longer_floats(module, paths, tmp_path):
    """A dictionary of tensors refuses a file that it does not hold by KeyError; NumPy's floats are float64."""
    loaded = {path: load(path).double() for path in paths}
    files = FromFiles(Cut(module, "1"), loaded.__getitem__, threshold=0.3)
    table = explain_folder(files, [(paths[0], paths[1]), (paths[0], "elsewhere.png")], tmp_path / "maps")
    expected = FromFiles(Cut(module, "1"), load, threshold=0.3).explain((paths[0], paths[1]))
    assert table["similarity"][0] == pytest.approx(expected.similarity.item(), abs=1e-4)
    assert "elsewhere.png cannot be loaded" in table["error"][1]
    assert len(gallery(files, Path(paths[0]).parent)) > 0
    with pytest.raises(ValueError, match="a pair is a tuple"):
        files.explain()
