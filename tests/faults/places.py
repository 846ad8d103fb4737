"""Maps of every family of timm, of other libraries, and of modules in every order: patches are found in their places.

With a line for each layer: `PYTHONPATH=.:tests python -m faults places --every`.
"""

import math
from collections.abc import Iterator
from functools import partial

import torch
from faults.outcomes import Outcome
from helpers import warmed
from network.orders import EITHER, MUST, ORDERS
from network.planted import outcome_of, outcome_of_case, plant, sharpen
from timm import create_model, get_pretrained_cfg

from utils import Cut
from utils.config import ConfigError
from utils.network.siamese import SiameseNetwork

SIZES = ((96, 128), (128, 128))  # height and width of images: the first that a model takes, or its own
LARGER = {  # the last map would have two rows or fewer, or answer too evenly
    "eca_botnext26ts_256": (128, 192),
    "csatv2": (192, 256),
    "efficientvit_b0": (192, 256),
    "efficientvit_m0": (192, 256),
    "inception_resnet_v2": (224, 256),
    "inception_v3": (224, 256),
    "inception_v4": (224, 256),
    "levit_128s": (224, 224),
    "pit_ti_224": (224, 224),
}
MOST = 8  # layers of a network
MODELS = """
beit=beit_base_patch16_224 byoanet=eca_botnext26ts_256 byobnet=test_byobnet cait=cait_xxs24_224 coat=coat_tiny
convit=convit_tiny convmixer=convmixer_768_32 convnext=test_convnext cpubone=cpubone_nano crossvit=crossvit_tiny_240
csatv2=csatv2 cspnet=cs3darknet_focus_s cspnext=cspnext_tiny davit=davit_tiny deepseek_vit=deepseek_vit_412m
deit=deit_tiny_patch16_224 densenet=densenet121 dla=dla46x_c dpn=dpn48b edgenext=edgenext_xx_small
efficientformer=efficientformer_l1 efficientformer_v2=efficientformerv2_s0 efficientnet=test_efficientnet
efficientvim=efficientvim_m1 efficientvit_mit=efficientvit_b0 efficientvit_msra=efficientvit_m0
eva=vit_tiny_patch16_dinov3_qkvb fasternet=fasternet_t0 fastvit=fastvit_t8 focalnet=focalnet_tiny_srf
gcvit=gcvit_xxtiny gemma4_vit=gemma4_vit_167m ghostnet=ghostnet_050 hardcorenas=hardcorenas_b hgnet=hgnetv2_b0
hiera=hiera_tiny_224 hieradet_sam2=sam2_hiera_tiny hrnet=hrnet_w18_small iformer=iformer_t
inception_next=inception_next_atto inception_resnet_v2=inception_resnet_v2 inception_v3=inception_v3
inception_v4=inception_v4 lcnetv2=lcnetv2_small levit=levit_128s lowformer=lowformer_b0 mambaout=test_mambaout
maxxvit=test_coatnet metaformer=poolformerv2_s12 mlp_mixer=gmlp_ti16_224 mobilenetv3=lcnet_035
mobilenetv5=mobilenetv5_300m mobilevit=mobilevit_xxs mvitv2=mvitv2_tiny naflexvit=naflexvit_so150m2_patch16_reg1_gap
nasnet=nasnetalarge nest=nest_tiny nextvit=nextvit_small nfnet=test_nfnet pit=pit_ti_224 pnasnet=pnasnet5large
pvt_v2=pvt_v2_b0 qwen3_vit=qwen3_vit_88m rdnet=rdnet_tiny regnet=regnetx_002 repghost=repghostnet_050 repvit=repvit_m1
res2net=res2next50 resnest=resnest14d resnet=test_resnet resnetv2=resnetv2_18 rexnet=rexnet_100 selecsls=selecsls42
senet=legacy_seresnet18 sequencer=sequencer2d_s shvit=shvit_s1 sknet=skresnet18 starnet=starnet_s050
swiftformer=swiftformer_xs swin_transformer=swin_tiny_patch4_window7_224 swin_transformer_v2=swinv2_tiny_window8_256
swin_transformer_v2_cr=swinv2_cr_tiny_224 tiny_vit=tiny_vit_5m_224 tnt=tnt_s_patch16_224 tresnet=tresnet_m
twins=twins_svt_small vgg=vgg11 visformer=visformer_tiny vision_transformer=test_vit
vision_transformer_hybrid=vit_tiny_r_s16_p8_224 vision_transformer_relpos=test_vit_relpos
vision_transformer_sam=samvit_base_patch16_224 vitamin=vitamin_small_224 volo=volo_d1_224 vovnet=ese_vovnet19b_slim_dw
xception=legacy_xception xception_aligned=xception41p xcit=xcit_nano_12_p8_224
"""  # families of timm, by its modules, and the smallest model of each
FAMILIES = dict(model.split("=") for model in MODELS.split())
SEVERAL = ("network", "Cut")  # an output of several maps, or none in the order of rows
CLASS_TOKEN = ("Cut",)  # behind the last block only the class token counts
MAY_BE_REFUSED = {  # how what comes of a family begins
    "coat": SEVERAL,
    "convit": CLASS_TOKEN,
    "crossvit": SEVERAL,
    "deit": CLASS_TOKEN,
    "efficientvim": SEVERAL,
    "hiera": SEVERAL,
    "hrnet": ("Cut",),
    "mobilenetv5": ("network, blocks.3", "Cut at blocks.3"),  # a way around: its last map is made of two
    "pit": SEVERAL,
    "selecsls": ("Cut",),
    "tnt": ("Cut",),
    "vision_transformer": CLASS_TOKEN,
    "vision_transformer_hybrid": CLASS_TOKEN,
    "xception": ("network, block", "Cut at block"),  # other layers go around them
    "xception_aligned": ("network, block", "Cut at block"),
}


