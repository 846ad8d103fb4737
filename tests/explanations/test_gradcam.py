import pytest
import torch
import torch.nn.functional as F
from helpers import ToOther, formulas_at_layer, network_and_images
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM

from utils.config import ConfigError
from utils.explanations.methods import explain as explain_by

FORMULAS = formulas_at_layer()
LIBRARY = {"gradcam": GradCAM, "gradcam++": GradCAMPlusPlus, "layercam": LayerCAM, "hirescam": HiResCAM}


def explain(network, images, threshold, layer="last", method="gradcam"):
    return explain_by(network, images, threshold, method=method, layer=layer)


def textbook_gradcam(network, images, layer):
    """Grad-CAM of the distance for one pair, with hooks and a full backward pass, branch by branch.

    Selvaraju et al. 2017, equations 1 and 2 without the ReLU, for each branch with its own gradient.
    """
    kept, module = [], network.backbone.get_submodule(layer)

    def keep(module, inputs, output):
        output.retain_grad()
        kept.append(output)

    handle = module.register_forward_hook(keep)
    vectors = []
    for image in images:
        maps = network.backbone.forward_features(image[None])
        vector = network.embedding(maps.mean(dim=(2, 3)))
        vectors.append(vector / vector.norm())
    (vectors[0] - vectors[1]).norm().backward()
    handle.remove()
    evidence = []
    for activation in kept:
        channels, height, width = activation.shape[1:]
        heatmap = torch.zeros(height, width, dtype=activation.dtype)
        for channel in range(channels):
            weight = activation.grad[0, channel].sum() / (height * width)
            heatmap += (weight * activation[0, channel]).detach()
        resized = F.interpolate(heatmap[None, None], size=images.shape[2:], mode="bilinear", align_corners=False)
        evidence.append(resized[0, 0])
    network.zero_grad()
    return torch.stack(evidence)


@pytest.mark.parametrize("size", [(64, 64), (64, 96)])
@pytest.mark.parametrize(
    ("backbone", "layer"), [("test_resnet", "layer4"), ("test_resnet", "layer2"), ("mobilenetv2_035", "blocks.6")]
)
def test_against_hooks_and_a_full_backward_pass(backbone, layer, size):
    network, images = (part.double() for part in network_and_images(backbone, size))
    explanation = explain(network, images, 0.5, layer)
    assert explanation.evidence.shape == (2, 2, *size)
    for index in range(2):
        expected = textbook_gradcam(network, images[index], layer)
        scale = expected.abs().max()
        torch.testing.assert_close(explanation.evidence[index] / scale, expected / scale, atol=1e-6, rtol=0)


LARGE = 1e9  # its Grad-CAM++ adds 1e-6 to squares of gradients: nothing beside larger ones


def library_map(peer, activations, gradients, scale=LARGE):
    """The map (N, h, w) of pytorch-grad-cam, before its ReLU and its normalisation.

    Larger gradients at activations smaller by as much have the same map in the equations of all of LIBRARY.
    """
    maps = peer.get_cam_image(None, None, None, (activations / scale).numpy(), (gradients * scale).numpy(), False)
    return torch.from_numpy(maps)


def peer_of(name):
    model = torch.nn.Conv2d(1, 1, 1)
    return LIBRARY[name](model, [model])


