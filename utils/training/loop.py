"""Training: epoch after epoch, what to keep, when to stop, and how to go on after an interruption."""

import time
import warnings
from contextlib import contextmanager
from dataclasses import replace

import timm
import torch
from torch import optim

from utils.archives import UNLOADABLE
from utils.config import Config, ConfigError
from utils.data import Splits, load_splits, resident
from utils.errors import Interrupted
from utils.files import check_writable
from utils.network import build_network, dilated, folded
from utils.parallel import distributed, from_first, rank, world
from utils.runtime import Runtime, deterministic_or_refused, seed_everything, start
from utils.training.checkpoint import damaged, fingerprint, save_checkpoint
from utils.training.claim import claimed
from utils.training.contents import load_run
from utils.training.decision import check_decision
from utils.training.doctor import COLLAPSED, collapse_warning
from utils.training.epoch import build_optimizer, build_scaler, check_finite, train_epoch
from utils.training.evaluation import pair_distances
from utils.training.intervals import auc_interval
from utils.training.losses import ContrastiveLoss
from utils.training.memory import check_memory
from utils.training.runs import BEST, LAST, find_run, folder_of, make_current
from utils.training.stopping import is_finished, kept_epoch, lowering_patience, why_it_ended

DRAWS = 100  # of the interval of the AUC after each epoch: enough for its width


def fit(config: Config, splits: Splits | None = None, runtime: Runtime | None = None) -> list[dict]:
    """Train as config.yml says; returns the history, one dict per epoch.

    Each epoch has train_loss, valid_loss, valid_auc, valid_auc_error (half the width of its 95 % interval),
    learning_rate and seconds. The run has a folder of its own in `checkpoints_path`: its best.pt holds the epoch that
    `kept_epoch` chooses, its last.pt the latest one.

    A finished run of the same settings and images is not trained again, unless `retrain: True`: its history is
    returned. One that was killed goes on from last.pt to the history of an uninterrupted run, and so does, in a new
    folder, one whose `epochs` was raised. With `run` the history is that of the run of this name. With `epochs: 0`
    nothing is trained: the pretrained backbone's own embedding is kept. A line says which of these it was, and why
    training ended.

    Raises TrainingError when the loss is not finite, CheckpointError when there is no run of the name `run`, when one
    is damaged, and when another process trains in `checkpoints_path`, FileError when a file cannot be written there or
    in `results_path`, ConfigError as `build_network` and `dilated` do, when a batch is too small to be shared by all
    processes, when memory does not suffice, and when `run` had other splits; Interrupted for Ctrl-C; warns
    (RuntimeWarning) when the embeddings collapse.
    """
    runtime = runtime or start(config)
    if rank() == 0:
        check_writable(config.results_path, "results_path")  # refused now, not after hours of training
    with claimed(config.checkpoints_path):
        return _fit(config, splits, runtime)


def _fit(config, splits, runtime) -> list[dict]:
    if config.hyperparameters.batch_size < 2 * world():
        raise ConfigError(f"hyperparameters.batch_size: must be at least {2 * world()} for {world()} processes")
    splits = splits or load_splits(config)
    check_decision(splits.valid_pairs.labels, config.decision)  # refused now, not after hours of training
    mark = fingerprint(config, splits)
    run = from_first(find_run(config, mark) if rank() == 0 else None)
    if run and (config.run or is_finished(run.history, config)):
        return run.history
    splits = replace(splits, pixels=resident(splits.pixels, runtime, config.gpu_cache_share))
    seed_everything(config.seed)  # here, so that what a notebook drew before does not change the first weights
    network = build_network(config)
    check_memory(network, config, runtime)
    runtime.place(network)
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
    history = _resume(run, state) if run else []
    folder = from_first(folder_of(run, config, mark) if rank() == 0 else None)
    with _interruptible(history), deterministic_or_refused():
        while not is_finished(history, config):
            began = time.perf_counter()
            number = len(history) + 1
            rate = optimizer.param_groups[0]["lr"]
            auc = f"{history[-1]['valid_auc']:.4f}" if history else "?"
            stepper = {"optimizer": optimizer, "scaler": scaler}
            train_loss = train_epoch(model, stepper, splits, config, runtime, number, auc)
            distances = pair_distances(folded(network, runtime.dtype), splits, splits.valid_pairs, config, runtime)
            epoch = {"train_loss": train_loss, **_validate(distances, splits.valid_pairs, config, number)}
            epoch |= {"learning_rate": rate, "seconds": time.perf_counter() - began}
            history.append(epoch)
            scheduler.patience = lowering_patience(history, config.LRScheduler.patience)
            scheduler.step(epoch["valid_auc"])
            if rank() == 0:  # the first process alone writes
                _report(history, optimizer, config)
                _save(folder, history, distances, splits, state, config, mark)
    if config.hyperparameters.epochs == 0:
        distances = pair_distances(folded(network, runtime.dtype), splits, splits.valid_pairs, config, runtime)
        if rank() == 0:
            _save(folder, history, distances, splits, state, config, mark)
    if rank() == 0:
        print(why_it_ended(history, config))
    return history


