import pytest

from utils import comparison
from utils.trust.comparison import choose_pairs, compare, table
from utils.trust.faithfulness import explain_at_random, gaps
from utils.explain import method_of
from utils.planted import pointing


def test_one_row_for_each_method(trained, monkeypatch, capsys):
    paths1, paths2 = choose_pairs(trained.load_splits(), 5)
    gradcam = method_of(trained.config.explanation, method="gradcam")
    rows = compare({"gradcam": gradcam, "random": explain_at_random}, trained, paths1, paths2)
    assert [row["method"] for row in rows] == ["gradcam", "random"]
    for row in rows:
        assert row["pairs"] == 5
        assert row["dataset"] == trained.config.data_path.name
        assert row["gap_low"] <= row["gap"] <= row["gap_high"]
        assert row["hit1"] is row["energy2"] is None
        assert row["seconds_per_pair"] > 0
        assert 0 <= row["believable"] <= 1
    images = trained.load_images(*paths1), trained.load_images(*paths2)
    expected = gaps(trained.network, *images, gradcam(trained.network, *images, trained.threshold))
    assert rows[0]["gap"] == pytest.approx(expected.joint.mean().item(), abs=1e-4)
    assert rows[0]["gap_alone"] == pytest.approx(expected.alone.mean().item(), abs=1e-4)
    assert rows[0]["gap_telling"] == pytest.approx(expected.telling.mean().item(), abs=1e-4)
    lines = table(rows).splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1


def test_planted_measures_are_those_of_all_batches(trained, monkeypatch):
    paths1, paths2 = choose_pairs(trained.load_splits(), 5)
    height, width = trained.config.image.size

    def left_half(data_path, paths, size):
        masks = comparison.torch.zeros(len(paths), *size, dtype=comparison.torch.bool)
        masks[:, :, : width // 2] = True
        return masks

    monkeypatch.setattr(comparison, "load_masks", left_half)
    monkeypatch.setattr(comparison, "BATCH", 2)
    method = method_of(trained.config.explanation, method="gradcam")
    (row,) = compare({"gradcam": method}, trained, paths1, paths2)
    images = trained.load_images(*paths1), trained.load_images(*paths2)
    mask = left_half(None, paths1, (height, width))
    hits, energies = pointing(method(trained.network, *images, trained.threshold), mask, mask)
    assert [row["hit1"], row["hit2"]] == pytest.approx(hits.mean(dim=0).tolist())
    assert [row["energy1"], row["energy2"]] == pytest.approx(energies.mean(dim=0).tolist(), abs=1e-4)
    assert "%" in table([row])


def test_pairs_are_drawn_by_seed(trained):
    splits = trained.load_splits()
    assert choose_pairs(splits, 4) == choose_pairs(splits, 4)
    assert choose_pairs(splits, 4) != choose_pairs(splits, 4, seed=1)
    assert len(choose_pairs(splits, 10**6)[0]) == len(splits.test_pairs)
    assert [len(paths) for paths in choose_pairs(splits, 1)] == [1, 1]
