import pytest
import torch
import torch.nn.functional as F
from helpers import network_and_images

from utils import choose, judge, judge_choice
from utils.explanations.explanation import Explanation, Source, only_pair
from utils.explanations.maps import explained
from utils.explanations.methods import explain
from utils.files import ExplanationError
from utils.score.calibration import Calibration

UNDECIDED = "undecided from 0.600 to 0.850); actual classes: both are rose."


def of(distances, threshold, towards_different, towards_same, names=(), method="", **source):
    images = torch.zeros(len(distances), 2, 3, *towards_different.shape[-2:])
    return Explanation(
        images,
        torch.tensor(distances),
        threshold,
        towards_different,
        towards_same,
        names=names,
        method=method,
        source=Source(**{"warning": ""} | source),
    )


def test_factual_and_counterfactual_are_opposite_parts_of_one_evidence():
    evidence = torch.tensor([[[[4.0, -2.0], [0.0, 1.0]], [[-1.0, -0.5], [0.25, 0.0]]]] * 2)
    explanation = of([0.9, 0.1], 0.5, evidence.clamp(min=0), (-evidence).clamp(min=0))
    assert torch.equal(explanation.evidence, evidence)
    different, same = explanation.factual
    assert explanation.different.tolist() == [True, False]
    assert different.tolist() == [[[1.0, 0.0], [0.0, 0.25]], [[0.0, 0.0], [0.25, 0.0]]]
    assert same.tolist() == [[[0.0, 0.5], [0.0, 0.0]], [[1.0, 0.5], [0.0, 0.0]]]  # one scale: the strongest of both
    assert torch.equal(explanation.counterfactual[0], same)
    assert torch.equal(explanation.counterfactual[1], different)
    assert explanation.sentence(0) == "Different (similarity 0.550; limit 0.750)."
    assert explanation.sentence(1) == "Same (similarity 0.950; limit 0.750)."


