"""The training loop: embeddings of a batch, its loss, a step of the optimizer; after each epoch a checkpoint."""

import math
import re
import time
import warnings
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import optim

from ..config import Config, ConfigError
from ..data.batches import deliver, draw_epoch, resident, training_transform
from ..data.splits import Splits, load_splits
from ..device import (
    Runtime,
    copy_statistics,
    deterministic_or_refused,
    distributed,
    from_first,
    gather,
    progress,
    rank,
    seed_everything,
    share,
    start,
    world,
)
from ..files import Interrupted, UserError, check_writable, is_ctrl_c
from ..network.siamese import SiameseNetwork, build_network
from ..network.variants import dilated, folded
from ..score.decision import check_decision
from ..score.intervals import auc_interval
from . import runs
from .evaluation import pair_distances
from .losses import LOSSES, contrastive_loss
from .stopping import is_finished, kept_epoch, lowering_patience, why_it_ended

COLLAPSED = 0.02  # mean distance of the validation pairs, of at most 2, below which the embeddings have collapsed
COLLAPSE_WARNING = (
    "The embeddings have collapsed: all images lie at nearly one point. Lower hyperparameters.learning_rate, raise "
    "margin (up to 2), or check that the classes differ."
)
DRAWS = 100  # of the interval of the AUC after each epoch: enough for its width
WARM_UP = 0.15  # share of all batches in which the learning rate rises, with `schedule: cosine`
NO_MEMORY = re.compile("(?:tried|unable) to allocate ([0-9.]+ [a-z]+)", re.IGNORECASE)  # as torch and NumPy say it


class TrainingError(UserError, RuntimeError):
    """Training cannot go on; the message says where it stopped and what to change."""


def fit(config: Config, splits: Splits | None = None, runtime: Runtime | None = None) -> list[dict]:
    """Train as config.yml says, and print why training ended.

    The run has a folder of its own in `checkpoints_path`: its best.pt holds the epoch that `kept_epoch` chooses, its
    last.pt the latest one.

    A finished run of the same settings and images is not trained again, unless `retrain: True`: its history is
    returned. An interrupted run continues from last.pt to the history of an uninterrupted run, and so does, in a new
    folder, a run whose `epochs` was raised. With `run` the history is that of the run of this name. With `epochs: 0`
    nothing is trained: the embedding of the pretrained backbone is saved.

    Returns:
        One dict per epoch: train_loss, valid_loss, valid_auc, valid_auc_error (half the width of its 95 % interval),
        learning_rate and seconds.

    Raises:
        TrainingError: The loss is not finite.
        CheckpointError: There is no run of the name `run`, its checkpoint is damaged, or another process trains in
            `checkpoints_path`.
        FileError: A file cannot be written to `checkpoints_path` or `results_path`.
        ConfigError: As `build_network` and `dilated` do; a batch is too small for all processes, or takes more memory
            than is free; `run` had other splits.
        Interrupted: Ctrl-C.

    Warns:
        RuntimeWarning: The embeddings have collapsed.
    """
    runtime = runtime or start(config)
    # what can be refused is refused now, not after hours of training
    if config.hyperparameters.batch_size < 2 * world():
        raise ConfigError(f"hyperparameters.batch_size: must be at least {2 * world()} for {world()} processes")
    if rank() == 0:
        check_writable(config.results_path, "results_path")
    with runs.claimed(config.checkpoints_path):
        splits = splits or load_splits(config)
        check_decision(splits.valid_pairs.labels, config.decision)
        fingerprint = runs.fingerprint_of(config, splits)
        run = _by_first(runs.find_run, config, fingerprint)
        if run and (config.run or is_finished(run.history, config)):
            return run.history
        return _train(config, splits, runtime, run, fingerprint)


def _by_first(function, *arguments):
    """Call a function in the first process only; return its result in every process."""
    result = None
    if rank() == 0:
        result = function(*arguments)
    return from_first(result)


def _train(config, splits, runtime, run, fingerprint) -> list[dict]:
    """Train a new run, or resume `run`; return its history."""
    splits = replace(splits, pixels=resident(splits.pixels, runtime, config.gpu_cache_share))
    seed_everything(config.seed)  # here, so that what a notebook drew before does not change the first weights
    network = runtime.place(build_network(config))
    if config.explanation.output_stride != 32:
        dilated(network, config.explanation.output_stride)  # refused now if the backbone does not allow it
    if config.compile:
        for stage in network.backbone.children():
            stage.compile()  # stage by stage: all of them at once take much longer to compile
    model = distributed(network)
    optimizer = build_optimizer(network, config)
    scheduler = _build_scheduler(optimizer, config)
    scaler = build_scaler(runtime)
    state = {"network": network, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler}
    history = []
    if run:
        history = _resume(run, state)
    folder = _by_first(runs.folder_for, run, config, fingerprint)
    if config.hyperparameters.epochs == 0:
        distances = _validation_distances(network, splits, config, runtime)
        _save(folder, history, distances, splits, state, config, fingerprint)
    with _stopping(history, config), deterministic_or_refused():
        while not is_finished(history, config):
            began = time.perf_counter()
            number = len(history) + 1
            rate = optimizer.param_groups[0]["lr"]
            epoch = {"train_loss": train_epoch(model, optimizer, scaler, splits, config, runtime, number)}
            distances = _validation_distances(network, splits, config, runtime)
            epoch |= _validate(distances, splits.valid_pairs, config, number)
            epoch |= {"learning_rate": rate, "seconds": time.perf_counter() - began}
            history.append(epoch)
            if config.LRScheduler.schedule == "plateau":
                scheduler.patience = lowering_patience(history, config.LRScheduler.patience)
                scheduler.step(epoch["valid_auc"])
            _report(history, optimizer, config)
            _save(folder, history, distances, splits, state, config, fingerprint)
    if rank() == 0:
        print(why_it_ended(history, config))
    return history


