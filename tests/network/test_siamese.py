import pytest
import torch

from utils.config import ConfigError
from utils.explanations.matches import decompose
from utils.explanations.methods import explain
from utils.files import ExplanationError
from utils.network.distance import distance, distances_of, evaluating, paired, similarity, unit
from utils.network.siamese import SiameseNetwork, build_network


def test_embedding_is_linear_in_the_features_up_to_its_length():
    network = SiameseNetwork("test_resnet", 8).eval()
    features = torch.rand(3, network.embedding.in_features, 2, 5)
    pooled = torch.stack([features[:, :, i, j] for i in range(2) for j in range(5)]).mean(dim=0)
    vectors = pooled @ network.embedding.weight.T + network.embedding.bias
    expected = vectors / vectors.pow(2).sum(dim=1, keepdim=True).sqrt()
    torch.testing.assert_close(unit(network.project_features(features)), expected)


def test_forward_is_the_distance_of_the_embeddings(device):
    network = SiameseNetwork("test_resnet", 8).to(device).eval()
    images1, images2 = torch.randn(2, 4, 3, 32, 48, device=device)
    with torch.no_grad():
        embeddings1, embeddings2 = network(images1), network(images2)
        torch.testing.assert_close(embeddings1.norm(dim=1), torch.ones(4, device=device))
        expected = (embeddings1 - embeddings2).norm(dim=1)
        torch.testing.assert_close(distance(embeddings1, embeddings2), expected)
        assert similarity(distance(embeddings1, embeddings1)).min() == pytest.approx(1, abs=1e-4)


def test_distances_stay_float32_under_autocast(device):
    network = SiameseNetwork("test_resnet", 8).to(device).eval()
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        assert distance(*network(torch.randn(2, 3, 32, 32, device=device))).dtype == torch.float32


def test_distance_and_similarity_at_the_ends():
    e = torch.eye(3)[:1]
    assert distance(e, -e).item() == pytest.approx(2)
    assert distance(e, e).item() == pytest.approx(0, abs=1e-5)
    assert similarity(torch.tensor([0.0, 1.0, 2.0, 2.000001])).tolist() == [1.0, 0.5, 0.0, 0.0]


@pytest.mark.parametrize("identical", [False, True])
def test_distance_gradient_against_finite_differences(identical):
    generator = torch.Generator().manual_seed(0)
    e1 = torch.randn(1, 5, dtype=torch.float64, generator=generator)
    e2 = e1.clone() if identical else torch.randn(1, 5, dtype=torch.float64, generator=generator)
    e1.requires_grad_()
    (gradient,) = torch.autograd.grad(distance(e1, e2).sum(), e1)
    step = 1e-8 if identical else 1e-6  # well inside the epsilon's own length of 1e-6
    numeric = torch.zeros(5, dtype=torch.float64)
    for i in range(5):
        shift = torch.zeros(1, 5, dtype=torch.float64)
        shift[0, i] = step
        with torch.no_grad():
            numeric[i] = (distance(e1 + shift, e2) - distance(e1 - shift, e2)).item() / (2 * step)
    torch.testing.assert_close(gradient[0], numeric, atol=1e-6, rtol=1e-5)
    assert torch.isfinite(gradient).all()


def test_identical_images_give_finite_parameter_gradients():
    network, images = SiameseNetwork("test_resnet", 8), torch.randn(2, 3, 32, 32)
    distance(network(images), network(images)).sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters())


def test_evaluating_gives_every_submodule_its_mode_back():
    network = SiameseNetwork("test_resnet", 8).train()
    network.backbone.layer1.eval()  # a user who freezes a stage
    before = [module.training for module in network.modules()]
    with evaluating(network):
        assert not any(module.training for module in network.modules())
    assert [module.training for module in network.modules()] == before


