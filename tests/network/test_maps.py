"""Layouts of the outputs of layers: told apart by shape, there and back without loss."""

import pytest
import torch

from utils.network.maps import layout_of


@pytest.mark.parametrize(
    ("shape", "image_size", "order", "grid", "prefix"),
    [
        ((2, 512, 7, 7), (224, 224), "NCHW", (7, 7), 0),
        ((2, 64, 2, 3), (64, 96), "NCHW", (2, 3), 0),
        ((2, 7, 7, 768), (224, 224), "NHWC", (7, 7), 0),
        ((2, 16, 24, 96), (64, 96), "NHWC", (16, 24), 0),
        ((2, 197, 192), (224, 224), "tokens", (14, 14), 1),
        ((2, 196, 192), (224, 224), "tokens", (14, 14), 0),
        ((2, 201, 384), (196, 196), "tokens", (14, 14), 5),
        ((2, 1 + 4 * 6, 192), (64, 96), "tokens", (4, 6), 1),
    ],
)
def test_layouts_are_told_apart_and_lose_nothing(shape, image_size, order, grid, prefix):
    output = torch.randn(shape)
    layout = layout_of(output, image_size)
    assert (layout.order, layout.grid, layout.prefix) == (order, grid, prefix)
    features = layout.to_map(output)
    assert features.shape[2:] == grid
    torch.testing.assert_close(layout.to_output(features), output)


def test_places_of_tokens_stand_row_by_row():
    output = torch.arange(2.0 + 6).reshape(1, 8, 1)  # two tokens without a place, then two rows of three
    layout = layout_of(output.expand(1, 8, 4), (32, 48))
    assert layout.prefix == 2
    features = layout.to_map(output)
    assert features[0, 0].tolist() == [[2, 3, 4], [5, 6, 7]]
    assert features[0, 1].tolist() == [[0, 0, 0], [0, 0, 0]]
    assert features[0, 2].tolist() == [[1, 1, 1], [1, 1, 1]]
    assert torch.equal(layout.without_prefix(features), features[:, :1])


def test_a_shape_that_allows_both_orders_is_what_the_backbone_says():
    output = torch.randn(2, 48, 48, 48)
    assert layout_of(output, (192, 192)).order == "NCHW"
    assert layout_of(output, (192, 192), "NHWC").order == "NHWC"
    assert layout_of(torch.randn(2, 64, 48, 48), (192, 192), "NHWC").order == "NCHW"


@pytest.mark.parametrize("shape", [(2, 10), (2, 64, 7, 768), (2, 999, 64), (2, 3, 224, 7)])
def test_what_is_no_map(shape):
    assert layout_of(torch.zeros(shape), (224, 224)) is None
    assert layout_of([torch.zeros(shape)], (224, 224)) is None
