"""Explanations of pairs: heatmaps by method, matches and edits."""
