import math

import pytest
import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import ContrastiveLoss as Peer
from pytorch_metric_learning.reducers import DoNothingReducer

from utils.train.losses import contrastive_loss, loss_of_all_pairs


def textbook(distances, labels, margin):
    """Hadsell, Chopra & LeCun 2006, equation 4, pair by pair."""
    total = 0.0
    for d, y in zip(distances, labels, strict=True):
        total += (1 - y) * 0.5 * d**2 + y * 0.5 * max(0.0, margin - d) ** 2
    return total / len(distances)


@pytest.mark.parametrize("margin", [0.5, 1.0, 2.0])
def test_contrastive_loss_against_a_plain_loop(device, margin):
    distances = torch.linspace(0, 2, 21, device=device)
    labels = (torch.arange(21, device=device) % 3 == 0).long()
    expected = textbook(distances.tolist(), labels.tolist(), margin)
    assert contrastive_loss(distances, labels, margin).mean().item() == pytest.approx(expected, rel=1e-5)


def test_contrastive_loss_by_hand():
    # 0.5 * 0.4^2 = 0.08; 0.5 * (1 - 0.4)^2 = 0.18; beyond the margin nothing
    losses = contrastive_loss(torch.tensor([0.4, 0.4, 1.2]), torch.tensor([0, 1, 1]), 1.0)
    assert losses.tolist() == pytest.approx([0.08, 0.18, 0])


@pytest.mark.parametrize("classes", [[0, 0, 1, 1, 1, 2], [0, 1, 2, 3], [0, 0, 0]])
def test_batch_loss_against_plain_loops(device, classes):
    embeddings = torch.nn.functional.normalize(torch.randn(len(classes), 4, generator=torch.Generator().manual_seed(0)))
    losses = {0: [], 1: []}
    for i in range(len(classes)):
        for j in range(i):
            d = math.sqrt(
                sum((a - b) ** 2 for a, b in zip(embeddings[i].tolist(), embeddings[j].tolist(), strict=True))
            )
            y = int(classes[i] != classes[j])
            losses[y].append(textbook([d], [y], 1.0))
    means = [sum(values) / len(values) for values in losses.values() if values]
    measured = loss_of_all_pairs(embeddings.to(device), torch.tensor(classes, device=device), 1.0)
    assert measured.item() == pytest.approx(sum(means) / len(means), rel=1e-5)


@pytest.mark.parametrize("margin", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("classes", [[0, 0, 1, 1, 1, 2, 2, 0], [0, 1, 2, 3], [0, 0, 0]])
def test_losses_against_pytorch_metric_learning(classes, margin):
    """It leaves the squares of what is pulled and pushed, and the halves, to its users."""
    classes = torch.tensor(classes)
    embeddings = torch.nn.functional.normalize(torch.randn(len(classes), 4, generator=torch.Generator().manual_seed(0)))
    distance = LpDistance(normalize_embeddings=False)
    peer = Peer(neg_margin=margin, distance=distance, reducer=DoNothingReducer())(embeddings, classes)
    means = []
    losses = []
    for part in ("pos_loss", "neg_loss"):
        if len(peer[part]["indices"][0]):
            losses.append(peer[part]["losses"].square() / 2)
            means.append(losses[-1].mean())
    measured = loss_of_all_pairs(embeddings, classes, margin)
    assert measured.item() == pytest.approx(sum(means).item() / len(means), rel=1e-4)
    first, second = torch.triu_indices(len(classes), len(classes), 1)
    distances = distance(embeddings)[first, second]
    pairs = contrastive_loss(distances, classes[first] != classes[second], margin)  # each pair once; there, twice
    assert pairs.mean().item() == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)


def test_batch_loss_moves_embeddings_the_right_way():
    embeddings = torch.nn.functional.normalize(torch.tensor([[1.0, 0.2], [1.0, -0.2], [0.9, 0.3]])).requires_grad_()
    loss_of_all_pairs(embeddings, torch.tensor([0, 0, 1]), 1.0).backward()
    moved = embeddings.detach() - 0.01 * embeddings.grad
    before, after = torch.cdist(embeddings.detach(), embeddings.detach()), torch.cdist(moved, moved)
    assert after[0, 1] < before[0, 1]
    assert after[0, 2] > before[0, 2]


def test_gradients_of_a_large_batch_repeat_to_the_bit():
    embeddings = torch.nn.functional.normalize(torch.randn(96, 128, generator=torch.Generator().manual_seed(0)))
    embeddings.requires_grad_()
    classes = torch.arange(96) % 5
    gradients = [torch.autograd.grad(loss_of_all_pairs(embeddings, classes, 1.0), embeddings)[0] for _ in range(30)]
    assert all(torch.equal(gradients[0], other) for other in gradients[1:])
