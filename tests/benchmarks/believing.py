"""`make faithfulness`: every method and its peers on three networks, in one run.

The sample's ResNet18, a ResNet18 from scratch on photographs, and a pretrained network on the same photographs; each is
trained where `--checkpoints` has it not yet. Results go to results/faithfulness.md and results/faithfulness.json.
"""

import argparse
import json
import tempfile
import time
from dataclasses import asdict, replace
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import torch
from differences import load_differences, make_differences
from peers import PEERS, integrated_jacobians, pair_x
from side_by_side import ROOT, config, machine

from utils import (
    calibrate,
    choose_pairs,
    compare,
    decompose,
    explain,
    fit,
    judge,
    load_config,
    load_trained,
    methods_of,
    smallest_edit,
    table,
)
from utils.data.sample import SAMPLE_FOLDER, ensure_sample, load_masks
from utils.data.splits import Pairs, pairs_of_files
from utils.device import start
from utils.network.distance import distances_of
from utils.score.intervals import intervals, mean_interval
from utils.train.runs import run_names
from utils.trust.comparison import numbers_of
from utils.trust.controls import pointing, random_network, sanity_curves
from utils.trust.faithfulness import (
    FAITHFUL,
    LEAST_SPAN,
    PARTS,
    explain_at_random,
    explain_by_centre,
    insertion_deletion,
    span_of,
)

SCRATCH = {  # a network for photographs without any weights of others
    "image.size": [104, 104],
    "image.VerticalFlip": 0.0,
    "image.RandomCropScale": 0.6,
    "hyperparameters.epochs": 36,
    "early_stopping.patience": 40,
    "LRScheduler.patience": 4,
}
SLOW = ("occlusion", "FGGB", "CorrRISE", "SBSM")  # their controls are measured on few pairs
SLOW_PROBED = 4
PROBED = 16
CHECKED = 32  # pairs of which counterfactuals and matches are looked for: they take seconds each
STEPS = 16  # of matches
BLIND = 208  # pairs whose maps know nothing of them: how often are these called faithful, or weak?


def checked_counterfactuals(trained, pairs) -> list[str]:
    """Lines: how often the smallest change found flips the decision, its area beside that of random regions, and what
    was put in.
    """
    masks = load_masks(trained.config.data_path, pairs, trained.config.image.size)
    records = []
    for number, pair in enumerate(pairs):
        explanation = trained.explain(pair)
        different = bool(explanation.different)
        donors = None if different else trained.donors(explanation)
        ours = smallest_edit(trained.network, explanation, trained.references, donors)
        by_luck = explain_at_random(trained.network, explanation.images, trained.threshold, seed=number)
        random_donors = donors and explain_at_random(trained.network, donors.images, trained.threshold, seed=number)
        random = smallest_edit(trained.network, by_luck, trained.references, random_donors)
        on_object = None
        if masks is not None and different and masks[number, 1].any():
            on_object = float(masks[number, 1][ours.donor_region.cpu()].float().mean())
        records.append((different, ours.flipped, random.flipped, _area(ours), _area(random), on_object))
    lines = []
    for name, wanted in (('"same"', False), ('"different"', True)):
        chosen = [record for record in records if record[0] == wanted]
        if chosen:
            _, flips, random_flips, areas, random_areas, on_object = zip(*chosen, strict=True)
            ratio = np.mean(areas) / np.mean(random_areas)
            lines += [
                f"Checked counterfactuals, {name}, {len(chosen)} pairs: {np.mean(flips):.0%} flip, with "
                f"{np.mean(areas):.1%} of the area on average; random regions flip {np.mean(random_flips):.0%} and "
                f"need {np.mean(random_areas):.1%}: a ratio of {ratio:.2f}."
            ]
            shares = [share for share in on_object if share is not None]
            if shares:
                most = np.mean([share > 0.5 for share in shares])
                lines[-1] += f" Of {len(shares)} patches put in, {most:.0%} lie on the other object by more than half."
            lines.append("")
    return lines


def _joins(match, masks) -> bool:
    """Whether the middles of both regions of a match lie on objects, masks: bool (2, H, W)."""
    height, width = masks.shape[1:]
    (y1, x1), (y2, x2) = match.place1, match.place2
    return bool(masks[0, int(y1 * height), int(x1 * width)] and masks[1, int(y2 * height), int(x2 * width)])


