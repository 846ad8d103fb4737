"""Data: folders to pixels, pixels to tensors, splits without leaks, the pair rule, batches, and the bundled sample."""

from utils.data.audit import Audit, Told, audit
from utils.data.batches import deliver, draw_batches, draw_epoch, resident
from utils.data.cache import Decoder, PixelCache, decode, keys_of, open_pixels
from utils.data.differences import differences_folder, load_differences, make_differences
from utils.data.duplicates import contradictions, groups_of_several, names_of, near_duplicates
from utils.data.images import ImageFolder, scan
from utils.data.pairs import Pairs, Splits, draw_pairs, load_images, load_splits, pairs_of_files
from utils.data.reading import DataError, brightness_of, read_header, read_image
from utils.data.shapes import SAMPLE_FOLDER, ensure_sample, load_masks, make_sample, masks_folder
from utils.data.splitting import groups_by_name, split, split_classes
from utils.data.transforms import evaluation_transform, stored_size, to_pixels, training_transform

__all__ = [
    "SAMPLE_FOLDER",
    "Audit",
    "DataError",
    "Decoder",
    "ImageFolder",
    "Pairs",
    "PixelCache",
    "Splits",
    "Told",
    "audit",
    "brightness_of",
    "contradictions",
    "decode",
    "deliver",
    "differences_folder",
    "draw_batches",
    "draw_epoch",
    "draw_pairs",
    "ensure_sample",
    "evaluation_transform",
    "groups_by_name",
    "groups_of_several",
    "keys_of",
    "load_differences",
    "load_images",
    "load_masks",
    "load_splits",
    "make_differences",
    "make_sample",
    "masks_folder",
    "names_of",
    "near_duplicates",
    "open_pixels",
    "pairs_of_files",
    "read_header",
    "read_image",
    "resident",
    "scan",
    "split",
    "split_classes",
    "stored_size",
    "to_pixels",
    "training_transform",
]
