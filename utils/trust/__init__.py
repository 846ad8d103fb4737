"""Trust: insertion and deletion beside chance, controls, all methods in one table, and what `auto` stands for."""

from utils.trust.choice import choose_place, prepare_explanations
from utils.trust.comparison import Row, choose_pairs, compare, table, write_table
from utils.trust.controls import (
    agreement,
    choose_partners,
    copies,
    partner_agreement,
    pointing,
    random_network,
    rank_correlation,
    sanity,
    sanity_curve,
    sanity_curves,
    stability,
)
from utils.trust.faithfulness import Effect, insertion_deletion, span_of
from utils.trust.shortcuts import Shortcut, Shortcuts, find_shortcuts
from utils.trust.suspects import Suspects, find_suspects
from utils.trust.verdict import (
    FAITHFUL,
    Chance,
    Verdict,
    explain_at_random,
    explain_by_centre,
    judge,
    judge_all,
    measure_chance,
)

__all__ = [
    "FAITHFUL",
    "Chance",
    "Effect",
    "Row",
    "Shortcut",
    "Shortcuts",
    "Suspects",
    "Verdict",
    "agreement",
    "choose_pairs",
    "choose_partners",
    "choose_place",
    "compare",
    "copies",
    "explain_at_random",
    "explain_by_centre",
    "find_shortcuts",
    "find_suspects",
    "insertion_deletion",
    "judge",
    "judge_all",
    "measure_chance",
    "partner_agreement",
    "pointing",
    "prepare_explanations",
    "random_network",
    "rank_correlation",
    "sanity",
    "sanity_curve",
    "sanity_curves",
    "span_of",
    "stability",
    "table",
    "write_table",
]
