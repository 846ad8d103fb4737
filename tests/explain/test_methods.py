import pytest
import torch
from pydantic import ValidationError
from helpers import network_and_images

from utils.config import ExplanationSettings
from utils.explain.gradcam import explain_by_gradient, layercam
from utils.explain import explain_by_path
from utils.explain import PAPER, explain_by_all, explain_files, judge_files, method_of, methods_of
from utils.explain.occlusion import explain_by_occlusion
from utils.network import distances_of


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (PAPER, explain_by_gradient),
        ({"method": "layercam"}, lambda *pairs: explain_by_gradient(*pairs, "layer2", layercam)),
        ({"method": "integrated", "steps": 2}, lambda *pairs: explain_by_path(*pairs, "layer2", 2, apart=False)),
        ({"method": "path_layercam"}, lambda *pairs: explain_by_path(*pairs, "layer2", 1)),
        ({"method": "occlusion"}, explain_by_occlusion),
    ],
)
def test_each_name_is_its_method(changes, expected):
    pairs = (*network_and_images(), 0.5)
    found = method_of(ExplanationSettings(layer="layer2"), **changes)(*pairs)
    assert torch.equal(found.evidence, expected(*pairs).evidence)


def test_a_name_that_is_none_is_refused():
    with pytest.raises(ValidationError):
        method_of(ExplanationSettings(), method="magic")


def test_a_finer_map_keeps_score_and_decision():
    pairs = (*network_and_images(), 0.5)
    finer = method_of(ExplanationSettings(method="gradcam", layer="last", output_stride=8))(*pairs)
    coarse = method_of(ExplanationSettings(method="gradcam", layer="last"))(*pairs)
    torch.testing.assert_close(finer.distance, distances_of(*pairs[:3]))
    assert finer.evidence.shape == coarse.evidence.shape
    assert not torch.allclose(finer.factual, coarse.factual, atol=0.01)


def test_files_are_explained_and_judged(trained):
    paths = trained.load_splits().folder.paths
    pair = paths[0], paths[-1]
    explanation = explain_files(trained, pair, pair[::-1])
    assert explanation.evidence.shape == (2, 2, 32, 40)
    verdict = judge_files(trained, explanation, pair, pair[::-1])
    assert verdict.random.shape == (20, 2)
    explanations, verdicts = explain_by_all(trained, pair)
    assert list(explanations) == list(verdicts) == list(methods_of(trained.config.explanation))
    ours = f"path_layercam, {trained.config.explanation.layer}"
    torch.testing.assert_close(explanations[ours].evidence[0], explanation.evidence[0], atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(verdicts[ours].gap.joint[0], verdict.gap.joint[0], atol=1e-4, rtol=1e-3)
