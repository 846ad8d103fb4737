"""Training: epoch after epoch, what to keep, when to stop, and how to go on after an interruption."""

import time
import warnings
from dataclasses import replace

import timm
import torch
from sklearn.metrics import roc_auc_score
from torch import optim

from utils.config import Config, ConfigError
from utils.data import Splits, load_splits, resident
from utils.network import build_network, dilated, folded
from utils.parallel import distributed, from_first, rank, world
from utils.runtime import Runtime, seed_everything, start
from utils.training.checkpoint import fingerprint, load_checkpoint, save_checkpoint
from utils.training.epoch import build_optimizer, build_scaler, check_finite, train_epoch
from utils.training.evaluation import pair_distances
from utils.training.losses import ContrastiveLoss
from utils.training.metrics import best_epoch, choose_threshold, stopped_early

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

    With `epochs: 0` nothing is trained: the pretrained backbone's own embedding is kept, with a threshold chosen on
    validation as ever.

    Raises TrainingError when the loss is not finite, ConfigError as `build_network` and `dilated` do, and when a batch
    is too small to be shared by all processes; warns (RuntimeWarning) when the embeddings collapse.
    """
    runtime = runtime or start(config)
    if config.hyperparameters.batch_size < 2 * world():
        raise ConfigError(f"hyperparameters.batch_size: must be at least {2 * world()} for {world()} processes")
    splits = splits or load_splits(config)
    splits = replace(splits, pixels=resident(splits.pixels, runtime, config.gpu_cache_share))
    seed_everything(config.seed)  # here, so that what a notebook drew before does not change the first weights
    network = runtime.place(build_network(config))
    if config.explanation.output_stride != 32:
        dilated(network, config.explanation.output_stride)  # refused now, not after hours of training
    if config.compile:
        for stage in network.backbone.children():
            stage.compile()  # stage by stage: a pass through all of them at once takes much longer to compile
    model = distributed(network)
    optimizer = build_optimizer(network, config)
    scheduler = _build_scheduler(optimizer, config)
    scaler = build_scaler(runtime)
    state = {"network": network, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler}
    mark = fingerprint(config, splits.folder)
    history = _resume(config, mark, state)
    while len(history) < config.hyperparameters.epochs and not stopped_early(history, config.early_stopping):
        began = time.perf_counter()
        number = len(history) + 1
        rate = optimizer.param_groups[0]["lr"]
        auc = f"{history[-1]['valid_auc']:.4f}" if history else "?"
        stepper = {"optimizer": optimizer, "scaler": scaler}
        train_loss = train_epoch(model, stepper, splits, config, runtime, number, auc)
        distances = pair_distances(folded(network, runtime.dtype), splits, splits.valid_pairs, config, runtime)
        epoch = {"train_loss": train_loss, **_validate(distances, splits.valid_pairs.labels, config, number)}
        epoch |= {"learning_rate": rate, "seconds": time.perf_counter() - began}
        history.append(epoch)
        scheduler.step(epoch["valid_auc"])
        if rank() == 0:  # the first process alone writes
            _report(history, optimizer, config)
            _save(history, distances, splits, state, config, mark)
    if config.hyperparameters.epochs == 0:
        distances = pair_distances(folded(network, runtime.dtype), splits, splits.valid_pairs, config, runtime)
        if rank() == 0:
            _save(history, distances, splits, state, config, mark)
    return history


def _build_scheduler(optimizer, config):
    """Lowers the learning rate when the validation AUC has stopped rising."""
    settings = config.LRScheduler
    return optim.lr_scheduler.ReduceLROnPlateau(
        optimizer,
        mode="max",  # it watches the validation AUC
        factor=settings.factor,
        patience=settings.patience,
        min_lr=[settings.min_lr, settings.min_lr * config.backbone_rate],  # of each group
        threshold=config.early_stopping.min_delta,  # one notion of improvement for both
        threshold_mode="abs",
    )


def _validate(distances, labels, config, number) -> dict:
    """Loss and AUC of the validation pairs; warns when all their distances are nearly 0."""
    if check_finite(float(distances.mean()), number) < COLLAPSED:
        warnings.warn(COLLAPSE_WARNING, RuntimeWarning, stacklevel=3)
    loss = ContrastiveLoss(config.margin)(torch.from_numpy(distances), torch.from_numpy(labels))
    return {"valid_loss": loss.item(), "valid_auc": float(roc_auc_score(labels, distances))}


def _save(history, distances, splits, state, config, mark):
    """Write last.pt, and best.pt where this epoch is the best so far. distances: of the validation pairs."""
    content = {
        "network": state["network"].state_dict(),
        "config": config.model_dump(mode="json"),
        "fingerprint": mark,
        "history": history,
        "threshold": choose_threshold(distances, splits.valid_pairs.labels),
        "classes": list(splits.folder.classes),
        "versions": {"torch": str(torch.__version__), "timm": timm.__version__},
    }
    if not history or best_epoch(history) == len(history):
        save_checkpoint(config.checkpoints_path / "best.pt", content)
    for name, part in state.items():
        content[name] = part.state_dict()  # resuming needs the optimizer too
    save_checkpoint(config.checkpoints_path / "last.pt", content)


def _resume(config, mark, state) -> list[dict]:
    """Load last.pt into `state` if it bears the fingerprint `mark` and is unfinished; returns its history, else []."""
    content = from_first(_unfinished(config, mark) if rank() == 0 else None)
    if content is None:
        return []
    for name, part in state.items():
        part.load_state_dict(content[name])
    return content["history"]


def _unfinished(config, mark) -> dict | None:
    """The content of last.pt if training goes on from it; any other run is set aside under another name."""
    path = config.checkpoints_path / "last.pt"
    if not path.exists():
        return None
    content = load_checkpoint(path)
    history = content["history"]
    if content["fingerprint"] != mark:
        reason = "is of other settings or images"
    elif not history or len(history) >= config.hyperparameters.epochs or stopped_early(history, config.early_stopping):
        reason = "is complete"
    else:
        print(f"Resuming after epoch {len(history)} of {path}.")
        return content
    print(f"{path} {reason}: training starts anew, the earlier run is kept as *.previous.pt.")
    for old in (path, path.with_name("best.pt")):
        if old.exists():
            old.replace(old.with_suffix(".previous.pt"))
    return None


def _report(history, optimizer, config):
    """One line for the epoch, and one where the learning rate has changed."""
    epoch = history[-1]
    number = len(history)
    if config.hyperparameters.verbose:
        best = "  best" if best_epoch(history) == number else ""
        print(
            f"Epoch {number}/{config.hyperparameters.epochs}: loss {epoch['train_loss']:.4f}, "
            f"validation loss {epoch['valid_loss']:.4f}, AUC {epoch['valid_auc']:.4f}, {epoch['seconds']:.0f} s{best}"
        )
    rate = optimizer.param_groups[0]["lr"]
    if config.LRScheduler.verbose and rate != epoch["learning_rate"]:
        print(f"Learning rate lowered from {epoch['learning_rate']:g} to {rate:g}.")
