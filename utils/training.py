"""Training: epoch after epoch, what to keep, when to stop, and how to go on after an interruption.

`python -m utils.training --config config.yml` trains and tests from a terminal, as notebook 01 does; under
`torchrun --nproc-per-node N -m utils.training ...` on N GPUs.
"""

import argparse
import time
import warnings
from dataclasses import replace

import torch
import torch.distributed as dist
import torchvision
from sklearn.metrics import roc_auc_score
from torch import optim

from utils.checkpoint import fingerprint, load_checkpoint, save_checkpoint
from utils.config import Config, ConfigError, load_config
from utils.delivery import resident
from utils.epoch import build_optimizer, build_scaler, check_finite, train_epoch
from utils.evaluation import load_trained, pair_distances, test_metrics
from utils.losses import ContrastiveLoss
from utils.metrics import best_epoch, choose_threshold, stopped_early
from utils.pairs import Splits, load_splits
from utils.parallel import distributed, from_first, rank, world
from utils.runtime import Runtime, seed_everything, start
from utils.sample_data import ensure_sample
from utils.siamese import build_network, folded

COLLAPSED = 0.02  # mean distance of the validation pairs, of at most 2, below which all embeddings are one
COLLAPSE_WARNING = (
    "the embeddings have collapsed: all images lie at nearly one point. "
    "Lower hyperparameters.learning_rate, raise margin, or check that the classes differ."
)


def fit(config: Config, splits: Splits | None = None, runtime: Runtime | None = None) -> list[dict]:
    """Train as config.yml says; returns the history, one dict per epoch.

    Each epoch has train_loss, valid_loss, valid_auc, learning_rate and seconds. `checkpoints_path`/best.pt holds the
    epoch of the highest validation AUC (of equals, the lowest validation loss), last.pt the latest one. A run that was
    killed, or whose `epochs` was raised, goes on from last.pt to the history of an uninterrupted run; any other earlier
    run in the folder is kept as best.previous.pt and last.previous.pt.

    Raises TrainingError when the loss is not finite, ConfigError when a batch is too small to be shared by all
    processes; warns (RuntimeWarning) when the embeddings collapse.
    """
    runtime, splits = runtime or start(config), splits or load_splits(config)
    if config.hyperparameters.batch_size < 2 * world():
        raise ConfigError(f"hyperparameters.batch_size: must be at least {2 * world()} for {world()} processes")
    splits = replace(splits, pixels=resident(splits.pixels, runtime, config.gpu_cache_share))
    seed_everything(config.seed)  # here, so that what a notebook drew before does not change the first weights
    network = runtime.place(build_network(config))
    if config.compile:
        for stage in network.backbone:
            stage.compile()  # stage by stage, so that any of them can still be a feature layer
    model = distributed(network)
    optimizer = build_optimizer(network, config.hyperparameters)
    scheduler = optim.lr_scheduler.ReduceLROnPlateau(
        optimizer,
        mode="max",  # it watches the validation AUC
        factor=config.LRScheduler.factor,
        patience=config.LRScheduler.patience,
        min_lr=config.LRScheduler.min_lr,
        threshold=config.early_stopping.min_delta,  # one notion of improvement for both
        threshold_mode="abs",
    )
    stepper = {"optimizer": optimizer, "scaler": build_scaler(runtime)}
    parts = {"network": network, "scheduler": scheduler, **stepper}
    history = _resume(config, mark := fingerprint(config, splits.folder), parts)
    while len(history) < config.hyperparameters.epochs and not stopped_early(history, config.early_stopping):
        began, number = time.perf_counter(), len(history) + 1
        rate, labels = optimizer.param_groups[0]["lr"], splits.valid_pairs.labels
        auc = f"{history[-1]['valid_auc']:.4f}" if history else "?"
        train_loss = train_epoch(model, stepper, splits, config, runtime, number, auc)
        embedder = folded(network, runtime.dtype)
        distances = pair_distances(embedder, splits, splits.valid_pairs, config, runtime)
        if check_finite(float(distances.mean()), number) < COLLAPSED:
            warnings.warn(COLLAPSE_WARNING, RuntimeWarning, stacklevel=2)
        valid_loss = ContrastiveLoss(config.margin)(torch.from_numpy(distances), torch.from_numpy(labels))
        epoch = {
            "train_loss": train_loss,
            "valid_loss": valid_loss.item(),
            "valid_auc": float(roc_auc_score(labels, distances)),
            "learning_rate": rate,
            "seconds": time.perf_counter() - began,
        }
        history.append(epoch)
        scheduler.step(epoch["valid_auc"])
        if rank() > 0:
            continue  # the first process alone writes
        _report(history, optimizer, config)
        content = {
            "network": network.state_dict(),
            "config": config.model_dump(mode="json"),
            "fingerprint": mark,
            "history": history,
            "threshold": choose_threshold(distances, labels),
            "classes": list(splits.folder.classes),
            "versions": {"torch": str(torch.__version__), "torchvision": torchvision.__version__},
        }
        if best_epoch(history) == number:
            save_checkpoint(config.checkpoints_path / "best.pt", content)
        content |= {name: part.state_dict() for name, part in parts.items()}  # resuming needs the optimizer too
        save_checkpoint(config.checkpoints_path / "last.pt", content)
    return history


