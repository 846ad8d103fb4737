"""What tests share: networks whose evidence is known pixel by pixel, images, configs, and figures as pixels."""

import io
import multiprocessing
import os
import signal
import sys
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import yaml
from PIL import Image
from torch import nn

from utils.data.cache import Decoder, open_pixels
from utils.data.images import scan
from utils.data.reading import DataError
from utils.explanations.explanation import Explanation, Source
from utils.explanations.maps import at_layer
from utils.explanations.methods import METHODS
from utils.network.distance import distances_of
from utils.network.siamese import SiameseNetwork

ROOT = Path(__file__).parent.parent
COLOURS = {"blue": (40, 60, 200), "green": (40, 190, 60), "red": (200, 50, 40)}  # of the tiny dataset
ENVIRONMENT = {  # of processes that tests start
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
    "PYTHONUNBUFFERED": "1",
}
CHEQUERED = (24, 30)  # height and width of the images of `different_pairs`


@cache
def forks():
    """Where to start processes that need not import torch again, which saves ten seconds each time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["utils.measured", "helpers"])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell has us ignore would be ignored there too
    with patch.dict(os.environ, ENVIRONMENT):
        forkserver.ensure_running()
    return context


def forked(function, *arguments):
    """Such a process, started, and the other end of the pipe that `function` is handed after all other arguments."""
    ours, theirs = multiprocessing.Pipe()
    process = forks().Process(target=function, args=(*arguments, theirs))
    process.start()
    return process, ours


def torchrun(processes, logs) -> list[str]:
    """Its command line up to what the processes run. Without a place for its logs, it leaves a temporary folder."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*launcher, "--log-dir", str(logs), "--nproc-per-node", str(processes)]


def pixels_of(root, size, cache_path=None) -> Decoder:
    """Open the pixels of a folder of images in one size."""
    folder = scan(root)
    return open_pixels(folder, Decoder(folder.paths, size), cache_path, show=False)


class ReadAtPixels(nn.Module):
    """A network whose only feature map is the image itself."""

    layers = ("image",)

    def features(self, images, layer="last"):
        return images

    def features_and_vectors(self, images, layer="last"):
        features = images.detach().requires_grad_(torch.is_grad_enabled())
        return features, self(features)

    def project_features(self, features, layer="last"):
        return self(features)


class Chequered(ReadAtPixels):
    """The embedding is (cos a, sin a), where the angle a adds up all pixels of a channel, weighted by a chequerboard.

    Blurring wipes a chequerboard out, so each pixel of a pattern carries its own value of the angle, and nothing else
    in the image carries any.
    """

    def forward(self, images):
        angles = (images[:, 0] * board(*images.shape[2:])).sum(dim=(1, 2))
        return torch.stack([angles.cos(), angles.sin()], dim=1)


class Coloured(ReadAtPixels):
    """The embedding is (cos a, sin a), where the angle a is pi / 2 times the share of green less that of red pixels."""

    def forward(self, images):
        balance = (images[:, 1] - images[:, 0]).sum(dim=(1, 2)) / 36
        angles = balance.clamp(-1, 1) * torch.pi / 2
        return torch.stack([angles.cos(), angles.sin()], dim=1)


class Squared(nn.Module):
    """Adds up the squares of all pixels of each channel: what each place adds is known, wherever a path begins."""

    def __init__(self):
        super().__init__()
        self.map = nn.Identity()

    def forward(self, images):
        return self.map(images).square().sum(dim=(2, 3))


class ToOther(nn.Module):
    """One image in, its distance to a fixed embedding out (N, 1): what libraries that explain one image can take."""

    def __init__(self, network, other):
        super().__init__()
        self.network = network
        self.other = other

    def forward(self, images):
        return (self.network(images) - self.other).norm(dim=1, keepdim=True)


def board(height, width):
    """1 and -1 in turn."""
    return (-1.0) ** (torch.arange(height)[:, None] + torch.arange(width))


def patterned(size, corner, angle, side=6):
    """An image (3, *size) with a chequered square that turns the angle by `angle`, and where it is: bool (*size)."""
    mask = torch.zeros(size, dtype=torch.bool)
    mask[corner[0] : corner[0] + side, corner[1] : corner[1] + side] = True
    image = torch.zeros(3, *size)
    image[0] = mask * board(*size) * angle / side**2
    return image, mask


