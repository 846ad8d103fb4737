"""What modules of users take, return and run again: right, or one error whose cure is followed here."""

import copy
import re
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from utils import Cut, explain


class Plain(nn.Module):
    """A map, its mean over places, an embedding."""

    def __init__(self, before=lambda images: images, behind=lambda vectors: vectors):
        super().__init__()
        torch.manual_seed(0)
        self.map = nn.Sequential(nn.Conv2d(3, 8, 8, stride=8), nn.Tanh())
        self.head = nn.Linear(8, 4)
        self.before = before
        self.behind = behind

    def embed(self, images):
        return self.head(self.map(self.before(images)).square().mean(dim=(2, 3)))

    def forward(self, images):
        return self.behind(self.embed(images))


def pair():
    torch.manual_seed(1)
    return torch.rand(1, 2, 3, 64, 64)


def explanation_of(module, images=None, **cut):
    return explain(Cut(module.eval(), "map", **cut), pair() if images is None else images, 0.5)


# Layers whose output is no map


class WithWeights(nn.Module):
    """As attention of transformers: the result and its weights."""

    def __init__(self, first):
        super().__init__()
        self.first = first

    def forward(self, maps):
        return self.first(maps), None


class Codes(nn.Module):
    """As a codebook: the number of the strongest channel."""

    def forward(self, maps):
        return maps.argmax(dim=1)


class Behind(Plain):
    def __init__(self, layer, take):
        super().__init__()
        self.layer = layer
        self.take = take

    def embed(self, images):
        maps = self.map(images)
        return self.head((maps + self.take(self.layer(maps))).square().mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("layer", "take", "given"),
    [
        (WithWeights(nn.Tanh()), lambda output: output[0], "tuple"),
        (Codes(), lambda output: output[:, None], "torch.int64"),
        (nn.Identity(), lambda output: output, ""),
    ],
)
def test_a_layer_that_gives_no_tensor_of_real_numbers(layer, take, given):
    module = Behind(layer, take).eval()
    if given:
        message = rf"'layer' of Behind gives {given}, not one tensor of real numbers. Layers whose maps have .*: map"
        with pytest.raises(ValueError, match=message):
            explain(Cut(module, "layer"), pair(), 0.5)
    assert explanation_of(module).evidence.any()  # the cure


def test_one_layer_alone():
    module = Plain()
    with pytest.raises(ValueError, match=r"(?s)Plain has no layer \[.*it has map"):
        Cut(module, [module.map, module.map[0]])
    with pytest.raises(ValueError, match=r"Plain has no layer None: it has map, map\.0, map\.1, head$"):
        Cut(module, None)


def test_a_copy_whose_function_calls_the_first_module():
    module = Plain().eval()
    network = Cut(module, "map", forward=lambda images: module(images))
    explain(network, pair(), 0.5)
    message = "'map' of Plain runs 0 times: name one that runs once, of this module itself: forward= may call a copy"
    for copied in (copy.deepcopy(network), Cut(copy.deepcopy(module), "map", forward=module)):
        with pytest.raises(ValueError, match=message):
            explain(copied, pair(), 0.5)
    same = copy.deepcopy(Cut(module, "map", forward=module.embed))  # a method is copied with its module
    torch.testing.assert_close(explain(same, pair(), 0.5).evidence, explain(network, pair(), 0.5).evidence)


def test_a_layer_that_runs_for_some_images_alone():
    class Sometimes(Plain):
        def embed(self, images):
            return super().embed(images) if images.max() < 2 else self.head(images.mean(dim=(2, 3)).repeat(1, 3)[:, :8])

    network = Cut(Sometimes().eval(), "map")
    assert explain(network, pair(), 0.5).evidence.any()
    with pytest.raises(ValueError, match=r"'map' of Sometimes runs 0 times: name one that runs once"):
        explain(network, 3 * pair(), 0.5)


# Which of several tensors is the embedding


@pytest.mark.parametrize(
    ("behind", "code"),
    [
        (lambda vectors: (vectors, vectors[:, :, None, None].expand(-1, -1, 3, 3)), "[0]"),
        (lambda vectors: {"map": vectors[:, :, None], "pooled": vectors}, "['pooled']"),
        (lambda vectors: (vectors.sum(), {"deep": [vectors]}), "[1]['deep'][0]"),
    ],
)
@pytest.mark.parametrize("as_function", [False, True])
def test_several_tensors_are_named_in_code(behind, code, as_function):
    module = Plain(behind=behind).eval()
    cut = {"forward": module.__call__} if as_function else {}
    with pytest.raises(ValueError, match=rf"returns 2 tensors \(.*{re.escape(code)} \(1, 4\).*: pass forward="):
        explanation_of(module, **cut)
    found = explanation_of(module, forward=eval(f"lambda images: module(images){code}", {"module": module}))
    torch.testing.assert_close(found.evidence, explanation_of(Plain()).evidence)


