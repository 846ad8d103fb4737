"""Data: from folders of image files to splits, pairs and batches."""
