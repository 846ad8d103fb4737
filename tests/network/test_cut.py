"""Any torch module, cut at a layer: against the module itself, and against hooks and a full backward pass."""

from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F
from helpers import warmed
from torch import nn
from torchvision import models

from utils import Cut, decompose, explain, judge, smallest_edit
from utils.config import ConfigError
from utils.explanations.methods import METHODS
from utils.network.distance import unit
from utils.network.siamese import SiameseNetwork


class Returning(nn.Module):
    """A small network whose output comes as `form` says, of length 1 or not."""

    def __init__(self, form, scale=7.0):
        super().__init__()
        self.map = nn.Sequential(nn.Conv2d(3, 6, 5, stride=4, padding=2), nn.ReLU())
        self.head = nn.Linear(6, 5)
        self.form = form
        self.scale = scale

    def forward(self, images):
        return self.form(self.scale * self.head(self.map(images).mean(dim=(2, 3))))


FORMS = {
    "tensor": lambda vectors: vectors,
    "tuple": lambda vectors: (vectors,),
    "list with more in it": lambda vectors: [None, "text", vectors],
    "dict": lambda vectors: {"embedding": vectors},
    "object": lambda vectors: SimpleNamespace(embedding=vectors, loss=None),
    "map of one place": lambda vectors: vectors[:, :, None, None],
}


def resnet():
    module = models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1])
    module.fc = nn.Identity()
    return warmed(module)


def pairs_for(module, count=2, size=64):
    torch.manual_seed(1)
    return torch.randn(count, 2, 3, size, size)


@pytest.mark.parametrize("form", FORMS)
def test_the_embedding_is_the_output_at_length_1(form):
    torch.manual_seed(0)
    module = Returning(FORMS[form])
    images = torch.randn(4, 3, 16, 16)
    network = Cut(module, layer="map")
    expected = F.normalize(module.head(module.map(images).mean(dim=(2, 3))), dim=1)
    torch.testing.assert_close(network(images), expected)
    features = network.features(images)
    torch.testing.assert_close(features, module.map(images))
    torch.testing.assert_close(unit(network.project_features(features)), expected)
    torch.testing.assert_close(unit(network.project_features(features.repeat(3, 1, 1, 1))), expected.repeat(3, 1))


