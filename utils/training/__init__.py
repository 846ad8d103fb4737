"""Training: frozen baseline, loss, one epoch, the loop over epochs, checkpoints, how well distances tell apart."""

from utils.training.baseline import Baseline, frozen_baseline
from utils.training.calibration import Reliability, calibration_error, fit_calibration, reliability
from utils.training.checkpoint import CheckpointError, fingerprint, load_checkpoint, save_checkpoint
from utils.training.decision import choose_band, choose_threshold
from utils.training.doctor import diagnose
from utils.training.epoch import TrainingError, build_optimizer, build_scaler, train_epoch
from utils.training.evaluation import embed_images, pair_distances
from utils.training.intervals import (
    Interval,
    auc_interval,
    interval,
    interval_of_mean,
    intervals,
    mean_interval,
    plain_intervals,
    share_interval,
)
from utils.training.loop import fit
from utils.training.losses import BatchContrastiveLoss, ContrastiveLoss
from utils.training.metrics import Metric, Metrics, error_rates, evaluate, retrieval_metrics
from utils.training.retrieval import retrieval_rates
from utils.training.stopping import kept_epoch, stopped_early

__all__ = [
    "Baseline",
    "BatchContrastiveLoss",
    "CheckpointError",
    "ContrastiveLoss",
    "Interval",
    "Metric",
    "Metrics",
    "Reliability",
    "TrainingError",
    "auc_interval",
    "build_optimizer",
    "build_scaler",
    "calibration_error",
    "choose_band",
    "choose_threshold",
    "diagnose",
    "embed_images",
    "error_rates",
    "evaluate",
    "fingerprint",
    "fit",
    "fit_calibration",
    "frozen_baseline",
    "interval",
    "interval_of_mean",
    "intervals",
    "kept_epoch",
    "load_checkpoint",
    "mean_interval",
    "pair_distances",
    "plain_intervals",
    "reliability",
    "retrieval_metrics",
    "retrieval_rates",
    "save_checkpoint",
    "share_interval",
    "stopped_early",
    "train_epoch",
]
