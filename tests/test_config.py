from pathlib import Path

import pytest
import yaml
from helpers import ROOT, changed

from utils.config import Config, ConfigError, key_names, load_config

PAPER_CONFIG = """
data_path: 'Data/Flowers'
number_of_iterations: 1
backbone_model: 'ResNet50' # MobileNet, ResNet50
pretrained: True
checkpoints_path: 'checkpoints/Flowers'
test_size: 0.1
valid_size: 0.1
image:
    size: [320, 320]
    normalization:
        mean: [0.485, 0.456, 0.406]
        std: [0.229, 0.224, 0.225]
    Channels: 3
    HorizontalFlip: 0.5
    VerticalFlip: 0.5
    RandomRotationDegrees: 45
    brightness: 0.0
    contrast: 0.0
    saturation: 0.0
    hue: 0.0
hyperparameters:
    epochs: 100
    verbose: True
    batch_size: 4
    num_workers: 0
    optimizer: 'Adam'
    learning_rate: 5e-6
    weight_decay: 0.01
    momentum: 0.9
    nesterov: False
    max_norm: 1.0
early_stopping:
    patience: 25
    min_delta: 0.00000001
LRScheduler:
    patience: 15
    min_lr:  0.00000001
    factor: 0.5
    verbose: True
seed: 42
cuda: True
gpu: 0
"""


def refusal(tmp_path, text):
    path = tmp_path / "config.yml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    return str(caught.value).removeprefix(f"{path}: ")


def test_paper_config_loads(tmp_path):
    (tmp_path / "old.yml").write_text(PAPER_CONFIG)
    config = load_config(tmp_path / "old.yml")
    assert config.backbone_model == "resnet50"
    assert config.hyperparameters.learning_rate == 0.000005
    assert config.image.size == (320, 320)
    assert config.pretrained is True
    assert config.pairs == "batch"


def test_the_head_of_the_shipped_config_says_which_keys_are_the_papers():
    """PAPER_CONFIG has the keys of config.yml in the paper's repository, as it stood there on 2026-11-28."""
    shipped = yaml.safe_load((ROOT / "config.yml").read_text())
    paper = yaml.safe_load(PAPER_CONFIG)
    down_to_gpu = list(shipped)[: list(shipped).index("gpu") + 1]
    assert set(down_to_gpu) == set(paper)
    new = {"image": {"RandomCropScale", "value_range"}, "LRScheduler": {"schedule"}}
    for key, part in paper.items():
        if isinstance(part, dict):
            assert set(shipped[key]) - set(part) == new.get(key, set())
            assert set(part) <= set(shipped[key])
    assert "down to `gpu`" in (ROOT / "config.yml").read_text().splitlines()[0]


def test_shipped_config_names_every_key():
    written = yaml.safe_load((ROOT / "config.yml").read_text())
    for name in key_names():
        section = written
        for part in name.split("."):
            if section == "auto":
                break  # for all below it
            assert part in section, name
            section = section[part]


def test_environment_variable_names_the_config(tmp_path, monkeypatch):
    (tmp_path / "other.yml").write_text(PAPER_CONFIG.replace("seed: 42", "seed: 7"))
    monkeypatch.setenv("SIAMESE_CONFIG", str(tmp_path / "other.yml"))
    assert load_config().seed == 7


def test_config_is_frozen(make_config):
    with pytest.raises(ValueError, match="frozen"):
        make_config().seed = 1


@pytest.mark.parametrize("name", ["plain", "é\u00a0ü", "花", "\U0001f98b", "\ufeffmarked", "it's", '"', "a\\\\b"])
def test_printed_config_loads_again(make_config, tmp_path, name):
    config = make_config().changed(cache_path=tmp_path / name)
    (tmp_path / "printed.yml").write_text(str(config), encoding="utf-8")
    assert load_config(tmp_path / "printed.yml").model_dump() == config.model_dump()