@pytest.mark.parametrize(
    "method", sorted(set(METHODS) - {"contrastive", "thorough"})
)  # whose vectors are of any length
def test_a_siamese_network_in_a_cut_is_explained_as_it_is_itself(method):
    torch.manual_seed(0)
    network = warmed(SiameseNetwork("test_resnet", 8)).double()  # Grad-CAM++ divides by next to nothing
    images = pairs_for(network, size=48).double()
    own = explain(network, images, 0.5, method=method, layer="layer2")
    cut = explain(Cut(network, layer="backbone.layer2"), images, 0.5, method=method)
    torch.testing.assert_close(cut.evidence, own.evidence, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(cut.distance, own.distance)
    assert cut.layer == ("" if method == "occlusion" else "backbone.layer2")


def test_gradients_against_finite_differences():
    torch.manual_seed(0)
    module = Returning(FORMS["tuple"]).double()
    network = Cut(module, layer="map")
    images = torch.randn(1, 2, 3, 16, 16, dtype=torch.float64)
    features = network.features(images[0]).detach()
    found = explain(network, images, 0.5, method="hirescam").evidence
    scores = torch.zeros(4, 4, dtype=torch.float64)
    step = 1e-6
    for y in range(4):
        for x in range(4):
            for channel in range(6):
                values = []
                for sign in (1, -1):
                    moved = features.clone()
                    moved[0, channel, y, x] += sign * step
                    one, two = unit(network.project_features(moved)).detach()
                    values.append((one - two).norm().item())
                slope = (values[0] - values[1]) / (2 * step)
                scores[y, x] += slope * features[0, channel, y, x]
    expected = F.interpolate(scores[None, None], size=(16, 16), mode="bilinear")[0, 0]
    torch.testing.assert_close(found[0, 0], expected, atol=1e-7, rtol=1e-5)


def test_a_resnet_from_map_to_verdict_and_counterfactual(device):
    module = resnet().to(device)
    images = pairs_for(module, count=1, size=48).to(device)
    network = Cut(module, layer="layer4")
    explanation = explain(network, images, 0.5, method="gradcam")
    assert explanation.layer == "layer4"
    with torch.no_grad():
        one, two = F.normalize(module(images[0]), dim=1)
    assert explanation.distance.item() == pytest.approx((one - two).norm().item(), abs=1e-5)
    assert len(judge(network, explanation)) == 1
    found = smallest_edit(network, explanation)
    with torch.no_grad():
        one, two = F.normalize(module(found.edited), dim=1)
    assert found.distance == pytest.approx((one - two).norm().item(), abs=1e-4)
    assert abs(decompose(network, explanation).residual) < 1e-5


def test_everything_stays_as_it_was():
    module = resnet().train()
    module.layer1.eval()
    module.conv1.weight.grad = torch.ones_like(module.conv1.weight)
    module.layer2.requires_grad_(False)
    calls = []
    module.layer4.register_forward_hook(lambda *_: calls.append(1))
    modes = [part.training for part in module.modules()]
    state = {name: value.clone() for name, value in module.state_dict().items()}
    explanation = explain(Cut(module, layer="layer4"), pairs_for(module), 0.5)
    assert calls
    assert [part.training for part in module.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert torch.equal(module.conv1.weight.grad, torch.ones_like(module.conv1.weight))
    assert module.layer4[0].conv1.weight.grad is None
    assert not module.layer2[0].conv1.weight.requires_grad
    assert sum(len(part._forward_hooks) for part in module.modules()) == 1
    assert not explanation.evidence.requires_grad


def test_a_failing_module_leaves_no_hook():
    module = Returning(lambda vectors: 1 / 0)
    message = r"Returning fails on images \(1, 3, 16, 16\) of torch.float32, values from 0 to 0: ZeroDivisionError: div"
    with pytest.raises(ValueError, match=message):
        Cut(module, layer="map").features(torch.zeros(2, 3, 16, 16))
    assert not module.map._forward_hooks


class InPlace(nn.Module):
    """Goes on in place behind its layer, as DenseNet does."""

    def __init__(self):
        super().__init__()
        self.map = nn.Conv2d(3, 4, 3)

    def forward(self, images):
        return F.relu(self.map(images), inplace=True).mean(dim=(2, 3))


def test_a_module_that_goes_on_in_place():
    torch.manual_seed(0)
    module = InPlace()
    images = torch.randn(2, 3, 9, 9)
    assert (Cut(module, layer="map").features(images) < 0).any()  # as they were before
    assert explain(Cut(module, layer="map"), images[None], 0.5, method="hirescam").evidence.any()


class Around(nn.Module):
    """A second way leads around the layer."""

    def __init__(self):
        super().__init__()
        self.map = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, images):
        return (self.map(images) + images).amax(dim=(2, 3))


class ChannelsLast(Returning):
    """A map as Swin has it, (N, h, w, C)."""

    def __init__(self):
        super().__init__(FORMS["tensor"])
        self.turned = nn.Identity()

    def forward(self, images):
        return self.head(self.turned(self.map(images).movedim(1, -1)).mean(dim=(1, 2)))


class ClassToken(nn.Module):
    """A transformer's last block: only the token in front is read."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 16, stride=16)
        self.block = nn.Identity()

    def forward(self, images):
        tokens = self.patches(images).flatten(2).mT
        return self.block(torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1))[:, 0]


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.map = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, images):
        return self.map(self.map(images)).mean(dim=(2, 3))


@pytest.mark.parametrize(
    ("build", "layer", "message"),
    [
        (lambda: Returning(lambda vectors: (vectors, vectors)), "map", "returns 2 tensors .* pass forward="),
        (lambda: Returning(lambda vectors: "text"), "map", "returns 0 tensors"),
        (
            lambda: Returning(lambda vectors: vectors[:, :, None].expand(-1, -1, 3)),
            "map",
            r"no embeddings \(N, D\): pool",
        ),
        (
            lambda: Returning(FORMS["tensor"]),
            "head",
            r"gives \(1, 5\) for one image of 64 x 64, which is no map. Layers whose maps have places: map",
        ),
        (Around, "map", "is not all that the embedding depends on"),
        (Twice, "map", "runs 2 times"),
        (ClassToken, "block", "no place of layer 'block' of ClassToken counts for the embedding"),
    ],
)
def test_what_a_module_lacks_is_said(build, layer, message):
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=message):
        explain(Cut(build(), layer=layer), torch.randn(1, 2, 3, 64, 64), 0.5)


def test_channels_that_come_last_are_the_same_map():
    torch.manual_seed(0)
    module = ChannelsLast()
    images = torch.randn(1, 2, 3, 64, 64)
    last = explain(Cut(module, layer="turned"), images, 0.5, method="gradcam")
    first = explain(Cut(module, layer="map"), images, 0.5, method="gradcam")
    torch.testing.assert_close(last.evidence, first.evidence)


@pytest.mark.parametrize("pooling", ["token", "avg"])
def test_a_bare_vision_transformer_of_timm(pooling):
    """Gradients at a block against a full backward pass through hooks of timm's own model."""
    torch.manual_seed(0)
    module = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64, depth=4, global_pool=pooling)
    module.eval()
    images = torch.randn(1, 2, 3, 64, 64)
    explanation = explain(Cut(module, layer="blocks.2"), images, 0.5, method="hirescam")
    kept = []
    handle = module.blocks[2].register_forward_hook(lambda _, __, output: kept.append(output))
    one, two = F.normalize(module(images[0]), dim=1)
    handle.remove()
    (gradient,) = torch.autograd.grad((one - two).norm(), kept)
    products = (kept[0] * gradient).sum(dim=2)  # (2, 1 + 16): of each token
    everywhere = products[:, :1] / 16  # the class token belongs to all places alike
    expected = (products[:, 1:] + everywhere).reshape(2, 1, 4, 4)
    expected = F.interpolate(expected, size=(64, 64), mode="bilinear")[:, 0]
    torch.testing.assert_close(explanation.evidence[0], expected.detach(), atol=1e-6, rtol=1e-3)
    if pooling == "token":
        with pytest.raises(ValueError, match=r"no place of layer 'blocks\.3' of VisionTransformer counts"):
            explain(Cut(module, layer="blocks.3"), images, 0.5)


