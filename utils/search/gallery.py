"""Exact search among many embeddings, block by block, or by a library made for it where one is installed."""

import filecmp
import hashlib
import io
import json
import os
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from ..data.cache import Decoder
from ..data.images import counted, images_below, print_skipped
from ..data.reading import EXTENSIONS, DataError
from ..data.transforms import evaluation_transform, stored_size
from ..explanations.explanation import Explanation
from ..files import ExplanationError, printable, read_sealed, write_sealed
from ..network.distance import evaluating
from ..trained import Trained
from .from_files import FromFiles, check_reads_files, tensors_digest

BLOCK = 65_536  # embeddings at once: 32 MB of 128 dimensions
SPARE = 16  # more than are asked for: an inner product tells very near embeddings apart too coarsely
ROUNDING = 4e-6  # of a squared distance that is made from an inner product in float32


def nearest(embeddings: np.ndarray, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` embeddings nearest to each query, nearest first, of equally near ones the first: indices int64 and
    distances float32, (Q, count).

    embeddings: float32 (N, D), of length 1, also memory-mapped: they are read block by block. queries: float32 (Q, D),
    of length 1. Fewer than `count` where there are fewer.

    The result is exact: candidates come from one matrix product a block, or from the exact search of faiss or usearch
    where one is installed, and are ordered by their distances in float64. Beyond some millions, build an approximate
    index of theirs from `Gallery.embeddings`.
    """
    count = min(count, len(embeddings))
    search = _by_faiss if find_spec("faiss") else _by_usearch if find_spec("usearch") else _by_blocks
    asked = min(count + SPARE, len(embeddings))
    while True:
        found = search(embeddings, queries, asked)  # (Q, asked)
        apart = np.linalg.norm(embeddings[found].astype(np.float64) - queries[:, None], axis=2)
        order = np.lexsort((found, apart), axis=1)
        found, apart = (np.take_along_axis(values, order, axis=1) for values in (found, apart))
        left_out = apart[:, -1] ** 2 - apart[:, count - 1] ** 2  # what was not found is no nearer than the last
        if asked == len(embeddings) or (left_out > ROUNDING).all():
            return found[:, :count], apart[:, :count].astype(np.float32)
        asked = min(2 * asked, len(embeddings))


def _by_blocks(embeddings, queries, count):
    best = torch.empty(len(queries), 0)
    found = torch.empty(len(queries), 0, dtype=torch.int64)
    for start in range(0, len(embeddings), BLOCK):
        block = embeddings[start : start + BLOCK]
        cosines, places = torch.from_numpy(queries @ block.T).topk(min(count, len(block)), dim=1)
        best, order = torch.cat([best, cosines], dim=1).topk(min(count, best.shape[1] + cosines.shape[1]), dim=1)
        found = torch.cat([found, places + start], dim=1).gather(1, order)
    return found.numpy()


def _by_faiss(embeddings, queries, count):
    import faiss

    return faiss.knn(queries, np.asarray(embeddings), count, metric=faiss.METRIC_INNER_PRODUCT)[1]


def _by_usearch(embeddings, queries, count):
    from usearch.index import MetricKind, search

    found = search(np.asarray(embeddings), queries, count, MetricKind.IP, exact=True)
    return np.asarray(found.keys).astype(np.int64).reshape(len(queries), count)


FEW = 5  # images that need no map of neighbourhoods
PERPLEXITY = 30  # neighbours that count: scikit-learn's own, fewer where there are few images


def dataset_map(embeddings: np.ndarray, seed=0) -> np.ndarray:
    """Two coordinates of each image, float32 (N, 2), that keep neighbours near: images near each other are alike.

    Distances between far groups, and the axes, mean nothing. By UMAP where umap-learn is installed, else by t-SNE (van
    der Maaten and Hinton 2008, Visualizing Data using t-SNE), started from the principal components. embeddings:
    float32 (N, D), of a Gallery. The same seed gives the same map.
    """
    count = len(embeddings)
    if count == 1:
        return np.zeros((1, 2), np.float32)
    if count < FEW:
        kept = min(2, count, embeddings.shape[1])
        return np.pad(PCA(kept).fit_transform(embeddings), ((0, 0), (0, 2 - kept))).astype(np.float32)
    if find_spec("umap"):
        import umap

        return umap.UMAP(n_neighbors=min(15, count - 1), random_state=seed, n_jobs=1).fit_transform(embeddings)
    return TSNE(perplexity=min(PERPLEXITY, (count - 1) / 3), init="pca", random_state=seed).fit_transform(embeddings)


@dataclass(frozen=True, eq=False)
class Gallery:
    """N images of a folder as a network sees them.

    root: the folder. paths: N files below it. embeddings: float32 (N, D), of length 1. unreadable: files that could not
    be decoded, with the cause; they are not among the N.
    """

    root: Path
    paths: tuple[str, ...]
    embeddings: np.ndarray
    unreadable: dict[str, str]

    def __len__(self):
        return len(self.paths)

    def __str__(self):
        lines = [f"{len(self)} images of {self.root}, embedded in {self.embeddings.shape[1]} dimensions"]
        lines += [f"left out: {path}: {cause}" for path, cause in self.unreadable.items()]
        return printable("\n".join(lines))

    @property
    def names(self) -> tuple[str, ...]:
        """The files below `root`, as "class/file" where there is a folder for each class."""
        return tuple(Path(path).relative_to(self.root).as_posix() for path in self.paths)

    @property
    def classes(self) -> tuple[str, ...]:
        """The folder below `root` that each image lies in; "" for those in `root` itself."""
        return tuple(name.rpartition("/")[0] for name in self.names)

    def nearest(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest images to each query, as `utils.search.gallery.nearest` finds them."""
        return nearest(self.embeddings, queries, count)


def gallery(trained: Trained | FromFiles, source=None) -> Gallery:
    """The images of a folder and all below it, or, without one, the test images of the run, as a Gallery.

    Embeddings of a Trained are kept under `cache_path`, of these files and this network: they are computed again when
    one changes. Images that cannot be decoded are left out, and named in `unreadable`.

    Args:
        trained: A trained network, or any other in FromFiles.
        source: A folder; FromFiles has no test images that could stand for it.

    Raises:
        DataError: The folder is missing, or holds no image that can be decoded.
        ExplanationError: A network alone is given, or FromFiles without a folder.
    """
    check_reads_files(trained)
    any_network = isinstance(trained, FromFiles)
    if any_network and source is None:
        raise ExplanationError("FromFiles has no test images: name a folder, gallery(from_files, folder).")
    if source is None:
        splits = trained.load_splits()
        root, paths = splits.folder.root, [splits.folder.paths[index] for index in splits.test]
    else:
        root, paths = Path(source), _images_below(Path(source))
    folder = None if any_network else trained.config.cache_path
    if any_network:
        names, embeddings, unreadable = _embedded_one_by_one(trained, root, paths)
    elif folder is None:
        names, embeddings, unreadable = _embedded(trained, root, paths)
    else:
        own = files_digest([str(root.resolve()), *paths])
        file = folder / "embeddings" / f"{own}_{network_digest(trained)}.npz"
        names, embeddings, unreadable = _kept(file) or _keep(file, *_embedded(trained, root, paths))
    if not names:
        cause = f"none of its {len(paths)} images can be decoded; the first: {unreadable[paths[0]]}"
        raise DataError(f"{root}: {cause}. Replace them, or name another folder.")
    return Gallery(root, tuple(str(root / name) for name in names), embeddings, unreadable)


def most_similar(trained: Trained | FromFiles, image, count=5, images: Gallery | None = None) -> Explanation:
    """The pairs of an image file and each of the `count` images nearest to it, nearest first, explained.

    The image itself is no hit, nor is a copy of its file.

    Args:
        trained: A trained network, or any other in FromFiles.
        image: The path of the file that is asked with.
        count: At least 1.
        images: The gallery to search, of the same network; the test images by default.

    Raises:
        DataError: The image cannot be decoded, or the gallery has no other image.
        ExplanationError: A network alone is given, or FromFiles without a gallery.
        ValueError: A count below 1.
    """
    check_reads_files(trained)
    if count < 1:
        raise ValueError(f"count: {count} is refused: at least 1 image is looked for")
    images = images or gallery(trained)
    with evaluating(trained.network), torch.no_grad():
        query = trained.network(trained.load_images(image)).float().cpu().numpy()  # (1, D)
    hits = _others(images, str(image), query, count)
    if not hits:
        raise DataError(f"{images.root} has no image besides {image}: name a folder of more images")
    return trained.explain(*((str(image), path) for path in hits))


def _others(images, image, query, count) -> list[str]:
    """The `count` nearest files of other content than the image."""
    asked = count + 1
    while True:
        (found,) = images.nearest(query, asked)[0]
        hits = [images.paths[index] for index in found if not filecmp.cmp(image, images.paths[index], shallow=False)]
        if len(hits) >= count or asked >= len(images):
            return hits[:count]
        asked *= 2


def _images_below(root) -> list[str]:
    """All image files of a folder and below, sorted; how many entries were skipped is printed."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: name a folder of images.")
    paths, skipped = images_below(root)
    if not paths:
        endings = ", ".join(sorted(EXTENSIONS))
        raise DataError(f"{root} holds no image (skipped: {counted(skipped)}): name a folder with some, {endings}.")
    print_skipped(root, skipped)
    return paths


def network_digest(trained: Trained) -> str:
    """What stands for the network: its weights and how images are given to it."""
    given = trained.config.image.model_dump(), str(trained.runtime.dtype)
    return tensors_digest(repr(given), trained.network.state_dict().values())


def files_digest(paths) -> str:
    """What stands for files as they are now: their paths, sizes and times of change; a missing one for itself."""
    digest = hashlib.blake2b(digest_size=12)
    for path in paths:
        digest.update(os.fsencode(path))
        if os.path.exists(path):
            stat = os.stat(path)
            digest.update(f"\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}\0".encode())
    return digest.hexdigest()


@torch.no_grad()
def _embedded(trained, root, paths):
    """Names below the root, embeddings float32 (N, D) and causes of all that can, and cannot, be decoded."""
    config = trained.config
    transform = evaluation_transform(config.image)
    size = stored_size(config.image)
    workers = config.hyperparameters.num_workers
    decoder = Decoder(paths, size, workers, config.max_megapixels, config.image.value_range)
    blocks = []
    with evaluating(trained.network):
        for pixels in decoder.blocks(lambda index: None, config.hyperparameters.verbose):
            images = trained.runtime.place(transform(torch.from_numpy(pixels)))
            blocks.append(trained.network(images).float().cpu())
    readable = [index for index in range(len(paths)) if index not in decoder.unreadable]
    names = [Path(paths[index]).relative_to(root).as_posix() for index in readable]
    unreadable = {paths[index]: cause for index, cause in sorted(decoder.unreadable.items())}
    return names, torch.cat(blocks)[readable].numpy(), unreadable


@torch.no_grad()
def _embedded_one_by_one(files: FromFiles, root, paths):
    """The same of any network, whose files `load` decodes."""
    names, embeddings, unreadable = [], [], {}
    with evaluating(files.network):
        for path in paths:
            try:
                image = files.load_images(path)
            except DataError as error:
                unreadable[path] = str(error)
                continue
            names.append(Path(path).relative_to(root).as_posix())
            embeddings.append(files.network(image)[0].float().cpu().numpy())
    return names, np.array(embeddings), unreadable


def _kept(file: Path):
    """What `_keep` has written; None where it is not there, or damaged."""
    try:
        with np.load(io.BytesIO(read_sealed(file)), allow_pickle=False) as arrays:
            key, names, unreadable = json.loads(arrays["text"].tobytes())
            embeddings = arrays["embeddings"]
            return (names, embeddings, unreadable) if key == file.stem else None  # else it was put in another's place
    except (OSError, ValueError):
        return None


def _keep(file: Path, names, embeddings, unreadable):
    """Write them below `cache_path`, or warn (RuntimeWarning) that they cannot be written, and hand them on."""
    text = np.frombuffer(json.dumps([file.stem, names, unreadable]).encode(), np.uint8)
    content = io.BytesIO()
    np.savez(content, embeddings=embeddings, text=text, allow_pickle=False)
    try:
        write_sealed(file, content.getvalue())
    except OSError as error:
        warnings.warn(f"cache_path: {error} Embeddings are computed anew each time.", RuntimeWarning, stacklevel=2)
    return names, embeddings, unreadable
