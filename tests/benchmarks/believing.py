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
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from side_by_side import ROOT, config, machine
from speed import GradCAM, ToOther

from utils import (
    choose_pairs,
    compare,
    counterfactual,
    decompose,
    explain,
    fit,
    load_config,
    load_trained,
    methods_of,
    table,
)
from utils.data import SAMPLE_FOLDER, ensure_sample, load_masks
from utils.explain import Explanation, explained
from utils.network import distance, distances_of, embed_pairs
from utils.runtime import start
from utils.trust import explain_at_random, explain_by_centre, sanity_curves

JSON_KEYS = ("dataset", "method", "pairs", "gap", "gap_low", "gap_high", "hit1", "hit2", "energy1", "energy2")
DRAWS = 2  # random regions for each pair


def paper_repository(network, images, threshold) -> Explanation:
    """The paper's repository: the distance's gradient whatever the decision, image 1's gradient for both images."""
    with torch.no_grad():
        features = [network.features(part) for part in images.unbind(1)]
    features[0].requires_grad_()
    distances = distance(*(network.embed_features(part) for part in features))
    (gradients,) = torch.autograd.grad(distances.sum(), features[0])
    weights = gradients.float().mean(dim=(2, 3), keepdim=True)
    maps = torch.stack([(weights * part.detach().float()).sum(dim=1) for part in features], dim=1)
    return _as_factual(images, distances.detach().float(), threshold, maps)


def pytorch_grad_cam(network, images, threshold) -> Explanation:
    """pytorch-grad-cam on the last stage: the decision's gradient, the other image's embedding held fixed."""
    distances = distances_of(network, images)
    network = copy.deepcopy(network).float()  # it takes no bfloat16
    with torch.no_grad():
        embeddings = embed_pairs(network, images)
    signs = torch.where(distances > threshold, 1, -1)
    targets = [lambda output, sign=sign: sign * output[0] for sign in signs]
    maps = []
    for image in range(2):
        module = ToOther(network, embeddings[:, 1 - image])
        with GradCAM(module, [module.map]) as peer:
            maps.append(torch.from_numpy(peer(images[:, image], targets=targets)))
    return _as_factual(images, distances, threshold, torch.stack(maps, dim=1).to(distances.device))


def _as_factual(images, distances, threshold, factual) -> Explanation:
    """An Explanation whose factual maps are these, without counterfactual ones."""
    different = (distances > threshold)[:, None, None, None]
    nothing = torch.zeros_like(factual)
    towards_different = torch.where(different, factual, nothing)
    towards_same = torch.where(different, nothing, factual)
    return explained(images, distances, threshold, towards_different, towards_same)


PEERS = {
    "the paper's repository": paper_repository,
    "pytorch-grad-cam": pytorch_grad_cam,
    "random map": explain_at_random,
    "centre prior": explain_by_centre,
}


def checked_counterfactuals(trained, pairs) -> list[str]:
    """Lines: how often the smallest change found flips the decision, and its area beside that of random regions."""
    flips = []
    areas = []
    different = []
    for number, pair in enumerate(pairs):
        explanation = trained.explain(pair)
        found = [counterfactual(trained.network, explanation)]
        for draw in range(DRAWS):
            seed = number * DRAWS + draw
            chance = explain_at_random(trained.network, explanation.images, trained.threshold, seed)
            found.append(counterfactual(trained.network, chance))
        different.append(bool(explanation.different))
        flips.append([one.flipped for one in found])
        areas.append([one.area if one.flipped else 1.0 for one in found])
    flips = np.array(flips)
    areas = np.array(areas)
    different = np.array(different)
    lines = []
    for name, chosen in (("all", different >= 0), ('"same"', ~different), ('"different"', different)):
        if chosen.any():
            ours = areas[chosen, 0].mean()
            random = areas[chosen, 1:].mean()
            lines += [
                f"Checked counterfactuals, {name}, {chosen.sum()} pairs: {flips[chosen, 0].mean():.0%} flip, with "
                f"{ours:.1%} of the area on average; random regions flip {flips[chosen, 1:].mean():.0%} and need "
                f"{random:.1%}: a ratio of {ours / random:.2f}.",
                "",
            ]
    return lines


def matches(trained, splits) -> str:
    """The largest residual of "same" pairs and, with masks, whether the strongest match joins the objects."""
    paths = splits.folder.paths
    pairs = splits.test_pairs
    same = np.flatnonzero(trained.distances(splits, pairs) <= trained.threshold)
    joined = []
    residuals = []
    for index in same:
        pair = paths[pairs.first[index]], paths[pairs.second[index]]
        found = decompose(trained.network, trained.explain(pair))
        residuals.append(abs(found.residual))
        masks = load_masks(trained.config.data_path, [pair], trained.config.image.size)
        if masks is not None and masks[0].flatten(1).any(dim=1).all():
            cells = F.adaptive_max_pool2d(masks[0].float(), found.bias1.shape)
            (match,) = found.strongest(1)
            joined.append(all(_at(one, place) for one, place in zip(cells, (match.place1, match.place2), strict=True)))
    text = f'Decomposition, {len(same)} pairs decided "same": largest residual {max(residuals):.1e}'
    if joined:
        text += (
            f"; of {len(joined)} with objects, the strongest match joins cells that touch both in {np.mean(joined):.0%}"
        )
    return text + "."


def _at(cells, place) -> bool:
    """Whether the cell that holds a place (y, x), in [0, 1), is set."""
    y, x = place
    return bool(cells[int(y * cells.shape[0]), int(x * cells.shape[1])] > 0)


def sanity(trained, pairs) -> str:
    """The rank correlation of the default method's factual maps as the network becomes random from the top."""
    settings = trained.config.explanation
    own = partial(explain, **settings.model_dump())
    (curve,) = sanity_curves({settings.method: own}, trained, pairs).values()
    steps = ", ".join(f"{stage} {value:+.2f}" for stage, value in curve.items())
    return f"Sanity, 16 pairs, weights shuffled from the top down to: {steps}."


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
    splits = trained.load_splits()
    began = time.perf_counter()
    chosen = choose_pairs(splits, pairs, settings.seed)
    found = compare(methods_of(trained.config.explanation) | PEERS, trained, chosen, settings.seed)
    rows += found
    shown = trained.config
    texts += [
        f"## {shown.data_path.name}",
        "",
        f"{shown.backbone_model}, {shown.image.size[0]} x {shown.image.size[1]} pixels, {found[0].pairs} test "
        f"pairs, seed {shown.seed}, {trained.runtime}, "
        f"layer {shown.explanation.layer}, steps {shown.explanation.steps}. Beside config.yml: {differences(shown)}.",
        "",
        table(found).to_markdown(disable_numparse=True),
        "",
        *checked_counterfactuals(trained, chosen[:48]),
        matches(trained, splits),
        "",
        sanity(trained, chosen),
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
    content = [{key: getattr(row, key) for key in (*JSON_KEYS, "seconds_per_pair")} for row in rows]
    (options.results / "faithfulness.json").write_text(json.dumps(content, indent=2) + "\n")
    (options.results / "faithfulness.md").write_text("\n".join(texts))


if __name__ == "__main__":
    main()
