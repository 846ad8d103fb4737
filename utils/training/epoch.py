"""One pass over the training images: augmentation, embeddings, the loss of the batch, a step of the optimizer."""

import math

import numpy as np
import torch
from torch import optim

from utils.config import Config
from utils.data import Splits, deliver, draw_epoch, training_transform
from utils.errors import UserError
from utils.network import SiameseNetwork, distance, paired
from utils.parallel import gather, rank, share, world
from utils.runtime import Runtime, progress, seed_everything
from utils.training.losses import BatchContrastiveLoss, ContrastiveLoss


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
