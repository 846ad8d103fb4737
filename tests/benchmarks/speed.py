"""Training, evaluating, explaining and delivering images: ours against the textbook procedure and pytorch-grad-cam."""

import copy
import time
from dataclasses import replace

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
from utils.network.distance import distance, evaluating
from utils.network.siamese import SiameseNetwork, build_network
from utils.network.variants import folded
from utils.train.evaluation import pair_distances
from utils.train.loop import build_optimizer, build_scaler, train_epoch

PAPER = {  # the settings of the paper's config.yml; its batch of 4 pairs holds 8 images
    "backbone_model": "ResNet50",
    "image.size": [320, 320],
    "image.RandomRotationDegrees": 45,
    "hyperparameters.batch_size": 8,
    "hyperparameters.optimizer": "Adam",
    "hyperparameters.verbose": False,
    "test_size": 0.3,
    "valid_size": 0.2,
    "explanation.layer": "last",
}
ROUNDS = 3
FAMILIES = ("resnet50", "tf_efficientnet_lite0", "vit_small_patch16_224")


class ToOther(torch.nn.Module):
    """The network as pytorch-grad-cam takes it: one image in, its distance to a fixed embedding out."""

    def __init__(self, network, other):
        super().__init__()
        self.network, self.other = network, other
        self.map = torch.nn.Identity()  # the last map, whatever the backbone calls it

    def forward(self, image):
        features = self.map(self.network.features(image))
        return distance(self.network.embed_features(features), self.other)[:, None]


def peer_maps(network, image1, image2):
    """The four maps of a pair by pytorch-grad-cam, in the order of textbook.explain."""
    with torch.no_grad():
        embeddings = network(image1), network(image2)
    maps = []
    for sign in (1, -1):
        for image, other in ((image1, embeddings[1]), (image2, embeddings[0])):
            module = ToOther(network, other)
            with GradCAM(module, [module.map]) as peer:
                maps.append(peer(image, targets=[lambda output, sign=sign: sign * output[0]])[0])
    return np.stack(maps)


class Setting:
    """Data, networks and both precisions of one benchmark run."""

    def __init__(self, folder, changes=()):
        changes = {**PAPER, "cache_path": str(folder / "cache"), **dict(changes)}
        changes["data_path"] = str(photographs(folder / "photographs", 4, 20))
        self.config, self.exact = config(changes), config({**changes, "precision": "float32"})
        self.runtime, self.float32 = start(self.config), replace(start(self.exact), dtype=torch.float32)
        self.splits, self.paths = load_splits(self.config), None
        self.paths = self.splits.folder.paths
        self.network = self.runtime.place(build_network(self.config))
        self.plain = textbook.contiguous(self.network)
        first = [self.splits.test_pairs.first[:1], self.splits.test_pairs.second[:1]]
        apply = textbook.transform(self.config.image, training=False)
        self.images = [textbook.load([self.paths[part[0]]], apply).to(self.runtime.device) for part in first]


def training(setting) -> list[Row]:
    """Rule-equivalent pairs a second: an image of a batch stands for one positive and one negative pair."""
    splits, pairs = setting.splits, 2 * textbook.PAIRS
    chosen = np.random.default_rng(0).permutation(len(splits.valid_pairs))[:pairs]
    rule = Pairs(
        *(part[chosen] for part in (splits.valid_pairs.first, splits.valid_pairs.second, splits.valid_pairs.labels))
    )
    plain = copy.deepcopy(setting.plain)
    optimizer = torch.optim.Adam(plain.parameters(), lr=5e-6)

    def ours(settings, runtime):
        network = copy.deepcopy(setting.network)
        optimizer, scaler = build_optimizer(network, settings), build_scaler(runtime)
        return lambda: train_epoch(network, optimizer, scaler, splits, settings, runtime, 1)

    seconds = rounds(
        {
            "ours": ours(setting.config, setting.runtime),
            "ours in float32": ours(setting.exact, setting.float32),
            "textbook": lambda: textbook.train(plain, optimizer, rule, setting.paths, setting.config.image),
        },
        ROUNDS,
    )
    count, theirs = 2 * len(splits.train), seconds["textbook"] / pairs
    note = f"{count / np.median(seconds['ours']):.1f} pairs/s"
    return [
        row("training", "textbook", seconds["ours"] / count, theirs, None, note),
        row("training, float32", "textbook", seconds["ours in float32"] / count, theirs, 4),
    ]


