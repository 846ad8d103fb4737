import pytest
import torch
import torch.nn.functional as F
from captum.attr import LayerIntegratedGradients
from helpers import CHEQUERED, Chequered, board, network_and_images, patterned

from utils.config import ConfigError
from utils.explanations.methods import explain
from utils.explanations.paths import _averaged
from utils.explanations.references import References, embed_references
from utils.network.distance import blurred, distances_of


def references_of(network, images):
    return embed_references(network, torch.randn(5, *images.shape[2:], generator=torch.Generator().manual_seed(7)))


LAYERS = ("layer2", "layer3", "layer4")


def kept_outputs(network, handles):
    """What the later layers give from now on, in the order in which they run, with their gradients."""
    kept = []

    def keep(module, inputs, output):
        output.retain_grad()
        kept.append(output)

    for layer in LAYERS[1:]:
        handles.append(network.backbone.get_submodule(layer).register_forward_hook(keep))
    return kept


def test_one_step_against_a_full_backward_pass():
    """Both decisions, in plain loops over layers, channels and places, from the definition."""
    network, images = (part.double() for part in network_and_images(count=2))
    threshold = distances_of(network, images).mean().item()
    references = References(references_of(network.float(), images.float()).embeddings.double())
    network.double()
    found = explain(network, images, threshold, references, layer="layer2+", steps=1)
    assert found.different.tolist() in ([True, False], [False, True])
    centre = references.embeddings.mean(dim=0)
    for pair in range(2):
        embeddings = [network(image[None]).detach()[0] for image in images[pair]]
        for own, other in ((0, 1), (1, 0)):
            image = images[pair, own, None]
            ends = [network.features(image, layer).detach() for layer in LAYERS]
            starts = [network.features(blurred(image), layer).detach() for layer in LAYERS]
            middle = ((starts[0] + ends[0]) / 2).requires_grad_()
            handles = []
            later = kept_outputs(network, handles)
            between = network.project_features(middle, "layer2")[0]
            for handle in handles:
                handle.remove()
            length = network.project_features(ends[0], "layer2").detach().norm()
            towards = embeddings[own] if found.different[pair] else centre
            ((between * (towards - embeddings[other])).sum() / length).backward()
            total = 0
            for number, maps in enumerate([middle, *later]):
                change = (ends[number] - starts[number])[0]
                _, height, width = change.shape
                evidence = torch.zeros(height, width, dtype=torch.float64)
                for y in range(height):
                    for x in range(width):
                        evidence[y, x] = sum(change[:, y, x] * maps.grad[0, :, y, x])
                strength = (sum(evidence.flatten() ** 2) / (height * width)) ** 0.5
                if number == 0:
                    scale, size = strength, (height, width)
                enlarged = F.interpolate(evidence[None, None], size=size, mode="bilinear", align_corners=False)
                total = total + enlarged * scale / strength / len(LAYERS)
            expected = F.interpolate(total, size=images.shape[-2:], mode="bilinear", align_corners=False)[0, 0]
            torch.testing.assert_close(found.evidence[pair, own], expected)


def test_maps_of_later_layers_are_those_of_the_network():
    network, images = network_and_images()
    features = network.features(images[:, 0], "layer1")
    vectors, maps = network.project_through(features, "layer1+")
    assert torch.equal(vectors, network.project_features(features, "layer1"))
    for layer, later in zip(LAYERS, maps, strict=True):
        torch.testing.assert_close(later, network.features(images[:, 0], layer))
    assert network.project_through(features, "layer1")[1] == []
    for refused in ("last+", "layer4+", "layer2.0+"):
        with pytest.raises(ConfigError, match="no layer of a coarser stride behind it"):
            network.check_layer(refused)
        with pytest.raises(ConfigError, match="Leave out the"):
            explain(network, images, 0.5, layer=refused)


class TwoLayers(Chequered):
    """Sums of 6 x 6 pixels stand between the image and the angle."""

    def project_through(self, features, layer):
        coarse = 36 * F.avg_pool2d(features[:, :1] * board(*features.shape[2:]), 6)
        angles = coarse.sum(dim=(1, 2, 3))
        return torch.stack([angles.cos(), angles.sin()], dim=1), [coarse]


@pytest.mark.parametrize("method", ["contrastive", "thorough"])
def test_planted_evidence_against_the_decision_is_in_the_counterfactual_map(method):
    """Image 1 has a square that turns its angle away from that of image 2, and one that turns it back a little."""
    supports, first = patterned(CHEQUERED, (6, 6), 0.9)
    contradicts, second = patterned(CHEQUERED, (12, 18), -0.3)
    other, _ = patterned(CHEQUERED, (12, 12), -0.6)
    images = torch.stack([supports + contradicts, other])[None]
    explanation = explain(TwoLayers(), images, 0.5, method=method, layer="image+")
    assert explanation.different.all()
    assert explanation.factual[0, 0][first].sum() > 0.7 * explanation.factual[0, 0].sum()
    assert explanation.counterfactual[0, 0][second].sum() > 0.7 * explanation.counterfactual[0, 0].sum()
    assert explanation.counterfactual[0, 0].any()


def test_the_mean_over_layers_keeps_signs_and_ignores_their_scales():
    """What all layers count towards one decision stays so: no mean is subtracted."""
    fine = torch.randn(3, 8, 8)
    coarse = torch.randn(3, 4, 4)
    averaged = _averaged([fine, coarse])
    enlarged = F.interpolate(coarse[:, None], size=(8, 8), mode="bilinear", align_corners=False)[:, 0]
    agreed = (fine > 0) == (enlarged > 0)
    assert agreed.any()
    assert torch.equal(averaged[agreed] > 0, fine[agreed] > 0)
    torch.testing.assert_close(_averaged([fine, 1e4 * coarse]), averaged)
    torch.testing.assert_close(_averaged([10 * fine, coarse]), 10 * averaged)
    assert torch.equal(_averaged([fine]), fine)
    assert not _averaged([torch.zeros(1, 8, 8), torch.zeros(1, 4, 4)]).any()