@contextmanager
def _stopping(history, config):
    """Turn Ctrl-C and a lack of memory inside into errors of one line."""
    try:
        yield
    except (KeyboardInterrupt, RuntimeError, SystemError, ValueError, MemoryError) as error:
        if is_ctrl_c(error):
            where = f"Interrupted in epoch {len(history) + 1}."
            raise Interrupted(f"{where} Run the same again: it goes on after the last whole epoch.") from error
        size = NO_MEMORY.search(str(error))
        if not size:
            raise
        raise ConfigError(
            f"hyperparameters.batch_size: {config.hyperparameters.batch_size} with image.size: "
            f"{list(config.image.size)} takes more memory than is free ({size[1]} could not be allocated): lower either"
        ) from error


def train_epoch(model, optimizer, scaler, splits: Splits, config: Config, runtime: Runtime, number: int) -> float:
    """Train on all training images once.

    Under torchrun each process embeds its share of a batch; the loss is that of all pairs of the whole batch.

    Args:
        model: The network, or what `distributed` made of it.
        optimizer: Of the network.
        scaler: Of the loss.
        splits: Whose training images are used.
        config: The settings.
        runtime: Where to compute.
        number: Of the epoch, from 1. All random numbers depend only on it and the seed, so a resumed run repeats them.

    Returns:
        The mean loss of the batches, weighted by their size.

    Raises:
        TrainingError: The loss is not finite.
    """
    settings = config.hyperparameters
    labels = torch.from_numpy(splits.folder.labels)
    seed_everything(config.seed + number + 1000003 * rank())  # processes augment differently
    batches = draw_epoch(splits, config, number)
    transform = training_transform(config.image)
    delivered = deliver(splits.pixels, map(share, batches), runtime)
    bar = progress(delivered, f"Epoch {number}/{settings.epochs}", settings.verbose, len(batches))
    model.train()
    losses = []
    for index, (pixels, batch) in enumerate(zip(bar, batches, strict=True)):
        if config.LRScheduler.schedule == "cosine":
            set_rates(optimizer, config, (number - 1 + (index + 0.5) / len(batches)) / settings.epochs)
        with runtime.autocast():
            embeddings = model(runtime.place(transform(pixels)))
        embeddings = gather(embeddings, len(batch))
        classes = labels[batch].to(runtime.device, non_blocking=True)
        loss = LOSSES[config.pairs](embeddings, classes, config.margin)
        optimize(model, loss, optimizer, scaler, settings.max_norm)
        losses.append(loss.detach())
        before = losses[max(len(losses) - 2, 0)]  # of the step before: a GPU goes on computing meanwhile
        bar.set_postfix(loss=f"{check_finite(before.item(), number):.4f}", refresh=False)
    copy_statistics(model)
    mean = np.average(torch.stack(losses).tolist(), weights=list(map(len, batches)))
    return check_finite(float(mean), number)


def set_rates(optimizer, config: Config, done: float):
    """Set the learning rates of the groups where a share `done` of all batches of all epochs are done.

    They rise in a straight line to those of the config and fall along a cosine to 0.

    Source: Loshchilov and Hutter 2017, SGDR, equation 5, without restarts.
    """
    share = done / WARM_UP
    if done > WARM_UP:
        share = (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))) / 2
    embedding, backbone = optimizer.param_groups
    embedding["lr"] = share * config.hyperparameters.learning_rate
    backbone["lr"] = embedding["lr"] * config.backbone_rate


def optimize(model, loss, optimizer, scaler, max_norm):
    """Take one step down the gradient of `loss`, which is clipped to a length of `max_norm` unless that is None."""
    optimizer.zero_grad()
    scaler.scale(loss * world()).backward()  # gradients of several processes are averaged, but `gather` needs the sum
    if max_norm is not None:
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    scaler.step(optimizer)
    scaler.update()


def check_finite(value: float, number: int) -> float:
    """Return `value`. Raises TrainingError if it is not finite."""
    if not math.isfinite(value):
        raise TrainingError(
            f"training diverged: the loss or the distances became {value} in epoch {number}. "
            "Lower hyperparameters.learning_rate or set precision: float32. Earlier checkpoints are intact."
        )
    return value


