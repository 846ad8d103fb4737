"""Layouts of the outputs of layers: which a shape allows, there and back without loss."""

from types import SimpleNamespace

import pytest
import torch

from utils.network.places import Layout, likely_layout, possible_layouts


@pytest.mark.parametrize(
    ("shape", "image_size", "channels_last", "grid", "placeless"),
    [
        ((2, 512, 7, 7), (224, 224), False, (7, 7), ()),
        ((2, 64, 2, 3), (64, 96), False, (2, 3), ()),
        ((2, 7, 7, 768), (224, 224), True, (7, 7), ()),
        ((2, 16, 24, 96), (64, 96), True, (16, 24), ()),
        ((2, 197, 192), (224, 224), True, (14, 14), (0,)),
        ((2, 196, 192), (224, 224), True, (14, 14), ()),
        ((2, 201, 384), (196, 196), True, (14, 14), (0, 1, 2, 3, 4)),
        ((2, 1 + 4 * 6, 192), (64, 96), True, (4, 6), (0,)),
    ],
)
def test_the_likely_layout_loses_nothing(shape, image_size, channels_last, grid, placeless):
    output = torch.randn(shape)
    layout = likely_layout(output, image_size)
    assert (layout.channels_last, layout.grid, layout.placeless) == (channels_last, grid, placeless)
    features = layout.to_map(output)
    assert features.shape[2:] == grid
    torch.testing.assert_close(layout.to_output(features), output)


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        (Layout((2, 3), True, (0, 1, 2, 5, 6, 7), (3, 4)), (2, 8, 5)),
        (Layout((2, 3), True, (5, 3, 1, 0, 2, 4)), (2, 6, 5)),
        (Layout((2, 3), False, (1, 2, 3, 4, 5, 6), (0,)), (2, 5, 7)),
        (Layout((2, 3), True, (0, 1, 2, 3, 4, 5), (6, 7), batch=1), (8, 2, 5)),
        (Layout((2, 3), True, batch=1), (2, 4, 3, 5)),
        (Layout((2, 3), False, batch=3), (5, 2, 3, 4)),
    ],
)
def test_there_and_back_without_loss(layout, shape):
    output = torch.randn(shape)
    features = layout.to_map(output)
    assert features.shape[2:] == (2, 3)
    assert features.shape[0] == shape[layout.batch]
    torch.testing.assert_close(layout.to_output(features), output)


def test_places_of_tokens_stand_row_by_row():
    output = torch.arange(2.0 + 6).reshape(1, 8, 1)  # two tokens without a place, then two rows of three
    layout = likely_layout(output.expand(1, 8, 4), (32, 48))
    assert layout.placeless == (0, 1)
    features = layout.to_map(output)
    assert features[0, 0].tolist() == [[2, 3, 4], [5, 6, 7]]
    assert features[0, 1].tolist() == [[0, 0, 0], [0, 0, 0]]
    assert features[0, 2].tolist() == [[1, 1, 1], [1, 1, 1]]
    assert torch.equal(layout.without_placeless(features), features[:, :1])


def test_places_in_an_order_of_their_own():
    output = torch.tensor([30.0, 99, 10, 20, 0])[None, :, None]
    layout = Layout((2, 2), True, (4, 2, 3, 0), (1,))
    features = layout.to_map(output)
    assert features[0, 0].tolist() == [[0, 10], [20, 30]]
    assert features[0, 1].tolist() == [[99, 99], [99, 99]]


def test_all_layouts_that_a_shape_allows():
    assert len(possible_layouts((2, 48, 48, 48), (192, 192))) == 2
    fronts = [layout.tokens[0] for layout in possible_layouts((2, 16 + 3, 64), (64, 64)) if layout.grid == (4, 4)]
    assert fronts == [3, 2, 1, 0]
    assert not likely_layout(torch.randn(2, 48, 48, 48), (192, 192)).channels_last
    channels_last = SimpleNamespace(output_fmt="NHWC")
    assert likely_layout(torch.randn(2, 48, 48, 48), (192, 192), channels_last).channels_last


@pytest.mark.parametrize("shape", [(2, 10), (2, 64, 7, 768), (2, 999, 90), (2, 3, 224, 7), (2, 3, 4, 7, 7)])
def test_what_is_no_map(shape):
    assert likely_layout(torch.zeros(shape), (224, 224)) is None
    assert likely_layout([torch.zeros(shape)], (224, 224)) is None
