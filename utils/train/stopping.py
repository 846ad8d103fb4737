"""Which epoch did best and which is kept, how long to wait for a better one, and why training ended."""

import math

from ..config import AUTO, Config, EarlyStopping
from ..score.intervals import Z

STOPPING = 10  # epochs without an improvement that end training with `patience: auto`, if the AUC is certain
LOWERING = 2  # the same that lower the learning rate
CERTAIN = 0.02  # half the width of the 95 % interval of an AUC, up to which it counts as certain


def best_epoch(history) -> int:
    """Return the number, from 1, of the epoch of the highest validation AUC; of equals, of the lowest loss."""
    scores = [(epoch["valid_auc"], -epoch["valid_loss"]) for epoch in history]
    return scores.index(max(scores)) + 1


def kept_epoch(history) -> int:
    """Return the number, from 1, of the latest epoch within one standard error of the highest AUC.

    The highest of several noisy AUCs is high partly by chance, and later epochs had lower learning rates.

    Source: The one-standard-error rule of Breiman et al. 1984, Classification and Regression Trees, section 3.4.3, with
    the most trained network in place of the smallest tree.
    """
    best = history[best_epoch(history) - 1]
    least = best["valid_auc"] - best["valid_auc_error"] / Z
    kept = 1
    for number, epoch in enumerate(history, start=1):
        if epoch["valid_auc"] >= least:
            kept = number
    return kept


def stopping_patience(history, setting: int | str) -> int:
    """Return how many epochs without an improvement end training: the setting, or the value of `auto`."""
    if setting == AUTO:
        return _by_error(STOPPING, history)
    return setting


def lowering_patience(history, setting: int | str) -> int:
    """Return after how many epochs without an improvement the next one lowers the learning rate."""
    if setting == AUTO:
        return _by_error(LOWERING, history) - 1
    return setting


def _by_error(epochs, history):
    """Return a number of epochs, multiplied by the error of the best AUC in units of CERTAIN, if that is above 1.

    The best of several noisy AUCs exceeds its true value by a multiple of the error, and a true value that rises slowly
    needs a time in proportion to that to overtake it.
    """
    error = history[best_epoch(history) - 1]["valid_auc_error"]
    return math.ceil(epochs * max(1, error / CERTAIN))


def epochs_waited(history, min_delta: float) -> int:
    """Return for how many epochs the validation AUC has not risen by more than `min_delta`."""
    best = -math.inf
    waited = 0
    for epoch in history:
        waited += 1
        if epoch["valid_auc"] > best + min_delta:
            best = epoch["valid_auc"]
            waited = 0
    return waited


def stopped_early(history, settings: EarlyStopping) -> bool:
    """Return whether the validation AUC has not risen by more than `min_delta` for `patience` epochs."""
    waited = epochs_waited(history, settings.min_delta)
    return waited > 0 and waited >= stopping_patience(history, settings.patience)


def is_finished(history, config: Config) -> bool:
    """Return whether the config asks for a run of exactly so many epochs."""
    epochs = config.hyperparameters.epochs
    if len(history) >= epochs or config.LRScheduler.schedule == "cosine":  # which comes to its end with the last epoch
        return len(history) == epochs
    return stopped_early(history, config.early_stopping)


def why_it_ended(history, config: Config) -> str:
    """Return one line."""
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
