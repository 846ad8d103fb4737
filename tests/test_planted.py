import numpy as np
import torch
from PIL import Image

from utils.explanation import Explanation
from utils.planted import load_masks, pointing


def test_hits_and_energy_by_hand():
    maps = torch.tensor([[[[4.0, 0.0], [3.0, 1.0]], [[1.0, 2.0], [1.0, 0.0]]]])
    explanation = Explanation(torch.tensor([1.0]), 0.5, maps, torch.zeros_like(maps))
    top = torch.tensor([[[True, True], [False, False]]])
    hits, energies = pointing(explanation, top, ~top)
    assert hits.tolist() == [[1.0, 0.0]]  # the peak of image 2 lies in the upper row, its object in the lower one
    torch.testing.assert_close(energies, torch.tensor([[0.5, 0.25]]))


def test_no_object_and_a_blank_map():
    maps = torch.zeros(1, 2, 2, 2)
    empty, full = torch.zeros(1, 2, 2, dtype=torch.bool), torch.ones(1, 2, 2, dtype=torch.bool)
    hits, energies = pointing(Explanation(torch.tensor([1.0]), 0.5, maps, maps), empty, full)
    assert hits.isnan().tolist() == energies.isnan().tolist() == [[True, False]]
    assert hits[0, 1] == energies[0, 1] == 0


def test_masks_are_found_beside_the_images(tmp_path):
    path = tmp_path / "Data" / "a" / "1.png"
    assert load_masks(tmp_path / "Data", [path], (4, 6)) is None
    (tmp_path / "Data_masks" / "a").mkdir(parents=True)
    mask = np.zeros((8, 12), np.uint8)
    mask[:4] = 255
    Image.fromarray(mask).save(tmp_path / "Data_masks" / "a" / "1.png")
    found = load_masks(tmp_path / "Data", [path], (4, 6))
    assert found.shape == (1, 4, 6)
    assert found[0, :2].all()
    assert not found[0, 2:].any()
