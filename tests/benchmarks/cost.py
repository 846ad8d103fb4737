"""What a pair costs, in operations and as a share of the peak: `PYTHONPATH=. python tests/benchmarks/cost.py`."""

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from side_by_side import config, machine, rounds
from torch.utils.flop_counter import FlopCounterMode

from utils import explain, judge
from utils.device import find_runtime
from utils.explanations.references import References
from utils.network.distance import example_of, paired
from utils.network.siamese import SiameseNetwork
from utils.network.variants import folded

NETWORKS = {"test_resnet": 128, "tf_efficientnet_lite0": 192, "resnet50": 224}  # and the side of their images
PAIRS = 8  # at once
REFERENCES = 96
SIDE = 4096  # of the matrices whose product shows the peak
ROUNDS = 3


def operations_of(procedure) -> int:
    """Count floating-point operations; of a convolution and a matrix product only, forwards and backwards."""
    with FlopCounterMode(display=False) as counter:
        procedure()
    return counter.get_total_flops()


def procedures_of(name, side, runtime) -> dict:
    """Return the procedures of a network of random weights, by name; their cost does not depend on the weights."""
    torch.manual_seed(0)
    network = runtime.place(folded(SiameseNetwork(name, 64, image_size=(side, side)).eval(), runtime.dtype))
    images = paired(example_of((side, side), 2 * PAIRS)).to(runtime.device)
    embeddings = F.normalize(torch.randn(REFERENCES, 64), dim=1).to(runtime.device)
    references = References(embeddings, tuple(f"class/{number}.jpg" for number in range(REFERENCES)))
    explanation = explain(network, images, 0.9, references)

    def explained():
        explain(network, images, 0.9, references).distance.cpu()  # waits for a GPU

    return {"explain": explained, "judge": partial(judge, network, explanation)}


def main():
    runtime = find_runtime(config({"precision": "float32"}))
    matrix = torch.randn(SIDE, SIDE, device=runtime.device)

    def multiply():
        (matrix @ matrix)[0, 0].cpu()

    seconds = rounds({"peak": multiply}, 2 * ROUNDS)["peak"]
    peak = 2 * SIDE**3 / seconds.min()
    print(f"{machine()}; float32, matrix product: {peak / 1e9:.0f} GFLOP/s")
    for name, side in NETWORKS.items():
        procedures = procedures_of(name, side, runtime)
        for work, times in rounds(procedures, ROUNDS).items():
            operations = operations_of(procedures[work]) / PAIRS
            each = times / PAIRS
            share = operations / np.median(each) / peak
            spread = f"{1000 * each.min():.1f} to {1000 * each.max():.1f}"
            print(
                f"{name}, {side} px, {work} a pair: {operations / 1e9:.1f} GFLOP, {1000 * np.median(each):.1f} ms "
                f"({spread}), {share:.0%} of the peak"
            )


if __name__ == "__main__":
    main()