def test_a_way_around_the_layer_is_seen_with_a_blank_image_too():
    for seed in range(20):
        torch.manual_seed(seed)
        network = Cut(Around(), layer="map")
        for images in (torch.zeros(1, 2, 3, 16, 16), torch.randn(1, 2, 3, 16, 16)):
            with pytest.raises(ValueError, match="is not all that the embedding depends on"):
                explain(network, images, 0.5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_modules_of_other_precisions(dtype):
    torch.manual_seed(0)
    network = Cut(Returning(FORMS["tensor"]).to(dtype), layer="map")
    explanation = explain(network, torch.randn(1, 2, 3, 16, 16, dtype=dtype), 0.5)
    assert torch.isfinite(explanation.factual).all()
    assert abs(decompose(network, explanation).residual) < (1e-9 if dtype == torch.float64 else 0.02)


def test_layers_that_are_not_there():
    with pytest.raises(ValueError, match="no layer 'layer5': did you mean 'layer"):
        Cut(models.resnet18(), layer="layer5")
    network = Cut(Returning(FORMS["tensor"]), layer="map")
    with pytest.raises(ValueError, match=r"reads 'map': for 'layer2' make Cut\(module, layer='layer2'\)"):
        explain(network, torch.randn(1, 2, 3, 16, 16), 0.5, layer="layer2")
    with pytest.raises(ConfigError, match="output_stride: 16 needs a SiameseNetwork, not Cut"):
        explain(network, torch.randn(1, 2, 3, 16, 16), 0.5, output_stride=16)


def test_matches_need_average_pooling_and_one_linear_layer():
    class Deeper(Returning):
        def forward(self, images):
            return torch.tanh(super().forward(images))

    torch.manual_seed(0)
    images = torch.randn(1, 2, 3, 16, 16)
    network = Cut(Deeper(FORMS["tensor"]), layer="map")
    with pytest.raises(ValueError, match="average pooling and one linear layer behind 'map'"):
        decompose(network, explain(network, images, 0.5))
    network = Cut(Returning(FORMS["tensor"]), layer="map")
    assert abs(decompose(network, explain(network, images, 0.5)).residual) < 1e-5


@pytest.mark.parametrize("method", ["gradcam", "contrastive", "path_layercam"])
def test_a_map_of_one_place_is_refused_and_layers_with_places_are_named(method):
    """It would be 1.0 everywhere."""
    module = models.resnet18()
    module.fc = nn.Identity()
    images = torch.randn(1, 2, 3, 64, 64)
    message = r"layer 'avgpool' of ResNet gives maps of 1 x 1 for images of 64 x 64.*layer3, layer4$"
    with pytest.raises(ValueError, match=message):
        explain(Cut(module.eval(), layer="avgpool"), images, 0.5, method=method)
    message = "layer 'layer4' of ResNet gives maps of 1 x 1 for images of 32 x 32.*layer2, layer3$"  # as small ones are
    with pytest.raises(ValueError, match=message):
        explain(Cut(module, layer="layer4"), images[..., :32, :32], 0.5, method=method)


@pytest.mark.parametrize(
    ("name", "layer"),
    [("resnet10t", "global_pool.pool"), ("mobilenetv3_small_050", "blocks.0.0.se.conv_reduce")],
)
def test_no_part_of_timm_that_has_one_place_is_taken(name, layer):
    module = timm.create_model(name, num_classes=0).eval()
    message = f"layer '{layer}' of .* gives maps of 1 x 1 for images of 64 x 64.*Layers whose maps have places: .*conv"
    with pytest.raises(ValueError, match=message):
        Cut(module, layer=layer).features(torch.randn(1, 3, 64, 64))
