"""The images of a folder as a network sees them, and the search for those that are most similar to one image."""

import filecmp
import hashlib
import os
import warnings
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors

from ..data.batches import evaluation_transform
from ..data.cache import Decoder
from ..data.images import counted, images_below, print_skipped
from ..data.reading import EXTENSIONS, DataError, stored_size
from ..device import from_first, rank, share, to_first, together
from ..explanations.explanation import Explanation
from ..explanations.regions import embed_region
from ..files import ExplanationError, UserError, atomic, printable, write_text
from ..network.distance import evaluating
from ..trained import Trained
from .from_files import FromFiles, check_reads_files, tensors_digest

CHUNK = 1000  # images that are embedded before the cache is first written
OF_REGION = (
    "CAUTION: these images are the nearest to a region alone, {} to {} down and {} to {} across, but the scores are of "
    "whole images, as which the network was trained."
)


@dataclass(frozen=True, eq=False)
class Gallery:
    """N images of a folder as a network sees them."""

    root: Path
    paths: tuple[str, ...]
    """N files below the root."""
    embeddings: np.ndarray
    """float32 (N, D), of length 1."""
    unreadable: dict[str, str]
    """Files that could not be decoded, with the cause; they are not among the N."""
    folders: dict[str, Path] = field(default_factory=dict)
    """By file: the folder of its actual class, where that is not the folder that holds it."""

    def __len__(self):
        return len(self.paths)

    def __str__(self):
        lines = [f"{len(self)} images of {self.root}, embedded in {self.embeddings.shape[1]} dimensions"]
        for path, cause in self.unreadable.items():
            lines.append(f"left out: {path}: {cause}")
        return printable("\n".join(lines))

    @property
    def names(self) -> tuple[str, ...]:
        """The files below `root`, as "class/file" where there is a folder for each class."""
        return tuple(Path(path).relative_to(self.root).as_posix() for path in self.paths)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The folder below `root` that holds each image, or that of its corrected class; "" for those in `root`."""
        classes = []
        for path in self.paths:
            folder = self.folders.get(path, Path(path).parent)
            name = ""
            if folder != self.root and folder.is_relative_to(self.root):
                name = folder.relative_to(self.root).as_posix()
            classes.append(name)
        return tuple(classes)

    def save(self, folder):
        """Write embeddings.npy, and names.csv with the name and class of each row, as any vector database reads them.

        Raises:
            FileError: A file cannot be written.
        """
        with atomic(Path(folder) / "embeddings.npy") as file:
            np.save(file, self.embeddings)
        table = pd.DataFrame({"name": self.names, "class": self.classes})
        write_text(Path(folder) / "names.csv", table.to_csv(index=False))


def gallery(trained: Trained | FromFiles, source=None) -> Gallery:
    """Embed the images of a folder and all below it, or, without a folder, the test images of the run.

    Embeddings of a Trained are stored below `cache_path`, so only images that are new or have changed are embedded, and
    a run that was stopped continues. Processes that torchrun has started share the new images, and all return the whole
    gallery; the first one reads and writes what is stored.

    Args:
        trained: A trained network, or any other in FromFiles.
        source: A folder; FromFiles needs it.

    Raises:
        DataError: The folder is missing, or holds no image that can be decoded.
        ExplanationError: `trained` does not read files, or is a FromFiles without a folder.
    """
    check_reads_files(trained)
    if source is not None:
        root = Path(source)
        paths = None
    elif isinstance(trained, FromFiles):
        raise ExplanationError("FromFiles has no test images: name a folder, gallery(from_files, folder).")
    else:
        splits = trained.load_splits()
        root = splits.folder.root
        paths = [splits.folder.paths[index] for index in splits.test]
    name = str(root.resolve()) if source else f"test images of {root}"
    with together() as group:
        if rank() == 0 and paths is None:
            paths = _images_of(root)
            if isinstance(trained, Trained):
                paths = _without_dropped(trained, root, paths)
        paths = from_first(paths, group)
        embeddings, unreadable = embed_files(trained, paths, name, group)
    readable = tuple(path for path in paths if path not in unreadable)
    if not readable:
        cause = f"none of its {len(paths)} images can be decoded; the first: {unreadable[paths[0]]}"
        raise DataError(f"{root}: {cause}. Replace them, or name another folder.")
    folders = {}
    if isinstance(trained, Trained):
        for path in readable:
            folder = trained.corrections.folder_of(path)
            if folder != Path(path).parent:
                folders[path] = folder
    return Gallery(root, readable, embeddings, unreadable, folders)


def most_similar(
    trained: Trained | FromFiles, image, count=5, images: Gallery | None = None, backend="sklearn", box=None
) -> Explanation:
    """Explain the pairs of an image file and each of the `count` images nearest to it, nearest first.

    The image itself and copies of its file are left out. With a box, the nearest are those of its region alone; the
    scores and maps are still those of whole images.

    Args:
        trained: A trained network, or any other in FromFiles.
        image: The path of the image file.
        count: At least 1.
        images: The gallery to search, of the same network; the test images by default.
        backend: As `nearest` takes it.
        box: Top, left, bottom and right end of a region, shares in [0, 1] of height and width, as `embed_region` takes
            it: what the network makes of a region by itself was not trained, which the warning says.

    Raises:
        DataError: The image cannot be decoded, or the gallery has no other image.
        ExplanationError: `trained` does not read files, or is a FromFiles without a gallery; or the box is not one.
        ValueError: A count below 1.
    """
    check_reads_files(trained)
    if count < 1:
        raise ValueError(f"count: {count} is refused: it must be at least 1")
    images = images or gallery(trained)
    pixels = trained.load_images(image)
    with evaluating(trained.network), torch.no_grad():
        query = trained.network(pixels) if box is None else embed_region(trained.network, pixels, box)[None]
    query = query.float().cpu().numpy()  # (1, D)
    (indices,), _ = nearest(images.embeddings, query, len(images), backend)
    pairs = []
    for index in indices:
        if not filecmp.cmp(image, images.paths[index], shallow=False):
            pairs.append((str(image), images.paths[index]))
        if len(pairs) == count:
            break
    if not pairs:
        raise DataError(f"{images.root} has no image besides {image}: name a folder of more images")
    explanation = trained.explain(*pairs)
    if box is None:
        return explanation
    top, left, bottom, right = (f"{end:.0%}" for end in box)
    warning = f"{explanation.source.warning} {OF_REGION.format(top, bottom, left, right)}".lstrip()
    return replace(explanation, source=replace(explanation.source, warning=warning))


def nearest(embeddings: np.ndarray, queries: np.ndarray, count: int, backend="sklearn"):
    """Find the embeddings nearest to each query by exact search.

    Args:
        embeddings: float32 (N, D), also memory-mapped.
        queries: float32 (Q, D).
        count: How many for each query; all where there are fewer.
        backend: "sklearn", or "faiss", which is faster for single queries and needs the package faiss-cpu.

    Returns:
        Indices int64 and Euclidean distances float32, (Q, count) each, nearest first.

    Raises:
        UserError: faiss-cpu is not installed.
    """
    count = min(count, len(embeddings))
    if backend == "faiss":
        try:
            import faiss
        except ImportError as error:
            raise UserError('backend: "faiss" needs the package faiss-cpu: pip install faiss-cpu') from error
        squares, indices = faiss.knn(queries, np.asarray(embeddings), count)
        return indices, np.sqrt(squares)
    if backend != "sklearn":
        raise ValueError(f'backend: {backend!r} is refused: it must be "sklearn" or "faiss"')
    search = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(embeddings)
    distances, indices = search.kneighbors(queries)
    return indices, distances.astype(np.float32)


def dataset_map(embeddings: np.ndarray, seed=0) -> np.ndarray:
    """Place images in two dimensions so that neighbours stay near: images near each other are similar.

    Distances between far groups, and the axes, mean nothing. The same seed gives the same map.

    Args:
        embeddings: float32 (N, D), of a Gallery.
        seed: Of the random numbers.

    Returns:
        float32 (N, 2).

    Source: van der Maaten and Hinton 2008, Visualizing data using t-SNE. Fewer than five images are placed by their
    principal components.
    """
    count = len(embeddings)
    if count == 1:
        return np.zeros((1, 2), np.float32)
    if count < 5:
        return PCA(2).fit_transform(embeddings)
    perplexity = min(30, (count - 1) / 3)  # scikit-learn's default, less where there are few images
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(embeddings)


def network_digest(trained: Trained) -> str:
    """Return a fingerprint of a network: its weights, how images are given to it, and the layer of a `Cut`."""
    settings = trained.config.image.model_dump(), str(trained.runtime.dtype)
    if trained.folder is None:
        settings += (trained.network.layers,)
    return tensors_digest(repr(settings), trained.network.state_dict().values())


def files_digest(paths) -> str:
    """Return a fingerprint of files: their paths, sizes and times of change; of a missing file, its path."""
    digest = hashlib.blake2b(digest_size=12)
    for path in paths:
        digest.update(os.fsencode(path))
        if os.path.exists(path):
            stat = os.stat(path)
            digest.update(f"\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}\0".encode())
    return digest.hexdigest()


def _images_of(root) -> list[str]:
    """List all image files of a folder and below, sorted; print how many entries were skipped."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: name a folder of images.")
    paths, skipped = images_below(root)
    if not paths:
        endings = ", ".join(sorted(EXTENSIONS))
        raise DataError(f"{root} holds no image (skipped: {counted(skipped)}): name a folder with some, {endings}.")
    print_skipped(root, skipped)
    return paths


