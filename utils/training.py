"""Training: batches of pairs, the optimizer, what to keep and when to stop.

`python -m utils.training --config config.yml` trains and tests from a terminal, as notebook 01 does.
"""

import argparse
import math
import time
import warnings

import torch
import torchvision
from sklearn.metrics import roc_auc_score
from torch import optim
from torch.utils.data import DataLoader

from utils.checkpoint import fingerprint, load_checkpoint, save_checkpoint
from utils.config import Config, Hyperparameters, load_config
from utils.evaluation import load_trained, pair_distances, test_metrics
from utils.losses import BatchContrastiveLoss, ContrastiveLoss
from utils.metrics import best_epoch, choose_threshold, stopped_early
from utils.pairs import Splits, draw_epoch, load_splits
from utils.runtime import Runtime, progress, seed_everything, start
from utils.sample_data import ensure_sample
from utils.siamese import build_network, distance
from utils.transforms import ImageDataset, training_transform

COLLAPSED = 0.02  # mean distance of the validation pairs, of at most 2, below which all embeddings are one
COLLAPSE_WARNING = (
    "the embeddings have collapsed: all images lie at nearly one point. "
    "Lower hyperparameters.learning_rate, raise margin, or check that the classes differ."
)


class TrainingError(RuntimeError):
    """Training cannot go on; the message says where it stopped and what to change."""


def fit(config: Config, splits: Splits | None = None, runtime: Runtime | None = None) -> list[dict]:
    """Train as config.yml says; returns the history, one dict per epoch.

    Each epoch has train_loss, valid_loss, valid_auc, learning_rate and seconds. `checkpoints_path`/best.pt holds the
    epoch of the highest validation AUC (of equals, the lowest validation loss), last.pt the latest one. A run that was
    killed, or whose `epochs` was raised, goes on from last.pt to the history of an uninterrupted run; any other earlier
    run in the folder is kept as best.previous.pt and last.previous.pt.

    Raises TrainingError when the loss is not finite; warns (RuntimeWarning) when the embeddings collapse.
    """
    runtime, splits = runtime or start(config), splits or load_splits(config)
    seed_everything(config.seed)  # here, so that what a notebook drew before does not change the first weights
    network = runtime.place(build_network(config))
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
    parts = {"network": network, "optimizer": optimizer, "scheduler": scheduler}
    history = _resume(config, mark := fingerprint(config, splits.folder), parts)
    while len(history) < config.hyperparameters.epochs and not stopped_early(history, config.early_stopping):
        began, number = time.perf_counter(), len(history) + 1
        rate, labels = optimizer.param_groups[0]["lr"], splits.valid_pairs.labels
        train_loss = _train_epoch(network, optimizer, splits, config, runtime, history)
        distances = pair_distances(network, splits, splits.valid_pairs, config, runtime)
        _check_finite(mean := float(distances.mean()), number)
        if mean < COLLAPSED:
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


def build_optimizer(network, settings: Hyperparameters) -> optim.Optimizer:
    """Adam, AdamW or SGD with every setting of `hyperparameters` that it knows."""
    common = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    if settings.optimizer == "SGD":
        return optim.SGD(network.parameters(), momentum=settings.momentum, nesterov=settings.nesterov, **common)
    return {"Adam": optim.Adam, "AdamW": optim.AdamW}[settings.optimizer](network.parameters(), **common)


def _train_epoch(network, optimizer, splits, config, runtime, history) -> float:
    """One pass over the training images; returns the mean loss of its batches, weighted by their size."""
    settings, labels, number = config.hyperparameters, splits.folder.labels, len(history) + 1
    seed_everything(config.seed + number)  # an epoch depends on its number alone, so a resumed run repeats it
    loader = DataLoader(
        ImageDataset(splits.folder.paths, training_transform(config.image)),
        batch_sampler=(batches := draw_epoch(splits, config, number)),
        num_workers=settings.num_workers,
    )
    criterion = (BatchContrastiveLoss if config.pairs == "batch" else ContrastiveLoss)(config.margin)
    network.train()
    total, auc = 0.0, f"{history[-1]['valid_auc']:.4f}" if history else "?"
    bar = progress(loader, f"Epoch {number}/{settings.epochs}", settings.verbose)
    for images, batch in zip(bar, batches, strict=True):
        with runtime.autocast():
            embeddings = network.embed(runtime.place(images))
        classes = torch.from_numpy(labels[batch]).to(runtime.device)
        if config.pairs == "paper":
            (first, second), (class1, class2) = embeddings.chunk(2), classes.chunk(2)
            loss = criterion(distance(first, second), class1 != class2)
        else:
            loss = criterion(embeddings, classes)
        _check_finite(value := loss.item(), number)
        optimizer.zero_grad()
        loss.backward()
        if settings.max_norm is not None:
            torch.nn.utils.clip_grad_norm_(network.parameters(), settings.max_norm)
        optimizer.step()
        total += value * len(batch)
        bar.set_postfix(loss=f"{value:.4f}", validation_auc=auc)
    return total / sum(map(len, batches))


def _resume(config, mark, parts) -> list[dict]:
    """Load last.pt into `parts` if it bears the fingerprint `mark` and is unfinished; returns its history, else []."""
    path = config.checkpoints_path / "last.pt"
    if not path.exists():
        return []
    content = load_checkpoint(path)
    if content["fingerprint"] != mark:
        return _set_aside(path, "is of other settings or images")
    history = content["history"]
    if len(history) >= config.hyperparameters.epochs or stopped_early(history, config.early_stopping):
        return _set_aside(path, "is complete")
    for name, part in parts.items():
        part.load_state_dict(content[name])
    print(f"Resuming after epoch {len(history)} of {path}.")
    return history


def _set_aside(path, reason) -> list:
    """Keep the files of the earlier run that `path` belongs to, under another name; returns an empty history."""
    print(f"{path} {reason}: training starts anew, the earlier run is kept as *.previous.pt.")
    for old in (path, path.with_name("best.pt")):
        if old.exists():
            old.replace(old.with_suffix(".previous.pt"))
    return []


def _check_finite(value, number):
    if not math.isfinite(value):
        raise TrainingError(
            f"training diverged: the loss or the distances became {value} in epoch {number}. "
            "Lower hyperparameters.learning_rate or set precision: float32. Earlier checkpoints are intact."
        )


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
    ensure_sample(config.data_path)
    runtime, splits = start(config), load_splits(config)
    fit(config, splits, runtime)
    trained = load_trained(config, runtime)
    metrics = test_metrics(trained, splits, trained.distances(splits, splits.test_pairs))
    print(f"Test AUC {metrics['auc']:.4f}, accuracy {metrics['accuracy']:.4f}: {config.results_path}/metrics.json")


if __name__ == "__main__":
    main()
