"""`python -m utils.training --config config.yml` trains and tests from a terminal, as notebook 01 does; under
`torchrun --nproc-per-node N -m utils.training ...` on N GPUs.
"""

import argparse

import torch.distributed as dist

from utils.config import load_config
from utils.data import ensure_sample, load_splits
from utils.errors import message_alone
from utils.parallel import from_first, rank
from utils.runtime import start
from utils.trained import load_trained, write_metrics
from utils.training.baseline import frozen_baseline
from utils.training.claim import claimed
from utils.training.doctor import diagnose
from utils.training.loop import fit
from utils.trust import prepare_explanations


@message_alone()
def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", help="config file (default: config.yml)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings that replace the file's")
    options = parser.parse_args()
    config = load_config(options.config, options.set)
    runtime = start(config)
    with claimed(config.checkpoints_path):  # from training to its results
        _train_and_test(config, runtime)


def _train_and_test(config, runtime):
    if rank() == 0:
        ensure_sample(config.data_path)
    from_first(None)  # the others wait for the sample
    splits = load_splits(config)
    baseline = frozen_baseline(config, splits, runtime)
    if rank() == 0:
        print(baseline)
    fit(config, splits, runtime)
    from_first(None)  # and for the last checkpoint
    trained = load_trained(config, runtime)
    distances = trained.distances(splits, splits.test_pairs)
    first = rank() == 0
    if dist.is_initialized():
        dist.destroy_process_group()
    if first:  # which goes on alone
        trained = prepare_explanations(trained, splits, distances)
        metrics = write_metrics(trained, splits, distances, baseline)
        print(trained.prepared)
        print(diagnose(trained, splits, distances))
        print(f"{metrics}\nTest AUC {metrics['auc'].interval} ({config.results_path}/metrics.json)")


if __name__ == "__main__":
    main()
