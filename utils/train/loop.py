"""One pass over the training images: augmentation, embeddings, the loss of the batch, a step of the optimizer."""

import math
import time
import warnings
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import optim

from ..config import Config, ConfigError
from ..data.batches import deliver, draw_epoch, resident
from ..data.splits import Splits, load_splits
from ..data.transforms import training_transform
from ..device import (
    Runtime,
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
from ..files import UNLOADABLE, Interrupted, UserError, check_writable
from ..network.distance import distance, paired
from ..network.siamese import SiameseNetwork, build_network
from ..network.variants import dilated, folded
from ..score.decision import check_decision
from ..score.intervals import auc_interval
from ..vision import timm
from .evaluation import pair_distances
from .losses import BatchContrastiveLoss, ContrastiveLoss
from .memory import check_memory
from .runs import (
    BEST,
    LAST,
    claimed,
    damaged,
    find_run,
    fingerprint,
    folder_of,
    load_run,
    make_current,
    save_checkpoint,
)
from .stopping import is_finished, kept_epoch, lowering_patience, why_it_ended


class TrainingError(UserError, RuntimeError):
    """Training cannot go on; the message says where it stopped and what to change."""


def build_optimizer(network: SiameseNetwork, config: Config) -> optim.Optimizer:
    """Adam, AdamW or SGD, in its fused form, with every setting of `hyperparameters` that it knows.

    Its first group is the embedding, at `learning_rate`; the second are the trained parts of the backbone, at
    `backbone_rate` times that.
    """
    settings = config.hyperparameters
    backbone = [parameter for parameter in network.backbone.parameters() if parameter.requires_grad]
    groups = [
        {"params": list(network.embedding.parameters()), "lr": settings.learning_rate},
        {"params": backbone, "lr": settings.learning_rate * config.backbone_rate},
    ]
    common = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay, "fused": True}
    if settings.optimizer == "SGD":
        return optim.SGD(groups, momentum=settings.momentum, nesterov=settings.nesterov, **common)
    return {"Adam": optim.Adam, "AdamW": optim.AdamW}[settings.optimizer](groups, **common)


def build_scaler(runtime: Runtime) -> torch.amp.GradScaler:
    """Loss scaling, which float16 alone needs lest small gradients become zero; for other dtypes it does nothing."""
    return torch.amp.GradScaler(runtime.device.type, enabled=runtime.dtype == torch.float16)


def train_epoch(model, parts: dict, splits: Splits, config: Config, runtime: Runtime, number: int, auc="?") -> float:
    """One pass over the training images; returns the mean loss of its batches, weighted by their size.

    model: the network, or what `distributed` made of it. parts: its `optimizer` and its `scaler`. number: of the epoch,
    from 1; all that is random depends on it and the seed alone, so a resumed run repeats it. auc: shown in the bar.

    Under torchrun each process embeds its share of a batch; the loss is that of all pairs of the whole batch.
    Raises TrainingError when the loss is not finite.
    """
    settings = config.hyperparameters
    labels = torch.from_numpy(splits.folder.labels)
    seed_everything(config.seed + number + 1000003 * rank())  # processes augment differently
    batches = draw_epoch(splits, config, number)
    transform = training_transform(config.image)
    criterion = _criterion(config)
    delivered = deliver(splits.pixels, map(share, batches), runtime)
    bar = progress(delivered, f"Epoch {number}/{settings.epochs}", settings.verbose, len(batches))
    model.train()
    losses = []
    for pixels, batch in zip(bar, batches, strict=True):
        with runtime.autocast():
            embeddings = model(runtime.place(transform(pixels)))
        embeddings = gather(embeddings, len(batch))
        classes = labels[batch].to(runtime.device, non_blocking=True)
        loss = criterion(embeddings, classes)
        optimize(model, loss, settings.max_norm, **parts)
        losses.append(loss.detach())
        before = losses[max(len(losses) - 2, 0)]  # of the step before: a GPU goes on working meanwhile
        shown = check_finite(before.item(), number)
        bar.set_postfix(loss=f"{shown:.4f}", validation_auc=auc)
    sizes = [len(batch) for batch in batches]
    mean = np.average(torch.stack(losses).tolist(), weights=sizes)
    return check_finite(float(mean), number)


def _criterion(config):
    """The loss of a batch: a function of embeddings (B, D) and classes (B,)."""
    if config.pairs == "batch":
        return BatchContrastiveLoss(config.margin)
    contrastive = ContrastiveLoss(config.margin)

    def of_pairs(embeddings, classes):  # anchor, partner, anchor, partner, ...
        anchors, partners = paired(embeddings).unbind(1)
        different = classes[0::2] != classes[1::2]
        return contrastive(distance(anchors, partners), different)

    return of_pairs


def optimize(model, loss, max_norm, optimizer, scaler):
    """One step of the optimizer down the gradient of `loss`, clipped to a length of `max_norm` unless that is None."""
    optimizer.zero_grad()
    scaler.scale(loss * world()).backward()  # gradients of several processes are averaged, but `gather` wants the sum
    if max_norm is not None:
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    scaler.step(optimizer)
    scaler.update()


def check_finite(value: float, number: int) -> float:
    """`value` itself. Raises TrainingError when it is not finite."""
    if not math.isfinite(value):
        raise TrainingError(
            f"training diverged: the loss or the distances became {value} in epoch {number}. "
            "Lower hyperparameters.learning_rate or set precision: float32. Earlier checkpoints are intact."
        )
    return value


COLLAPSED = 0.02  # mean distance of the validation pairs, of at most 2, below which the embeddings have collapsed
LARGEST_MARGIN = 2.0
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


def collapse_warning(config: Config) -> str:
    """Say that all embeddings are nearly equal, with the cures that remain."""
    cures = "Check that the classes differ."
    if config.hyperparameters.epochs:
        margin = f"raise margin (up to {LARGEST_MARGIN:g}), " if config.margin < LARGEST_MARGIN else ""
        cures = f"Lower hyperparameters.learning_rate, {margin}or check that the classes differ."
    return f"The embeddings have collapsed: all images lie at nearly one point. {cures}"


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
