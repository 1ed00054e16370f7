"""The vision part of the test model: its size, and the text that its image tokens stand for."""

from tests.vision_model.drawings import COLOURS, COUNTS, DIGIT_NAMES, SHAPES, Drawing

IMAGE_SIDE = 48
PATCH_SIDE = 8
SCALE_FACTOR = 2
IMAGE_TOKENS = (IMAGE_SIDE // PATCH_SIDE // SCALE_FACTOR) ** 2

WIDTH, LAYERS, HEADS = 96, 3, 4

VISION = {
    "model_type": "idefics3_vision",
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "intermediate_size": 2 * WIDTH,
    "patch_size": PATCH_SIDE,
    "image_size": IMAGE_SIDE,
    "num_channels": 3,
    "layer_norm_eps": 1e-6,
}


def caption(drawing: Drawing) -> str:
    """Return the text that the image tokens of a drawing stand for: one token each."""
    kind, shape = ("digit", DIGIT_NAMES[drawing.shape]) if drawing.is_digit else ("shape", drawing.shape)
    return f" color {drawing.colour}, {kind} {shape}, count {COUNTS[drawing.count - 1]}."


def words() -> list[str]:
    """Return every word of a caption, in a fixed order."""
    fixed = [",", ".", "color", "shape", "digit", "count"]
    return [*fixed, *COLOURS, *SHAPES, *DIGIT_NAMES.values(), *COUNTS[1:]]
