import cv2
import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import rotate

from utils.data.batches import evaluation_transform, to_pixels, training_transform
from utils.data.reading import stored_size
from utils.device import seed_everything

PIXELS = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
BATCH = torch.from_numpy(PIXELS).expand(8, -1, -1, -1)


def test_evaluation_normalises_and_nothing_else(make_config):
    settings = make_config().image  # its size is that of PIXELS
    tensor = evaluation_transform(settings)(BATCH)[0]
    expected = (PIXELS / 255 - np.array(settings.normalization.mean)) / np.array(settings.normalization.std)
    np.testing.assert_allclose(tensor.numpy(), expected.transpose(2, 0, 1), atol=1e-6)
    assert type(tensor) is torch.Tensor


def test_size_is_height_then_width(make_config):
    assert evaluation_transform(make_config({"image.size": [64, 33]}).image)(BATCH).shape == (8, 3, 64, 33)


def test_to_pixels_undoes_the_normalisation(make_config):
    settings = make_config().image
    tensor = evaluation_transform(settings)(BATCH)[0]
    np.testing.assert_array_equal(to_pixels(tensor, settings.normalization).numpy(), PIXELS)
    np.testing.assert_array_equal(to_pixels(tensor[None], settings.normalization)[0].numpy(), PIXELS)


def test_one_channel_means_grey(make_config):
    settings = make_config({"image.Channels": 1, "image.normalization": {"mean": [0, 0, 0], "std": [1, 1, 1]}})
    tensor = evaluation_transform(settings.image)(BATCH)[0]
    luma = PIXELS @ np.array([0.299, 0.587, 0.114]) / 255  # ITU-R BT.601
    assert tensor.shape == (3, 32, 40)
    np.testing.assert_allclose(tensor.numpy(), np.stack([luma] * 3), atol=1.5 / 255)


@pytest.mark.parametrize(("key", "axis"), [("HorizontalFlip", 1), ("VerticalFlip", 0)])
def test_flips_with_probability_one(make_config, key, axis):
    settings = make_config({"image.HorizontalFlip": 0.0, "image.VerticalFlip": 0.0, f"image.{key}": 1.0}).image
    turned = to_pixels(training_transform(settings)(BATCH), settings.normalization).numpy()
    np.testing.assert_array_equal(turned, np.stack([np.flip(PIXELS, axis)] * 8))


def test_turned_in_corners_are_zero_after_normalisation(make_config):
    settings = make_config({"image.RandomRotationDegrees": 180.0}).image
    seed_everything(0)
    images = training_transform(settings)(torch.full_like(BATCH, 255))
    assert (images.abs().amin(dim=(1, 2, 3)) == 0).sum() > 4


def test_rotation_against_torchvision(make_config):
    settings = make_config({"image.RandomRotationDegrees": 90.0, "image.HorizontalFlip": 0, "image.VerticalFlip": 0})
    transform, smooth = training_transform(settings.image), torch.from_numpy(cv2.blur(PIXELS, (9, 9)))[None]
    seed_everything(0)
    turned = transform(smooth)[0]
    degrees = transform[-1]._params["degrees"].item()
    upright = evaluation_transform(settings.image)(smooth)
    expected = rotate(upright, degrees, InterpolationMode.BILINEAR)[0]
    assert torch.corrcoef(torch.stack([turned.flatten(), expected.flatten()]))[0, 1] > 0.99


@pytest.mark.parametrize("key", ["RandomRotationDegrees", "brightness", "contrast", "saturation", "hue"])
def test_each_image_of_a_batch_has_its_own_randomness(make_config, key):
    off = {"image.HorizontalFlip": 0.0, "image.VerticalFlip": 0.0}
    settings = make_config({**off, f"image.{key}": 0.4}).image
    images = training_transform(settings)(BATCH)
    assert len({tuple(image.flatten().tolist()) for image in images}) == 8


def test_random_flips_follow_their_probability(make_config):
    settings = make_config({"image.HorizontalFlip": 0.25, "image.VerticalFlip": 0.0}).image
    seed_everything(0)
    images = to_pixels(training_transform(settings)(BATCH.repeat(50, 1, 1, 1)), settings.normalization).numpy()
    flipped = (images == PIXELS[:, ::-1]).all(axis=(1, 2, 3))
    assert ((images == PIXELS).all(axis=(1, 2, 3)) | flipped).all()
    assert 0.25 * 400 - 4 * 8.7 < flipped.sum() < 0.25 * 400 + 4 * 8.7  # four standard deviations


def test_random_crops_keep_at_least_their_share(make_config):
    ramp = np.linspace(0, 255, 400)[:, None, None].repeat(400, axis=1).repeat(3, axis=2).astype(np.uint8)
    settings = make_config({"image.RandomCropScale": 0.5, "image.size": [100, 100]}).image
    seed_everything(0)
    crops = to_pixels(
        training_transform(settings)(torch.from_numpy(ramp).expand(60, -1, -1, -1)), settings.normalization
    )
    spans = crops.float().amax(dim=(1, 2, 3)) - crops.float().amin(dim=(1, 2, 3))  # the height of the crop
    assert spans.min() > 255 * (0.5 * 0.75) ** 0.5 * 0.97  # the flattest crop is 4:3
    assert spans.min() < 0.85 * 255  # and crops do differ
    assert crops.shape == (60, 100, 100, 3)


def test_pixels_are_stored_large_enough_for_the_average_crop(make_config):
    assert stored_size(make_config().image) == (32, 40)
    height, width = stored_size(make_config({"image.RandomCropScale": 0.5}).image)
    assert height * width * (1 + 0.5) / 2 == pytest.approx(32 * 40, rel=0.03)


def test_training_is_random_and_evaluation_is_not(make_config):
    settings = make_config({"image.RandomRotationDegrees": 90.0}).image
    train, evaluate = training_transform(settings), evaluation_transform(settings)
    assert not torch.equal(train(BATCH), train(BATCH))
    assert torch.equal(evaluate(BATCH), evaluate(BATCH))