def _without_dropped(trained, root, paths) -> list[str]:
    """Leave out the images that `corrections` drop, and print how many.

    Raises:
        DataError: No image is left.
    """
    kept = [path for path in paths if not trained.corrections.drops(path)]
    if not kept:
        raise DataError(f"{root}: `corrections` drop all its images: name another folder.")
    if len(kept) < len(paths):
        print(printable(f"{root}: left out, as corrections say: {len(paths) - len(kept)}"))
    return kept


def embed_files(trained: Trained | FromFiles, paths, name: str, group=None) -> tuple[np.ndarray, dict[str, str]]:
    """Embed image files; those that a Trained has embedded before are read from below `cache_path`.

    Args:
        trained: A trained network, or any other in FromFiles.
        paths: N image files.
        name: Of this list of files, which may grow and change.
        group: Of the processes that share the files, from `together`.

    Returns:
        The embeddings of all that can be decoded, float32 (R, D), and the causes for the others by path.
    """
    if isinstance(trained, FromFiles):
        return _embed_share(_embed_one_by_one, trained, paths, group)
    if trained.config.cache_path is None or trained.folder is None:  # whose digest does not tell forward= of two Cuts
        return _embed_share(_embed, trained, paths, group)
    name = f"{tensors_digest(name, [])}_{network_digest(trained)}.npz"
    return _embed_new(trained, paths, trained.config.cache_path / "embeddings" / name, group)


