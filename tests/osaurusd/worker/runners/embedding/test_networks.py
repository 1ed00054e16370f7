"""Networks compute what transformers does, and neither padding nor other sequences of a batch change that."""

import json
from functools import partial

import mlx.core as mx
import numpy as np
import pytest

from osaurusd.rpc import messages
from osaurusd.worker.engine.device import CPU
from osaurusd.worker.runners.embedding.cores import Cores
from osaurusd.worker.runners.embedding.inputs import Batch, TokenSequence
from osaurusd.worker.runners.embedding.runner import find_classes
from osaurusd.worker.runners.loading import load_network
from tests.osaurusd.worker.runners.embedding.tiny_networks import REFERENCES, SEQUENCES, weight

FAMILIES = json.loads(REFERENCES.read_text())
TOLERANCE = 2e-5
PADDING_TOLERANCE = 3e-6  # these outputs are not normalized, and random weights amplify rounding


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def network(family, tmp_path):
    """The network, loaded from files as transformers saves them."""
    reference = FAMILIES[family]
    weights = {name: mx.array(weight(name, shape)) for name, shape in reference["shapes"].items()}
    mx.save_safetensors(str(tmp_path / "model.safetensors"), weights, {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(reference["config"]))
    frame = messages.Load(path=str(tmp_path), task="rerank" if "ranks" in family else "embed")
    find = partial(find_classes, frame.task)
    return load_network(tmp_path, frame, CPU, lambda _: None, get_model_classes=find)[0]


def run(network, sequences):
    """The outputs of one batch, without padding."""
    output = np.array(network(Batch([TokenSequence(tokens) for tokens in sequences])))
    return [rows if rows.ndim == 0 else rows[: len(tokens)] for tokens, rows in zip(sequences, output, strict=True)]


def test_network_computes_what_transformers_does(network, family):
    expected = FAMILIES[family]["outputs"]

    for rows, reference in zip(run(network, SEQUENCES), expected, strict=True):
        actual = rows if rows.ndim == 0 else rows[[0, -1]]
        np.testing.assert_allclose(actual, np.squeeze(reference), atol=TOLERANCE)


def test_padding_changes_nothing(network):
    together = run(network, SEQUENCES)
    alone = [run(network, [tokens])[0] for tokens in SEQUENCES]

    for one, other in zip(together, alone, strict=True):
        scale = max(np.abs(other).max(), 1.0)
        np.testing.assert_allclose(one / scale, other / scale, atol=PADDING_TOLERANCE)


def test_parts_on_several_cores_change_nothing(network):
    sequences = sorted((TokenSequence(tokens) for tokens in SEQUENCES * 16), key=len)
    cores = Cores(3)

    def encode(part):
        output = np.array(network(Batch(part)))
        return output if output.ndim == 1 else output[:, 0]

    try:
        expected = encode(sequences)
        actual = cores.encode(sequences, encode)
    finally:
        cores.close()
    scale = max(np.abs(expected).max(), 1.0)
    np.testing.assert_allclose(actual / scale, expected / scale, atol=PADDING_TOLERANCE)