def faults(project, random, tries, folder) -> Iterator[Outcome]:
    """Read all of them, or `tries` that are drawn; each order and family brought WRONG to light, or a refusal."""
    from network.libraries import LIBRARIES  # it takes seconds to import

    cases = ORDERS | LIBRARIES
    names = [*FAMILIES, *cases]
    drawn = random.permutation(len(names))[:tries]
    for number in sorted(drawn):
        name = names[number]
        if name in cases:
            yield outcome_of_case(name, cases[name])
        else:
            yield from outcomes_of_family(name)


def outcomes_of_family(family) -> Iterator[Outcome]:
    """A model of a family as a network, with its layers, and its backbone in a Cut at a middle and the last one.

    Layers are read first with the weights that they have, then with sharper ones, in which patches are found.
    """
    torch.manual_seed(0)
    name = FAMILIES[family]
    reads = {}
    errors = {}
    try:
        network = _network(name)
    except ConfigError as error:
        errors["network"] = error
        size = get_pretrained_cfg(name).input_size[1:]
        backbone = network = create_model(name, num_classes=0).eval()
    else:
        size = network.image_size
        backbone = network.backbone
        step = math.ceil(len(network.layers) / MOST)
        for layer in network.layers[::-step]:
            reads[f"network, {layer}"] = partial(network.features, layer=layer)
    for layer in _middle_and_last(backbone):
        reads[f"Cut at {layer}"] = Cut(backbone, layer=layer).features
    images = torch.randn(2, 3, *size)
    for label, read in reads.items():
        try:
            with torch.no_grad():
                read(images)
        except Exception as error:  # judged below
            errors[label] = error
    sharpen(network)
    warmed(network, size)
    for label in errors | reads:
        find_complaint = partial(_complaint, reads.get(label), errors.get(label), size)
        allowed = EITHER if label.startswith(MAY_BE_REFUSED.get(family, "-")) else MUST
        yield outcome_of(f"{family}, {name}, {label}", find_complaint, allowed)


def _network(name) -> SiameseNetwork:
    """A network with the smallest images that its backbone takes."""
    sizes = [LARGER[name]] if name in LARGER else [*SIZES, get_pretrained_cfg(name).input_size[1:]]
    for size in sizes:
        try:
            return warmed(SiameseNetwork(name, 8, image_size=size), size)
        except ConfigError as error:
            refusal = error
    raise refusal


def _middle_and_last(backbone) -> list[str]:
    """Two of the layers that timm names; none where it names no modules."""
    paths = dict(backbone.named_modules())
    layers = [info["module"] for info in backbone.feature_info if info["module"] in paths]
    return [layers[len(layers) // 2], layers[-1]] if layers else []


def _complaint(read, error, size) -> str:
    """What is wrong with a map, which gave an error before or None."""
    if error is not None:
        raise error
    return plant(read, size).complaint
