"""Scores: the threshold, probabilities, metrics and their intervals."""
