"""Training, evaluating, explaining and delivering images: ours against the textbook procedure and pytorch-grad-cam."""

import copy
import time
from dataclasses import replace
from functools import partial

import numpy as np
import textbook
import torch
from pytorch_grad_cam import GradCAM
from side_by_side import Row, config, photographs, rounds, row
from torch.utils.flop_counter import FlopCounterMode

from utils.data.batches import deliver
from utils.data.splits import Pairs, load_splits
from utils.device import Runtime, start
from utils.explanations.methods import PAPER as GRADCAM
from utils.explanations.methods import explain
from utils.network.distance import distance, unit
from utils.network.siamese import SiameseNetwork, build_network
from utils.network.variants import folded
from utils.train.evaluation import pair_distances
from utils.train.loop import build_optimizer, build_scaler, train_epoch

PAPER = {  # the settings of the paper's config.yml; its batch of 4 pairs holds 8 images
    "backbone_model": "ResNet50",
    "hyperparameters.learning_rate": 0.001,
    "LRScheduler.schedule": "plateau",
    "image.size": [320, 320],
    "image.RandomRotationDegrees": 45,
    "hyperparameters.batch_size": 8,
    "hyperparameters.optimizer": "Adam",
    "hyperparameters.verbose": False,
    "test_size": 0.3,
    "valid_size": 0.2,
    "explanation.layer": "last",
}
PLAIN = {"image.RandomRotationDegrees": 0, "image.HorizontalFlip": 0, "image.VerticalFlip": 0}  # no augmentation
ROUNDS = 3
BATCH = 16
EVALUATED = 8  # pairs by the textbook procedure
SIDE = 4096  # of the matrices whose product shows the peak of the machine
FAMILIES = ("resnet50", "tf_efficientnet_lite0", "vit_small_patch16_224")


class ToPartner(torch.nn.Module):
    """The network as pytorch-grad-cam takes it: one image in, its distance to a fixed embedding out."""

    def __init__(self, network, partner):
        super().__init__()
        self.network = network
        self.partner = partner
        self.map = torch.nn.Identity()  # the last map, whatever the backbone calls it

    def forward(self, image):
        features = self.map(self.network.features(image))
        return distance(unit(self.network.project_features(features)), self.partner)[:, None]


def gradcam_maps(network, images, partners, signs) -> torch.Tensor:
    """Explain images by pytorch-grad-cam, with the embedding of the other image of each pair held fixed.

    Args:
        network: In evaluation mode and float32.
        images: Float (B, 3, H, W).
        partners: Embeddings of the other images, (B, D).
        signs: Of each pair, 1 for evidence towards "different", -1 towards "same".

    Returns:
        (B, H, W).
    """
    targets = [lambda output, sign=sign: sign * output[0] for sign in signs]
    module = ToPartner(network, partners)
    with GradCAM(module, [module.map]) as peer:
        return torch.from_numpy(peer(images, targets=targets))


def explain_by_gradcam(network, image1, image2) -> torch.Tensor:
    """Return the four maps of a pair by pytorch-grad-cam, in the order of textbook.explain."""
    with torch.no_grad():
        embedding1, embedding2 = network(image1), network(image2)
    maps = []
    for sign in (1, -1):
        maps.append(gradcam_maps(network, image1, embedding2, [sign]))
        maps.append(gradcam_maps(network, image2, embedding1, [sign]))
    return torch.cat(maps)


class Setting:
    """Data, networks and both precisions of one benchmark run."""

    def __init__(self, folder):
        paths = {"cache_path": folder / "cache", "data_path": photographs(folder / "photographs", 4, 20)}
        self.config = config({**PAPER, **paths})
        self.exact = config({**PAPER, **paths, "precision": "float32"})
        self.without_augmentation = config({**PAPER, **paths, **PLAIN})
        self.runtime = start(self.config)
        self.float32 = start(self.exact)
        self.splits = load_splits(self.config)
        self.paths = self.splits.folder.paths
        self.network = self.runtime.place(build_network(self.config))
        self.short_network = folded(self.network, self.runtime.dtype)
        self.float32_network = folded(self.network, torch.float32)
        self.plain = textbook.contiguous(self.network)


def training(setting) -> list[Row]:
    """Compare rule-equivalent pairs a second: an image of a batch stands for one positive and one negative pair."""
    pairs = setting.splits.valid_pairs
    chosen = np.random.default_rng(0).permutation(len(pairs))[: 2 * textbook.PAIRS]
    pairs = Pairs(pairs.first[chosen], pairs.second[chosen], pairs.labels[chosen])
    plain = copy.deepcopy(setting.plain)
    optimizer = torch.optim.Adam(plain.parameters(), lr=5e-6)
    seconds = rounds(
        {
            "ours": epoch(setting, setting.splits, setting.config, setting.runtime),
            "ours in float32": epoch(setting, setting.splits, setting.exact, setting.float32),
            "textbook": partial(textbook.train, plain, optimizer, pairs, setting.paths, setting.config.image),
        },
        ROUNDS,
    )
    count = 2 * len(setting.splits.train)
    theirs = seconds["textbook"] / len(pairs)
    note = f"{count / np.median(seconds['ours']):.1f} pairs/s"
    return [
        row("training", "textbook", seconds["ours"] / count, theirs, None, note),
        row("training, float32", "textbook", seconds["ours in float32"] / count, theirs, 4),
    ]


