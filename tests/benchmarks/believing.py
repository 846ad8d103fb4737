"""`make faithfulness`: every method and its peers on four networks, in one run.

The sample's network, a transformer on the sample, a ResNet18 from scratch on photographs, and a pretrained network on
the same photographs; each is trained unless `--checkpoints` has it. A method that reads one layer gets the one that is
best on validation pairs. Results go to results/faithfulness.md and results/faithfulness.json.
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
import pandas as pd
import torch
from differences import load_differences, make_differences
from peers import PEERS, integrated_jacobians, pair_x
from side_by_side import PHOTOGRAPHS, ROOT, config, machine

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
from utils.config import MORE
from utils.data.sample import SAMPLE_FOLDER, ensure_sample, load_masks
from utils.data.splits import pairs_of_files
from utils.device import start
from utils.explanations.methods import METHODS, name_of
from utils.network.distance import distances_of
from utils.score.intervals import intervals, mean_interval, weighted_mean
from utils.train.runs import run_names
from utils.trust.comparison import numbers_of
from utils.trust.controls import pointing, random_network, sanity_curves
from utils.trust.faithfulness import (
    FAITHFUL,
    LEAST_SPAN,
    WEAK,
    explain_at_random,
    explain_by_centre,
    insertion_deletion,
    span_of,
)

SCRATCH = {  # a network for photographs without pretrained weights
    "backbone_model": "ResNet18",
    "hyperparameters.learning_rate": 0.001,
    "LRScheduler.schedule": "plateau",
    "image.size": [104, 104],
    "image.VerticalFlip": 0.0,
    "image.RandomCropScale": 0.6,
    "hyperparameters.epochs": 36,
    "early_stopping.patience": 40,
    "LRScheduler.patience": 4,
}
TRANSFORMER = {  # on the sample: convolutions up to stride 16, attention in each block behind them
    "backbone_model": "levit_conv_128s",
    "hyperparameters.epochs": 60,
    "hyperparameters.learning_rate": 0.001,
}
PARTS_OF_RUN = ("blind", "differences", "edits", "matches", "mistakes", "sanity")  # beside the table of methods
CHOSEN_ON = 16  # validation pairs, the layer of a method that reads one
LAYERS = 6  # at most, among which it is chosen
SLOW = ("occlusion", "FGGB", "CorrRISE", "SBSM")  # their controls are measured on few pairs
SLOW_PROBED = 4
PROBED = 16
CHECKED = 32  # pairs whose edits and matches are measured: they take seconds each
STEPS = 16  # of matches
FEWEST_ERRORS = 5


def checked_edits(trained, pairs) -> list[str]:
    """Return lines: how often the smallest edit flips the decision, and its area, beside those along random maps."""
    network = trained.network
    masks = load_masks(trained.config.data_path, pairs, trained.config.image.size)
    rows = []
    for number, pair in enumerate(pairs):
        explanation = trained.explain(pair)
        random = explain_at_random(network, explanation.images, trained.threshold, seed=number)
        donors = None
        random_donors = None
        if not explanation.different:
            donors = trained.donors(explanation)
        if donors is not None:
            random_donors = explain_at_random(network, donors.images, trained.threshold, seed=number)
        edit = smallest_edit(network, explanation, trained.references, donors)
        random_edit = smallest_edit(network, random, trained.references, random_donors)
        row = {"decision": explanation.closer_to(), "on_object": np.nan}
        row |= {"flips": edit.flipped, "area": changed_area(edit)}
        row |= {"random_flips": random_edit.flipped, "random_area": changed_area(random_edit)}
        if masks is not None and explanation.different and masks[number, 1].any():
            row["on_object"] = masks[number, 1][edit.donor_region.cpu()].float().mean().item()
        rows.append(row)
    edits = pd.DataFrame(rows)
    lines = []
    for decision in ("same", "different"):
        chosen = edits[edits["decision"] == decision]
        if chosen.empty:
            continue
        mean = chosen.drop(columns="decision").mean()
        line = (
            f'Checked counterfactuals, "{decision}", {len(chosen)} pairs: {mean["flips"]:.0%} flip, with '
            f"{mean['area']:.1%} of the area on average; random regions flip {mean['random_flips']:.0%} and "
            f"need {mean['random_area']:.1%}: a ratio of {mean['area'] / mean['random_area']:.2f}."
        )
        shares = chosen["on_object"].dropna()
        if len(shares):
            most = (shares > 0.5).mean()
            line += f" Of {len(shares)} patches put in, {most:.0%} lie on the other object by more than half."
        lines += [line, ""]
    return lines


def changed_area(edit) -> float:
    """Return the changed share of the pixels; all of them where the decision stays."""
    if edit.flipped:
        return edit.area
    return 1.0


def matches(trained, pairs) -> str:
    """Return whether the strongest match joins the objects of pairs decided "same", and the completeness error."""
    explanation = trained.explain(*pairs)
    layer = trained.settings.layer
    masks = load_masks(trained.config.data_path, pairs, trained.config.image.size)
    joined = []
    errors = []
    began = time.perf_counter()
    for index in (~explanation.different).nonzero().flatten().tolist():
        if masks is not None and not masks[index].flatten(1).any(dim=1).all():
            continue  # there is no object
        if len(errors) == CHECKED // 2:
            break
        parts = decompose(trained.network, explanation[index], layer, STEPS)
        errors.append(abs(parts.residual))
        if masks is not None:
            joined.append(joins_objects(parts.mutual(1)[0], masks[index]))
    if not errors:
        return 'Matches: no pair is decided "same".'
    seconds = (time.perf_counter() - began) / len(errors)
    text = (
        f'Matches at {layer} in {STEPS} steps, {len(errors)} pairs decided "same": completeness error '
        f"{np.mean(errors):.3f} on average, {max(errors):.3f} at most; {seconds:.1f} s a pair"
    )
    if joined:
        text += f"; the strongest match has both ends on the objects' pixels in {np.mean(joined):.0%}"
    return text + "."


def joins_objects(match, masks) -> bool:
    """Return whether the middles of both regions of a match lie on objects, masks: bool (2, H, W)."""
    height, width = masks.shape[1:]
    for (y, x), mask in zip((match.place1, match.place2), masks, strict=True):
        if not mask[int(y * height), int(x * width)]:
            return False
    return True


def sanity(trained, default, pairs) -> str:
    """Return how similar the maps of the default method stay as the network becomes random."""
    if trained.settings.method == "occlusion":
        return "Sanity of occlusion, which is slow, is only in the table."
    curve = sanity_curves({trained.method: default}, trained, pairs)[trained.method]
    steps = ", ".join(f"{stage} {value:+.2f}" for stage, value in curve.items())
    return f"Sanity of the default, weights shuffled from the top down to: {steps}."


def blind_maps(trained, default, splits, count) -> tuple[str, list[dict]]:
    """Measure how often maps that know nothing are called faithful, and weak or better.

    Random maps; the maps of a network of shuffled weights; and those of another pair of the batch.

    Returns:
        A table in Markdown, and the same as numbers.
    """
    files = choose_pairs(splits, count, trained.config.seed + 1)
    pairs = pairs_of_files(files)
    batches = trained.load_batches(files)
    random, random_references = random_network(trained, seed=1)
    # with the trained threshold all its pairs would be decided the same way
    random_threshold = float(torch.cat([distances_of(random, images) for images in batches]).median())
    known = trained.network, trained.threshold, trained.references
    cases = {
        "random maps": (partial(explain_at_random, seed=1000), batches, *known),
        "a random network": (default, batches, random, random_threshold, random_references),
        "maps of another pair": (partial(explain_another_pair, default), batches, *known),
    }
    rows = []
    numbers = []
    for name, (method, images, network, threshold, references) in cases.items():
        words = []
        for batch in images:
            words += judge(network, method(network, batch, threshold, references), seed=7).words()
        rates = rates_of(pd.Series(words), pairs)
        row = {"maps that know nothing": f"{name}, {len(files)} pairs"}
        number = {"maps": name, "pairs": len(files)}
        for kind, rate in rates.items():
            row[kind] = f"{rate.value:.1%} ({rate.low:.1%} to {rate.high:.1%})"
            number[kind] = asdict(rate)
        rows.append(row)
        numbers.append(number)
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True), numbers


def rates_of(words, pairs) -> dict:
    """Return how often words are "faithful", and at least "weak", each an Interval."""
    return {
        "faithful": mean_interval(words == FAITHFUL, pairs, rate=True),
        "weak or better": mean_interval(words.isin((FAITHFUL, WEAK)), pairs, rate=True),
    }


def explain_another_pair(method, network, images, threshold, references):
    """Explain each pair by the maps of another pair that is decided the same way, where there is one."""
    explanation = method(network, images, threshold, references)
    order = torch.arange(len(images))
    for decision in (True, False):
        places = (explanation.different.cpu() == decision).nonzero().flatten()
        order[places] = places.roll(1)
    different = explanation.towards_different[order]
    same = explanation.towards_same[order]
    return replace(explanation, towards_different=different, towards_same=same, completeness=None)


def correct_and_incorrect(trained, files) -> str:
    """Return how much more faithful maps are of correct decisions, each beside an incorrect one of nearest score."""
    pairs = pairs_of_files(files)
    parts = []
    for first in range(0, len(files), PROBED):
        explanation = trained.explain(*files[first : first + PROBED])
        gap = insertion_deletion(trained.network, explanation).decisive
        span = span_of(trained.network, explanation).decisive.clamp(min=LEAST_SPAN)
        parts.append(torch.stack([(gap / span).clamp(-1, 1), explanation.similarity, explanation.different]).cpu())
    shares, scores, different = torch.cat(parts, dim=1).double().numpy()
    correct = different == pairs.labels
    incorrect = []
    partners = []
    for index in np.flatnonzero(~correct):
        candidates = np.flatnonzero(correct & (different == different[index]))
        if len(candidates):
            incorrect.append(index)
            partners.append(candidates[np.abs(scores[candidates] - scores[index]).argmin()])
    if len(incorrect) < FEWEST_ERRORS:
        return f"Correct and incorrect decisions: only {len(incorrect)} of {len(files)} pairs are decided incorrectly."

    def difference(weights):
        of_correct = weighted_mean(shares[partners], weights[partners])
        return of_correct - weighted_mean(shares[incorrect], weights[incorrect])

    higher = intervals(difference, pairs, rates=False)[0]
    return (
        f"Correct and incorrect decisions, {len(incorrect)} incorrect ones each beside the correct one of the nearest "
        f"score: the share of the span is {higher.value:+.2f} ({higher.low:+.2f} to {higher.high:+.2f}) higher where "
        "the decision is correct."
    )


def planted_differences(trained, methods) -> list[str]:
    """Return lines: where the maps of each method lie on pairs of images that differ in only one place."""
    if trained.config.data_path.resolve() != SAMPLE_FOLDER.resolve():
        return []
    with tempfile.TemporaryDirectory() as folder:
        make_differences(folder)
        pairs, masks = load_differences(folder, trained.config.image.size)
        batches = trained.load_batches(pairs)
    masks = masks[:, None].expand(-1, 2, -1, -1)
    rows = []
    for name, method in methods.items():
        explanations = [method(trained.network, images, trained.threshold, trained.references) for images in batches]
        different = torch.cat([explanation.towards_different for explanation in explanations])
        same = torch.cat([explanation.towards_same for explanation in explanations])
        hits, energies = pointing(different, masks)
        row = {"method": name, 'peak of "different" on it': f"{hits.mean():.0%}"}
        row["its energy on it"] = f"{energies.mean():.0%}"
        row['energy of "same" on the rest'] = "none"
        if same.any():
            row['energy of "same" on the rest'] = f"{pointing(same, ~masks)[1].mean():.0%}"
        rows.append(row)
    text = pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
    return [f"Planted differences, {len(pairs)} pairs that are equal except for one place:", "", text, ""]


def changed_settings(settings) -> str:
    """Return the settings that differ from config.yml, except for paths."""
    standard = pd.json_normalize(config({}).model_dump(mode="json")).iloc[0]
    own = pd.json_normalize(settings.model_dump(mode="json")).iloc[0]
    changes = []
    for key, value in own.items():
        if value != standard.get(key) and not key.endswith("_path") and key != "pretrained":
            changes.append(f"{key} {value}")
    return ", ".join(changes) or "nothing else"


def at_best_layers(trained, splits) -> tuple[dict, str]:
    """Return the methods by name, each that reads one layer at the best one, and a line about the choice.

    The best has the largest mean gap on validation pairs, among at most LAYERS from the first to the last.
    """
    files = splits.files(splits.valid_pairs, CHOSEN_ON, trained.config.seed)
    batches = trained.load_batches(files)
    names = trained.network.layers
    places = np.linspace(0, len(names) - 1, min(LAYERS, len(names))).round().astype(int)
    methods = methods_of(trained.settings)
    chosen = {"gradcam, last": methods["gradcam, last"]}
    choices = []
    for name, recipe in METHODS.items():
        settings = trained.settings.changed(method=name)
        if not recipe.reads_layer or recipe.reads_several:
            chosen[name_of(settings)] = methods[name_of(settings)]
            continue
        gaps = {}
        for place in places:
            layer = names[place]
            gap = 0
            for images in batches:
                inputs = images, trained.threshold, trained.references
                explanation = explain(trained.network, *inputs, **settings.changed(layer=layer).model_dump())
                gap += insertion_deletion(trained.network, explanation).decisive.sum().item() / len(files)
            gaps[layer] = gap
        best = max(gaps, key=gaps.get)
        settings = settings.changed(layer=best)
        chosen[name_of(settings)] = methods_of(settings)[name_of(settings)]
        choices.append(f"{name} {best} ({', '.join(f'{layer} {gap:+.3f}' for layer, gap in gaps.items())})")
    return chosen, f"Layers by the gap on {len(files)} validation pairs: {'; '.join(choices)}."


def measure(settings, count, without, parts, blind_pairs):
    """Train unless there is a network, and measure all methods.

    Returns:
        Rows, the numbers of `blind_maps`, and lines.
    """
    ensure_sample(settings.data_path)
    if not run_names(settings.checkpoints_path):
        fit(settings)
    trained = load_trained(settings, start(settings))
    splits = trained.load_splits()
    trained = calibrate(trained, splits, trained.distances(splits, splits.test_pairs))
    settings = trained.config
    began = time.perf_counter()
    pairs = choose_pairs(splits, count, settings.seed)
    layer = trained.settings.layer.removesuffix(MORE)
    methods, choices = at_best_layers(trained, splits)
    default = methods[trained.method]
    methods |= PEERS
    methods["PAIR-X"] = partial(pair_x, layer=layer)
    methods["integrated Jacobians"] = partial(integrated_jacobians, layer=layer)
    methods["random map"] = explain_at_random
    methods["centre prior"] = explain_by_centre
    for name in without:
        del methods[name]
    probed = dict.fromkeys(methods, PROBED) | dict.fromkeys(SLOW, SLOW_PROBED) | {trained.method: count}
    rows = compare(methods, trained, pairs, splits, settings.seed, probed)
    comparison = table(rows).to_markdown(disable_numparse=True)
    print(comparison, flush=True)
    quick = {name: method for name, method in methods.items() if name not in SLOW}
    blind, numbers = "", []
    if "blind" in parts:
        blind, numbers = blind_maps(trained, default, splits, blind_pairs)
    network = {"dataset": rows[0].dataset, "network": rows[0].network}
    controls = f"Controls of the default on {count} pairs, of {', '.join(SLOW)} on {SLOW_PROBED}, of the others on "
    controls += f"{PROBED}."
    if without:
        controls += f" Not measured: {', '.join(without)}."
    height, width = settings.image.size
    lines = [
        f"## {rows[0].dataset}, {rows[0].network}",
        "",
        f"{height} x {width} pixels, {rows[0].pairs} test pairs, seed {settings.seed}, {trained.runtime}. "
        f"{trained.measurements}. Beside config.yml: {changed_settings(settings)}.",
        "",
        comparison,
        "",
        f"{controls} {choices}",
        "",
        blind,
        "",
    ]
    if "differences" in parts:
        lines += planted_differences(trained, quick)
    if "edits" in parts:
        lines += checked_edits(trained, pairs[:CHECKED])
    if "matches" in parts:
        lines += [matches(trained, pairs), ""]
    if "mistakes" in parts:
        lines += [correct_and_incorrect(trained, choose_pairs(splits, 4 * count, settings.seed)), ""]
    if "sanity" in parts:
        lines += [sanity(trained, default, pairs), ""]
    print("\n".join(lines[-12:]), f"\n{time.perf_counter() - began:.0f} s", flush=True)
    return rows, [network | number for number in numbers], lines


def networks(options, folder) -> list:
    """Return the configs of the networks that are measured."""
    settings = [
        config({"checkpoints_path": f"{folder}/sample"}),
        config(TRANSFORMER | {"checkpoints_path": f"{folder}/transformer"}),
    ]
    if options.photographs:
        changes = {"data_path": options.photographs, "checkpoints_path": f"{folder}/scratch"}
        settings.append(config(SCRATCH | changes))
    if options.photographs and options.weights:
        changes |= {"pretrained": options.weights, "checkpoints_path": f"{folder}/pretrained"}
        settings.append(config(changes, PHOTOGRAPHS))
    for path in options.config:
        own = load_config(path)
        if own.data_path.resolve() != SAMPLE_FOLDER.resolve():
            settings.append(own)
    return settings


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", nargs="*", default=[], help="configs whose networks are measured beside the others")
    parser.add_argument("--photographs", help="a folder of photographs, one folder per class")
    parser.add_argument("--weights", help="weights for tests/benchmarks/photographs.yml")
    parser.add_argument("--checkpoints", type=Path, help="folder of the networks; missing ones are trained there")
    parser.add_argument("--pairs", type=int, default=128, help="test pairs of each dataset, at most")
    parser.add_argument("--without", nargs="*", default=[], help="methods to leave out: FGGB, CorrRISE, SBSM, ...")
    parser.add_argument(
        "--only", nargs="*", help="of the networks, by folder: sample, transformer, scratch, pretrained"
    )
    parser.add_argument("--parts", nargs="*", default=PARTS_OF_RUN, help="what is measured beside the methods")
    parser.add_argument("--blind", type=int, default=208, help="pairs whose maps know nothing of them")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    rows = []
    blind = []
    lines = [f"# Faithfulness, {date.today()}", "", machine(), ""]
    with tempfile.TemporaryDirectory() as temporary:
        for settings in networks(options, options.checkpoints or temporary):
            if options.only and settings.checkpoints_path.name not in options.only:
                continue
            measured = measure(settings, options.pairs, options.without, options.parts, options.blind)
            rows += measured[0]
            blind += measured[1]
            lines += measured[2]
            methods = numbers_of(rows).to_json(orient="records", double_precision=15)  # NaN becomes null
            content = {"methods": json.loads(methods), "blind": blind}
            (options.results / "faithfulness.json").write_text(json.dumps(content, indent=2) + "\n")
            (options.results / "faithfulness.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
