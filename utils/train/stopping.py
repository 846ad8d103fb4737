"""Which epoch did best and which is kept, how long to wait for a better one, and why training ended."""

import math

from ..config import AUTO, Config, EarlyStopping
from ..score.intervals import Z

STOPPING = 10  # epochs without an improvement that end training with `patience: auto`, where the AUC is certain


LOWERING = 2  # the same that lower the learning rate


CERTAIN = 0.02  # half the width of the 95 % interval of an AUC, up to which it counts as certain


def best_epoch(history) -> int:
    """The number, from 1, of the epoch of the highest validation AUC, of equals the lowest validation loss."""
    best = 1
    for number, epoch in enumerate(history, start=1):
        kept = history[best - 1]
        higher = epoch["valid_auc"] > kept["valid_auc"]
        equal = epoch["valid_auc"] == kept["valid_auc"]
        if higher or (equal and epoch["valid_loss"] < kept["valid_loss"]):
            best = number
    return best


def kept_epoch(history) -> int:
    """The number, from 1, of the epoch to keep: of those within one standard error of the highest AUC, the latest.

    The highest of some noisy AUCs is lucky in part, and later epochs had lower learning rates (the one-standard-error
    rule of Breiman et al. 1984, Classification and Regression Trees, section 3.4.3, with the most trained network in
    place of the smallest tree).
    """
    best = history[best_epoch(history) - 1]
    least = best["valid_auc"] - best["valid_auc_error"] / Z
    return max(number for number, epoch in enumerate(history, start=1) if epoch["valid_auc"] >= least)


def stopping_patience(history, setting: int | str) -> int:
    """How many epochs without an improvement end training: the setting, or what `auto` is after this history."""
    return setting if setting != AUTO else _stretched(STOPPING, history)


def lowering_patience(history, setting: int | str) -> int:
    """How many are let pass before one more lowers the learning rate: the setting, or what `auto` is."""
    return setting if setting != AUTO else _stretched(LOWERING, history) - 1


def _stretched(epochs, history):
    """A number of epochs, in proportion to the error of the best epoch's AUC where that is above CERTAIN.

    The best of some noisy epochs lies above the truth by a multiple of the error, and a truth that rises slowly takes a
    time in proportion to that to overtake it.
    """
    error = history[best_epoch(history) - 1]["valid_auc_error"]
    return math.ceil(epochs * max(1, error / CERTAIN))


def epochs_waited(history, min_delta: float) -> int:
    """For how many epochs the validation AUC has not risen by more than `min_delta`."""
    best = -math.inf
    waited = 0
    for epoch in history:
        if epoch["valid_auc"] > best + min_delta:
            best = epoch["valid_auc"]
            waited = 0
        else:
            waited += 1
    return waited


def stopped_early(history, settings: EarlyStopping) -> bool:
    """Whether the validation AUC has not risen by more than `min_delta` for `patience` epochs."""
    waited = epochs_waited(history, settings.min_delta)
    return waited > 0 and waited >= stopping_patience(history, settings.patience)


def is_finished(history, config: Config) -> bool:
    """Whether a run of so many epochs, and not of more, is what the config asks for."""
    epochs = config.hyperparameters.epochs
    return len(history) == epochs or (len(history) < epochs and stopped_early(history, config.early_stopping))


def why_it_ended(history, config: Config) -> str:
    """One line."""
    count = len(history)
    if not count:
        return "Nothing was trained: hyperparameters.epochs is 0."
    if count >= config.hyperparameters.epochs:
        return f"Training ended after {count} epochs: all of `epochs`."
    settings = config.early_stopping
    waited = epochs_waited(history, settings.min_delta)
    patience = str(settings.patience)
    if settings.patience == AUTO:
        error = history[best_epoch(history) - 1]["valid_auc_error"]
        patience = f"auto is {stopping_patience(history, AUTO)} at an uncertainty of ±{error:.3f}"
    return (
        f"Training ended after {count} epochs: the validation AUC has not risen by more than {settings.min_delta:g} "
        f"for {waited} epochs, since epoch {count - waited} (early_stopping.patience: {patience})."
    )
