"""Retrieval: each image is a query, all others of its split are the gallery, nearest first."""

import numpy as np
import torch

BLOCK = 1024  # queries at once


def retrieval_rates(embeddings: torch.Tensor, labels) -> dict[str, np.ndarray]:
    """Values of each query that has another image of its class in the gallery, float (Q,) in [0, 1].

    embeddings: float (N, D). labels: int (N,). recall_at_1: whether the nearest image is of its class. r_precision:
    share of its class among the R nearest, where R is the number of others of its class. map_at_r: mean over these R
    places of the precision up to it, counted where the image there is of its class (Musgrave, Belongie and Lim 2020, A
    Metric Learning Reality Check, section 4).
    """
    labels = torch.as_tensor(labels)
    found = {"recall_at_1": [], "r_precision": [], "map_at_r": []}
    for start in range(0, len(labels), BLOCK):
        queries = torch.arange(start, min(start + BLOCK, len(labels)))
        alike = labels[queries, None] == labels[None]  # (B, N)
        alike[torch.arange(len(queries)), queries] = False
        wanted = alike.sum(dim=1)  # R of each query
        queries, alike, wanted = (part[wanted > 0] for part in (queries, alike, wanted))
        if not len(queries):
            continue
        apart = torch.cdist(embeddings[queries], embeddings)
        apart[torch.arange(len(queries)), queries] = torch.inf  # not its own neighbour
        nearest = apart.topk(int(wanted.max()), largest=False).indices
        hits = alike.gather(1, nearest).float()
        place = torch.arange(1, hits.shape[1] + 1)
        hits = hits * (place <= wanted[:, None])
        precision = hits.cumsum(dim=1) / place
        found["recall_at_1"].append(hits[:, 0])
        found["r_precision"].append(hits.sum(dim=1) / wanted)
        found["map_at_r"].append((hits * precision).sum(dim=1) / wanted)
    return {name: torch.cat(values).numpy() if values else np.empty(0) for name, values in found.items()}
