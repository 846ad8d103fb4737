import cv2
import numpy as np
import torch
from helpers import board

from utils.network.distance import blurred, mean_colour


def test_the_board_is_wiped_out_by_blurring():
    image = board(24, 24)[None, None].expand(1, 3, -1, -1)
    assert blurred(image).abs().max() < 0.05 * image.abs().max()


def test_blurring_against_opencv():
    pixels = np.random.default_rng(0).random((48, 60, 3))
    sigma = 48 / 12, 60 / 12
    kernel = 2 * int(2 * sigma[1]) + 1, 2 * int(2 * sigma[0]) + 1  # OpenCV takes width first
    expected = cv2.GaussianBlur(pixels, kernel, sigmaX=sigma[1], sigmaY=sigma[0], borderType=cv2.BORDER_REFLECT_101)
    found = blurred(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_pairs_are_hidden_as_single_images_are():
    images = torch.randn(2, 2, 3, 24, 30)
    for hide in (blurred, mean_colour):
        hidden = hide(images)
        assert hidden.shape == images.shape
        for pair in range(2):
            for image in range(2):
                torch.testing.assert_close(hidden[pair, image], hide(images[pair, image][None])[0])


def test_mean_colour_channel_by_channel():
    images = torch.randn(1, 2, 3, 4, 5)
    hidden = mean_colour(images)
    for image in range(2):
        for channel in range(3):
            mean = sum(value for row in images[0, image, channel].tolist() for value in row) / 20
            torch.testing.assert_close(hidden[0, image, channel], torch.full((4, 5), mean))
