"""Backbones named by a place: hf-hub:OWNER/NAME of the hub's cache and local-dir:PATH of a folder; no network."""

import json
import shutil

import pytest
import timm
import torch
from network.hubs import Trap, forget, offline, plant
from safetensors.torch import load_file, save_file

from utils import fit, load_trained
from utils.config import ConfigError
from utils.network.siamese import SiameseNetwork, build_network
from utils.network.variants import dilated
from utils.train.runs import settings_digest

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
OWNED = "hf-hub:someone/narrow"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The folder of a model in the hub's cache, made empty; no network."""
    with offline(tmp_path / "hub", monkeypatch):
        yield plant(tmp_path / "hub", OWNED.removeprefix("hf-hub:"))


@pytest.fixture(scope="module")
def model():
    """A ResNet of half the usual width, which only its arguments describe."""
    torch.manual_seed(5)
    return timm.create_model("test_resnet", num_classes=5, stem_width=16, channels=(16, 24, 32, 48))


@pytest.fixture
def local(model, tmp_path):
    """The folder of the same, as timm saves it."""
    timm.models.save_for_hf(model, tmp_path / "narrow", safe_serialization=True, data_config={"mean": MEAN, "std": STD})
    return tmp_path / "narrow"


@pytest.fixture(params=["local-dir", "hf-hub"])
def named(request, local, hub):
    """The name of the same model, in a folder or in the hub's cache, and where its files are."""
    if request.param == "local-dir":
        return f"local-dir:{local}", local
    for file in local.iterdir():
        shutil.move(file, hub)
    return OWNED, hub


def is_loaded(network, model):
    weights = model.state_dict()
    return all(torch.equal(value, weights[key]) for key, value in network.backbone.state_dict().items())


def test_architecture_normalisation_and_weights_are_those_of_the_place(named, model, make_config, capsys):
    name, _ = named
    config = make_config({"backbone_model": name, "pretrained": True})
    assert config.backbone_model == name
    assert config.image.normalization.mean == MEAN
    assert config.image.normalization.std == STD
    network = build_network(config)
    assert is_loaded(network, model)
    assert not capsys.readouterr().out  # the normalisation is the one that the weights expect
    random = build_network(make_config({"backbone_model": name, "pretrained": False}))
    assert not is_loaded(random, model)
    assert [value.shape for value in random.state_dict().values()] == [
        value.shape for value in network.state_dict().values()
    ]


def test_without_weights_only_config_json_is_read(named, model, make_config, tmp_path):
    name, folder = named
    save_file(model.state_dict(), tmp_path / "elsewhere.safetensors")
    (folder / "model.safetensors").unlink()
    build_network(make_config({"backbone_model": name, "pretrained": False}))
    path = tmp_path / "elsewhere.safetensors"
    assert is_loaded(build_network(make_config({"backbone_model": name, "pretrained": str(path)})), model)
    with pytest.raises(ConfigError, match=r"^pretrained: True, but .*set `pretrained` to the path of") as caught:
        build_network(make_config({"backbone_model": name, "pretrained": True}))
    assert "model.safetensors" in str(caught.value)


def test_weights_as_a_pickle_are_read_but_not_executed(named, model):
    name, folder = named
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    assert is_loaded(SiameseNetwork(name, 8, True, (64, 64)), model)
    torch.save({"conv1.weight": Trap()}, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"pytorch_model\.bin .*holds more than tensors"):
        SiameseNetwork(name, 8, True, (64, 64))


def test_spellings_of_sources(hub, local, make_config, tmp_path):
    shutil.copytree(local, hub, dirs_exist_ok=True)
    for spelt in ("hf-hub:someone/narrow", "hf_hub:someone/narrow", "HF-Hub:someone/narrow"):
        assert make_config({"backbone_model": spelt}).backbone_model == OWNED
    for spelt in ("local-dir:narrow", "Local-Dir:./other/../narrow", f"local-dir:{local}"):
        config = make_config({"backbone_model": spelt})  # relative to the folder of config.yml
        assert config.backbone_model == f"local-dir:{tmp_path / 'narrow'}"
        assert config.absolute().backbone_model == config.backbone_model


def test_a_revision_of_the_hub(hub, local):
    shutil.copytree(local, hub, dirs_exist_ok=True)
    (hub.parent.parent / "refs" / "v2").write_text("def")
    with pytest.raises(ConfigError, match="hf-hub:someone/narrow@v2 cannot be read"):
        SiameseNetwork(f"{OWNED}@v2", 8, True, (64, 64))
    hub.rename(hub.parent / "def")
    SiameseNetwork(f"{OWNED}@v2", 8, True, (64, 64))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("someone/narrow", "Use 'hf-hub:someone/narrow' to load from the Hub or 'local-dir:someone/narrow'"),
        ("s3:someone/narrow", "Unknown model source 's3' .*valid sources: hf-hub, local-dir"),
        ("local-dir:", "has no model id / path"),
        (
            "hf-hub:someone/else",
            "hf-hub:someone/else cannot be read .*Download config.json .*huggingface.co/someone/else ",
        ),
        ("hf-hub:a/b/c", "hf-hub:a/b/c is refused: the name or its config.json"),
        ("hf-hub:a@b@c", "hf-hub:a@b@c is refused: the name or its config.json"),
        ("local-dir:nowhere", r"nowhere cannot be read \(Config file not found.*Name a folder with config.json"),
    ],
)
def test_names_of_no_model(name, message, hub, make_config):
    with pytest.raises(ConfigError, match=f"backbone_model: .*{message}") as caught:
        make_config({"backbone_model": name})
    assert "\n" not in str(caught.value)


