"""The inner product of two embeddings, exactly, as a sum over pairs of places, one in each image."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from utils.siamese import SiameseNetwork, evaluating


@dataclass(frozen=True)
class Decomposition:
    """The inner product of two embeddings of length 1, which is 1 - distance ** 2 / 2, as a sum.

    places: float32 (h, w, h, w), of position [y, x] in image 1 with position [y, x] in image 2. bias1, bias2: float32
    (h, w), of a position with the bias of the linear layer. bias: of the bias with itself. cosine: the inner product as
    the network computes it.
    """

    places: torch.Tensor
    bias1: torch.Tensor
    bias2: torch.Tensor
    bias: float
    cosine: float

    @property
    def residual(self) -> float:
        """What the sum misses: 0 but for rounding."""
        total = self.places.double().sum() + self.bias1.double().sum() + self.bias2.double().sum() + self.bias
        return self.cosine - float(total)

    @property
    def regions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What each position of image 1, and of image 2, adds to the inner product: (h, w) each.

        A position carries all its pairs and its bias term, so the positions of one image and the other's bias terms
        add up to the whole.
        """
        return self.places.sum(dim=(2, 3)) + self.bias1, self.places.sum(dim=(0, 1)) + self.bias2

    def matches_of(self, y: float, x: float) -> torch.Tensor:
        """What the point (y, x) of image 1, each in [0, 1), matches in image 2: (h, w)."""
        height, width = self.bias1.shape
        return self.places[int(y * height), int(x * width)]

    def strongest(self, count=5) -> list[tuple[tuple[float, float], tuple[float, float], float]]:
        """The `count` strongest matches: (y, x) in image 1, (y, x) in image 2, in [0, 1], and the contribution."""
        height, width = self.bias1.shape
        values, flat = self.places.flatten().topk(min(count, self.places.numel()))
        y1, x1, y2, x2 = (part.tolist() for part in torch.unravel_index(flat, self.places.shape))
        return [
            (((a + 0.5) / height, (b + 0.5) / width), ((c + 0.5) / height, (d + 0.5) / width), value)
            for a, b, c, d, value in zip(y1, x1, y2, x2, values.tolist(), strict=True)
        ]

    def __str__(self):
        similarity = 1 - max(0, 2 - 2 * self.cosine) ** 0.5 / 2  # rounding may carry the inner product beyond 1
        lines = [f"inner product {self.cosine:.4f} (similarity {similarity:.3f})"]
        lines += [f"places with places {self.places.sum():+.4f}, bias terms {self._biases():+.4f}"]
        return "\n".join([*lines, f"residual {self.residual:.1e}"])

    def _biases(self):
        return float(self.bias1.sum() + self.bias2.sum()) + self.bias


@torch.no_grad()
def decompose(network: SiameseNetwork, image1, image2) -> Decomposition:
    """Take the inner product of the embeddings of two images (1, 3, H, W) apart.

    One linear layer W, b after average pooling: an embedding is (mean over places of W f + b) / its length, so the
    inner product of two is a sum over pairs of places, bias terms included, divided by both lengths. Exact to 1e-5.
    """
    with evaluating(network):
        maps = network.features(torch.cat([image1, image2])).float()  # (2, C, h, w)
        cosine = F.cosine_similarity(*network.embed_features(maps)[:, None]).item()
    (height, width), bias = maps.shape[2:], network.embedding.bias.float()
    parts = (maps.flatten(2).transpose(1, 2) / (height * width)) @ network.embedding.weight.float().T  # (2, hw, E)
    lengths = (parts.sum(dim=1) + bias).norm(dim=1).prod()  # of both embeddings before they are brought to length 1
    one, two = parts
    return Decomposition(
        (one @ two.T / lengths).reshape(height, width, height, width),
        (one @ bias / lengths).reshape(height, width),
        (two @ bias / lengths).reshape(height, width),
        float(bias @ bias / lengths),
        cosine,
    )