@contextmanager
def _interruptible(history):
    """Ctrl-C inside ends training with one line."""
    try:
        yield
    except KeyboardInterrupt as error:
        text = f"Interrupted in epoch {len(history) + 1}. Run the same again: it goes on after the last whole epoch."
        raise Interrupted(text) from error


def _build_scheduler(optimizer, config):
    """Lowers the learning rate when the validation AUC has stopped rising; its patience is set in each epoch."""
    settings = config.LRScheduler
    return optim.lr_scheduler.ReduceLROnPlateau(
        optimizer,
        mode="max",  # it watches the validation AUC
        factor=settings.factor,
        min_lr=[settings.min_lr, settings.min_lr * config.backbone_rate],  # of each group
        threshold=config.early_stopping.min_delta,  # one notion of improvement for both
        threshold_mode="abs",
    )


def _validate(distances, pairs, config, number) -> dict:
    """Loss and AUC of the validation pairs, and its error; warns when all their distances are nearly 0."""
    if check_finite(float(distances.mean()), number) < COLLAPSED:
        warnings.warn(collapse_warning(config), RuntimeWarning, stacklevel=3)
    loss = ContrastiveLoss(config.margin)(torch.from_numpy(distances), torch.from_numpy(pairs.labels))
    auc = auc_interval(distances, pairs, config.seed, DRAWS)
    return {"valid_loss": loss.item(), "valid_auc": auc.value, "valid_auc_error": (auc.high - auc.low) / 2}


def _save(folder, history, distances, splits, state, config, mark):
    """Write last.pt, and best.pt where this epoch is kept. distances: of the validation pairs."""
    validation = {"distances": distances, **vars(splits.valid_pairs)}
    content = {
        "network": state["network"].state_dict(),
        "config": config.model_dump(mode="json"),
        "fingerprint": mark,
        "history": history,
        "validation": {name: torch.from_numpy(values) for name, values in validation.items()},
        "classes": list(splits.folder.classes),
        "versions": {"torch": str(torch.__version__), "timm": timm.__version__},
    }
    if not history or kept_epoch(history) == len(history):
        save_checkpoint(folder / BEST, content)
    for name, part in state.items():
        content[name] = part.state_dict()  # resuming needs the optimizer too
    save_checkpoint(folder / LAST, content)
    if len(history) <= 1:
        make_current(folder)


def _resume(run, state) -> list[dict]:
    """Load the last checkpoint of a run into `state`; returns its history."""
    path = run.folder / LAST
    content = from_first(load_run(path) if rank() == 0 else None)
    for name, part in state.items():
        try:
            part.load_state_dict(content[name])
        except UNLOADABLE as error:
            raise damaged(path, f"{name} does not fit ({type(error).__name__})") from error
    return content["history"]


def _report(history, optimizer, config):
    """One line for the epoch, and one where the learning rate has changed."""
    epoch = history[-1]
    number = len(history)
    if config.hyperparameters.verbose:
        kept = "  kept" if kept_epoch(history) == number else ""
        print(
            f"Epoch {number}/{config.hyperparameters.epochs}: loss {epoch['train_loss']:.4f}, "
            f"validation loss {epoch['valid_loss']:.4f}, AUC {epoch['valid_auc']:.4f}, {epoch['seconds']:.0f} s{kept}"
        )
    rate = optimizer.param_groups[0]["lr"]
    if config.LRScheduler.verbose and rate != epoch["learning_rate"]:
        print(f"Learning rate lowered from {epoch['learning_rate']:g} to {rate:g}.")