def test_summary_counts_every_parameter():
    network = SiameseNetwork("test_resnet", 8, image_size=(64, 64))
    network.freeze("last")
    table = network.summary()
    assert table.loc["all", "parameters"] == sum(parameter.numel() for parameter in network.parameters())
    assert table.loc["all", "trained"] == sum(weight.numel() for weight in network.parameters() if weight.requires_grad)
    assert table["trained"][:-1].sum() == table.loc["all", "trained"] < table.loc["all", "parameters"]
    assert table["parameters"][:-1].sum() == table.loc["all", "parameters"]
    assert table.loc["layer4", "output"] == "96 x 2 x 2"


def test_a_pair_is_two_images_of_one_row():
    network = SiameseNetwork("test_resnet", 8).eval()
    images = torch.randn(3, 2, 3, 32, 32)
    assert torch.equal(paired(images.flatten(0, 1)), images)
    found = distances_of(network, images)
    with torch.no_grad():
        for index, (image1, image2) in enumerate(images):
            expected = (network(image1[None]) - network(image2[None])).norm()
            assert found[index].item() == pytest.approx(expected.item(), abs=1e-5)


def test_layers_by_stride_by_timms_names_and_by_those_of_the_paper():
    network = SiameseNetwork("test_resnet", 8, image_size=(64, 96)).eval()
    images = torch.randn(2, 3, 64, 96)
    assert network.layers == ["stem", "layer1", "layer2", "layer3", "layer4"]
    with torch.no_grad():
        for name, same in (("stride4", "layer1"), ("stride16", "layer3"), ("last", "layer4"), ("maxpool", "stem")):
            assert torch.equal(network.features(images, name), network.features(images, same))
        inner = network.features(images, "layer3.0")
        assert inner.shape == (2, 192, 4, 6)
        torch.testing.assert_close(unit(network.project_features(inner, "layer3.0")), network(images))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("layer9", "'layer9' is refused; should be last, stride4, .*stem, layer1, .*ResNet has no layer 'layer9'"),
        ("layr4.0", "'layr4.0' is refused; should be .* did you mean 'layer4.0'"),
        ("layer4.0.conv1", "'layer4.0.conv1' is refused; should be .* other layers go around it"),
        ("fc", "'fc' is refused; should be .*layer 'fc' of ResNet runs 0 times"),
        ("stride64", "'stride64' is refused"),
    ],
)
def test_layers_that_cannot_be_read_are_refused_when_the_network_is_built(layer, message, make_config):
    with pytest.raises(ConfigError, match=r"explanation\.layer: " + message):
        build_network(make_config({"explanation.layer": layer}))


def test_trying_a_layer_draws_nothing_and_leaves_everything_as_it_was():
    network = SiameseNetwork("efficientnet_b0", 8, image_size=(64, 64)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    network.check_layer("stride8")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(module.training for module in network.modules())
    assert not any(module._forward_hooks for module in network.modules())


def test_without_an_embedding_size_the_embedding_is_the_backbones_own():
    network = SiameseNetwork("test_resnet", None, image_size=(64, 64)).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        pooled = network.backbone.forward_features(images).mean(dim=(2, 3))
        torch.testing.assert_close(network(images), pooled / pooled.norm(dim=1, keepdim=True))
    assert network.summary().loc["embedding", "output"] == "96"


@pytest.mark.parametrize(
    ("training", "frozen"),
    [
        ("full", []),
        ("last", ["stem", "layer1", "layer2"]),
        ("frozen", ["stem", "layer1", "layer2", "layer3", "layer4"]),
    ],
)
def test_what_is_frozen_is_neither_trained_nor_its_batch_norm_moved(training, frozen):
    network = SiameseNetwork("test_resnet", 8, image_size=(64, 64))
    network.freeze(training)
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD([weight for weight in network.parameters() if weight.requires_grad], lr=1.0)
    embeddings = network(torch.randn(4, 3, 64, 64))
    distance(*embeddings.chunk(2)).sum().backward()
    optimizer.step()
    parts = {"stem": ("conv1", "bn1")}
    for layer in network.layers:
        names = [f"backbone.{part}." for part in parts.get(layer, (layer,))]
        own = [name for name in before if name.startswith(tuple(names)) and not name.endswith("num_batches_tracked")]
        same = [torch.equal(network.state_dict()[name], before[name]) for name in own]
        assert own
        assert all(same) == (layer in frozen)


def test_a_vector_without_a_length_has_no_direction():
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e30, 0.0], [1e-30, 0.0], [torch.nan, 1.0]], requires_grad=True)
    found = unit(vectors)
    assert found[0].tolist() == pytest.approx([0.6, 0.8])
    assert found[1:].isnan().all()
    ordinary = torch.randn(5, 7)
    assert torch.equal(unit(ordinary), torch.nn.functional.normalize(ordinary, dim=1))