def _resume(config, mark, parts) -> list[dict]:
    """Load last.pt into `parts` if it bears the fingerprint `mark` and is unfinished; returns its history, else []."""
    content = from_first(_unfinished(config, mark) if rank() == 0 else None)
    if content is None:
        return []
    for name, part in parts.items():
        part.load_state_dict(content[name])
    return content["history"]


def _unfinished(config, mark) -> dict | None:
    """The content of last.pt if training goes on from it; any other run is set aside under another name."""
    path = config.checkpoints_path / "last.pt"
    if not path.exists():
        return None
    content = load_checkpoint(path)
    history, reason = content["history"], None
    if content["fingerprint"] != mark:
        reason = "is of other settings or images"
    elif len(history) >= config.hyperparameters.epochs or stopped_early(history, config.early_stopping):
        reason = "is complete"
    if reason is None:
        print(f"Resuming after epoch {len(history)} of {path}.")
        return content
    print(f"{path} {reason}: training starts anew, the earlier run is kept as *.previous.pt.")
    for old in (path, path.with_name("best.pt")):
        if old.exists():
            old.replace(old.with_suffix(".previous.pt"))
    return None


def _report(history, optimizer, config):
    epoch, number = history[-1], len(history)
    if config.hyperparameters.verbose:
        print(
            f"Epoch {number}/{config.hyperparameters.epochs}: loss {epoch['train_loss']:.4f}, "
            f"validation loss {epoch['valid_loss']:.4f}, AUC {epoch['valid_auc']:.4f}, {epoch['seconds']:.0f} s",
            "  best" * (best_epoch(history) == number),
        )
    rate = optimizer.param_groups[0]["lr"]
    if config.LRScheduler.verbose and rate != epoch["learning_rate"]:
        print(f"Learning rate lowered from {epoch['learning_rate']:g} to {rate:g}.")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", help="config file (default: config.yml)")
    config = load_config(parser.parse_args().config)
    runtime = start(config)
    if rank() == 0:
        ensure_sample(config.data_path)
    from_first(None)  # the others wait for the sample
    splits = load_splits(config)
    fit(config, splits, runtime)
    from_first(None)  # and for the last checkpoint
    trained = load_trained(config, runtime)
    distances = trained.distances(splits, splits.test_pairs)
    if rank() == 0:
        metrics = test_metrics(trained, splits, distances)
        print(f"Test AUC {metrics['auc']:.4f}, accuracy {metrics['accuracy']:.4f}: {config.results_path}/metrics.json")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