def epoch(setting, splits, settings, runtime):
    """Return a function that trains a copy of the network for an epoch."""
    network = copy.deepcopy(setting.network)
    optimizer = build_optimizer(network, settings)
    return partial(train_epoch, network, optimizer, build_scaler(runtime), splits, settings, runtime, 1)


def evaluating_pairs(setting) -> list[Row]:
    """Compare a split of pairs, one positive and one negative for each image (number_of_iterations: 1)."""
    splits = setting.splits
    pairs = splits.test_pairs
    few = Pairs(pairs.first[:EVALUATED], pairs.second[:EVALUATED], pairs.labels[:EVALUATED])
    by_textbook = partial(textbook.evaluate, setting.plain, few, setting.paths, setting.config.image)
    exact = pair_distances(setting.float32_network, splits, pairs, setting.exact, setting.float32)
    np.testing.assert_allclose(exact[:EVALUATED], by_textbook(), atol=1e-4)
    ours = partial(pair_distances, setting.short_network, splits, pairs, setting.config, setting.runtime)
    seconds = rounds({"ours": ours, "textbook": by_textbook}, ROUNDS)
    theirs = seconds["textbook"] / EVALUATED
    return [row("evaluating a split of pairs", "textbook", seconds["ours"] / len(pairs), theirs, 15)]


def explaining(setting) -> list[Row]:
    """Compare the four maps of a pair."""
    plain = setting.plain.eval()
    pairs = setting.splits.test_pairs
    apply = textbook.transform(setting.config.image, training=False)
    images = textbook.load(setting.paths, [pairs.first[0], pairs.second[0]], apply)
    pair = setting.runtime.place(images)[None]  # (1, 2, 3, H, W)
    image1, image2 = pair[0, :1], pair[0, 1:]
    expected = textbook.explain(plain, image1, image2)
    evidence = explain(setting.float32_network, pair, 0.5, **GRADCAM).evidence[0]
    torch.testing.assert_close(torch.cat([evidence, -evidence]).clamp(min=0), expected, atol=1e-4, rtol=0)
    short = explain(setting.short_network, pair, 0.5, **GRADCAM).evidence[0]
    correlations = []
    for image in range(2):
        both = torch.stack([short[image].flatten(), evidence[image].flatten()])
        correlations.append(torch.corrcoef(both)[0, 1].item())
    correlation = min(correlations)
    assert correlation > 0.99, correlation
    seconds = rounds(
        {
            "16 pairs": partial(explain, setting.short_network, pair.repeat(BATCH, 1, 1, 1, 1), 0.5, **GRADCAM),
            "1 pair": partial(explain, setting.short_network, pair, 0.5, **GRADCAM),
            "1 pair in float32": partial(explain, setting.float32_network, pair, 0.5, **GRADCAM),
            "textbook": partial(textbook.explain, plain, image1, image2),
            "pytorch-grad-cam": partial(explain_by_gradcam, plain, image1, image2),
        },
        ROUNDS,
    )
    theirs = seconds["textbook"]
    peers = seconds["pytorch-grad-cam"]
    note = f"maps in bfloat16 correlate {correlation:.4f} or more with those in float32"
    return [
        row("explaining, batch of 16", "textbook", seconds["16 pairs"] / BATCH, theirs, 20, note),
        row("explaining, batch of 1", "textbook", seconds["1 pair"], theirs, 20),
        row("explaining, batch of 1", "pytorch-grad-cam", seconds["1 pair"], peers, 18),
        row("explaining, batch of 1, float32", "textbook", seconds["1 pair in float32"], theirs, 10),
        row("explaining, batch of 1, float32", "pytorch-grad-cam", seconds["1 pair in float32"], peers, 8),
    ]