def evaluating_pairs(setting) -> list[Row]:
    """A split of pairs, one positive and one negative for each image (number_of_iterations: 1, as in the paper)."""
    splits, pairs = setting.splits, setting.splits.test_pairs
    network, exact = folded(setting.network, setting.runtime.dtype), folded(setting.network, torch.float32)
    theirs = Pairs(pairs.first[:8], pairs.second[:8], pairs.labels[:8])
    seconds = rounds(
        {
            "ours": lambda: pair_distances(network, splits, pairs, setting.config, setting.runtime),
            "textbook": lambda: textbook.evaluate(setting.plain, theirs, setting.paths, setting.config.image),
        },
        ROUNDS,
    )
    expected = textbook.evaluate(setting.plain.eval(), theirs, setting.paths, setting.config.image)
    found = pair_distances(exact, splits, pairs, setting.exact, setting.float32)[:8]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    return [row("evaluating a split of pairs", "textbook", seconds["ours"] / len(pairs), seconds["textbook"] / 8, 15)]


def explaining(setting) -> list[Row]:
    """The four maps of a pair."""
    short, exact = folded(setting.network, setting.runtime.dtype), folded(setting.network, torch.float32)
    plain = setting.plain.eval()
    one = setting.runtime.place(torch.cat(setting.images)).unflatten(0, (-1, 2))
    many = setting.runtime.place(torch.cat(setting.images * 16)).unflatten(0, (-1, 2))
    evidence = explain(exact, one, 0.5, **GRADCAM).evidence[0].cpu()
    expected = textbook.explain(plain, *setting.images)
    torch.testing.assert_close(torch.cat([evidence, -evidence]).clamp(min=0), expected, atol=1e-4, rtol=0)
    rough = explain(short, one, 0.5, **GRADCAM).evidence[0].cpu()
    agreement = [
        np.corrcoef(ours.flatten(), theirs.flatten())[0, 1] for ours, theirs in zip(rough, evidence, strict=True)
    ]
    assert min(agreement) > 0.99, agreement
    seconds = rounds(
        {
            "16 pairs": lambda: explain(short, many, 0.5, **GRADCAM),
            "1 pair": lambda: explain(short, one, 0.5, **GRADCAM),
            "1 pair in float32": lambda: explain(exact, one, 0.5, **GRADCAM),
            "textbook": lambda: textbook.explain(plain, *setting.images),
            "pytorch-grad-cam": lambda: peer_maps(plain, *setting.images),
        },
        ROUNDS,
    )
    theirs, peers = seconds["textbook"], seconds["pytorch-grad-cam"]
    note = f"maps in bfloat16 correlate {min(agreement):.4f} or more with those in float32"
    return [
        row("explaining, batch of 16", "textbook", seconds["16 pairs"] / 16, theirs, 20, note),
        row("explaining, batch of 1", "textbook", seconds["1 pair"], theirs, 20),
        row("explaining, batch of 1", "pytorch-grad-cam", seconds["1 pair"], peers, 18),
        row("explaining, batch of 1, float32", "textbook", seconds["1 pair in float32"], theirs, 10),
        row("explaining, batch of 1, float32", "pytorch-grad-cam", seconds["1 pair in float32"], peers, 8),
    ]


