"""Any network on image files, trained here or not: paths in, explanations out."""

import hashlib
from dataclasses import replace

import cv2
import numpy as np
import torch

from ..config import ExplanationSettings
from ..data.reading import DataError
from ..explanations.explanation import UNKNOWN, Explanation, Source
from ..explanations.methods import explain, measured
from ..explanations.path import References
from ..files import ExplanationError
from ..network.distance import Explainable, paired
from ..network.inputs import image_for, place_of
from ..trained import files_of

FAILURES = (OSError, ValueError, LookupError, RuntimeError, SyntaxError, cv2.error)  # of libraries that decode images


class FromFiles:
    """A network, and how an image file is given to it: `explain_folder`, `gallery` and `most_similar` take it as they
    take a Trained.

    Args:
        network: A `Cut` of any module, or a SiameseNetwork.
        load: A function from the path of an image file to float (C, H, W), as the network takes it, a tensor on any
            device or an array; of one size for all files.
        threshold: The distance, in [0, 2], up to which a pair is decided "same".
        references: Training images that the method `contrastive` contrasts with.
        source: What is known of any pair of files beside their values, as `explain` takes it.
        settings: The keys of `explanation` in config.yml, as `explain` takes them.
    """

    def __init__(
        self,
        network: Explainable,
        load,
        threshold: float,
        references: References | None = None,
        source: Source = UNKNOWN,
        **settings,
    ):
        self.network = network
        self.load = load
        self.threshold = threshold
        self.references = references
        self.settings = measured(ExplanationSettings().changed(**settings))
        self.source = source

    def load_images(self, *paths) -> torch.Tensor:
        """N image files as the network takes them: float (N, C, H, W) on its device.

        Raises:
            DataError: `load` could not decode a file.
            ExplanationError: `load` gives no floats (C, H, W), or images of several sizes.
        """
        images = [self._loaded(path) for path in paths]
        for path, image in zip(paths, images, strict=True):
            if image.shape != images[0].shape:
                sizes = f"{tuple(images[0].shape[1:])} for {paths[0]} and {tuple(image.shape[1:])} for {path}"
                raise ExplanationError(f"load gives images of {sizes}: let it stretch or crop all to one size.")
        return torch.stack(images).to(*(place_of(self.network) or (images[0].device, images[0].dtype)))

    def explain(self, *pairs) -> Explanation:
        """Explain B pairs of image files, each a tuple of two paths, by the method of the settings."""
        images = paired(self.load_images(*files_of(pairs)))
        source = replace(self.source, paths=pairs)
        return explain(self.network, images, self.threshold, self.references, source, **self.settings.model_dump())

    def digest_of(self, path) -> str:
        """A fingerprint of the network and of what `load` makes of a file; of the network alone where it makes nothing.

        `load` must make the same of a file each time: else a run that was stopped cannot go on.
        """
        try:
            image = [self._loaded(path)]
        except DataError:
            image = []
        return tensors_digest(repr(self.network.layers), [*self.network.state_dict().values(), *image])

    def _loaded(self, path) -> torch.Tensor:
        try:
            image = self.load(path)
        except FAILURES as error:
            raise DataError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
        if not isinstance(image, torch.Tensor | np.ndarray):
            kind = type(image).__name__
            raise ExplanationError(f"load gives {kind} for {path}: it must give a float tensor (C, H, W), normalised.")
        try:
            return image_for(self.network, image)
        except ExplanationError as error:
            raise ExplanationError(f"load gives no image for {path} that can be explained: {error}") from error


def tensors_digest(text: str, tensors) -> str:
    """A fingerprint of a text and of the values of tensors, in their order."""
    digest = hashlib.blake2b(text.encode(), digest_size=12)
    for values in tensors:
        digest.update(values.float().cpu().contiguous().numpy())
    return digest.hexdigest()


def check_reads_files(explainer):
    """Raises ExplanationError for a network alone, which does not say how image files become tensors."""
    if not hasattr(explainer, "load_images"):
        raise ExplanationError(
            f"{type(explainer).__name__} alone does not say how an image file becomes a tensor: "
            "pass FromFiles(network, load, threshold), where load(path) gives float (3, H, W), or a Trained."
        )
