"""Models in 16 bits, and quantized ones whose vision tower is not: their answers are those of mlx_vlm, up to rounding.

In float32, `test_generation.py` compares them exactly. In 16 bits, the engine's results have other rounding errors than
those of mlx_vlm, because it divides the work into other passes. So a token may differ if mlx_vlm finds it nearly as
likely.
"""

import mlx.core as mx
import pytest

from tests.osaurusd.worker.runners.vision.conftest import TinyRunner, ask, draw
from tests.osaurusd.worker.runners.vision.reference import Reference
from tests.osaurusd.worker.runners.vision.tiny_models import Format, tiny_vision_model

CHAT = ask(("Describe this drawing: ", draw(1), " and compare it with ", draw(2, 100, 50), " in a few words."))
OTHER = ask(("Describe this drawing: ", draw(3), " and compare it with ", draw(4, 100, 50), " in a few words."))

ROUNDINGS = 128
"""How many rounding errors of a format a logit may have, relative to the deviation of all logits. In bfloat16, this is
half of their deviation; the answer to another image is on average worse by more than that deviation."""


FORMATS = (Format(mx.float16), Format(mx.bfloat16), Format(mx.float32, 4))
FAMILIES = ("smolvlm", "pixtral", "qwen2_5_vl")
CASES = [
    # Every format with the first family, and every family with the format of most models.
    pytest.param(family, each, marks=[] if family == FAMILIES[0] or each == FORMATS[1] else pytest.mark.long)
    for family in FAMILIES
    for each in FORMATS
]


@pytest.mark.parametrize(("family", "number_format"), CASES, ids=str)
def test_answer_is_that_of_mlx_vlm(family, number_format, tmp_path, tiny_tokenizer):
    tiny_vision_model(family, tmp_path, tiny_tokenizer, number_format=number_format)
    runner, reference = TinyRunner(tmp_path), Reference(tmp_path, family)
    tolerance = ROUNDINGS * mx.finfo(number_format.dtype).eps / 2
    (answer,) = runner.fresh(CHAT)
    if runner.network.image_token in answer:  # mlx_vlm takes one for another image
        answer = answer[: answer.index(runner.network.image_token)]

    shortfalls, deviation = reference.shortfalls(CHAT, answer)
    others, other_deviation = reference.shortfalls(OTHER, answer)

    assert len(answer) > 2
    assert mx.max(shortfalls).item() <= tolerance * deviation
    assert mx.mean(others).item() > other_deviation


@pytest.mark.parametrize("number_format", [Format(mx.bfloat16), Format(mx.bfloat16, 4)], ids=str)
def test_quantized_part_is_the_language_model(number_format, tmp_path, tiny_tokenizer):
    tiny_vision_model("smolvlm", tmp_path, tiny_tokenizer, number_format=number_format)
    weights = mx.load(str(tmp_path / "model.safetensors"))

    quantized = {name.partition(".")[0] for name, value in weights.items() if value.dtype == mx.uint32}
    assert quantized == (set() if number_format.bits is None else {"language_model"})