def delivering(setting) -> list[Row]:
    """Compare images that reach the network's input size: from the cache against decoded and resized."""
    indices = np.arange(len(setting.paths))
    batches = np.array_split(indices, len(indices) // BATCH)
    resize = textbook.v2.Resize(setting.config.image.size, antialias=True)

    def from_cache():
        for _ in deliver(setting.splits.pixels, batches * 5, setting.runtime):
            pass

    decode = partial(textbook.load, setting.paths, indices, resize)
    seconds = rounds({"ours": from_cache, "decoding": decode}, ROUNDS)
    return [row("images delivered, from the second epoch on", "decoding", seconds["ours"] / 5, seconds["decoding"], 20)]


class ResidentBatch:
    """A batch that stands for any images of a split."""

    def __init__(self, setting):
        self.pixels = torch.from_numpy(setting.splits.pixels[np.arange(BATCH)]).to(setting.runtime.device)

    def __getitem__(self, indices):
        return self.pixels[: len(indices)]


def input_pipeline(setting) -> list[Row]:
    """Compare a training epoch with the same steps on one batch in memory: what the input pipeline costs."""
    resident = replace(setting.splits, pixels=ResidentBatch(setting))
    seconds = rounds(
        {
            "whole": epoch(setting, setting.splits, setting.config, setting.runtime),
            "resident": epoch(setting, resident, setting.without_augmentation, setting.runtime),
        },
        ROUNDS,
    )
    work = "training with input pipeline and augmentation"
    return [row(work, "a resident batch", seconds["whole"], seconds["resident"], 0.9)]


def peak_shares(setting) -> tuple[list[Row], list[str]]:
    """Return rows of the share of the matrix peak that training and inference reach, and lines on what takes time."""
    runtime = setting.runtime
    network = copy.deepcopy(setting.network)
    images = runtime.place(torch.randn(BATCH, 3, *setting.config.image.size))
    procedures = {
        "peak": partial(multiply, torch.randn(SIDE, SIDE, device=runtime.device, dtype=runtime.dtype)),
        "training": partial(train_step, network, build_optimizer(network, setting.config), images, runtime),
        "inference": partial(infer, setting.short_network, images),
        "float32 peak": partial(multiply, torch.randn(SIDE, SIDE, device=runtime.device)),
    }
    flops = {name: flops_of(procedure) for name, procedure in procedures.items()}
    per_flop = {name: seconds / flops[name] for name, seconds in rounds(procedures, ROUNDS).items()}
    dtype = str(runtime.dtype).removeprefix("torch.")
    peak = f"matrix peak, {dtype}"
    rows = [
        row("a training step, in GFLOP/s", peak, per_flop["training"], per_flop["peak"], 0.8),
        row("inference, in GFLOP/s", peak, per_flop["inference"], per_flop["peak"], 0.9),
    ]
    short = 1e-9 / np.median(per_flop["peak"])
    exact = 1e-9 / np.median(per_flop["float32 peak"])
    return rows, [
        f"Matrix peak, {dtype}: {short:.0f} GFLOP/s.",
        f"A training step goes to: {slowest_operators(procedures['training'])}.",
        f"Matrix peak, float32: {exact:.0f} GFLOP/s, so the shorter dtype alone can bring {short / exact:.1f}x here.",
    ]


def family_shares(runtime) -> list[str]:
    """Return lines: images per second of one folded backbone of each kind, and its share of the matrix peak."""
    images = runtime.place(torch.randn(BATCH, 3, 224, 224))
    square = torch.randn(SIDE, SIDE, device=runtime.device, dtype=runtime.dtype)
    procedures = {"peak": partial(multiply, square)}
    for name in FAMILIES:
        network = runtime.place(folded(SiameseNetwork(name, 128), runtime.dtype))
        procedures[name] = partial(infer, network, images)
    seconds = rounds(procedures, ROUNDS)
    peak = flops_of(procedures["peak"]) / np.median(seconds["peak"])
    lines = []
    for name in FAMILIES:
        median = np.median(seconds[name])
        share = flops_of(procedures[name]) / median / peak
        lines.append(f"{name}, 224 x 224: {BATCH / median:.0f} images/s, {share:.0%} of the matrix peak.")
    return lines


def multiply(square):
    wait_for(square @ square)


@torch.no_grad()
def infer(network, images):
    wait_for(network(images))


def train_step(network, optimizer, images, runtime: Runtime):
    with runtime.autocast():
        loss = network(images).square().sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    wait_for(loss)


def wait_for(tensor):
    """Wait until a GPU has computed."""
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


def flops_of(procedure) -> int:
    with FlopCounterMode(display=False) as counter:
        procedure()
    return counter.get_total_flops()


def slowest_operators(procedure) -> str:
    """Return the six operators that take most of the time on the CPU, with their shares."""
    with torch.profiler.profile() as profile:
        procedure()
    events = profile.key_averages()
    times = {event.key.removeprefix("aten::"): event.self_cpu_time_total for event in events}
    total = sum(times.values())
    slowest = sorted(times, key=times.get, reverse=True)[:6]
    return ", ".join(f"{name} {times[name] / total:.0%}" for name in slowest)


def run(folder) -> tuple[list[Row], list[str]]:
    """Return all rows of this file, and lines to stand under the table."""
    setting = Setting(folder)
    rows = []
    for part in (training, evaluating_pairs, explaining, delivering, input_pipeline):
        began = time.perf_counter()
        rows += part(setting)
        print(f"{part.__name__}: {time.perf_counter() - began:.0f} s", flush=True)
    shares, lines = peak_shares(setting)
    return rows + shares, [str(setting.runtime), *lines, *family_shares(setting.runtime)]