@pytest.mark.parametrize("threshold", [0.0, 2.0])
@pytest.mark.parametrize(("layer", "steps"), [("layer1", 2), ("layer2", 4), ("layer4", 5)])
def test_maps_against_captum(threshold, layer, steps):
    """Integrated gradients at a layer, by hooks, of a target that is linear in the embedding before normalisation."""
    network, images = network_and_images(size=(32, 64))
    references = References(references_of(network, images).embeddings.double())
    network, images = network.double(), images.double()
    explanation = explain(network, images, threshold, references, layer=layer, steps=steps)
    module = network.backbone.get_submodule(layer)
    for pair in range(2):
        embeddings = network(images[pair]).detach()
        for image in range(2):
            towards = embeddings[image] if threshold == 0 else references.embeddings.mean(dim=0)
            direction = towards - embeddings[1 - image]
            one = images[pair, image, None]
            length = network.project_features(network.features(one)).detach().norm()

            def target(inputs, direction=direction, length=length):
                return network.project_features(network.features(inputs)) @ direction / length

            peer = LayerIntegratedGradients(target, module)
            added = peer.attribute(one, blurred(one), n_steps=steps, method="riemann_middle").detach()
            expected = F.interpolate(added.sum(dim=1, keepdim=True), (32, 64), mode="bilinear", align_corners=False)[
                0, 0
            ]
            scale = expected.abs().max()
            torch.testing.assert_close(explanation.evidence[pair, image] / scale, expected / scale, atol=1e-6, rtol=0)


@pytest.mark.parametrize("decision", ["same", "different"])
def test_both_maps_add_up_to_the_change_of_the_target(decision):
    smooth = network_and_images("test_efficientnet", size=(32, 32))  # in its activations
    network, images = (part.double() for part in smooth)
    threshold = {"same": 2.0, "different": 0.0}[decision]
    errors = []
    for steps in (1, 8, 32):
        found = explain(network, images, threshold, layer="blocks.1", steps=steps)
        sums, changes = found.completeness.unbind(1)
        errors.append((sums - changes).abs().max().item())
    assert errors[0] > 3 * errors[1]
    assert errors[1] > 10 * errors[2]  # the midpoint rule: a quarter of the steps, 16 times the error
    assert errors[2] < 0.005
    expected = torch.zeros(len(images), dtype=torch.float64)
    for one, two in ((0, 1), (1, 0)):
        own, other = network(images[:, one]), network(images[:, two])
        vector = network.project_features(network.features(images[:, one]))
        before = network.project_features(network.features(blurred(images[:, one])))
        direction = own - other if decision == "different" else -other
        gained = (vector - before) / vector.norm(dim=1, keepdim=True)
        expected += (gained * direction).sum(dim=1).detach()
    torch.testing.assert_close(changes, expected)


def test_a_place_speaks_for_one_decision():
    network, images = network_and_images()
    found = explain(network, images, 0.5, layer="layer2")
    assert torch.minimum(found.towards_different, found.towards_same).amax() == 0
    assert (found.towards_different > 0).any()
    assert (found.towards_same > 0).any()


def test_identical_images_have_a_map_all_the_same():
    """Where the distance has no slope, the target has one: what makes both more alike than anything."""
    network, images = network_and_images()
    found = explain(network, images[:, [0, 0]], 0.5, references_of(network, images), layer="layer2")
    assert torch.isfinite(found.factual).all()
    assert (found.factual.amax(dim=(2, 3)) > 0.5).all()
    blank = explain(network, torch.zeros_like(images), 0.5, layer="layer1")
    assert not blank.factual.any()  # a blank image is its own blurred version: nothing is added on the way


def test_batched_equals_one_by_one(device):
    network, images = network_and_images(size=(64, 96), count=4, device=device)
    together = explain(network, images, 0.5, layer="layer2", steps=2)
    assert together.evidence.shape == (4, 2, 64, 96)
    for index in range(4):
        alone = explain(network, images[index : index + 1], 0.5, layer="layer2", steps=2)
        torch.testing.assert_close(together.evidence[index], alone.evidence[0], atol=1e-5, rtol=1e-3)


def test_references_turn_a_map_for_same_and_leave_one_for_different():
    network, images = network_and_images()
    references = references_of(network, images)
    for threshold, turned in ((2.0, True), (0.0, False)):
        with_them = explain(network, images, threshold, references, layer="layer2")
        without = explain(network, images, threshold, layer="layer2")
        assert torch.allclose(with_them.evidence, without.evidence, atol=1e-6) != turned


def test_references_are_embedded_one_by_one_too():
    network, images = network_and_images()
    found = embed_references(network, images.flatten(0, 1), ["a/1", "a/2", "b/1", "b/2"])
    expected = torch.cat([network(image[None]) for image in images.flatten(0, 1)])
    torch.testing.assert_close(found.embeddings, expected.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.centre, expected.detach().mean(dim=0), atol=1e-5, rtol=1e-4)
    assert found.names == ("a/1", "a/2", "b/1", "b/2")


def test_an_unknown_layer_is_refused():
    network, images = network_and_images()
    with pytest.raises(ConfigError, match=r"'layer\d' is refused"):
        explain(network, images, 0.5, layer="layer9")