def test_ranking_is_the_factual_map_and_where_it_is_zero_the_negative_counterfactual():
    towards_different = torch.tensor([[[[4.0, 0.0], [2.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]]])
    towards_same = torch.tensor([[[[0.0, 2.0], [4.0, 0.0]], [[0.0, 0.0], [0.5, 0.0]]]])
    explanation = of([1.0], 0.5, towards_different, towards_same)
    assert explanation.ranking.tolist() == [[[[1.0, -0.5], [0.5, 0.0]], [[1.0, 0.0], [-0.5, 0.0]]]]


def test_one_pair_and_some_carry_what_is_theirs():
    maps = torch.rand(3, 2, 4, 4)
    paths = (("a/1", "a/2"), ("b/1", "b/2"), ("c/1", "c/2"))
    whole = of([0.1, 0.6, 0.9], 0.5, maps, 1 - maps, names=paths, paths=paths, classes=(("a", "a"), None, ("c", "d")))
    part = whole[1:]
    assert part.different.tolist() == [True, True]
    assert torch.equal(part.towards_same, 1 - maps[1:])
    assert part.source.paths == part.names == paths[1:]
    assert part.source.classes == (None, ("c", "d"))
    for last in (whole[2], whole[-1]):
        assert len(last) == 1
        assert last.names == (paths[2],)
        assert torch.equal(last.factual, whole.factual[2:])
    assert [one.names[0] for one in whole] == list(paths)
    for beyond in (3, -4):
        with pytest.raises(IndexError, match="out of range"):
            whole[beyond]
    with pytest.raises(ValueError, match="one pair, not 3: take explanation"):
        only_pair(whole)


def test_pairs_without_files_are_numbered_and_stay_so():
    maps = torch.rand(3, 2, 4, 4)
    assert of([0.1, 0.6, 0.9], 0.5, maps, maps)[2].names == (("pair 2, image 1", "pair 2, image 2"),)


@pytest.mark.parametrize(
    ("distance", "classes", "right", "words"),
    [
        (0.9, ("rose", "tulip"), True, "Different (similarity 0.550; limit 0.750); correct: rose and tulip."),
        (0.9, ("rose", "rose"), False, "Different (similarity 0.550; limit 0.750); incorrect: both are rose."),
        (0.1, ("rose", "rose"), True, "Same (similarity 0.950; limit 0.750); correct: both are rose."),
        (0.1, ("rose", "tulip"), False, "Same (similarity 0.950; limit 0.750); incorrect: rose and tulip."),
        (0.1, None, None, "Same (similarity 0.950; limit 0.750)."),
    ],
)
def test_whether_the_decision_is_right(distance, classes, right, words):
    nothing = torch.zeros(1, 2, 3, 3)
    explanation = of([distance], 0.5, nothing, nothing, classes=(classes,))
    assert explanation.correct() is right
    assert explanation.sentence().endswith(words)


@pytest.mark.parametrize(
    ("distance", "words"),
    [
        # the ends of the band are as those of the threshold
        (0.3, "Same (similarity 0.850; limit 0.750); correct: both are rose."),
        (0.4, f'closer to "same" (similarity 0.800; {UNDECIDED}'),
        (0.8, f'closer to "different" (similarity 0.600; {UNDECIDED}'),
        (0.9, "Different (similarity 0.550; limit 0.750); incorrect: both are rose."),
    ],
)
def test_between_the_ends_of_the_band_nothing_is_decided(distance, words):
    nothing = torch.zeros(1, 2, 3, 3)
    explanation = of([distance], 0.5, nothing, nothing, band=(0.3, 0.8), classes=(("rose", "rose"),))
    assert explanation.sentence().endswith(words)
    assert explanation.undecided.item() is ("undecided" in words)
    assert (explanation.correct() is None) is ("undecided" in words)
    assert explanation.decision() == ("undecided" if "undecided" in words else explanation.closer_to())


def test_the_probability_is_that_of_the_calibration_and_stands_in_the_sentence():
    nothing = torch.zeros(2, 2, 3, 3)
    knots = torch.tensor([0.0, 1.0]), torch.tensor([[1.0, 0.9, 1.0], [0.2, 0.1, 0.3]])
    explanation = of([0.5, 1.0], 0.5, nothing.expand(2, -1, -1, -1), nothing, calibration=Calibration(*knots))
    assert explanation.probability.tolist() == [pytest.approx([0.6, 0.5, 0.65]), pytest.approx([0.2, 0.1, 0.3])]
    assert "of one class with probability 0.20 (0.10 to 0.30)." in explanation[1].sentence()
    assert of([0.5], 0.5, nothing[:1], nothing[:1]).probability is None


def test_the_same_explanation_is_told_from_another():
    maps = torch.rand(1, 2, 3, 3)
    one = of([0.4], 0.5, maps, 1 - maps, method="gradcam")
    assert one.same_as(one[0])
    assert not one.same_as(of([0.4], 0.5, maps, 1 - maps, method="layercam"))
    assert not one.same_as(of([0.4], 0.5, 1 - maps, maps, method="gradcam"))
    assert not one.same_as(of([0.3], 0.5, maps, 1 - maps, method="gradcam"))


@pytest.mark.parametrize(
    ("distance", "cause"), [(0.0, "both embeddings are equal"), (2.0, "opposite"), (0.7, "does not react")]
)
def test_a_blank_map_says_why(distance, cause):
    nothing = torch.zeros(1, 2, 3, 3)
    assert cause in of([distance], 0.5, nothing, nothing).cause_of_blank()
    assert of([distance], 0.5, nothing, nothing + 1).cause_of_blank() == "no such evidence"


def test_coarse_maps_are_enlarged():
    different, same = torch.randn(2, 3, 2, 3, 4)
    explanation = explained(torch.zeros(3, 2, 3, 9, 16), torch.ones(3), 0.5, different, same)
    for pair in range(3):
        for image in range(2):
            expected = F.interpolate(different[None, None, pair, image], size=(9, 16), mode="bilinear")[0, 0]
            torch.testing.assert_close(explanation.towards_different[pair, image], expected.clamp(min=0))
    assert (explanation.towards_same >= 0).all()


@pytest.mark.parametrize("threshold", [float("nan"), -1, 2.5, float("inf")])
def test_a_threshold_that_is_no_distance_is_refused(threshold):
    maps = torch.zeros(1, 2, 4, 4)
    with pytest.raises(ExplanationError, match=r"threshold: .* is refused: it is a distance, in \[0, 2\]"):
        Explanation(torch.zeros(1, 2, 3, 4, 4), torch.ones(1), threshold, maps, maps)


@pytest.mark.parametrize("method", ["contrastive", "gradcam", "occlusion"])
def test_images_and_weights_that_are_not_finite_are_refused(method):
    network, images = network_and_images()
    images[0, 0, 0, 0, 0] = torch.nan
    with pytest.raises(ExplanationError, match=r"are not finite"):
        explain(network, images, 0.5, method=method)
    network, images = network_and_images()
    with torch.no_grad():
        network.embedding.weight[0, 0] = torch.inf
    with pytest.raises(ExplanationError, match=r"are not finite"):
        explain(network, images, 0.5, method=method)


def test_it_prints_sentences_and_no_tensors(calibrated):
    splits = calibrated.load_splits()
    explanation = calibrated.explain(*splits.files(splits.test_pairs, 7), method="gradcam")
    lines = str(explanation).splitlines()
    assert lines == [*map(explanation.sentence, range(5)), "and 2 more pairs"]
    assert repr(explanation[0]) == explanation.sentence(0)
    assert repr(explanation[:0]) == "no pairs"
    verdict = judge(calibrated.network, explanation[:1])
    assert repr(verdict) == verdict.sentence()
    choice = choose(calibrated.network, explanation.images[0, 0], *calibrated.references.embeddings[:2, None])
    assert repr(choice).startswith(f"nearer by {choice.margin:.3f} in similarity, thorough at")
    reason = judge_choice(calibrated.network, choice)
    assert repr(reason) == reason.sentence()