def _embed_new(trained, paths, file, group) -> tuple[np.ndarray, dict[str, str]]:
    """Embed the image files whose embeddings the cache file lacks, and add them to it; return what `embed_files` does.

    The file is written after CHUNK images, then after twice as many each time, so that writing takes little time.
    """
    known = None
    if rank() == 0:
        known = [files_digest([path]) for path in paths], _read_stored(file)
    digests, stored = from_first(known, group)
    waiting = [index for index, digest in enumerate(digests) if digest not in stored]
    unreadable = {}
    count = CHUNK
    while waiting:
        part, waiting = waiting[:count], waiting[count:]
        count *= 2
        embeddings, causes = _embed_share(_embed, trained, [paths[index] for index in part], group)
        unreadable |= causes
        readable = [digests[index] for index in part if paths[index] not in causes]
        stored |= dict(zip(readable, embeddings, strict=True))
        if rank() == 0:
            _write_stored(file, {digest: stored[digest] for digest in digests if digest in stored})
    embeddings = [stored[digest] for digest in digests if digest in stored]
    return np.array(embeddings, np.float32), unreadable


def _read_stored(file) -> dict[str, np.ndarray]:
    """Read embeddings by the fingerprints of their image files; none where the cache file is missing or damaged."""
    try:
        with open(file, "rb") as opened, np.load(opened) as stored:
            return dict(zip(stored["digests"].tolist(), stored["embeddings"], strict=True))
    except Exception:  # of damaged files NumPy raises a dozen kinds
        return {}


def _write_stored(file, embeddings):
    """Write what `_read_stored` reads."""
    try:
        with atomic(file) as opened:
            np.savez(opened, digests=np.array(list(embeddings)), embeddings=np.array(list(embeddings.values())))
    except OSError as error:
        warnings.warn(f"cache_path: {error} Embeddings are computed again each time.", RuntimeWarning, stacklevel=5)


def _embed_share(embed, trained, paths, group) -> tuple[np.ndarray, dict[str, str]]:
    """Embed this process's share of the image files; return what `embed` returns for all of them."""
    own = [paths[index] for index in share(np.arange(len(paths)))]
    part = embed(trained, own) if own else ([], {})
    parts = from_first(to_first(part, group), group)
    unreadable = {}
    for _, causes in parts:
        unreadable |= causes
    return np.concatenate([embeddings for embeddings, _ in parts if len(embeddings)] or [[]]), unreadable


@torch.no_grad()
def _embed(trained, paths) -> tuple[np.ndarray, dict[str, str]]:
    """Embed all image files that can be decoded; return the embeddings, and the others with the cause."""
    config = trained.config
    transform = evaluation_transform(config.image)
    size = stored_size(config.image)
    workers = config.hyperparameters.num_workers
    decoder = Decoder(paths, size, workers, config.max_megapixels, config.image.value_range)
    blocks = []
    with evaluating(trained.network):
        for pixels in decoder.blocks(config.hyperparameters.verbose):
            images = trained.runtime.place(transform(torch.from_numpy(pixels)))
            blocks.append(trained.network(images).float().cpu())
    unreadable = {}
    for index in sorted(decoder.unreadable):
        unreadable[paths[index]] = decoder.unreadable[index]
    return np.delete(torch.cat(blocks).numpy(), list(decoder.unreadable), axis=0), unreadable


@torch.no_grad()
def _embed_one_by_one(files: FromFiles, paths) -> tuple[np.ndarray, dict[str, str]]:
    """Embed all image files that `load` can decode, which may be of several sizes; return what `_embed` does."""
    embeddings = []
    unreadable = {}
    with evaluating(files.network):
        for path in paths:
            try:
                image = files.load_images(path)
            except DataError as error:
                unreadable[path] = str(error)
                continue
            embeddings.append(files.network(image)[0].float().cpu().numpy())
    return np.array(embeddings), unreadable
