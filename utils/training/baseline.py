"""What training has to beat: the pretrained backbone as it comes."""

from dataclasses import dataclass

import torch

from utils.config import Config
from utils.data import Splits
from utils.network import SiameseNetwork, folded
from utils.runtime import Runtime
from utils.training.evaluation import pair_distances
from utils.training.intervals import Interval, auc_interval


@dataclass(frozen=True)
class Baseline:
    """auc: of the test pairs by the pretrained embedding before any training; None without such weights."""

    auc: Interval | None

    def __str__(self):
        if self.auc is None:
            return "pretrained: False: there is no embedding before training"
        return f"The pretrained backbone as it comes: test AUC {self.auc}"


def frozen_baseline(config: Config, splits: Splits, runtime: Runtime) -> Baseline:
    """The test AUC of the backbone's own embedding: its last map, pooled, at length 1. Nothing random is drawn.

    Raises ConfigError where `pretrained` weights cannot be loaded.
    """
    if not config.pretrained:
        return Baseline(None)
    with torch.random.fork_rng(devices=[]):  # every weight is replaced
        network = SiameseNetwork(config.backbone_model, None, config.pretrained, config.image.size)
    network = runtime.place(folded(network, runtime.dtype))
    distances = pair_distances(network, splits, splits.test_pairs, config, runtime)
    return Baseline(auc_interval(distances, splits.test_pairs, config.seed))