def change(folder, key, value):
    """Change a key of config.json, or of its section that a dot divides from it."""
    content = json.loads((folder / "config.json").read_text())
    section, _, name = key.rpartition(".")
    (content[section] if section else content)[name] = value
    (folder / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("architecture", "resnet5000", "is refused: the name or its config.json"),
        ("architecture", 5, "is refused: the name or its config.json"),
        ("pretrained_cfg", None, "is refused: the name or its config.json"),
        ("pretrained_cfg.input_size", 5, "is refused: the name or its config.json"),
        ("pretrained_cfg.mean", "half", "is refused: the name or its config.json"),
        ("model_args.in_chans", 1, "it takes images of 1 channels, not 3"),
        ("model_args.width", 5, "timm does not build it"),
        ("model_args.features_only", True, "timm does not build it"),
    ],
)
def test_a_config_json_of_no_model(key, value, message, named):
    name, folder = named
    change(folder, key, value)
    with pytest.raises(ConfigError, match=f"^backbone_model: {name} is refused: .*") as caught:
        SiameseNetwork(name, 8, False, (64, 64))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_config_json(local):
    (local / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"its config\.json is not as timm writes it \(JSONDecodeError"):
        SiameseNetwork(f"local-dir:{local}", 8, False, (64, 64))


@pytest.mark.parametrize(("key", "value"), [("mean", [0.5, 0.5]), ("std", [0, 0, 0])])
def test_a_normalisation_that_cannot_be_used(key, value, local, make_config):
    change(local, f"pretrained_cfg.{key}", value)
    with pytest.raises(ConfigError, match=f"image.normalization: auto is refused with this backbone_model: {key}"):
        make_config({"backbone_model": "local-dir:narrow"})
    given = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    make_config({"backbone_model": "local-dir:narrow", "image.normalization": given})


@pytest.mark.parametrize(("key", "value"), [("pretrained", True), ("checkpoint_path", "trap.pth"), ("num_classes", 7)])
def test_a_config_json_cannot_load_weights(key, value, local, model):
    torch.save({"conv1.weight": Trap()}, local / "trap.pth")
    if key == "checkpoint_path":
        value = str(local / value)
    change(local, f"model_args.{key}", value)
    network = SiameseNetwork(f"local-dir:{local}", 8, False, (64, 64))
    assert not is_loaded(network, model)
    assert is_loaded(SiameseNetwork(f"local-dir:{local}", 8, True, (64, 64)), model)


def test_a_transformer_takes_the_size_of_the_images(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=3)
    timm.models.save_for_hf(model, tmp_path / "vit")
    network = SiameseNetwork(f"local-dir:{tmp_path / 'vit'}", 8, True, (32, 96))
    assert network.backbone.pos_embed.shape == (1, 1 + 2 * 6, 192)
    assert torch.equal(network.backbone.blocks[3].mlp.fc1.weight, model.blocks[3].mlp.fc1.weight)


def test_dilated_as_its_config_json_says(named):
    name, _ = named
    network = SiameseNetwork(name, 8, True, (64, 64)).eval()
    finer = dilated(network, 16)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        cells, finer_cells = network.features(images), finer.features(images)
    assert finer_cells.shape == (2, 48, 4, 4)
    assert cells.shape == (2, 48, 2, 2)
    torch.testing.assert_close(finer_cells[:, :, ::2, ::2], cells, atol=1e-4, rtol=1e-4)


def embed(trained, images):
    with torch.no_grad():
        return trained.network(trained.runtime.place(images)).cpu()


def test_a_trained_network_is_loaded_without_the_place_of_its_backbone(named, make_config, tmp_path, capsys):
    name, folder = named
    changes = {"backbone_model": name, "pretrained": True, "hyperparameters.epochs": 1}
    config = make_config(changes)
    fit(config)
    images = torch.randn(2, 3, 32, 40)
    embeddings = embed(load_trained(config), images)
    shutil.rmtree(folder)
    forget()  # what this process has fetched
    assert torch.equal(embed(load_trained(config), images), embeddings)
    given = {"mean": list(MEAN), "std": list(STD)}  # `auto` would read them from config.json
    again = make_config({**changes, "image.normalization": given})
    capsys.readouterr()
    assert torch.equal(embed(load_trained(again), images), embeddings)
    assert "was trained with" not in capsys.readouterr().out


def test_a_run_is_known_by_the_content_of_a_folder(local, make_config, tmp_path):
    def digest(name):
        return settings_digest(make_config({"backbone_model": f"local-dir:{name}", "pretrained": True}))

    before = digest("narrow")
    (tmp_path / "moved").mkdir()
    shutil.copytree(local, tmp_path / "moved" / "narrow")
    assert digest("moved/narrow") == before
    weights = load_file(local / "model.safetensors")
    save_file(weights | {"conv1.0.weight": torch.zeros(1)}, local / "model.safetensors")
    assert digest("narrow") != before
    change(tmp_path / "moved" / "narrow", "model_args.drop_rate", 0.1)
    assert digest("moved/narrow") != before