def _area(change) -> float:
    """The changed share, all of it where nothing flips."""
    return change.area if change.flipped else 1.0


def matches(trained, pairs) -> str:
    """Whether the strongest match joins the objects of pairs decided "same", and what the sums miss."""
    explanation = trained.explain(*pairs)
    layer = trained.settings.layer
    masks = load_masks(trained.config.data_path, pairs, trained.config.image.size)
    joined = []
    residuals = []
    seconds = []
    for index in torch.nonzero(~explanation.different)[:, 0].tolist():
        if masks is not None and not masks[index].flatten(1).any(dim=1).all():
            continue  # there is no object
        if len(residuals) == CHECKED // 2:
            break
        began = time.perf_counter()
        found = decompose(trained.network, explanation[index], layer, STEPS)
        seconds.append(time.perf_counter() - began)
        residuals.append(abs(found.residual))
        if masks is not None:
            joined.append(_joins(found.mutual(1)[0], masks[index]))
    if not residuals:
        return 'Matches: no pair is decided "same".'
    text = (
        f'Matches at {layer} in {STEPS} steps, {len(residuals)} pairs decided "same": the sum misses '
        f"{np.mean(residuals):.3f} of the inner product on average, {max(residuals):.3f} at most; "
        f"{np.mean(seconds):.1f} s a pair"
    )
    if joined:
        text += f"; the strongest match has both ends on the objects' pixels in {np.mean(joined):.0%}"
    return text + "."


def sanity(trained, pairs) -> str:
    """The agreement of the default method's maps with the trained network's as the network becomes random."""
    if trained.settings.method == "occlusion":
        return "Sanity of occlusion, which is slow, is in the table alone."
    own = partial(explain, **trained.settings.model_dump())
    (curve,) = sanity_curves({trained.method: own}, trained, pairs).values()
    steps = ", ".join(f"{stage} {value:+.2f}" for stage, value in curve.items())
    return f"Sanity of the default, weights shuffled from the top down to: {steps}."


def blind_maps(trained, splits) -> tuple[list[str], list[dict]]:
    """How often maps that know nothing are called faithful, and weak or better: lines, and the same as numbers.

    Random maps; the maps of a network of shuffled weights; of images of noise; and of another pair of the batch.
    """
    files = choose_pairs(splits, BLIND, trained.config.seed + 1)
    drawn = pairs_of_files(files)
    batches = trained.load_batches(files)
    own = partial(explain, **trained.settings.model_dump())
    random, random_references = random_network(trained, seed=1)
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(images.shape, generator=generator).to(images) for images in batches]
    cases = {
        "random maps": (trained.network, batches, partial(explain_at_random, seed=1000), trained.references),
        "a random network": (random, batches, own, random_references),
        "images of noise": (trained.network, noise, own, trained.references),
        "maps of another pair": (trained.network, batches, partial(_of_another_pair, own), trained.references),
    }
    lines = [
        "| maps that know nothing | pairs faithful | weak or better | images faithful | weak or better |",
        "|:--|:--|:--|:--|:--|",
    ]
    numbers = []
    for name, (network, images, method, references) in cases.items():
        threshold = trained.threshold
        if network is random:  # with the trained threshold all its pairs are decided alike
            threshold = float(torch.cat([distances_of(network, part) for part in images]).median())
        words = {part: [] for part in PARTS}
        for part in images:
            verdict = judge(network, method(network, part, threshold, references), seed=7)
            for about, found in words.items():
                found += verdict.words(about)
        images_drawn = Pairs(*(np.tile(ends, 2) for ends in (drawn.first, drawn.second, drawn.labels)))
        rates = {}
        for about, found, rows in (
            ("pairs", words["pair"], drawn),
            ("images", words["image 1"] + words["image 2"], images_drawn),
        ):
            rates[f"{about} faithful"] = mean_interval([word == FAITHFUL for word in found], rows, rate=True)
            rates[f"{about} weak or better"] = mean_interval(
                [word in (FAITHFUL, "weak") for word in found], rows, rate=True
            )
        cells = " | ".join(f"{rate.value:.1%} ({rate.low:.1%} to {rate.high:.1%})" for rate in rates.values())
        lines.append(f"| {name}, {len(files)} pairs | {cells} |")
        numbers.append({"maps": name, "pairs": len(files)} | {kind: asdict(rate) for kind, rate in rates.items()})
    return lines, numbers


