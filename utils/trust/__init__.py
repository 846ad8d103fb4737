"""Trust: whether a heatmap is faithful to the network, and how methods compare."""
