"""The whole set: search with reasons, pairs by how sure the network is, a map, many pairs at once."""

from utils.search.files import FromFiles
from utils.search.gallery import Gallery, gallery, most_similar
from utils.search.nearest import nearest
from utils.search.plane import dataset_map
from utils.search.ranked import most_uncertain, surest, worst_mistakes
from utils.search.scores import scores_table

__all__ = [
    "FromFiles",
    "Gallery",
    "dataset_map",
    "gallery",
    "most_similar",
    "most_uncertain",
    "nearest",
    "scores_table",
    "surest",
    "worst_mistakes",
]
