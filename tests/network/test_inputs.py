"""What users pass as images: explained as a tensor is, or an error with its cure."""

import numpy as np
import pytest
import torch
from helpers import Chequered
from PIL import Image
from torch import nn

from utils.explanations.explanation import Explanation
from utils.explanations.methods import explain
from utils.explanations.references import References, embed_references
from utils.files import ExplanationError
from utils.network.cut import Cut
from utils.network.distance import distances_of, images_for, pairs_for

SHAPE = (4, 2, 3, 24, 30)


def network_of(channels=3, dtype=torch.float32):
    torch.manual_seed(0)
    first = nn.Conv2d(channels, 6, 5, stride=4, padding=2)
    module = nn.Sequential(first, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
    return Cut(module.to(dtype), layer="1")


def pairs(shape=SHAPE):
    torch.manual_seed(1)
    return torch.randn(shape)


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def as_objects(array):
    pairs = np.empty(array.shape[:2], object)
    for index in np.ndindex(pairs.shape):
        pairs[index] = array[index]
    return pairs


CONTAINERS = {
    "array": lambda tensor: tensor.numpy(),
    "array of 64 bits": lambda tensor: tensor.numpy().astype(np.float64),
    "array of long floats": lambda tensor: tensor.numpy().astype(np.longdouble),
    "array of the other byte order": lambda tensor: tensor.numpy().astype(">f4"),
    "array turned around": lambda tensor: tensor.flip(3).numpy()[:, :, :, ::-1],
    "array read only": lambda tensor: read_only(tensor.numpy()),
    "array of arrays": lambda tensor: as_objects(tensor.numpy()),
    "tensor with a gradient": lambda tensor: tensor.clone().requires_grad_(),
    "list of tensors of pairs": lambda tensor: list(tensor),
    "list of arrays of pairs": lambda tensor: list(tensor.numpy()),
    "tuples of tensors": lambda tensor: tuple(tuple(pair) for pair in tensor),
    "lists of arrays": lambda tensor: [list(pair) for pair in tensor.numpy()],
    "arrays and tensors": lambda tensor: [(one, other.numpy()) for one, other in tensor],
    "zip": lambda tensor: list(zip(tensor[:, 0], tensor[:, 1], strict=True)),
    "lists of numbers": lambda tensor: tensor.tolist(),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_any_container_is_explained_as_its_tensor_is(name):
    network, tensor = network_of(), pairs()
    found = explain(network, CONTAINERS[name](tensor), 0.5, method="hirescam")
    expected = explain(network, tensor, 0.5, method="hirescam")
    assert torch.equal(found.images, tensor)
    assert found.images.dtype == torch.float32
    assert not found.images.requires_grad
    assert torch.equal(found.evidence, expected.evidence)


def test_a_tensor_stays_as_it_is_and_an_array_can_be_changed_afterwards():
    tensor = pairs()
    assert pairs_for(network_of(), tensor) is tensor
    array = tensor.numpy().copy()
    found = pairs_for(network_of(), array)
    array[:] = 0
    assert torch.equal(found, tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_arrays_and_lists_get_the_type_of_the_network(dtype):
    network = network_of(dtype=dtype)
    network.module.register_parameter("steps", nn.Parameter(torch.tensor(3), requires_grad=False))  # whole numbers
    array = pairs().double().numpy()
    assert pairs_for(network, array).dtype == dtype
    assert pairs_for(network, list(torch.from_numpy(array))).dtype == dtype
    assert torch.equal(pairs_for(network, array), torch.from_numpy(array).to(dtype))
    assert pairs_for(Chequered(), array).dtype == torch.float32  # without parameters


def test_arrays_and_lists_go_where_the_network_is_and_tensors_are_told():
    network = network_of().to("meta")
    tensor = pairs()
    assert pairs_for(network, tensor.numpy()).device.type == "meta"
    assert pairs_for(network, list(tensor)).device.type == "meta"
    message = r'images are on cpu and the network is on meta: pass images\.to\("meta"\)'
    with pytest.raises(ExplanationError, match=message):
        explain(network, tensor, 0.5)
    assert pairs_for(network, tensor.to("meta")).device.type == "meta"
    assert pairs_for(Chequered(), tensor.to("meta")).device.type == "meta"
    network.module[4].to_empty(device="cpu")  # a network on two devices
    assert pairs_for(network, tensor) is tensor


FORMS = {
    "tensor": lambda tensor: tensor,
    "array": lambda tensor: tensor.numpy(),
    "list of tensors": lambda tensor: list(tensor),
    "list of arrays": lambda tensor: list(tensor.numpy()),
    "list of lists of tensors": lambda tensor: [list(part) for part in tensor],
    "list of lists of arrays": lambda tensor: [list(part) for part in tensor.numpy()],
}
SHAPES = {  # of images of `pairs`
    "one pair": lambda tensor: tensor[0],
    "grey without channels": lambda tensor: tensor[:, :, 0],
    "one pair of grey": lambda tensor: tensor[0, :, 0],
    "the pair's axis first": lambda tensor: tensor.transpose(0, 1),
    "one image after the other": lambda tensor: tensor.flatten(0, 1),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_that_is_no_pairs_is_refused_with_the_shape_that_is(name, form):
    images = FORMS[form](SHAPES[name](pairs()).contiguous())
    message = r"^images \(.*\) must be \(B, 2, C, H, W\), two images.*pass torch\.stack\(\[images1, images2\]"
    with pytest.raises(ExplanationError, match=message):
        explain(network_of(), images, 0.5)


def test_the_cures_of_shapes_work():
    network, images1, images2 = network_of(), pairs()[:, 0], pairs()[:, 1]
    assert torch.equal(pairs_for(network, torch.stack([images1, images2], dim=1)), pairs())
    assert torch.equal(pairs_for(network, pairs()[0][None]), pairs()[:1])


@pytest.mark.parametrize(
    "images", [torch.zeros(3, 8, 8), torch.zeros(5, 3, 8, 8), torch.zeros(4, 3, 3, 8, 8), [], [[]]]
)
def test_what_is_no_pair_of_images_is_refused_with_what_is(images):
    with pytest.raises(ExplanationError, match=r"must be .* pass torch\.stack\(\[images1, images2\], dim=1\)"):
        explain(network_of(), images, 0.5)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("form", FORMS)
def test_channels_that_stand_last_are_refused_with_how_to_move_them(form, channels):
    """As NumPy, OpenCV and Pillow have them."""
    expected = pairs()[:, :, [0] * channels]
    images = FORMS[form](expected.movedim(2, -1).contiguous())
    with pytest.raises(ExplanationError, match="channels last, as in OpenCV") as caught:
        explain(network_of(channels), images, 0.5)
    for_tensors, for_arrays = "images.movedim(-1, -3)", "np.moveaxis(images, -1, -3)"
    assert for_tensors in str(caught.value)
    assert for_arrays in str(caught.value)
    cure = for_tensors if form == "tensor" else for_arrays
    moved = eval(cure, {"images": images, "np": np})
    assert torch.equal(explain(network_of(channels), moved, 0.5).images, expected)


@pytest.mark.parametrize("size", [(3, 5), (24, 6)])
def test_narrow_images_are_no_channels(size):
    assert pairs_for(network_of(12), torch.zeros(1, 2, 12, *size)).shape[2] == 12
    assert pairs_for(network_of(3), torch.zeros(1, 2, 3, 24, 3)).shape[-1] == 3


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "bool", "complex64"])
@pytest.mark.parametrize("form", ["array", "list", "tensors"])
def test_whole_numbers_are_refused_in_every_container(dtype, form):
    array = np.zeros((1, 2, 3, 24, 30), dtype)
    images = {"array": array, "list": [tuple(array[0])], "tensors": [tuple(map(torch.from_numpy, array[0]))]}[form]
    with pytest.raises(ExplanationError, match=rf"images of .*{dtype} are refused.*\(images / 255 - mean\) / std"):
        explain(network_of(), images, 0.5)


def test_images_of_several_sizes_are_refused():
    odd = [(torch.zeros(3, 24, 30), torch.zeros(3, 24, 31))]
    grey = [(torch.zeros(3, 24, 30), torch.zeros(3, 24, 30)), (torch.zeros(1, 24, 30), torch.zeros(1, 24, 30))]
    three = [tuple(torch.zeros(2, 3, 24, 30)), tuple(torch.zeros(3, 3, 24, 30))]
    ragged = np.empty(2, object)
    ragged[:] = [np.zeros((3, 8, 8)), np.zeros((3, 8, 9))]
    for images in (odd, grey, three, ragged):
        with pytest.raises(
            ExplanationError, match=r"of the shapes \(.*\) and \(.*\) stand in one list: resize or crop"
        ):
            explain(network_of(), images, 0.5)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: [(str(path), str(path))],
        lambda path: [(path, path)],
        lambda path: str(path),
        lambda path: np.array([[str(path), str(path)]]),
        lambda path: [(Image.new("RGB", (30, 24)), Image.new("L", (30, 24)))],
        lambda path: Image.new("RGB", (30, 24)),
    ],
)
def test_files_and_opened_files_are_sent_to_from_files(make, tmp_path):
    with pytest.raises(
        ExplanationError, match=r"pass FromFiles\(network, load, threshold\)\.explain\(\(path1, path2\)"
    ):
        explain(network_of(), make(tmp_path / "one.png"), 0.5)