def test_relative_paths_are_relative_to_the_folder_of_the_file(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = {"data_path": "Data", "pretrained": "w.pth", "checkpoints_path": "../c", "inference.image1": "a/b.png"}
    paths["corrections"] = "c.csv"
    content = changed(settings, {**paths, "inference.image2": str(tmp_path / "x.png")})
    del content["results_path"]
    (tmp_path / "own" / "configs").mkdir(parents=True)
    for place in ("config.yml", "own/configs/mine.yml"):
        (tmp_path / place).write_text(yaml.safe_dump(content))
    here = load_config("config.yml")
    assert [str(path) for path in (here.data_path, here.pretrained, here.results_path)] == ["Data", "w.pth", "results"]
    there = load_config("own/configs/mine.yml", ["cache_path=kept"])
    assert there.data_path == Path("own/configs/Data")
    assert there.pretrained == Path("own/configs/w.pth")
    assert there.corrections == Path("own/configs/c.csv")
    assert there.checkpoints_path == Path("own/c")
    assert there.results_path == Path("own/configs/results")  # a default is like a line of the file
    assert there.inference.image1 == Path("own/configs/a/b.png")
    assert there.inference.image2 == tmp_path / "x.png"
    assert there.cache_path == Path("kept")  # of a change, relative to the current folder
    assert load_config("own/configs/mine.yml", ["pretrained=True"]).pretrained is True
    assert load_config("own/configs/mine.yml", ["cache_path=null"]).cache_path is None


def test_a_config_names_the_file_it_came_from(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yml").write_text(yaml.safe_dump(settings))
    config = load_config("config.yml", ["seed=7", "image.size=[48,\n64]"])
    assert config.source == "config.yml with seed=7, image.size=[48, 64]"
    assert str(config).splitlines()[0] == f"# {config.source}"
    assert config.model_copy(update={"seed": 8}).source == config.source
    assert Config.model_validate(settings).source is None
    assert not str(Config.model_validate(settings)).startswith("#")


def test_an_absolute_copy_loads_equally_from_anywhere(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yml").write_text(yaml.safe_dump(settings | {"data_path": "Data", "cache_path": None}))
    config = load_config("config.yml", ["seed=7"]).absolute()
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "config.yml").write_text(f"{config}\n")
    again = load_config("results/config.yml")
    assert again.model_dump() == config.model_dump()
    assert again.data_path == tmp_path / "Data"
    assert (tmp_path / "results" / "config.yml").read_text().startswith("# config.yml with seed=7\n")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed", -1, "seed: -1 is refused: should be greater than or equal to 0"),
        ("cuda", "yes", "cuda: 'yes' is refused: should be a valid boolean"),
        ("data_path", 5, "data_path: 5 is refused: should be a path"),
        ("data_path", None, "data_path: None is refused"),
        ("test_size", 1.5, "test_size: 1.5 is refused: should be less than 1"),
        ("test_size", 0.9, "test_size + valid_size must stay below 1"),
        ("backbone_model", "ResNet51", "did you mean resnet5"),
        ("backbone_model", "vgg16.imagenet", "unknown weights; timm has vgg16.tv_in1k"),
        ("pretrained", 3, "pretrained: 3 is refused: should be True, False or the path"),
        ("image", None, "image: None is refused: should hold `key: value` lines"),
        ("image.size", [32], "image.size.1: missing"),
        ("image.size", [32, 16], "image.size.1: 16 is refused: should be greater than or equal to 32"),
        ("image.Channels", 2, "image.Channels: 2 is refused: should be 1 or 3"),
        ("image.hue", 0.6, "image.hue: 0.6 is refused: should be less than or equal to 0.5"),
        ("image.HorizontalFlip", 2, "image.HorizontalFlip: 2 is refused"),
        (
            "image.normalization",
            {"mean": [0, 0, 0], "std": [1, 0, 1]},
            "image.normalization.std.1: 0 is refused: should be greater than or equal to 0.0001",
        ),
        (
            "image.normalization",
            "own",
            "'own' is refused: should be auto or the values themselves",
        ),
        ("image.normalization", {"men": [0, 0, 0]}, "image.normalization.men: unknown key; did you mean mean?"),
        ("hyperparameters.epochs", 0, "hyperparameters.epochs: 0 needs `pretrained`"),
        ("backbone_training", "half", "should be 'full', 'last' or 'frozen'"),
        ("backbone_rate", 0, "backbone_rate: 0 is refused: should be greater than 0"),
        ("hyperparameters.epochs", "ten", "hyperparameters.epochs: 'ten' is refused: should be a valid integer"),
        ("hyperparameters.epochs", True, "hyperparameters.epochs: True is refused: should be a valid integer"),
        ("hyperparameters.optimizer", "adam", "should be 'Adam', 'AdamW' or 'SGD'"),
        ("hyperparameters.learning_rate", "fast", "hyperparameters.learning_rate: 'fast' is refused"),
        ("hyperparameters.learning_rate", float("nan"), "hyperparameters.learning_rate: nan is refused"),
        ("hyperparameters.batch_size", 2, "batch_size of at least 4"),
        ("LRScheduler.factor", 1, "LRScheduler.factor: 1 is refused: should be less than 1"),
        ("precision", "half", "should be 'auto', 'float32', 'bfloat16' or 'float16'"),
        ("pairs", "triplet", "pairs: 'triplet' is refused: should be 'batch' or 'paper'"),
        ("inference.image1", "a.jpg", "name both image1 and image2, or neither"),
        ("learning_rte", 1, "learning_rte: unknown key; did you mean hyperparameters.learning_rate?"),
        ("hyperparameters.learning_rte", 1, "hyperparameters.learning_rte: unknown key; did you mean learning_rate?"),
        ("xyz", 1, "xyz: unknown key; known are data_path, number_of_iterations"),
    ],
)
def test_refusals_name_the_key_and_the_cure(settings, tmp_path, key, value, message):
    assert message in refusal(tmp_path, yaml.safe_dump(changed(settings, {key: value})))


