"""Audits: what is wrong with images, labels and the trained network."""
