"""From two images to their explanation, by the method that `explanation.method` names."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from utils.config import ExplanationSettings
from utils.dilation import dilated
from utils.evaluation import Trained
from utils.explanation import Explanation
from utils.faithfulness import Verdict, chance, gaps, judge
from utils.gradcam import FORMULAS, explain_by_gradient
from utils.integrated import explain_by_path
from utils.occlusion import explain_by_occlusion
from utils.siamese import distances_of

PAPER = {"method": "gradcam", "layer": "last", "output_stride": 32}  # the settings of the paper's explanation


def method_of(settings: ExplanationSettings, **changes):
    """The method that the settings, with `changes`, name: a function of (network, images1, images2, threshold).

    Raises ValidationError when a change is no value of `explanation` in config.yml.
    """
    settings = ExplanationSettings.model_validate(settings.model_dump() | changes)
    if settings.method == "occlusion":
        return explain_by_occlusion
    if settings.method in FORMULAS:
        method = partial(explain_by_gradient, layer=settings.layer, formula=FORMULAS[settings.method])
    else:
        apart = settings.method == "path_layercam"
        method = partial(explain_by_path, layer=settings.layer, steps=settings.steps, apart=apart)
    return method if settings.output_stride == 32 else partial(_finer, method, settings.output_stride)


def methods_of(settings: ExplanationSettings) -> dict:
    """All methods by name: Grad-CAM at the last stage, as in the paper, then each at `explanation.layer`."""
    place = settings.layer + (f", stride {settings.output_stride}" if settings.output_stride != 32 else "")
    names = (*FORMULAS, "integrated", "path_layercam")
    methods = {f"{name}, {place}": method_of(settings, method=name) for name in names}
    return {"gradcam, last": method_of(settings, **PAPER)} | methods | {"occlusion": explain_by_occlusion}


def explain_images(trained: Trained, images1, images2, **changes) -> Explanation:
    """Explain B pairs (B, 3, H, W) by the method of `explanation` in config.yml, with `changes` to these keys."""
    return method_of(trained.config.explanation, **changes)(trained.network, images1, images2, trained.threshold)


def explain_files(trained: Trained, *pairs: tuple[Path, Path], **changes) -> Explanation:
    """The same for pairs of image files."""
    return explain_images(trained, *(trained.load_images(*paths) for paths in zip(*pairs, strict=True)), **changes)


def judge_files(trained: Trained, explanation: Explanation, *pairs: tuple[Path, Path]) -> Verdict:
    """How far the explanation of these image files can be believed."""
    images1, images2 = (trained.load_images(*paths) for paths in zip(*pairs, strict=True))
    return judge(trained.network, images1, images2, explanation, trained.config.seed)


def explain_by_all(trained: Trained, pair) -> tuple[dict[str, Explanation], dict[str, Verdict]]:
    """One pair of image files by every method of `methods_of`: explanations and verdicts by name."""
    images = [trained.load_images(path) for path in pair]
    known = chance(trained.network, *images, trained.threshold, trained.config.seed)
    explanations = {
        name: method(trained.network, *images, trained.threshold)
        for name, method in methods_of(trained.config.explanation).items()
    }
    verdicts = {name: Verdict(gaps(trained.network, *images, made), *known) for name, made in explanations.items()}
    return explanations, verdicts


def _finer(method, output_stride, network, images1, images2, threshold):
    """A method on the dilated network; distance and decision stay those of the network itself."""
    explanation = method(dilated(network, output_stride), images1, images2, threshold)
    return replace(explanation, distance=distances_of(network, images1, images2))