def test_nesterov_without_momentum_is_refused(settings, tmp_path):
    changes = {"hyperparameters.optimizer": "SGD", "hyperparameters.nesterov": True, "hyperparameters.momentum": 0}
    assert "nesterov: True needs hyperparameters.momentum" in refusal(
        tmp_path, yaml.safe_dump(changed(settings, changes))
    )


def test_all_mistakes_are_reported_together(settings, tmp_path):
    message = refusal(tmp_path, yaml.safe_dump(changed(settings, {"seed": "x", "gpu": -1, "image.hue": "red"})))
    assert all(key in message for key in ("seed: 'x'", "gpu: -1", "image.hue: 'red'"))


def test_missing_key_is_named(settings, tmp_path):
    del settings["hyperparameters"]["epochs"]
    assert "hyperparameters.epochs: missing; add it" in refusal(tmp_path, yaml.safe_dump(settings))


@pytest.mark.parametrize(
    ("text", "message"), [("a: [1", "cannot be read as YAML"), ("- a", "`key: value`"), ("", "`key: value`")]
)
def test_files_that_are_no_settings(tmp_path, text, message):
    assert message in refusal(tmp_path, text)


def test_missing_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SIAMESE_CONFIG", raising=False)
    for path in ("absent.yml", None, tmp_path):  # the last one is a folder
        with pytest.raises(ConfigError, match=r"no such file\. Name a config file that exists, such as (.*)") as caught:
            load_config(path)
        assert str(tmp_path) in str(caught.value)
    shipped = load_config(str(caught.value).rpartition("such as ")[2])
    assert shipped.data_path == ROOT / "Data" / "Butterflies"


def test_an_environment_variable_that_names_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIAMESE_CONFIG", "mine.yml")
    with pytest.raises(ConfigError, match=r"mine\.yml: no such file, which .* variable SIAMESE_CONFIG names\. Name a"):
        load_config()
    (tmp_path / "mine.yml").write_text(PAPER_CONFIG)
    assert load_config().seed == 42


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
def test_a_file_as_windows_saves_it(tmp_path, encoding):
    """With a byte order mark any encoding is certain; without one a file is UTF-8, or refused with a cure."""
    marks = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}  # Python writes none where the order is named
    text = PAPER_CONFIG.replace("Data/Flowers", "Data/Café").replace("\n", "\r\n")
    path = tmp_path / "config.yml"
    path.write_bytes(marks.get(encoding, b"") + text.encode(encoding))
    if encoding == "cp1252":
        with pytest.raises(ConfigError, match=r"unacceptable character #x00e9.*Save the file as UTF-8"):
            load_config(path)
        path.write_text(path.read_text(encoding=encoding), encoding="utf-8")
    config = load_config(path)
    assert config.data_path == tmp_path / "Data" / "Café"
    assert config.seed == 42


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32"])
def test_a_file_whose_encoding_is_not_certain(tmp_path, encoding):
    path = tmp_path / "config.yml"
    path.write_bytes(PAPER_CONFIG.encode(encoding))
    with pytest.raises(ConfigError, match=r"unacceptable character.*Save the file as UTF-8"):
        load_config(path)


