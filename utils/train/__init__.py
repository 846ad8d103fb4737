"""Training: the loss, the loop, and a folder for each run."""