def _of_another_pair(method, network, images, threshold, references):
    """The explanation of each pair with the maps of another pair that is decided the same way, where there is one."""
    explanation = method(network, images, threshold, references)
    order = torch.arange(len(images))
    for decision in (True, False):
        places = (explanation.different.cpu() == decision).nonzero()[:, 0]
        order[places] = places.roll(1)
    return replace(
        explanation,
        towards_different=explanation.towards_different[order],
        towards_same=explanation.towards_same[order],
        completeness=None,
    )


def right_and_wrong(trained, pairs) -> str:
    """Whether maps are more faithful of right decisions: each wrong one beside the right one of nearest score."""
    shares = []
    scores = []
    different = []
    right = []
    for place in range(0, len(pairs), PROBED):
        explanation = trained.explain(*pairs[place : place + PROBED])
        gap = insertion_deletion(trained.network, explanation).decisive
        span = span_of(trained.network, explanation).decisive
        shares += (gap / span.clamp(min=LEAST_SPAN)).clamp(-1, 1).tolist()
        scores += explanation.similarity.tolist()
        different += explanation.different.tolist()
        right += [explanation.correct(index) for index in range(len(explanation))]
    shares, scores, different, right = map(np.array, (shares, scores, different, right))
    matched = []  # places of a wrong decision and of the right one of the nearest score
    for wrong in np.flatnonzero(~right):
        alike = np.flatnonzero(right & (different == different[wrong]))
        if len(alike):
            matched.append((wrong, alike[np.abs(scores[alike] - scores[wrong]).argmin()]))
    if len(matched) < 5:
        return f"Right and wrong decisions: only {len(matched)} of {len(pairs)} pairs are decided wrongly."
    places = np.array(matched).T

    def difference(weights):
        """Of the mean shares of right and wrong decisions, weighted."""
        wrongs, rights = weights[places]
        if not wrongs.any() or not rights.any():
            return np.nan
        wrong, right = places
        return np.average(shares[right], weights=rights) - np.average(shares[wrong], weights=wrongs)

    (higher,) = intervals(difference, pairs_of_files(pairs), rates=False)
    return (
        f"Right and wrong decisions, {len(matched)} wrong ones each beside the right one of the nearest score: the "
        f"share of the span is {higher.value:+.2f} ({higher.low:+.2f} to {higher.high:+.2f}) higher where the decision "
        "is right."
    )


def planted_differences(trained, methods) -> list[str]:
    """Lines: peak and energy of the map for "different" on the one place where two images differ; that for "same"."""
    if trained.config.data_path.resolve() != SAMPLE_FOLDER.resolve():
        return []
    with tempfile.TemporaryDirectory() as folder:
        make_differences(folder)
        pairs, masks = load_differences(folder, trained.config.image.size)
        images = trained.load_pairs(*pairs)
    both = masks[:, None].expand(-1, 2, -1, -1)
    lines = [
        f"Planted differences, {len(pairs)} pairs alike but for one place:",
        "",
        '| method | peak of "different" on it | its energy on it | energy of "same" on the rest |',
        "|:--|:--|:--|:--|",
    ]
    for name, method in methods.items():
        parts = [method(trained.network, part, trained.threshold, trained.references) for part in images.split(PROBED)]
        hits, energies = pointing(torch.cat([part.towards_different for part in parts]), both)
        same = torch.cat([part.towards_same for part in parts])
        rest = f"{pointing(same, ~both)[1].mean():.0%}" if same.any() else "none"
        lines.append(f"| {name} | {hits.mean():.0%} | {energies.mean():.0%} | {rest} |")
    return [*lines, ""]


def differences(settings) -> str:
    """The keys that differ from config.yml, paths aside."""
    standard, own = (one.model_dump(mode="json") for one in (config({}), settings))
    found = []
    for key, value in own.items():
        for name, part in value.items() if isinstance(value, dict) else [("", value)]:
            other = standard[key][name] if name else standard[key]
            if part != other and not key.endswith("_path") and key != "pretrained":
                found.append(f"{key}.{name} {part}" if name else f"{key} {part}")
    return ", ".join(found) or "nothing else"