@pytest.mark.parametrize("images", [None, 3, {"image1": 1}, {1, 2}, iter([1]), [(None, None)]])
def test_anything_else_is_refused(images):
    with pytest.raises(ExplanationError, match=r"are refused: pass|must be"):
        explain(network_of(), images, 0.5)


def test_references_are_made_of_the_same_containers():
    network, tensor = network_of(), pairs().flatten(0, 1)
    expected = embed_references(network, tensor).embeddings
    for images in (tensor.numpy(), list(tensor), list(tensor.numpy()), tensor.double().numpy()):
        assert torch.equal(embed_references(network, images).embeddings, expected)
    for wrong, cause in {
        "pairs": (pairs(), r"pairs\.flatten\(0, 1\) of pairs"),
        "grey": (tensor[:, 0], r"images\[:, None\] of grey ones"),
        "bytes": (tensor.byte(), "images of torch.uint8 are refused"),
        "last": (tensor.movedim(1, -1).numpy(), r"np\.moveaxis\(images, -1, -3\)"),
        "files": (["a.png"], "FromFiles"),
    }.values():
        with pytest.raises(ExplanationError, match=cause):
            embed_references(network, wrong)
    assert images_for(network, tensor) is tensor


def test_references_are_vectors_with_a_name_each():
    vectors = torch.randn(5, 8)
    for wrong in (vectors.numpy(), vectors[0], vectors.long(), vectors.tolist()):
        with pytest.raises(ExplanationError, match=r"must be a float tensor \(R, D\)"):
            References(wrong)
    with pytest.raises(ExplanationError, match="4 names of 5 embeddings"):
        References(vectors, ("a", "b", "c", "d"))
    assert References(vectors).names == ()
    for dimensions in (1, 8):  # one would be taken for all
        with pytest.raises(ExplanationError, match=f"embeddings of {dimensions} dimensions, .* have 5: pass embed_ref"):
            explain(network_of(), pairs(), 1.9, References(torch.randn(4, dimensions)), method="contrastive")


