import numpy as np
import pytest
import torch

from utils.runtime import seed_everything
from utils.transforms import evaluation_transform, to_pixels, training_transform

PIXELS = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)


def test_evaluation_normalises_and_nothing_else(make_config):
    settings = make_config().image  # its size is that of PIXELS
    tensor = evaluation_transform(settings)(PIXELS)
    expected = (PIXELS / 255 - np.array(settings.normalization.mean)) / np.array(settings.normalization.std)
    np.testing.assert_allclose(tensor.numpy(), expected.transpose(2, 0, 1), atol=1e-6)
    assert type(tensor) is torch.Tensor


def test_size_is_height_then_width(make_config):
    assert evaluation_transform(make_config({"image.size": [64, 33]}).image)(PIXELS).shape == (3, 64, 33)


def test_to_pixels_undoes_the_normalisation(make_config):
    settings = make_config().image
    tensor = evaluation_transform(settings)(PIXELS)
    np.testing.assert_array_equal(to_pixels(tensor, settings).numpy(), PIXELS)
    np.testing.assert_array_equal(to_pixels(tensor[None], settings)[0].numpy(), PIXELS)


def test_one_channel_means_grey(make_config):
    settings = make_config(
        {"image.Channels": 1, "image.normalization.mean": [0, 0, 0], "image.normalization.std": [1, 1, 1]}
    )
    tensor = evaluation_transform(settings.image)(PIXELS)
    luma = PIXELS @ np.array([0.299, 0.587, 0.114]) / 255  # ITU-R BT.601
    assert tensor.shape == (3, 32, 40)
    np.testing.assert_allclose(tensor.numpy(), np.stack([luma] * 3), atol=1.5 / 255)


@pytest.mark.parametrize(("key", "axis"), [("HorizontalFlip", 1), ("VerticalFlip", 0)])
def test_flips_with_probability_one(make_config, key, axis):
    settings = make_config({"image.HorizontalFlip": 0.0, "image.VerticalFlip": 0.0, f"image.{key}": 1.0}).image
    np.testing.assert_array_equal(
        to_pixels(training_transform(settings)(PIXELS), settings).numpy(), np.flip(PIXELS, axis)
    )


def test_turned_in_corners_are_zero_after_normalisation(make_config):
    settings = make_config({"image.RandomRotationDegrees": 180.0}).image
    white = np.full_like(PIXELS, 255)
    seed_everything(0)
    tensor = torch.stack([training_transform(settings)(white) for _ in range(8)])
    assert tensor.abs().amin(dim=1).amin() < 0.02  # the mean colour, up to rounding to whole grey levels


def test_training_is_random_and_evaluation_is_not(make_config):
    settings = make_config({"image.RandomRotationDegrees": 90.0}).image
    train, evaluate = training_transform(settings), evaluation_transform(settings)
    assert not torch.equal(train(PIXELS), train(PIXELS))
    assert torch.equal(evaluate(PIXELS), evaluate(PIXELS))