def test_layers_of_one_place_are_refused_by_name():
    network = SiameseNetwork("test_resnet", 8, image_size=(32, 32)).eval()
    network.check_layer("layer3")
    named = "stem, layer1, layer2, layer3$"
    for layer in ("last", "layer4", "stride32"):
        with pytest.raises(
            ConfigError, match=f"too small for explanation.layer '{layer}' of test_resnet: its map is 1 x"
        ):
            network.check_layer(layer)
    images = torch.randn(1, 2, 3, 32, 32)
    for method in ("gradcam", "layercam", "integrated", "contrastive"):
        assert explain(network, images, 0.5, method=method, layer="layer3", steps=1).evidence.any()
        with pytest.raises(ExplanationError, match=f"gives maps of 1 x 1 for images of 32 x 32.*name one of {named}"):
            explain(network, images, 0.5, method=method, layer="last", steps=1)
    with pytest.raises(ExplanationError, match="gives maps of 1 x 1"):
        decompose(network, explain(network, images, 0.5, method="occlusion"))
    larger = SiameseNetwork("test_resnet", 8, image_size=(64, 64)).eval()  # convolutions take other images too
    with pytest.raises(ExplanationError, match="gives maps of 1 x 1 for images of 32 x 32"):
        explain(larger, images, 0.5, layer="last")


def test_images_too_small_to_be_explained_are_refused_before_training(make_config):
    message = r"image.size: \[32, 32\] is too small for explanation.layer 'last' of test_resnet.*Set a larger size"
    with pytest.raises(ConfigError, match=message):
        build_network(make_config({"image.size": [32, 32]}))
    build_network(make_config({"image.size": [32, 64]}))
    build_network(make_config({"image.size": [32, 32], "backbone_model": "vit_tiny_patch16_224"}))  # 2 x 2 patches


def test_a_backbone_that_gives_its_class_token_alone_is_refused():
    with pytest.raises(ConfigError, match="PoolingVisionTransformer is refused: it gives no feature map for images of"):
        SiameseNetwork("pit_ti_224", 8, image_size=(64, 64))


def test_the_path_is_read_from_the_coarsest_layer_of_16_cells():
    def layer(backbone, *size):
        return SiameseNetwork(backbone, 8, image_size=size).path_layer

    assert layer("test_resnet", 128, 160) == "layer2+"  # of stride 8
    assert layer("test_resnet", 120, 160) == "layer1+"  # layer2 has 15 rows
    assert layer("test_resnet", 48, 48) == "layer1+"  # none has 16 cells: the finest stride
    assert layer("test_efficientnet", 64, 64) == "blocks.1+"
    assert layer("test_resnet", 40, 40) == "layer1"  # layer2 has 5 cells: nothing that coarse is read
    assert layer("test_vit", 32, 32) == "blocks.2"  # of seven layers of one stride


def test_layers_that_cannot_be_read_are_no_part_of_the_path(monkeypatch):
    """As where the tokens of a trained transformer no longer answer to their places."""
    network = SiameseNetwork("test_resnet", 8)
    reading = network._reading
    refused = {"layer1", "layer3"}

    def refuse(name):
        if name in refused:
            raise ConfigError("refused")
        return reading(name)

    monkeypatch.setattr(network, "_reading", refuse)
    assert network.path_layer == "layer2+"
    assert network._later("layer2+") == ["layer4"]
    refused |= {"layer2", "layer4"}
    network._unreadable = network._unreadable | refused
    assert network.path_layer == "last"