def delivering(setting) -> list[Row]:
    """Images that reach the network's input size: from the cache against decoded and resized."""
    resize, every = textbook.v2.Resize(setting.config.image.size, antialias=True), np.arange(len(setting.paths))
    from_cache = np.array_split(every, len(every) // 16)
    seconds = rounds(
        {
            "ours": lambda: sum(map(len, deliver(setting.splits.pixels, from_cache * 5, setting.runtime))),
            "decoding": lambda: textbook.load(
                setting.paths, lambda image: resize(textbook.v2.functional.pil_to_tensor(image))
            ),
        },
        ROUNDS,
    )
    return [row("images delivered, from the second epoch on", "decoding", seconds["ours"] / 5, seconds["decoding"], 20)]


def input_pipeline(setting) -> list[Row]:
    """A training epoch against the same steps on one batch that is already there: what the input pipeline costs."""
    splits, settings, runtime = setting.splits, setting.config, setting.runtime
    network = copy.deepcopy(setting.network)
    optimizer, scaler = build_optimizer(network, settings), build_scaler(runtime)
    still = config({**PAPER, "image.RandomRotationDegrees": 0, "image.HorizontalFlip": 0, "image.VerticalFlip": 0})

    class Resident:
        def __init__(self):
            self.rows = torch.from_numpy(splits.pixels[np.arange(16)]).to(runtime.device)

        def __getitem__(self, indices):
            return self.rows[: len(indices)]

    resident = replace(splits, pixels=Resident())
    seconds = rounds(
        {
            "whole": lambda: train_epoch(network, optimizer, scaler, splits, settings, runtime, 1),
            "resident": lambda: train_epoch(network, optimizer, scaler, resident, still, runtime, 1),
        },
        ROUNDS,
    )
    return [
        row(
            "training with input pipeline and augmentation",
            "a resident batch",
            seconds["whole"],
            seconds["resident"],
            0.9,
        )
    ]


def peak_shares(setting) -> tuple[list[Row], list[str]]:
    """Rows: the share of the measured matrix peak that training and inference reach; lines: what takes the time."""
    runtime, network = setting.runtime, copy.deepcopy(setting.network)
    images = runtime.place(torch.randn(16, 3, *setting.config.image.size))
    square = torch.randn(4096, 4096, device=runtime.device, dtype=runtime.dtype)
    optimizer = build_optimizer(network, setting.config)

    def step():
        with runtime.autocast():
            loss = network(images).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    inference = folded(network, runtime.dtype)
    flops = {"peak": 2 * 4096**3}
    with evaluating(network), FlopCounterMode(display=False) as counter, torch.no_grad():
        network(images)
    flops["inference"] = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        step()
    flops["training"] = counter.get_total_flops()

    procedures = {"peak": lambda: (square @ square, _wait(runtime)), "training": step}
    procedures["inference"] = _inference(inference, images, runtime)
    seconds = rounds(procedures, ROUNDS)
    speed = {name: flops[name] / np.median(seconds[name]) / 1e9 for name in flops}
    with torch.profiler.profile() as profile:
        step()
    events = sorted(profile.key_averages(), key=lambda event: -event.self_cpu_time_total)[:6]
    total = sum(event.self_cpu_time_total for event in profile.key_averages())
    parts = ", ".join(f"{event.key.removeprefix('aten::')} {event.self_cpu_time_total / total:.0%}" for event in events)
    dtype = str(runtime.dtype).removeprefix("torch.")
    peak = f"matrix peak, {dtype}"
    shares = [
        row("a training step, in GFLOP/s", peak, seconds["training"] / flops["training"], _per_flop(seconds), 0.8),
        row("inference, in GFLOP/s", peak, seconds["inference"] / flops["inference"], _per_flop(seconds), 0.9),
    ]
    return shares, [
        f"Matrix peak, {dtype}: {speed['peak']:.0f} GFLOP/s.",
        f"A training step goes to: {parts}.",
        *_float32_peak(setting, speed["peak"]),
    ]


def _per_flop(seconds):
    return seconds["peak"] / (2 * 4096**3)


def _float32_peak(setting, short):
    square = torch.randn(4096, 4096, device=setting.runtime.device)
    seconds = rounds({"peak": lambda: (square @ square, _wait(setting.runtime))}, ROUNDS)["peak"]
    exact = 2 * 4096**3 / np.median(seconds) / 1e9
    return [
        f"Matrix peak, float32: {exact:.0f} GFLOP/s, so the shorter dtype alone can bring {short / exact:.1f}x here."
    ]


def family_shares(runtime) -> list[str]:
    """Lines: images per second of one backbone of each kind, folded, and its share of the measured matrix peak."""
    images = runtime.place(torch.randn(16, 3, 224, 224))
    square = torch.randn(4096, 4096, device=runtime.device, dtype=runtime.dtype)
    procedures = {"peak": lambda: (square @ square, _wait(runtime))}
    flops = {"peak": 2 * 4096**3}
    for name in FAMILIES:
        network = SiameseNetwork(name, 128).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(images[:1].cpu())
        flops[name] = counter.get_total_flops() * len(images)
        procedures[name] = _inference(runtime.place(folded(network, runtime.dtype)), images, runtime)
    seconds = {name: np.median(found) for name, found in rounds(procedures, ROUNDS).items()}
    peak = flops["peak"] / seconds["peak"]
    return [
        f"{name}, 224 x 224: {len(images) / seconds[name]:.0f} images/s, {flops[name] / seconds[name] / peak:.0%} of "
        "the matrix peak."
        for name in FAMILIES
    ]


def _inference(network, images, runtime):
    @torch.no_grad()
    def infer():
        network(images)
        _wait(runtime)

    return infer


def _wait(runtime: Runtime):
    if runtime.device.type == "cuda":
        torch.cuda.synchronize(runtime.device)


def run(folder) -> tuple[list[Row], list[str]]:
    """All rows of this file, and lines to stand under the table."""
    setting, rows = Setting(folder), []
    for part in (training, evaluating_pairs, explaining, delivering, input_pipeline):
        began = time.perf_counter()
        rows += part(setting)
        print(f"{part.__name__}: {time.perf_counter() - began:.0f} s", flush=True)
    shares, lines = peak_shares(setting)
    return rows + shares, [str(setting.runtime), *lines, *family_shares(setting.runtime)]