@pytest.mark.parametrize(
    ("key", "written"),
    [
        ("test_size", "0,2"),
        ("test_size", "20%"),
        ("test_size", "1:30"),
        ("test_size", "0x" + "f" * 3000),  # more digits than Python prints
        ("seed", "'7'"),
        ("seed", "2001-09-09"),
        ("seed", "on"),
        ("seed", "0x" + "f" * 3000),
        ("cuda", "'yes'"),
        ("cuda", "n"),
        ("cuda", "0"),
        ("gpu", "1.0"),
        ("image.size", "224"),
        ("image.size", "224x160"),
        ("image.hue", "0.1,"),
        ("hyperparameters.max_norm", "None"),
        ("duplicate_radius", "none"),
        ("cache_path", "None"),
        ("cache_path", "2001-09-09"),
        ("corrections", "None"),
        ("corrections", "False"),
        ("run", "None"),
        ("run", "20260101"),
        ("decision.abstain", "0,05"),
    ],
)
def test_a_value_of_another_type_is_refused_not_converted(settings, tmp_path, key, written):
    text = yaml.safe_dump(changed(settings, {key: "PLACE"}), default_flow_style=False)
    assert refusal(tmp_path, text.replace("PLACE", written)).startswith(f"{key}: ")


def test_the_spellings_of_yaml_are_read(settings, tmp_path):
    spellings = {"cuda": "on", "duplicate_radius": "~", "seed": "1_000", "gpu": "010", "test_size": "1e-1"}
    text = yaml.safe_dump(settings | {key: f"PLACE_{key}" for key in spellings})
    for key, written in spellings.items():
        text = text.replace(f"PLACE_{key}", written)
    (tmp_path / "config.yml").write_text(text)
    config = load_config(tmp_path / "config.yml")
    assert (config.cuda, config.duplicate_radius, config.seed, config.gpu, config.test_size) == (
        True,
        None,
        1000,
        8,
        0.1,
    )


def test_normalisation_is_the_backbones_own_unless_it_is_given(settings, make_config):
    imagenet = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    half = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    assert make_config({"backbone_model": "ResNet18"}).image.normalization.model_dump() == imagenet
    own = make_config({"backbone_model": "tf_efficientnet_lite0"})
    assert own.image.normalization.model_dump() == half
    given = make_config({"image.normalization": {"mean": [0, 0, 0], "std": [1, 1, 1]}})
    assert given.image.normalization.mean == (0, 0, 0)
    del settings["image"]["normalization"]
    assert Config.model_validate(settings | {"backbone_model": "ResNet18"}).image.normalization.model_dump() == imagenet


def test_settings_that_replace_those_of_the_file(settings, tmp_path):
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump(settings))
    config = load_config(path, ["image.size=[48, 64]", "data_path=a=b", "inference.image1=x.png", "inference.image2=y"])
    assert config.image.size == (48, 64)
    assert str(config.data_path) == "a=b"
    assert str(config.inference.image1) == "x.png"
    path.write_text(yaml.safe_dump(settings | {"inference": None}))
    changes = ["inference.image1=x", "inference.image2=y", "image.normalization.mean=[0,0,0]"]
    changed_twice = load_config(path, [*changes, "image.normalization.std=[1,1,1]"])
    assert changed_twice.image.normalization.std == (1, 1, 1)
    with pytest.raises(ConfigError, match="seed: should be a valid integer"):
        load_config(path, ["seed.x=1"])
    with pytest.raises(ConfigError, match=r"hyperparameters\.epochs: 'many' is refused"):
        load_config(path, ["hyperparameters.epochs=many"])
    with pytest.raises(ConfigError, match=r"seeds: unknown key; did you mean seed\?"):
        load_config(path, ["seeds.first=1"])


def test_key_names_reach_the_leaves():
    assert {"data_path", "image.normalization.mean", "inference.image1", "LRScheduler.factor"} <= set(key_names())
    assert "image" not in key_names()
    assert len(key_names()) == len(set(key_names())) > len(Config.model_fields)


@pytest.mark.parametrize("key", ["data_path", "pretrained", "cache_path"])
def test_a_tilde_is_the_home_of_a_user_there_is(settings, tmp_path, key, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for path, meant in (
        ("~/one", tmp_path / "home" / "one"),
        ("~nobody_of_this_name/one", Path("~nobody_of_this_name/one")),
    ):
        Path("config.yml").write_text(yaml.safe_dump(settings | {key: path}))
        assert getattr(load_config("config.yml"), key) == meant
        assert getattr(load_config("config.yml", [f"{key}={path}"]), key) == meant
