"""`make faithfulness`: every method and its peers on the sample and on the config's dataset, in one run.

Peers: black-box occlusion, pytorch-grad-cam, and the procedure of the paper's repository in plain lines. Results go to
results/faithfulness.md and results/faithfulness.json.
"""

import argparse
import copy
import json
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from side_by_side import ROOT, config, machine
from speed import GradCAM, ToOther
from utils.comparison import choose_pairs, compare, table
from utils.counterfactuals import counterfactual
from utils.decomposition import decompose
from utils.evaluation import load_trained
from utils.explanation import Explanation
from utils.faithfulness import explain_at_random, explain_by_centre
from utils.methods import method_of, methods_of
from utils.planted import load_masks
from utils.sample_data import SAMPLE_FOLDER, ensure_sample
from utils.sanity import sanity_curve
from utils.siamese import distance, distances_of

from utils.config import load_config
from utils.runtime import start
from utils.training import fit

JSON_KEYS = ("dataset", "method", "pairs", "gap", "gap_low", "gap_high", "hit1", "hit2", "energy1", "energy2")
DRAWS = 2  # random regions for each pair


def paper_repository(network, images1, images2, threshold) -> Explanation:
    """The paper's repository: the distance's gradient whatever the decision, image 1's gradient for both images."""
    with torch.no_grad():
        features = [network.features(images) for images in (images1, images2)]
    features[0].requires_grad_()
    distances = distance(*(network.embed_features(part) for part in features))
    (gradients,) = torch.autograd.grad(distances.sum(), features[0])
    weights, maps = gradients.float().mean(dim=(2, 3), keepdim=True), []
    for part in features:
        evidence = (weights * part.detach().float()).sum(dim=1, keepdim=True)
        maps.append(F.interpolate(evidence, size=images1.shape[2:], mode="bilinear").clamp(min=0)[:, 0])
    factual = torch.stack(maps, dim=1)
    return _as_factual(distances.detach().float(), threshold, factual)


def pytorch_grad_cam(network, images1, images2, threshold) -> Explanation:
    """pytorch-grad-cam on the last stage: the decision's gradient, the other image's embedding held fixed."""
    distances, maps = distances_of(network, images1, images2), []
    network = copy.deepcopy(network).float()  # it takes no bfloat16
    signs = torch.where(distances > threshold, 1, -1)
    with torch.no_grad():
        embeddings = network(images1), network(images2)
    for images, other in ((images1, embeddings[1]), (images2, embeddings[0])):
        with GradCAM(ToOther(network, other), [network.backbone[-1]]) as peer:
            targets = [lambda output, sign=sign: sign * output[0] for sign in signs]
            maps.append(torch.from_numpy(peer(images, targets=targets)))
    return _as_factual(distances, threshold, torch.stack(maps, dim=1).to(distances.device))


def _as_factual(distances, threshold, factual):
    """An Explanation whose factual maps are these, without counterfactual ones."""
    different = (distances > threshold)[:, None, None, None]
    nothing = torch.zeros_like(factual)
    return Explanation(
        distances, threshold, torch.where(different, factual, nothing), torch.where(different, nothing, factual)
    )


PEERS = {
    "the paper's repository": paper_repository,
    "pytorch-grad-cam": pytorch_grad_cam,
    "random map": explain_at_random,
    "centre prior": explain_by_centre,
}


def checked_counterfactuals(trained, paths1, paths2, count) -> list[str]:
    """Lines: how often the smallest change found flips the decision, and its area beside that of random regions."""
    flips, areas, different, method = [], [], [], method_of(trained.config.explanation)
    for number, pair in enumerate(zip(paths1[:count], paths2[:count], strict=True)):
        images = [trained.load_images(path) for path in pair]
        inputs = trained.network, *images
        explanation = method(*inputs, trained.threshold)
        found = [counterfactual(*inputs, explanation)]
        different.append(bool(explanation.different))
        for draw in range(DRAWS):
            chance = explain_at_random(*inputs, trained.threshold, seed=number * DRAWS + draw)
            found.append(counterfactual(*inputs, chance))
        flips.append([one.flipped for one in found])
        areas.append([one.area if one.flipped else 1.0 for one in found])
    flips, areas, different, lines = np.array(flips), np.array(areas), np.array(different), []
    for name, chosen in (("all", different >= 0), ('"same"', ~different), ('"different"', different)):
        if chosen.any():
            ours, random = areas[chosen, 0].mean(), areas[chosen, 1:].mean()
            lines.append(
                f"Checked counterfactuals, {name}, {chosen.sum()} pairs: {flips[chosen, 0].mean():.0%} flip, with "
                f"{ours:.1%} of the area on average; random regions flip {flips[chosen, 1:].mean():.0%} and need "
                f"{random:.1%}: a ratio of {ours / random:.2f}."
            )
    return [line for text in lines for line in (text, "")][:-1]


