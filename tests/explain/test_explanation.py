import pytest
import torch
import torch.nn.functional as F

from utils.explain import Explanation, explained, stacked


def test_factual_and_counterfactual_are_opposite_parts_of_one_evidence():
    evidence = torch.tensor([[[[4.0, -2.0], [0.0, 1.0]], [[-1.0, -0.5], [0.25, 0.0]]]] * 2)
    explanation = Explanation(torch.tensor([0.9, 0.1]), 0.5, evidence.clamp(min=0), (-evidence).clamp(min=0))
    assert torch.equal(explanation.evidence, evidence)
    different, same = explanation.factual
    assert explanation.different.tolist() == [True, False]
    assert different.tolist() == [[[1.0, 0.0], [0.0, 0.25]], [[0.0, 0.0], [0.25, 0.0]]]
    assert same.tolist() == [[[0.0, 0.5], [0.0, 0.0]], [[1.0, 0.5], [0.0, 0.0]]]  # one scale: the strongest of both
    assert torch.equal(explanation.counterfactual[0], same)
    assert torch.equal(explanation.counterfactual[1], different)
    assert 'Similarity 0.550, "same" from 0.750 on (distance 0.900, threshold 0.500)' in explanation.sentence(0)
    assert 'decided "same"' in explanation.sentence(1)


def test_ranking_is_the_factual_map_and_where_it_is_zero_the_negative_counterfactual():
    towards_different = torch.tensor([[[[4.0, 0.0], [2.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]]])
    towards_same = torch.tensor([[[[0.0, 2.0], [4.0, 0.0]], [[0.0, 0.0], [0.5, 0.0]]]])
    explanation = Explanation(torch.tensor([1.0]), 0.5, towards_different, towards_same)
    assert explanation.ranking.tolist() == [[[[1.0, -0.5], [0.5, 0.0]], [[1.0, 0.0], [-0.5, 0.0]]]]


def test_part_of_the_pairs():
    maps = torch.rand(3, 2, 4, 4)
    part = Explanation(torch.tensor([0.1, 0.6, 0.9]), 0.5, maps, 1 - maps)[1:]
    assert part.different.tolist() == [True, True]
    assert torch.equal(part.towards_same, 1 - maps[1:])


@pytest.mark.parametrize(
    ("apart", "cause"), [(0.0, "both embeddings are one"), (2.0, "opposite"), (0.7, "does not react")]
)
def test_a_blank_map_says_why(apart, cause):
    nothing = torch.zeros(1, 2, 3, 3)
    assert cause in Explanation(torch.tensor([apart]), 0.5, nothing, nothing).cause_of_blank()
    assert Explanation(torch.tensor([apart]), 0.5, nothing, nothing + 1).cause_of_blank() == "no such evidence"


def test_coarse_maps_are_enlarged_and_sorted_by_image():
    different, same = torch.randn(2, 6, 3, 4)
    explanation = explained(torch.ones(3), 0.5, different, same, (9, 16))
    for pair in range(3):
        for image in range(2):
            expected = F.interpolate(different[None, None, image * 3 + pair], size=(9, 16), mode="bilinear")[0, 0]
            torch.testing.assert_close(explanation.towards_different[pair, image], expected.clamp(min=0))
    assert (explanation.towards_same >= 0).all()


def test_images_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match="must have one shape"):
        stacked(torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 9))
