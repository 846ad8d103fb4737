import torch
from captum.attr import Occlusion
from helpers import Chequered, ToOther, network_and_images, patterned

from utils.explanations.maps import GRID, Task, occlusion
from utils.network.distance import blurred, distance


def test_against_windows_one_at_a_time():
    network, size = Chequered(), (20, 30)
    (image1, _), (image2, _) = patterned(size, (2, 3), 0.9), patterned(size, (10, 20), -0.4)
    images = torch.stack([image1, image2])[None]
    explanation = occlusion(Task(network, images, 0.5))
    image1, image2 = images[0, :1], images[0, 1:]
    base = distance(network(image1), network(image2)).item()
    assert abs(explanation.distance.item() - base) < 1e-6
    found = [[[] for _ in range(30)] for _ in range(20)]  # of each pixel, what its windows say
    for row in range(GRID):
        for column in range(GRID):
            top, left = round(row * 14 / 6), round(column * 21 / 6)
            hidden = image1.clone()
            hidden[:, :, top : top + 6, left : left + 9] = blurred(image1)[:, :, top : top + 6, left : left + 9]
            for y in range(top, top + 6):
                for x in range(left, left + 9):
                    found[y][x].append(base - distance(network(hidden), network(image2)).item())
    expected = torch.tensor([[sum(values) / len(values) for values in line] for line in found])
    torch.testing.assert_close(explanation.evidence[0, 0], expected, atol=1e-5, rtol=1e-4)


def test_against_captum():
    """Of images so large that all windows lie equally far apart, as captum lays them."""
    network, images = network_and_images(size=(60, 120))
    explanation = occlusion(Task(network, images, 0.5))
    for image in range(2):
        with torch.no_grad():
            peer = Occlusion(ToOther(network, network(images[:, 1 - image])))
        window = {"sliding_window_shapes": (3, 18, 36), "strides": (3, 7, 14)}
        expected = peer.attribute(images[:, image], baselines=blurred(images[:, image]), **window)[:, 0]
        scale = expected.abs().max()
        torch.testing.assert_close(explanation.evidence[:, image] / scale, expected / scale, atol=1e-4, rtol=0)


def test_it_finds_the_pattern_of_each_image():
    size = (24, 24)
    (image1, mask1), (image2, mask2) = patterned(size, (1, 2), 0.8), patterned(size, (15, 14), -0.8)
    factual = occlusion(Task(Chequered(), torch.stack([image1, image2])[None], 0.5)).factual[0]
    for heatmap, mask in zip(factual, (mask1, mask2), strict=True):
        centres = [
            (torch.stack(torch.where(part > 0)).float() * part[part > 0]).sum(1) / part.sum()
            for part in (heatmap, mask.float())
        ]
        assert (centres[0] - centres[1]).abs().max() < 2  # pixels