def different_pairs(count=1):
    """Pairs (B, 2, 3, *CHEQUERED) that a Chequered network tells apart, and the right maps (B, 2, *CHEQUERED)."""
    random = np.random.default_rng(0)
    images, maps = [], []
    for _ in range(count):
        made = [patterned(CHEQUERED, (random.integers(1, 17), random.integers(1, 23)), angle) for angle in (0.7, -0.7)]
        images.append(torch.stack([image for image, _ in made]))
        maps.append(torch.stack([mask.float() for _, mask in made]))
    return torch.stack(images), torch.stack(maps)


def warmed(network, size=(64, 64), device="cpu"):
    """The network with its batch norm set by one pass: else deep features are nearly zero, and timm's residual branches
    are nothing at first.
    """
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # one pass sets the running statistics
            nn.init.ones_(module.weight)
    network.train()
    with torch.no_grad():
        network(torch.randn(16, 3, *size, device=device))
    return network.eval()


def network_and_images(backbone="test_resnet", size=(64, 64), count=2, device="cpu"):
    """A small Siamese network that was not trained, and `count` pairs of noise images (count, 2, 3, *size)."""
    torch.manual_seed(0)
    network = warmed(SiameseNetwork(backbone, 8).to(device), size, device)
    return network, torch.randn(count, 2, 3, *size, device=device)


def explanation_of(network, images, factual, threshold=0.5, names=(), method="", layer="", **source):
    """An Explanation whose factual maps are these, (B, 2, H, W), and whose counterfactual ones their negative part.

    source: fields of its `Source`.
    """
    distances = distances_of(network, images)
    different = (distances > threshold)[:, None, None, None]
    for_decision = factual.clamp(min=0)
    against = (-factual).clamp(min=0)
    towards_different = torch.where(different, for_decision, against)
    towards_same = torch.where(different, against, for_decision)
    source = Source(**{"warning": ""} | source)
    return Explanation(
        images,
        distances,
        threshold,
        towards_different,
        towards_same,
        method=method,
        layer=layer,
        names=names,
        source=source,
    )


def refusing(decode, ending):
    """`cache.decode` as it would be if files whose path ends so could not be decoded."""

    def refused(path, *settings):
        if path.endswith(ending):
            raise DataError(f"{path}: Permission denied")
        return decode(path, *settings)

    return refused


def changed(settings, changes):
    """A copy of nested settings with dotted keys replaced: {"image.size": [32, 32]}."""
    content = yaml.safe_load(yaml.safe_dump(settings))
    for key, value in dict(changes).items():
        *sections, name = key.split(".")
        section = content
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = value
    return content


def write_images(folder, count, size=(32, 32), seed=0):
    """`count` distinct noise images as PNG files in a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for number in range(count):
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{number}.png")


def by_pillow(pixels, quality):
    """An image uint8 (h, w, 3) through a JPEG file of Pillow."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def formulas_at_layer():
    """The formula of each method that reads one feature map, by its name."""
    formulas = {}
    for name, method in METHODS.items():
        if getattr(method.explain, "func", None) is at_layer:
            (formulas[name],) = method.explain.args
    return formulas


def drawn(figure) -> np.ndarray:
    """A figure as pixels, uint8 (H, W, 3)."""
    file = io.BytesIO()
    figure.savefig(file)
    return np.asarray(Image.open(file).convert("RGB"))


def tiny_images(root):
    """Three classes of ten noisy images, 40 pixels high and 48 wide, told apart by their colour."""
    random = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for number in range(10):
            pixels = np.clip(random.normal(colour, 40, (40, 48, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{name}_{number}.png")


def tiny_settings(tiny_data, folder):
    """The shipped config.yml as a dict, made tiny and quick, with its files in `folder`."""
    content = yaml.safe_load((ROOT / "config.yml").read_text())
    content |= {
        "data_path": str(tiny_data),
        "backbone_model": "test_resnet",  # the layers of ResNet18, a thirtieth of its weights
        "checkpoints_path": str(folder / "checkpoints"),
        "results_path": str(folder / "results"),
        "cache_path": str(folder / "cache"),
        "test_size": 0.3,
        "valid_size": 0.3,
        "embedding_size": 8,
        "precision": "float32",
        "cuda": False,
    }
    content["image"]["size"] = [32, 40]
    content["hyperparameters"] |= {"epochs": 2, "batch_size": 8, "learning_rate": 0.001}
    content["LRScheduler"]["schedule"] = "plateau"
    return content