def measure(settings, count, without, rows, blind, texts):
    """Train where there is no network yet, compare all methods, and append to rows, blind and texts."""
    ensure_sample(settings.data_path)
    if not run_names(settings.checkpoints_path):
        fit(settings)
    trained = load_trained(settings, start(settings))
    splits = trained.load_splits()
    trained = calibrate(trained, splits, trained.distances(splits, splits.test_pairs))
    began = time.perf_counter()
    pairs = choose_pairs(splits, count, trained.config.seed)
    at_layer = {"layer": trained.settings.layer}
    peers = PEERS | {
        "PAIR-X": partial(pair_x, **at_layer),
        "integrated Jacobians": partial(integrated_jacobians, **at_layer),
        "random map": explain_at_random,
        "centre prior": explain_by_centre,
    }
    methods = methods_of(trained.settings) | {name: peer for name, peer in peers.items() if name not in without}
    probed = dict.fromkeys(methods, PROBED) | dict.fromkeys(SLOW, SLOW_PROBED) | {trained.method: count}
    found = compare(methods, trained, pairs, splits, trained.config.seed, probed)
    rows += found
    shown = trained.config
    lines, numbers = blind_maps(trained, splits)
    blind += [{"dataset": found[0].dataset, "network": found[0].network} | row for row in numbers]
    quick = {name: method for name, method in methods.items() if name not in SLOW}
    print(table(found).to_markdown(disable_numparse=True), flush=True)
    texts += [
        f"## {shown.data_path.name}, {found[0].network}",
        "",
        f"{shown.image.size[0]} x {shown.image.size[1]} pixels, {found[0].pairs} test pairs, seed {shown.seed}, "
        f"{trained.runtime}. {trained.measurements}. Beside config.yml: {differences(shown)}.",
        "",
        table(found).to_markdown(disable_numparse=True),
        "",
        f"Controls of the default on {count} pairs, of {', '.join(SLOW)} on {SLOW_PROBED}, of the others on {PROBED}."
        + (f" Not measured: {', '.join(without)}." if without else ""),
        "",
        *planted_differences(trained, quick),
        *checked_counterfactuals(trained, pairs[:CHECKED]),
        matches(trained, pairs),
        "",
        right_and_wrong(trained, choose_pairs(splits, 10**6, trained.config.seed)[: 4 * count]),
        "",
        *lines,
        "",
        sanity(trained, pairs),
        "",
    ]
    print("\n".join(texts[-12:]), f"\n{time.perf_counter() - began:.0f} s", flush=True)


def networks(options, folder) -> list:
    """The configs of the networks that are measured."""
    found = [config({"checkpoints_path": f"{folder}/sample"})]
    if options.photographs:
        found.append(config(SCRATCH | {"data_path": options.photographs, "checkpoints_path": f"{folder}/scratch"}))
    if options.photographs and options.weights:
        changes = {
            "data_path": options.photographs,
            "pretrained": options.weights,
            "checkpoints_path": f"{folder}/pretrained",
        }
        changes = [f"{key}={value}" for key, value in changes.items()]
        found.append(load_config(ROOT / "tests/benchmarks/photographs.yml", changes))
    if options.config:
        own = load_config(options.config)
        if own.data_path.resolve() != SAMPLE_FOLDER.resolve():
            found.append(own)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", help="a config whose network is measured beside the others")
    parser.add_argument("--photographs", help="a folder of photographs, one folder per class")
    parser.add_argument("--weights", help="weights for tests/benchmarks/photographs.yml")
    parser.add_argument("--checkpoints", type=Path, help="where the networks are, or will be kept")
    parser.add_argument("--pairs", type=int, default=128, help="test pairs of each dataset, at most")
    parser.add_argument("--without", nargs="*", default=[], help="peers to leave out: FGGB, CorrRISE, SBSM, ...")
    parser.add_argument("--only", help="one of the networks: sample, scratch or pretrained")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    options = parser.parse_args()
    rows, blind = [], []
    texts = [f"# Faithfulness, {date.today()}", "", machine(), ""]
    with tempfile.TemporaryDirectory() as temporary:
        for settings in networks(options, options.checkpoints or temporary):
            if options.only and settings.checkpoints_path.name != options.only:
                continue
            measure(settings, options.pairs, options.without, rows, blind, texts)
            options.results.mkdir(parents=True, exist_ok=True)
            content = {"methods": numbers_of(rows).to_dict("records"), "blind": blind}
            (options.results / "faithfulness.json").write_text(json.dumps(content, indent=2) + "\n")
            (options.results / "faithfulness.md").write_text("\n".join(texts))


if __name__ == "__main__":
    main()