@pytest.mark.parametrize("size", [1e-8, 1e-4, 1e-2, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("kind", ["after a ReLU", "any activations", "zero gradients"])
@pytest.mark.parametrize("name", LIBRARY)
def test_formulas_against_pytorch_grad_cam(name, kind, size):
    torch.manual_seed(0)
    activations, gradients = torch.randn(2, 3, 4, 7, 8).double()
    gradients *= size
    if kind != "any activations":
        activations = activations.relu()
    if kind == "zero gradients":
        gradients[:, ::2] = 0
        gradients[:, :, ::2] = 0
    found = FORMULAS[name](activations, gradients)
    expected = library_map(peer_of(name), activations, gradients)
    scale = expected.abs().amax().item()
    torch.testing.assert_close(found, expected, atol=1e-6 * scale, rtol=0)
    if size >= 0.1:  # as the library is called, its 1e-6 included
        expected = library_map(peer_of(name), activations, gradients, scale=1)
        torch.testing.assert_close(found, expected, atol=1e-3 * scale, rtol=0)


@pytest.mark.parametrize("name", LIBRARY)
def test_explanations_against_pytorch_grad_cam(name):
    """Its hooks, its backward pass and its formula, with the distance to the other image as its target."""
    network, images = (part.double() for part in network_and_images(size=(64, 96)))
    explanation = explain(network, images, 0.5, "layer2", name)
    with torch.no_grad():
        embeddings = [network(part) for part in images.unbind(1)]
    for image in range(2):
        module = ToOther(network, embeddings[1 - image])
        for sign, found in ((1, explanation.towards_different), (-1, explanation.towards_same)):
            with LIBRARY[name](module, [network.backbone.layer2]) as peer:
                peer.forward(images[:, image], [lambda output, sign=sign: sign * output[0]] * len(images))
                (activations,), (gradients,) = (
                    peer.activations_and_grads.activations,
                    peer.activations_and_grads.gradients,
                )
                coarse = library_map(peer, activations, gradients)
            expected = F.interpolate(coarse[:, None], size=(64, 96), mode="bilinear", align_corners=False)[:, 0]
            scale = expected.abs().max()
            assert scale > 0
            torch.testing.assert_close(found[:, image] / scale, expected.clamp(min=0) / scale, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", FORMULAS)
def test_every_formula_maps_both_directions(name):
    network, images = network_and_images()
    explanation = explain(network, images, 0.5, "layer2", name)
    assert (explanation.towards_different.amax(dim=(2, 3)) > 0).all()
    assert (explanation.towards_same.amax(dim=(2, 3)) > 0).all()
    overlap = torch.minimum(explanation.towards_different, explanation.towards_same).amax()
    assert (overlap > 0) == (name in ("layercam", "gradcam++"))  # the other two are one signed map


def test_no_gradient_no_evidence_in_any_formula():
    for formula in FORMULAS.values():
        assert not formula(torch.rand(1, 2, 3, 3), torch.zeros(1, 2, 3, 3)).any()


def test_last_is_the_last_stage():
    network, images = network_and_images()
    last, named = (explain(network, images, 0.5, layer).evidence for layer in ("last", "layer4"))
    assert torch.equal(last, named)


def test_swapping_the_images_swaps_the_maps(device):
    network, images = network_and_images(device=device)
    one, other = explain(network, images, 0.5), explain(network, images.flip(1), 0.5)
    torch.testing.assert_close(one.evidence, other.evidence.flip(1), atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(one.distance, other.distance)


def test_batched_equals_one_by_one(device):
    network, images = network_and_images(count=5, device=device)
    together = explain(network, images, 0.5, "layer3")
    for index in range(5):
        alone = explain(network, images[index : index + 1], 0.5, "layer3")
        torch.testing.assert_close(together.evidence[index], alone.evidence[0], atol=1e-6, rtol=1e-3)


def test_the_decision_turns_with_the_threshold():
    network, images = network_and_images()
    low, high = (explain(network, images, threshold) for threshold in (0.0, 2.0))
    assert low.different.all()
    assert not high.different.any()
    assert torch.equal(low.factual, high.counterfactual)


@pytest.mark.parametrize("kind", ["identical", "opposite", "black", "no evidence"])
def test_saturated_and_empty_pairs_give_finite_maps(kind):
    network, images = network_and_images()
    if kind == "identical":
        images[:, 1] = images[:, 0]
    elif kind == "black":
        images = torch.zeros_like(images)
    elif kind == "opposite":  # embeddings at the largest distance, 2: its gradient vanishes along them
        ends = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).repeat(2, 1)
        network.project_features = lambda features, layer: ends + 0 * features.sum(dim=(1, 2, 3))[:, None]
    else:
        torch.nn.init.zeros_(network.embedding.weight)
    explanation = explain(network, images, 0.5)
    for maps in (explanation.factual, explanation.counterfactual):
        assert torch.isfinite(maps).all()
        assert maps.min() >= 0
        assert maps.max() <= 1
    if kind in ("opposite", "no evidence"):
        assert not explanation.factual.any()
        assert not explanation.counterfactual.any()


def test_the_network_is_left_as_it_was(device):
    network, images = network_and_images(device=device)
    network.train()
    network.backbone.layer1.eval()
    modes = [module.training for module in network.modules()]
    state = {name: value.clone() for name, value in network.state_dict().items()}
    network.embedding.weight.grad = torch.ones_like(network.embedding.weight)
    images.requires_grad_()
    with torch.no_grad():
        explanation = explain(network, images, 0.5, "layer2")
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert torch.equal(network.embedding.weight.grad, torch.ones_like(network.embedding.weight))
    assert network.backbone.layer4[0].conv1.weight.grad is None
    assert images.grad is None
    assert not any(module._forward_hooks or module._backward_hooks for module in network.modules())
    assert not explanation.evidence.requires_grad


def test_the_last_layer_needs_no_backward_pass_through_the_backbone(monkeypatch):
    network, images = network_and_images()
    passes = []
    for stage in network.backbone.children():
        stage.register_forward_pre_hook(lambda module, inputs: passes.append(torch.is_grad_enabled()))
    explain(network, images, 0.5, layer="last")
    assert passes == [False] * 8  # one pass of both images, nothing recorded for a backward pass


def test_an_unknown_layer_is_refused():
    network, images = network_and_images()
    with pytest.raises(ConfigError, match=r"'layer\d' is refused"):
        explain(network, images, 0.5, "layer7")
