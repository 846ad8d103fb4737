"""Two image files, explained by a pretrained backbone without any training."""

import torch

from ..config import LAST, ConfigError, Normalization
from ..data.reading import decode
from ..explanations.explanation import Source
from ..explanations.matches import decompose
from ..explanations.methods import PAPER, explain
from ..files import UserError
from ..network.backbones import LITE0
from ..network.siamese import SiameseNetwork
from ..search.from_files import FromFiles
from ..trust.faithfulness import judge_all
from ..vision import backbone_name, normalization_of, weights_config
from .html import Element
from .viewer import view

SIZE = (224, 224)  # of images, where the weights do not say theirs
FINE = "stride16"  # a layer of smaller cells than the last one
WARNING = (
    "CAUTION: {} was neither trained nor tested on your images. The score says how similar the two images are to this "
    "network, not whether they show the same; compare it with scores of the same network only."
)


def pretrained_network(backbone: str = LITE0) -> FromFiles:
    """Load a pretrained backbone as a network on image files, which has scores and no threshold.

    Args:
        backbone: The name of a model of timm, as `backbone_model` in config.yml.

    Raises:
        UserError: The name is unknown, or its weights cannot be loaded.
    """
    try:
        name = backbone_name(backbone)
        weights = weights_config(name)
        normalization = Normalization(**normalization_of(name))
    except ValueError as error:
        raise UserError(f"--backbone: {backbone} is refused: {error}") from error
    size = SIZE
    if weights.input_size:
        size = weights.input_size[1:]
    network = SiameseNetwork(name, None, pretrained=True, image_size=size).eval()
    if torch.cuda.is_available():
        network.cuda()
    mean, std = torch.tensor(normalization.mean), torch.tensor(normalization.std)

    def load(path):
        values = torch.from_numpy(decode(path, size)) / 255  # (h, w, 3)
        return ((values - mean) / std).movedim(-1, 0)

    layer = FINE
    try:
        network.check_layer(FINE)
    except ConfigError:
        layer = LAST
    source = Source(normalization=normalization, warning=WARNING.format(name), decides=False)
    return FromFiles(network, load, 2, source=source, method="integrated", layer=layer)


def explain_files(image1, image2, backbone: str = LITE0) -> Element:
    """Make the viewer of two image files by a pretrained backbone: their similarity, and what it comes from.

    Args:
        image1: Path of an image file.
        image2: Path of another.
        backbone: As in `pretrained_network`.

    Returns:
        The viewer with the maps of three methods and a verdict on each. `saved(folder)` writes it as one page.

    Raises:
        UserError: The backbone cannot be loaded.
        DataError: An image cannot be decoded.
    """
    files = pretrained_network(backbone)
    explanation = files.explain((image1, image2))
    explanations = {"integrated": explanation}
    for name, settings in {"gradcam (the paper's)": PAPER, "occlusion": {"method": "occlusion"}}.items():
        inputs = explanation.images, files.threshold, None, explanation.source
        explanations[name] = explain(files.network, *inputs, **settings)
    verdicts = judge_all(files.network, explanations)
    return view(explanations, verdicts, decompose(files.network, explanation))