def matches(trained, splits) -> list[str]:
    """A line: the largest residual of "same" pairs and, with masks, whether the strongest match joins the objects."""
    distances = trained.distances(splits, splits.test_pairs)
    same = np.flatnonzero(distances <= trained.threshold)
    paths, joined, residuals = splits.folder.paths, [], []
    for index in same:
        pair = paths[splits.test_pairs.first[index]], paths[splits.test_pairs.second[index]]
        apart = decompose(trained.network, *(trained.load_images(path) for path in pair))
        residuals.append(abs(apart.residual))
        masks = load_masks(trained.config.data_path, pair, trained.config.image.size)
        if masks is not None and masks.flatten(1).any(dim=1).all():
            cells = F.adaptive_max_pool2d(masks.float(), apart.bias1.shape)
            (*points, _) = apart.strongest(1)[0]
            places = [(int(y * cells.shape[1]), int(x * cells.shape[2])) for y, x in points]
            joined.append(all(cells[image][place] > 0 for image, place in enumerate(places)))
    text = f'Decomposition, {len(same)} pairs decided "same": largest residual {max(residuals):.1e}'
    if joined:
        text += (
            f"; of {len(joined)} with objects, the strongest match joins cells that touch both in {np.mean(joined):.0%}"
        )
    return [text + "."]


def sanity(trained, paths1, paths2) -> list[str]:
    """A line: the rank correlation of the default method's factual maps as the network becomes random from the top."""
    images = [trained.load_images(*paths[:16]) for paths in (paths1, paths2)]
    curve = sanity_curve(method_of(trained.config.explanation), trained.network, *images, trained.threshold)
    steps = ", ".join(f"{stage} {value:+.2f}" for stage, value in curve.items())
    return [f"Sanity, 16 pairs, weights shuffled from the top down to: {steps}."]


def differences(settings) -> str:
    """The keys that differ from config.yml, paths aside."""
    standard, own = (one.model_dump(mode="json") for one in (config({}), settings))
    found = []
    for key, value in own.items():
        for name, part in value.items() if isinstance(value, dict) else [("", value)]:
            other = standard[key][name] if name else standard[key]
            if part != other and not key.endswith("_path"):
                found.append(f"{key}.{name} {part}" if name else f"{key} {part}")
    return ", ".join(found) or "nothing else"


def measure(settings, pairs, rows, texts):
    """Train where there is no network yet, compare all methods, and append to rows and texts."""
    ensure_sample(settings.data_path)
    if not (settings.checkpoints_path / "best.pt").exists():
        fit(settings)
    trained = load_trained(settings, start(settings))
    splits, began = trained.load_splits(), time.perf_counter()
    paths = choose_pairs(splits, pairs, settings.seed)
    found = compare(methods_of(trained.config.explanation) | PEERS, trained, *paths, settings.seed)
    rows += found
    shown = trained.config
    texts += [
        f"## {shown.data_path.name}",
        "",
        f"{shown.backbone_model}, {shown.image.size[0]} x {shown.image.size[1]} pixels, {found[0]['pairs']} test "
        f"pairs, seed {shown.seed}, {trained.runtime}, "
        f"layer {shown.explanation.layer}, steps {shown.explanation.steps}. Beside config.yml: {differences(shown)}.",
        "",
        table(found),
        "",
        *checked_counterfactuals(trained, *paths, min(pairs, 48)),
        "",
        *matches(trained, splits),
        "",
        *sanity(trained, *paths),
        "",
    ]
    print("\n".join(texts), f"\n{time.perf_counter() - began:.0f} s", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", help="its dataset is measured beside the sample (default: config.yml)")
    parser.add_argument("--pairs", type=int, default=128, help="test pairs of each dataset, at most")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    options = parser.parse_args()
    own, rows, texts = load_config(options.config), [], [f"# Faithfulness, {date.today()}", "", machine(), ""]
    with tempfile.TemporaryDirectory() as folder:
        if own.data_path.resolve() != SAMPLE_FOLDER.resolve():
            measure(config({"checkpoints_path": f"{folder}/checkpoints"}), options.pairs, rows, texts)
        measure(own, options.pairs, rows, texts)
    options.results.mkdir(parents=True, exist_ok=True)
    content = [{key: row[key] for key in (*JSON_KEYS, "seconds_per_pair")} for row in rows]
    (options.results / "faithfulness.json").write_text(json.dumps(content, indent=2) + "\n")
    (options.results / "faithfulness.md").write_text("\n".join(texts))


if __name__ == "__main__":
    main()