def test_an_explanation_is_of_tensors():
    parts = {"images": torch.zeros(1, 2, 3, 8, 8), "distance": torch.ones(1), "threshold": 0.5}
    parts |= {"towards_different": torch.zeros(1, 2, 8, 8), "towards_same": torch.zeros(1, 2, 8, 8)}
    for name in ("images", "distance", "towards_different", "towards_same"):
        with pytest.raises(ExplanationError, match=f"^{name}: ndarray is refused: pass a tensor"):
            Explanation(**parts | {name: parts[name].numpy()})
    for images in (torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 3, 8, 8)):
        with pytest.raises(ExplanationError, match=r"must be \(B, 2, C, H, W\)"):
            Explanation(**parts | {"images": images})


@pytest.mark.parametrize("container", CONTAINERS)
def test_distances_of_images_in_any_container(container):
    network = network_of()
    with torch.no_grad():
        ones, others = network(pairs()[:, 0]), network(pairs()[:, 1])
    expected = (ones - others).norm(dim=1)
    torch.testing.assert_close(distances_of(network, CONTAINERS[container](pairs())), expected, atol=1e-5, rtol=0)


def test_distances_of_what_holds_no_pairs():
    for images, message in ((pairs()[:, 0], "two images of C channels"), (["a.jpg", "b.jpg"], "FromFiles")):
        with pytest.raises(ExplanationError, match=message):
            distances_of(network_of(), images)