# Numbers of pairs and types of numbers


@pytest.mark.parametrize("method", ["gradcam", "contrastive", "occlusion"])
def test_no_pairs_have_no_explanations(method):
    network = Cut(Plain().eval(), "map")
    assert len(explain(network, pair()[:0], 0.5, method=method)) == 0
    found = explain(network, pair(), 0.5, method=method)
    expected = explain(Cut(Plain().eval(), "map"), pair(), 0.5, method=method)
    torch.testing.assert_close(found.evidence, expected.evidence)


def test_a_module_moved_to_another_type_after_its_first_images():
    module = Plain().eval()
    network = Cut(module, "map")
    single = explain(network, pair(), 0.5)
    network.double()
    double = explain(network, pair().double(), 0.5)
    torch.testing.assert_close(double.evidence.float(), single.evidence, atol=1e-6, rtol=1e-4)
    with pytest.raises(ValueError, match=r"weights are torch.float64: pass images\.to\(torch\.float64\)$"):
        explain(network, pair(), 0.5)
    network.float()
    torch.testing.assert_close(explain(network, pair(), 0.5).evidence, single.evidence)


# Parts that record gradients or do not


class Switching(Plain):
    """Two ways from the map, which a part that records no gradients makes; each may be switched on again."""

    def __init__(self, around, first, second):
        super().__init__()
        self.deeper = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Tanh())
        self.around = around
        self.first = first
        self.second = second

    def embed(self, images):
        with self.around():
            maps = self.map(images)
        with self.first():
            one = self.deeper(maps).square().mean(dim=(2, 3))
        with self.second():
            return self.head(maps.square().mean(dim=(2, 3)) + one)


SWITCHES = [
    (nullcontext, nullcontext, nullcontext),
    (torch.no_grad, nullcontext, nullcontext),
    (torch.no_grad, nullcontext, torch.enable_grad),
    (torch.enable_grad, torch.enable_grad, nullcontext),
]


@pytest.mark.parametrize("method", ["hirescam", "contrastive"])
@pytest.mark.parametrize("switches", SWITCHES)
def test_gradients_flow_whatever_a_module_switches_around_the_layer(switches, method):
    found = explain(Cut(Switching(*switches).eval(), "map"), pair(), 0.5, method=method)
    plainly = Switching(*[nullcontext] * 3).eval()
    torch.testing.assert_close(found.evidence, explain(Cut(plainly, "map"), pair(), 0.5, method=method).evidence)
    if method == "hirescam":
        maps = plainly.map(pair()[0]).detach().requires_grad_()
        plainly.map = nn.Identity()
        one, two = F.normalize(plainly(maps), dim=1)
        (gradient,) = torch.autograd.grad((one - two).norm(), maps)
        expected = F.interpolate((maps * gradient).sum(1, keepdim=True), size=64, mode="bilinear").detach()[:, 0]
        torch.testing.assert_close(found.evidence[0], expected, atol=1e-6, rtol=1e-3)


# Parts that run again in the backward pass


class Checkpointed(Plain):
    def embed(self, images):
        return checkpoint(super().embed, images, use_reentrant=False)


class Counting(Checkpointed):
    """It runs with as many images as there are maps, so that what it makes of them anew would fit."""

    def forward(self, images):
        return super().forward(images).view(len(images), 4)


class Further(Counting):
    """Another part behind the one that runs again."""

    def embed(self, images):
        return checkpoint(nn.Sequential(self.head, nn.Tanh()), self.pooled(images), use_reentrant=False)

    def pooled(self, images):
        return checkpoint(lambda images: self.map(images).square().mean(dim=(2, 3)), images, use_reentrant=False)


@pytest.mark.parametrize("build", [Checkpointed, Counting, Further])
def test_a_layer_that_gradient_checkpointing_runs_again(build):
    with pytest.raises(ValueError, match="gradient checkpointing runs the layer again"):
        explanation_of(build())


# Images that are cropped inside


@pytest.mark.parametrize(
    ("before", "side"),
    [
        (lambda images: images[:, :, :-16], "bottom"),
        (lambda images: images[..., :-16], "right"),
        (lambda images: images[:, :, :32, :32], "bottom"),
        (lambda images: F.interpolate(images[..., :48], 64), "right"),
    ],
)
def test_images_cropped_at_their_ends(before, side):
    with pytest.raises(ValueError, match=f"does not depend on the {side} of the image: the module crops images"):
        explanation_of(Plain(before))
    assert explanation_of(Plain(), before(pair()[0])[None]).evidence.any()  # the cure


@pytest.mark.parametrize("side", [64, 67, 71])
def test_a_stride_that_leaves_out_some_pixels_crops_nothing(side):
    assert explanation_of(Plain(), torch.rand(1, 2, 3, side, side)).evidence.any()
