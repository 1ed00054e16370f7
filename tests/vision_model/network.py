"""The size of the test model's vision part, and the text that its image tokens stand for."""

from tests.vision_model.drawings import COUNTS, Drawing

IMAGE_EDGE = 48
PATCH_EDGE = 8
SCALE_FACTOR = 2
IMAGE_TOKENS = (IMAGE_EDGE // PATCH_EDGE // SCALE_FACTOR) ** 2

WIDTH, LAYERS, HEADS = 96, 3, 4

NO_SIDE = "none"

VISION = {
    "model_type": "idefics3_vision",
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "intermediate_size": 2 * WIDTH,
    "patch_size": PATCH_EDGE,
    "image_size": IMAGE_EDGE,
    "num_channels": 3,
    "layer_norm_eps": 1e-6,
}


def caption(drawing: Drawing) -> str:
    """Return the text that the image tokens of a drawing stand for: one token each."""
    topic, count, side = "digit" if drawing.digit else "shape", COUNTS[drawing.count - 1], drawing.side or NO_SIDE
    return f" color {drawing.colour} {topic} {drawing.kind} count {count} side {side}."