def build_optimizer(network: SiameseNetwork, config: Config) -> optim.Optimizer:
    """Return the optimizer of `hyperparameters` in its fused form: Adam, AdamW or SGD.

    Its first group is the embedding, at `learning_rate`; its second the trained parts of the backbone, at
    `backbone_rate` times that.
    """
    settings = config.hyperparameters
    rate = settings.learning_rate
    backbone = [parameter for parameter in network.backbone.parameters() if parameter.requires_grad]
    groups = [
        {"params": list(network.embedding.parameters()), "lr": rate},
        {"params": backbone, "lr": rate * config.backbone_rate},
    ]
    common = {"lr": rate, "weight_decay": settings.weight_decay, "fused": True}
    if settings.optimizer == "SGD":
        common |= {"momentum": settings.momentum, "nesterov": settings.nesterov}
    return getattr(optim, settings.optimizer)(groups, **common)


def build_scaler(runtime: Runtime) -> torch.amp.GradScaler:
    """Return a scaler of the loss: only float16 needs it, so that small gradients do not become zero."""
    return torch.amp.GradScaler(runtime.device.type, enabled=runtime.dtype == torch.float16)


def _build_scheduler(optimizer, config):
    """Lower the learning rate when the validation AUC stops rising; its patience is set in each epoch."""
    settings = config.LRScheduler
    return optim.lr_scheduler.ReduceLROnPlateau(
        optimizer,
        mode="max",  # it watches the validation AUC
        factor=settings.factor,
        min_lr=[settings.min_lr, settings.min_lr * config.backbone_rate],  # of each group
        threshold=config.early_stopping.min_delta,  # the same improvement counts for both
        threshold_mode="abs",
    )


def _validation_distances(network, splits, config, runtime):
    return pair_distances(folded(network, runtime.dtype), splits, splits.valid_pairs, config, runtime)


def _validate(distances, pairs, config, number) -> dict:
    """Return loss and AUC of the validation pairs, and its error; warn when all their distances are nearly 0."""
    if check_finite(float(distances.mean()), number) < COLLAPSED:
        warnings.warn(COLLAPSE_WARNING, RuntimeWarning, stacklevel=3)
    losses = contrastive_loss(torch.from_numpy(distances), torch.from_numpy(pairs.labels), config.margin)
    auc = auc_interval(distances, pairs, config.seed, DRAWS)
    return {"valid_loss": losses.mean().item(), "valid_auc": auc.value, "valid_auc_error": (auc.high - auc.low) / 2}


def _save(folder, history, distances, splits, state, config, fingerprint):
    """Write last.pt, and best.pt if this epoch is kept. distances: of the validation pairs, float32 (P,)."""
    if rank() > 0:
        return
    pairs = splits.valid_pairs
    content = {
        "network": state["network"].state_dict(),
        "backbone": state["network"].backbone_arguments,
        "config": config.model_dump(mode="json"),
        "fingerprint": fingerprint,
        "history": history,
        "validation": {
            "distances": torch.from_numpy(distances),
            "first": torch.from_numpy(pairs.first),
            "second": torch.from_numpy(pairs.second),
            "labels": torch.from_numpy(pairs.labels),
        },
        "classes": list(splits.folder.classes),
        "corrections": splits.folder.corrections,
    }
    if not history or kept_epoch(history) == len(history):
        runs.save_checkpoint(folder / runs.BEST, content)
    for name, part in state.items():
        content[name] = part.state_dict()  # resuming needs the optimizer too
    runs.save_checkpoint(folder / runs.LAST, content)
    if len(history) <= 1:
        runs.make_current(folder)


def _resume(run, state) -> list[dict]:
    """Load the last checkpoint of a run into `state`; return its history."""
    path = run.folder / runs.LAST
    content = _by_first(runs.load_checkpoint, path)
    with runs.reading(path):
        for name, part in state.items():
            part.load_state_dict(content[name])
        return content["history"]


def _report(history, optimizer, config):
    """Print a line about the epoch, and one if the learning rate has changed."""
    if rank() > 0:
        return
    epoch = history[-1]
    number = len(history)
    if config.hyperparameters.verbose:
        line = f"Epoch {number}/{config.hyperparameters.epochs}: loss {epoch['train_loss']:.4f}, validation loss "
        line += f"{epoch['valid_loss']:.4f}, AUC {epoch['valid_auc']:.4f}, {epoch['seconds']:.0f} s"
        if kept_epoch(history) == number:
            line += ", best so far"
        print(line)
    rate = optimizer.param_groups[0]["lr"]
    plateau = config.LRScheduler.schedule == "plateau"
    if plateau and config.LRScheduler.verbose and rate != epoch["learning_rate"]:
        print(f"Learning rate lowered from {epoch['learning_rate']:g} to {rate:g}.")
