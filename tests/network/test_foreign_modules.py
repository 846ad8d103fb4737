"""Modules as users bring them: explained correctly, or refused with what was observed and a cure that works.

What is accepted is held against plain hooks and a full backward pass, or against the same module written plainly.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from utils import Cut, explain
from utils.network.distance import distances_of, unit
from utils.network.places import measure_layout


class Plain(nn.Module):
    """A map, its mean over places, an embedding; with functions before the map and behind it."""

    def __init__(self, before=lambda images: images, behind=lambda vectors: vectors, channels=3):
        super().__init__()
        torch.manual_seed(0)
        self.map = nn.Sequential(nn.Conv2d(channels, 8, 8, stride=8), nn.Tanh())
        self.head = nn.Linear(8, 4)
        self.before = before
        self.behind = behind

    def embed(self, images):
        return self.head(self.map(self.before(images)).mean(dim=(2, 3)))

    def forward(self, images):
        return self.behind(self.embed(images))


def pair(low=0.0, high=1.0):
    torch.manual_seed(1)
    return low + (high - low) * torch.rand(1, 2, 3, 64, 64)


def plain_evidence(module, images, layer="map"):
    """HiResCAM of the distance by a plain hook and a full backward pass, for a layer of maps (N, C, h, w)."""
    maps = []
    handle = module.get_submodule(layer).register_forward_hook(lambda _, __, output: maps.append(output))
    with torch.enable_grad():
        one, two = F.normalize(module(images[0]), dim=1)
        handle.remove()
        (gradient,) = torch.autograd.grad((one - two).norm(), maps)
    products = (maps[0] * gradient).sum(dim=1, keepdim=True)
    return F.interpolate(products, size=images.shape[3:], mode="bilinear").detach()[:, 0]


def assert_explained(module, images, like, layer="map", **cut):
    """The evidence at a layer of a module is that of a plain one."""
    explanation = explain(Cut(module, layer, **cut), images, 0.5, method="hirescam")
    assert explanation.evidence.any()
    torch.testing.assert_close(explanation.evidence[0], plain_evidence(like, images), atol=1e-6, rtol=1e-3)


# Two inputs


class Twin(Plain):
    def forward(self, image1, image2):
        return self.embed(image1), self.embed(image2)

    def forward_once(self, images):
        return self.embed(images)


class Triplet(Plain):
    def forward(self, anchor, positive, negative):
        return self.embed(anchor), self.embed(positive), self.embed(negative)


class ImageAndText(Plain):
    """As CLIP: its inputs have defaults, so that only a call tells."""

    def forward(self, tokens=None, images=None):
        return F.embedding(tokens, self.head.weight)

    def get_image_features(self, images, scale=1.0):
        return scale * self.embed(images)


@pytest.mark.parametrize(
    ("build", "function", "message"),
    [
        (Twin, "forward_once", r"Twin fails on images .*missing 1 required .*'image2'.*function of images as forward="),
        (Triplet, "embed", r"Triplet fails on images .*missing 2 required .*'positive' and 'negative'.*forward="),
        (ImageAndText, "get_image_features", r"ImageAndText fails on images \(1, 3, 64, 64\).*forward="),
    ],
)
def test_more_than_one_input(build, function, message):
    module = build().eval()
    with pytest.raises(ValueError, match=message):
        explain(Cut(module, "map"), pair(), 0.5)
    assert_explained(module, pair(), Plain(), forward=getattr(module, function))


def test_a_function_that_takes_the_embedding_out_of_what_a_module_returns():
    module = Plain(behind=lambda vectors: {"logits": vectors[:, :2], "embedding": vectors}).eval()
    with pytest.raises(ValueError, match=r"returns 2 tensors .* pass forward=, a function that returns only"):
        explain(Cut(module, "map"), pair(), 0.5)
    assert_explained(module, pair(), Plain(), forward=lambda images: module(images)["embedding"])
    with pytest.raises(ValueError, match=r"Plain fails on images .*missing 1 required positional argument: 'text'"):
        explain(Cut(module, "map", forward=lambda images, text: module(images)), pair(), 0.5)


# The layer itself


def test_a_layer_given_as_itself():
    module = Plain().eval()
    for layer in ("map.1", module.map[1]):
        assert Cut(module, layer).layer == "map.1"
    assert_explained(module, pair(), Plain(), layer=module.map)
    with pytest.raises(ValueError, match="layer: this Tanh is no part of Plain: pass a part of the same module"):
        Cut(module, nn.Tanh())
    with pytest.raises(ValueError, match="layer: this Plain is no part of Plain"):
        Cut(module, module)
    with pytest.raises(ValueError, match="Plain has no layer 'maps': did you mean 'map'"):
        Cut(module, "maps")


# Gradients that a module stops


class Frozen(Plain):
    """The usual frozen backbone under a trained head."""

    def __init__(self, context):
        super().__init__()
        self.context = context

    def embed(self, images):
        with self.context():
            maps = self.map(images)
        return self.head(maps.mean(dim=(2, 3)))


class FrozenFurther(Frozen):
    """The map is not the last that the frozen part makes."""

    def embed(self, images):
        with self.context():
            vectors = self.map(images).mean(dim=(2, 3))
        return self.head(vectors)


@pytest.mark.parametrize(
    ("build", "context"),
    [(Frozen, torch.no_grad), (FrozenFurther, torch.no_grad), (Frozen, torch.inference_mode)],
)
def test_a_backbone_that_is_frozen_inside_the_module(build, context):
    module = build(context).eval()
    assert_explained(module, pair(), Plain())
    explanation = explain(Cut(module, "map"), pair(), 0.5)
    torch.testing.assert_close(explanation.distance, distances_of(Cut(Plain(), "map"), pair()))


def rounded(vectors):
    return torch.from_numpy(vectors.detach().numpy())


@pytest.mark.parametrize(
    "module",
    [
        Plain(behind=torch.Tensor.detach),
        Plain(behind=rounded),
        Plain(behind=lambda vectors: F.one_hot(vectors.argmax(dim=1), 4).float()),
        Plain(behind=lambda vectors: torch.tensor(vectors.tolist())),
    ],
)
def test_no_gradient_behind_the_layer(module):
    with pytest.raises(ValueError, match=r"'map' of .* has no gradient behind it .*not require grad.*\(torch.no_grad"):
        explain(Cut(module.eval(), "map"), pair(), 0.5)


def test_inference_mode_that_ends_behind_the_layer():
    with pytest.raises(ValueError, match=r"gradient behind it that torch can compute.*use `torch.no_grad\(\)` instead"):
        explain(Cut(FrozenFurther(torch.inference_mode).eval(), "map"), pair(), 0.5)


@pytest.mark.parametrize(
    ("behind", "message"),
    [
        (torch.zeros_like, "Plain gives embeddings that are not finite, or all zeros"),
        (
            lambda vectors: vectors * 0 + 1,
            "no place of layer 'map' of Plain counts for the embedding: it depen",
        ),
        (lambda vectors: (100 * vectors).round() + 1000, "no place of layer 'map' of Plain counts for the embedding"),
    ],
)
def test_an_embedding_that_does_not_follow_the_map(behind, message):
    with pytest.raises(ValueError, match=message):
        explain(Cut(Plain(behind=behind).eval(), "map"), pair(), 0.5)


@pytest.mark.parametrize("method", ["gradcam", "contrastive", "occlusion"])
@pytest.mark.parametrize("made_inside", [False, True])
def test_inference_mode_around_all(method, made_inside):
    expected = explain(Cut(Plain().eval(), "map"), pair(), 0.5, method=method)
    network = Cut(Plain().eval(), "map")
    images = pair()
    with torch.inference_mode():
        images = pair() if made_inside else images
        found = explain(network, images, 0.5, method=method)
        assert torch.is_inference_mode_enabled()
    torch.testing.assert_close(found.evidence, expected.evidence)
    torch.testing.assert_close(found.distance, expected.distance)


class Checkpointed(Plain):
    def __init__(self, reentrant, around):
        super().__init__()
        self.reentrant = reentrant
        self.around = around

    def embed(self, images):
        if self.around == "head":
            return checkpoint(self.head, self.map(images).mean(dim=(2, 3)), use_reentrant=self.reentrant)
        return checkpoint(super().embed, images, use_reentrant=self.reentrant)


def test_checkpointing_is_right_or_refused():
    assert_explained(Checkpointed(False, "head").eval(), pair(), Plain())
    with pytest.raises(ValueError, match="has no gradient behind it"):
        explain(Cut(Checkpointed(False, "all").eval(), "map"), pair(), 0.5)
    for around, message in (("head", "that torch can compute: .*heckpoint"), ("all", "not require grad")):
        with (
            pytest.warns(UserWarning, match="None of the inputs have requires_grad"),
            pytest.raises(ValueError, match=f"has no gradient behind it.*{message}"),
        ):
            explain(Cut(Checkpointed(True, around).eval(), "map"), pair(), 0.5)


# Compiled modules


def test_compiled_modules():
    module = Plain().eval()
    with pytest.warns(DeprecationWarning, match=r"torch\.jit"):
        traced = torch.jit.trace(module, pair()[0])
    with pytest.warns(DeprecationWarning, match=r"torch\.jit"):
        scripted = torch.jit.script(nn.Sequential(module.map, nn.Flatten()))
    for compiled in (traced, scripted):
        layer = next(name for name, _ in compiled.named_modules() if name)
        with pytest.raises(ValueError, match=r"was compiled by torch\.jit, which hides its layers: pass the"):
            Cut(compiled, layer)
    inside = nn.Sequential(scripted, nn.Unflatten(1, (8, 8, 8)), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match=r"compiled by torch\.jit"):
        Cut(inside, "0.0.0")
    assert explain(Cut(inside, "1"), pair(), 0.5).evidence.any()
    assert_explained(torch.compile(module, backend="eager"), pair(), Plain())


# Outputs


@pytest.mark.parametrize(
    "behind",
    [
        torch.squeeze,
        lambda vectors: vectors[:, :, None, None].squeeze(),
        lambda vectors: (vectors.squeeze(0),),
        lambda vectors: {"embedding": vectors[0] if len(vectors) == 1 else vectors},
    ],
)
def test_a_module_that_squeezes_its_output(behind):
    module = Plain(behind=behind).eval()
    images = pair()
    network = Cut(module, "map")
    torch.testing.assert_close(network(images[0, :1]), Cut(Plain().eval(), "map")(images[0, :1]))
    torch.testing.assert_close(
        explain(network, images, 0.5).evidence, explain(Cut(Plain().eval(), "map"), images, 0.5).evidence
    )


@pytest.mark.parametrize(
    "behind",
    [
        lambda vectors: vectors[:, :1].sigmoid(),
        lambda vectors: vectors[:, 0],
        lambda vectors: vectors[:, :1].squeeze(),
        lambda vectors: vectors.norm(dim=1, keepdim=True)[:, :, None, None],
    ],
)
def test_one_number_an_image_is_refused(behind):
    network = Cut(Plain(behind=behind).eval(), "map")
    for call in (lambda: network(pair()[0]), lambda: explain(network, pair(), 0.5), lambda: network(pair()[0, :1])):
        with pytest.raises(ValueError, match="Plain returns one number an image, which has no direction"):
            call()


def test_outputs_that_are_not_one_row_an_image():
    for behind in (lambda vectors: vectors.mean(dim=0, keepdim=True), lambda vectors: vectors.repeat(3, 1)):
        with pytest.raises(ValueError, match=r"Plain returns \(\d, 4\) for \d images, no embeddings \(N, D\)"):
            Cut(Plain(behind=behind).eval(), "map")(pair()[0])


# Randomness


class NoisyMap(Plain):
    def embed(self, images):
        return self.head(self.map(images + torch.rand_like(images)).mean(dim=(2, 3)))


@pytest.mark.parametrize(
    "module",
    [
        Plain(behind=lambda vectors: F.dropout(vectors, 0.5)),
        Plain(behind=lambda vectors: vectors + 0.1 * torch.randn(4)),
        NoisyMap(),
    ],
)
def test_a_module_that_is_random_at_each_call(module):
    with pytest.raises(ValueError, match="is random at each call"):
        explain(Cut(module.eval(), "map"), pair(), 0.5)


# Ways around the layer


class Around(Plain):
    """A second branch, whose weight beside the layer depends on the values of the images."""

    def __init__(self, before, side):
        super().__init__(before)
        self.side = side

    def embed(self, images):
        return super().embed(images) + self.side(self.before(images))


def mean_colour(images):
    return F.pad(images.mean(dim=(2, 3)), (0, 1))


@pytest.mark.parametrize(
    ("before", "side", "high"),
    [
        (lambda images: (images / 255 - 0.45) / 0.225, mean_colour, 255),
        (lambda images: images / 65535, lambda images: 3 * mean_colour(images), 65535),
        (lambda images: images, lambda images: mean_colour(images).detach(), 1),
        (lambda images: images, lambda images: (images > 0.5).float().mean(dim=(2, 3)).sum(1, keepdim=True), 1),
    ],
)
def test_another_path(before, side, high):
    for seed in range(5):
        torch.manual_seed(seed)
        images = high * F.interpolate(torch.rand(2, 3, 5, 5), size=64, mode="bilinear")[None]
        with pytest.raises(ValueError, match="'map' of Around is not all that the embedding depends on"):
            explain(Cut(Around(before, side).eval(), "map"), images, 0.5)


def test_another_path_that_opens_for_some_images_alone():
    """The first pair does not show it; the distance of the second is held against the module itself."""

    def if_red(images):
        red = images[:, 0].mean(dim=(1, 2)) > 5
        return red[:, None] * mean_colour(images)

    network = Cut(Around(lambda images: images, if_red).eval(), "map")
    assert explain(network, pair(), 0.5).evidence.any()
    red = pair()
    red[:, 1, 0] += 6
    for method in ("gradcam", "contrastive", "path_layercam"):
        with pytest.raises(ValueError, match="'map' of Around is not all that the embeddings of these images dep"):
            explain(network, red, 0.5, method=method)


# What a module accepts


def in_range(low, high):
    def check(images):
        assert images.min() >= low, f"images must be at least {low}"
        assert images.max() <= high, f"images must be at most {high}"
        return images

    return check


def cropped(images):
    rows = (images.abs().sum(dim=(0, 1, 3)) > 0).nonzero()
    return images[:, :, rows.min() : rows.max() + 1]


def standardised(images):
    images = images - images.mean(dim=(1, 2, 3), keepdim=True)
    images = images / images.std(dim=(1, 2, 3), keepdim=True)
    if not images.isfinite().all():
        raise ValueError("input has NaN")
    return images


@pytest.mark.parametrize(
    ("before", "low", "high"),
    [
        (lambda images: images**2.2, 0, 1),
        (in_range(0, 1), 0, 1),
        (cropped, 0, 1),
        (standardised, 0, 1),
        (torch.log, 1, 255),
        (torch.sqrt, 0, 255),
        (lambda images: in_range(0, 255)(images) / 127.5 - 1, 0, 255),
        (lambda images: in_range(-1, 1)(images).acos(), -0.9, 0.9),
    ],
)
@pytest.mark.parametrize("method", ["gradcam", "contrastive"])
def test_modules_that_take_values_of_a_range_alone(before, low, high, method):
    module = Plain(before).eval()
    images = pair(low, high)
    explanation = explain(Cut(module, "map"), images, 0.5, method=method)
    with torch.no_grad():
        one, two = F.normalize(module(images[0]), dim=1)
    assert explanation.distance.item() == pytest.approx((one - two).norm().item(), abs=1e-5)
    if method == "gradcam":
        assert_explained(module, images, module)


def test_a_module_that_takes_no_changed_copy_says_so():
    def smooth(images):
        assert images.diff(dim=3).abs().max() < 0.5, "images must be smooth"
        return images

    images = F.interpolate(torch.rand(2, 3, 3, 3), size=64, mode="bilinear")[None]
    with pytest.raises(ValueError, match=r"cannot be measured: Plain takes the image, but fails on copies.*be smooth"):
        explain(Cut(Plain(smooth).eval(), "map"), images, 0.5)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(1, 2, 4, 64, 64), r"Plain fails on images \(1, 4, 64, 64\) of torch.float32, values from 0"),
        (torch.rand(1, 2, 3, 64, 64).double(), r"Plain fails on images \(1, 3, 64, 64\) of torch.float64"),
        (torch.rand(1, 2, 3, 5, 5), r"Plain fails on images \(1, 3, 5, 5\).*Kernel size can't be greater"),
        (torch.full((1, 2, 3, 64, 64), torch.nan), "not finite|NaN"),
    ],
)
def test_images_that_a_module_does_not_take(images, message):
    with pytest.raises(ValueError, match=message):
        explain(Cut(Plain().eval(), "map"), images, 0.5)


# Places that are not those of the image


@pytest.mark.parametrize(
    ("before", "message"),
    [
        (lambda images: images[:, :, 8:-8, 8:-8], "does not depend on the top of the image: the module crops images"),
        (lambda images: images[:, :, :, 4:-4], "does not depend on the left of the image: the module crops images"),
        (lambda images: F.interpolate(images[:, :, 8:56, 8:56], 64), "does not depend on the top of the image"),
        (lambda images: F.pad(images, (0, 64, 0, 64)), "whole rows or columns of it answer to nothing: images are pad"),
        (lambda images: images.flip(3), r"do not answer to their parts of the image \(correlation "),
        (lambda images: images.mT, "do not answer to their parts of the image"),
        (lambda images: images.roll(32, dims=2), "do not answer to their parts of the image"),
        (
            lambda images: images[:, :, torch.arange(64).view(8, 8).T.flatten()],
            "do not answer to their parts of the image",
        ),
    ],
)
def test_misplaced_maps(before, message):
    with pytest.raises(ValueError, match=f"layer 'map' of Plain .*{message}"):
        explain(Cut(Plain(before).eval(), "map"), pair(), 0.5)


def test_other_sizes_of_images_are_read_like_the_first():
    module = Plain().eval()
    network = Cut(module, "map")
    for size in ((64, 64), (64, 96), (40, 40), (64, 64)):
        images = torch.rand(1, 2, 3, *size)
        found = explain(network, images, 0.5, method="hirescam")
        torch.testing.assert_close(found.evidence[0], plain_evidence(module, images), atol=1e-6, rtol=1e-3)
    small, large = (network.features(torch.rand(2, 3, side, side)) for side in (40, 64))
    assert unit(network.project_features(small)).shape == unit(network.project_features(large)).shape == (2, 4)


@pytest.mark.parametrize("seed", [6, 15, 27, 31])
def test_an_image_nearly_of_one_colour_tells_the_places_too(seed):
    """Its places answer to the wrong bands: noise is tried then."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Conv2d(3, 8, 16, stride=16))
    for _ in range(3):
        module.extend([nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)])
    image = torch.full((1, 3, 64, 64), 2.0)
    image[..., 20:44, 20:44] = -1
    layout = measure_layout(module.eval(), image)
    assert (layout.grid, layout.channels_last, layout.tokens) == ((4, 4), False, None)
