"""Networks of other libraries, small and with random weights: what a layer gives, from the source of each model."""

import timm
import transformers as hf
from facenet_pytorch.models.inception_resnet_v1 import InceptionResnetV1
from helpers import warmed
from network.orders import EITHER, MUST, Case, places_of, same
from torch import nn
from torchvision.models.swin_transformer import SwinTransformer

SIZE = (64, 96)
SQUARE = (64, 64)
FACES = (128, 128)
TRANSFORMER = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "patch_size": 16,
    "initializer_range": 0.1,  # 0.02 would leave the tokens nearly as they are
}
TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 50,
    "max_position_embeddings": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SWIN = {"patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16, 32], "depths": [1, 1, 1], "layer_type": "basic"}


class Wrapped(nn.Module):
    """A model and a function to its embeddings, as one module."""

    def __init__(self, model, embed):
        super().__init__()
        self.model = model
        self.embed = embed

    def forward(self, images):
        return self.embed(self.model, images)


def pooled(model, images):
    """What the model itself calls its pooled output."""
    return model(pixel_values=images).pooler_output.flatten(1)


def places_and_pooled(model, images):
    """The mean of the last tokens behind the class token and the registers, as users of DINOv2 have it."""
    return model(pixel_values=images).last_hidden_state[:, 5:].mean(dim=1)


def projected(model, images):
    """The embedding in the space that images share with texts."""
    return model(pixel_values=images).image_embeds


def image_features(model, images):
    """The same of a model that takes texts as well."""
    features = model.get_image_features(pixel_values=images)
    return getattr(features, "pooler_output", features)


def vit():
    return hf.ViTModel(hf.ViTConfig(image_size=SIZE, **TRANSFORMER))


def clip_vision():
    config = hf.CLIPVisionConfig(image_size=64, projection_dim=16, **TRANSFORMER)
    return hf.CLIPVisionModelWithProjection(config)


def clip():
    vision = {"image_size": 64, **TRANSFORMER}
    return hf.CLIPModel(hf.CLIPConfig(text_config=TEXT, vision_config=vision, projection_dim=16))


def siglip():
    return hf.SiglipVisionModel(hf.SiglipVisionConfig(image_size=64, **TRANSFORMER))


def dinov2():
    config = hf.Dinov2WithRegistersConfig(image_size=64, num_register_tokens=4, layerscale_value=1.0, **TRANSFORMER)
    return hf.Dinov2WithRegistersModel(config)


def swin():
    return hf.SwinModel(hf.SwinConfig(image_size=SIZE, **SWIN))


def resnet():
    return warmed(hf.ResNetModel(hf.ResNetConfig(**RESNET)), SIZE)


def facenet():
    return warmed(InceptionResnetV1(pretrained=None), FACES)


MODELS = {  # build, embed, size, layers and what restores a map from what each gives
    "ViT": (vit, pooled, SIZE, {"layers.1": places_of(1, SIZE, 16), "layers.2": places_of(1, SIZE, 16)}),
    "CLIP's images": (
        clip_vision,
        projected,
        SQUARE,
        {
            "vision_model.pre_layrnorm": places_of(1, SQUARE, 16),
            "vision_model.encoder.layers.1": places_of(1, SQUARE, 16),
        },
    ),
    "CLIP": (clip, image_features, SQUARE, {"vision_model.encoder.layers.1": places_of(1, SQUARE, 16)}),
    "SigLIP": (
        siglip,
        pooled,
        SQUARE,
        {"encoder.layers.1": places_of(0, SQUARE, 16), "post_layernorm": places_of(0, SQUARE, 16)},
    ),
    "DINOv2 with registers": (
        dinov2,
        places_and_pooled,
        SIZE,
        {"encoder.layer.1": places_of(5, SIZE, 16), "layernorm": places_of(5, SIZE, 16)},
    ),
    "Swin": (
        swin,
        pooled,
        SIZE,
        {
            "encoder.layers.0.downsample": places_of(0, SIZE, 8),
            "encoder.layers.0.blocks.1": None,
            "layernorm": places_of(0, SIZE, 8),
        },
    ),
    "ResNet": (resnet, pooled, SIZE, {"encoder.stages.1": same, "encoder.stages.2": same}),
}

REFUSED_BEFORE = {("ViT", "layers.2"), ("Swin", "encoder.layers.0.blocks.1")}  # a class token alone; a tuple


def hiera(size=SIZE):
    settings = {"embed_dim": 16, "num_heads": 1, "stages": (1, 1, 2, 1)}
    return timm.create_model("hiera_tiny_224", num_classes=0, img_size=size, **settings)


def rolled_out(block):
    """What brings the tokens behind a block of Hiera to a map: timm's own function, which knows no weights."""
    return lambda output: hiera().reroll(output, block).movedim(-1, 1)


def sam():
    settings = {"embed_dim": 16, "depth": 2, "num_heads": 2, "window_size": 2, "global_attn_indexes": (1,)}
    return timm.create_model("samvit_base_patch16", num_classes=0, img_size=64, **settings)


def torchvision_swin():
    return SwinTransformer([4, 4], 16, [2, 2], [2, 2], [4, 4], num_classes=8)


def last_axis_first(output):
    """(N, h, w, C) to (N, C, h, w)."""
    return output.movedim(-1, 1)


def _cases():
    cases = {}
    for block in range(5):
        cases[f"timm's Hiera, blocks.{block}"] = Case(hiera, SIZE, f"blocks.{block}", rolled_out(block))
    cases["timm's SAM, blocks.0"] = Case(sam, SQUARE, "blocks.0", last_axis_first, MUST)
    cases["timm's SAM, blocks.0.attn, windows"] = Case(sam, SQUARE, "blocks.0.attn")
    cases["torchvision's Swin, features.1, C = h = w"] = Case(torchvision_swin, SQUARE, "features.1", last_axis_first)
    cases["torchvision's Swin, features.3"] = Case(torchvision_swin, SQUARE, "features.3", last_axis_first, MUST)
    for name, (build, embed, size, layers) in MODELS.items():
        for layer, restore in layers.items():

            def wrapped(build=build, embed=embed):
                return Wrapped(build(), embed)

            cases[f"{name}, {layer}, as a function"] = Case(build, size, layer, restore, embed=embed)
            outcomes = EITHER if (name, layer) in REFUSED_BEFORE else MUST
            cases[f"{name}, {layer}, in a module"] = Case(wrapped, size, f"model.{layer}", restore, outcomes)
    for layer in ("mixed_6a", "repeat_2"):
        cases[f"FaceNet, {layer}"] = Case(facenet, FACES, layer, same, MUST)
    return cases


LIBRARIES = _cases()
