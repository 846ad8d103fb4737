"""Trust: insertion and deletion beside chance, controls, and all methods in one table."""

from utils.trust.comparison import Row, choose_pairs, compare, table
from utils.trust.controls import pointing, rank_correlation, sanity_curve, sanity_curves, stability
from utils.trust.faithfulness import (
    Chance,
    Gap,
    Verdict,
    explain_at_random,
    explain_by_centre,
    insertion_deletion,
    interval,
    judge,
    judge_all,
    measure_chance,
)

__all__ = [
    "Chance",
    "Gap",
    "Row",
    "Verdict",
    "choose_pairs",
    "compare",
    "explain_at_random",
    "explain_by_centre",
    "insertion_deletion",
    "interval",
    "judge",
    "judge_all",
    "measure_chance",
    "pointing",
    "rank_correlation",
    "sanity_curve",
    "sanity_curves",
    "stability",
    "table",
]
