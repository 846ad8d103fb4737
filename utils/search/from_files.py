"""Any network on image files, trained here or not: paths in, explanations out."""

import hashlib
from contextlib import suppress
from dataclasses import replace

import cv2
import torch

from ..config import ExplanationSettings
from ..data.reading import DataError
from ..explanations.explanation import UNKNOWN, Explanation, Source
from ..explanations.methods import explain, replace_auto
from ..explanations.references import References
from ..files import ExplanationError
from ..network.distance import Explainable, images_for, paired, place_of
from ..trained import files_of

FAILURES = (OSError, ValueError, LookupError, RuntimeError, SyntaxError, cv2.error)  # of libraries that decode images


class FromFiles:
    """A network and a function that loads image files for it.

    `explain_folder`, `gallery` and `most_similar` take it as they take a Trained.

    Args:
        network: A `Cut` of any module, or a SiameseNetwork.
        load: A function from the path of an image file to the image as the network takes it, float (C, H, W): a tensor
            on any device, or an array; of one size for all files.
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
        self.settings = replace_auto(ExplanationSettings().changed(**settings), network)
        self.source = source

    def load_images(self, *paths) -> torch.Tensor:
        """Load N image files as the network takes them: float (N, C, H, W) on its device.

        Raises:
            DataError: `load` could not decode a file.
            ExplanationError: `load` does not return floats (C, H, W), or images have several sizes.
        """
        images = []
        for path in paths:
            image = self._load(path)
            images.append(image)
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
        """Return a fingerprint of the network and of what `load` returns for a file, if it can be loaded.

        A run that was stopped can only go on if `load` returns the same for a file each time.
        """
        tensors = list(self.network.state_dict().values())
        with suppress(DataError):
            tensors.append(self._load(path))
        return tensors_digest(repr(self.network.layers), tensors)

    def _load(self, path) -> torch.Tensor:
        try:
            image = self.load(path)
        except DataError:
            raise
        except FAILURES as error:
            raise DataError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
        try:
            return images_for(self.network, [image])[0]
        except ExplanationError as error:
            raise ExplanationError(f"load({path}) cannot be explained: {error}") from error


def tensors_digest(text: str, tensors) -> str:
    """Return a fingerprint of a text and of the values of tensors, in their order."""
    digest = hashlib.blake2b(text.encode(), digest_size=12)
    for values in tensors:
        digest.update(values.float().cpu().contiguous().numpy())
    return digest.hexdigest()


def check_reads_files(explainer):
    """Refuse a network without a function that loads image files.

    Raises:
        ExplanationError: `explainer` is neither a Trained nor a FromFiles.
    """
    if not hasattr(explainer, "load_images"):
        raise ExplanationError(
            f"{type(explainer).__name__} does not say how an image file becomes a tensor: "
            "pass FromFiles(network, load, threshold), where load(path) gives float (3, H, W), or a Trained."
        )
