from urllib.error import URLError

import pytest
import torch
from torchvision import models

from utils.config import BACKBONES, ConfigError
from utils.network import SiameseNetwork, build_network, distance, distances_of, evaluating, folded, paired, similarity

FAMILIES = ["resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny"]


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_builds(name):
    with torch.device("meta"):  # shapes only: no memory, no arithmetic
        network = SiameseNetwork(name, 16)
        assert network.features(torch.zeros(2, 3, 64, 32)).shape == (2, network.embedding.in_features, 2, 1)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_layer_splits_the_network_in_two(name):
    network, images = SiameseNetwork(name, 8).eval(), torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        whole = network(images)
        for layer in (network.layers[0], network.layers[2], "last"):
            torch.testing.assert_close(network.embed_features(network.features(images, layer), layer), whole)


def test_embedding_is_linear_in_the_features_up_to_its_length():
    network, features = SiameseNetwork("resnet18", 8).eval(), torch.rand(3, 512, 2, 5)
    pooled = torch.stack([features[:, :, i, j] for i in range(2) for j in range(5)]).mean(dim=0)
    vectors = pooled @ network.embedding.weight.T + network.embedding.bias
    expected = vectors / vectors.pow(2).sum(dim=1, keepdim=True).sqrt()
    torch.testing.assert_close(network.embed_features(features), expected)


def test_forward_is_the_distance_of_the_embeddings(device):
    network = SiameseNetwork("resnet18", 8).to(device).eval()
    images1, images2 = torch.randn(2, 4, 3, 32, 48, device=device)
    with torch.no_grad():
        embeddings1, embeddings2 = network(images1), network(images2)
        torch.testing.assert_close(embeddings1.norm(dim=1), torch.ones(4, device=device))
        expected = (embeddings1 - embeddings2).norm(dim=1)
        torch.testing.assert_close(distance(embeddings1, embeddings2), expected)
        assert similarity(distance(embeddings1, embeddings1)).min() == pytest.approx(1, abs=1e-4)


def test_distances_stay_float32_under_autocast(device):
    network = SiameseNetwork("resnet18", 8).to(device).eval()
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
    network, images = SiameseNetwork("resnet18", 8), torch.randn(2, 3, 32, 32)
    distance(network(images), network(images)).sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters())


def test_evaluating_gives_every_submodule_its_mode_back():
    network = SiameseNetwork("resnet18", 8).train()
    network.backbone.layer1.eval()  # a user who freezes a stage
    before = [module.training for module in network.modules()]
    with evaluating(network):
        assert not any(module.training for module in network.modules())
    assert [module.training for module in network.modules()] == before


def test_summary_counts_every_parameter():
    network = SiameseNetwork("resnet18", 8)
    table = network.summary((64, 64))
    assert table.loc["all", "parameters"] == sum(parameter.numel() for parameter in network.parameters())
    assert table["parameters"][:-1].sum() == table.loc["all", "parameters"]
    assert table.loc["layer4", "output"] == "512 x 2 x 2"


def test_a_pair_is_two_images_of_one_row():
    network = SiameseNetwork("resnet18", 8).eval()
    images = torch.randn(3, 2, 3, 32, 32)
    assert torch.equal(paired(images.flatten(0, 1)), images)
    found = distances_of(network, images)
    with torch.no_grad():
        for index, (image1, image2) in enumerate(images):
            expected = (network(image1[None]) - network(image2[None])).norm()
            assert found[index].item() == pytest.approx(expected.item(), abs=1e-5)


def test_unknown_layer_is_refused_when_the_network_is_built(make_config):
    with pytest.raises(ConfigError, match=r"explanation\.layer: 'layer9' is refused: should be last, stem, layer1"):
        build_network(make_config({"explanation.layer": "layer9"}))


@pytest.fixture
def imagenet(tmp_path, monkeypatch):
    """A state dict as torchvision publishes it, planted in the cache that the download would fill."""
    state = models.get_model("resnet18").state_dict()
    url = models.get_model_weights("resnet18").DEFAULT.url
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(state, folder / url.rsplit("/", 1)[1])
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return state


def is_loaded(network, state):
    own = {**network.backbone.stem.state_dict(prefix="stem."), **network.backbone.state_dict()}
    return torch.equal(own["stem.0.weight"], state["conv1.weight"]) and torch.equal(
        own["layer4.1.bn2.running_var"], state["layer4.1.bn2.running_var"]
    )


def test_imagenet_weights_from_the_cache(make_config, imagenet):
    assert is_loaded(build_network(make_config({"pretrained": True})), imagenet)
    assert not is_loaded(build_network(make_config({"pretrained": False})), imagenet)


def test_imagenet_weights_that_cannot_be_fetched(make_config, tmp_path, monkeypatch):
    def offline(url, *args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "empty"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(ConfigError, match="pretrained: True") as caught:
        build_network(make_config({"pretrained": True}))
    assert "Download https://" in str(caught.value)
    assert "set pretrained: False" in str(caught.value)


def test_state_dict_by_path_whatever_its_number_of_classes(make_config, imagenet, tmp_path):
    imagenet["fc.weight"], imagenet["fc.bias"] = torch.zeros(5, 512), torch.zeros(5)
    torch.save(imagenet, tmp_path / "weights.pth")
    assert is_loaded(build_network(make_config({"pretrained": str(tmp_path / "weights.pth")})), imagenet)


def test_state_dicts_that_do_not_fit(make_config, imagenet, tmp_path):
    path = tmp_path / "weights.pth"
    config = make_config({"pretrained": str(path)})
    with pytest.raises(ConfigError, match="does not exist"):
        build_network(config)
    path.write_text("no weights")
    with pytest.raises(ConfigError, match="is not a state dict file"):
        build_network(config)
    torch.save({"conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(ConfigError, match="not those of resnet18"):
        build_network(config)
    imagenet["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    torch.save(imagenet, path)
    with pytest.raises(ConfigError, match="keys or shapes differ"):
        build_network(config)


@pytest.mark.parametrize("name", FAMILIES)
def test_folded_computes_the_same(name):
    """After batch norm has seen data, so that its statistics are not those of a fresh network."""
    torch.manual_seed(0)
    network = SiameseNetwork(name, 16)
    with torch.no_grad():
        network(torch.randn(16, 3, 64, 64))
    images, norms = torch.randn(6, 3, 64, 64), torch.nn.modules.batchnorm._BatchNorm
    exact, short = folded(network, torch.float32), folded(network, torch.bfloat16)
    assert network.training
    assert not any(isinstance(module, norms) for module in exact.modules())
    with torch.no_grad(), evaluating(network):
        torch.testing.assert_close(exact(images), network(images), atol=1e-4, rtol=1e-3)
        assert torch.nn.functional.cosine_similarity(short(images), network(images)).min() > 0.99
        assert short(images).dtype == torch.float32
        for layer in network.layers:
            torch.testing.assert_close(
                exact.features(images, layer), network.features(images, layer), atol=1e-3, rtol=1e-3
            )
    assert {weight.dtype for weight in short.backbone.parameters()} == {torch.bfloat16}
