"""The starter model in every quantization that can be written: import hardly changes what it predicts."""

import pytest
from gguf import GGMLQuantizationType as Type

from .k_quants import K_QUANTS
from .starter_quality import measure

pytestmark = pytest.mark.long

KINDS = (Type.BF16, Type.F16, Type.Q8_0, Type.Q5_1, Type.Q5_0, Type.Q4_1, Type.Q4_0, *K_QUANTS)
# The weights of the starter model have been quantized to Q4_1 before. These types add a second error to all of them,
# with which it may no longer answer a question in a chat, though it still completes a list.
IMPRECISE = (Type.Q5_1, Type.Q5_0, Type.Q4_0)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_it_knows_paris_and_its_perplexity_stays_within_the_stated_error(kind, tmp_path):
    result = measure(kind, tmp_path)
    imported, file = result["imported"], result["file"]

    assert imported["completion"] == file["completion"]
    # With 2 bits, the file itself has forgotten it.
    if kind is not Type.Q2_K:
        assert imported["completion"] == " Paris"
        assert "Paris" in imported["answer"] or kind in IMPRECISE
    # Another error can change a close decision between two words.
    assert imported["answer"] == file["answer"] or result["error"] > 0.001
    # Weights that are floats are rounded to 16 bits, which no error is stated for.
    assert abs(imported["perplexity"] / file["perplexity"] - 1) <= max(result["error"], 0.001), result
