"""Measures how the starter model in one quantization predicts and answers, in the file and after its import.

`python -m tests.osaurusd.imports.worker.starter_quality KIND FOLDER` prints a JSON document. It is a process of its own
because MLX on CPUs needs a fast BLAS library, which has to be preloaded.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import gguf
import mlx.core as mx
import numpy as np
from gguf import GGMLQuantizationType as Type
from mlx.utils import tree_unflatten
from mlx_lm.utils import dequantize_model, load_model, load_tokenizer

from osaurusd.imports.worker import importer
from osaurusd.imports.worker.gguf import read_header
from osaurusd.imports.worker.plan import Options, plan_conversion
from osaurusd.pool.config import find_blas, find_blas_core
from tests import starter_model

from . import blocks
from .k_quants import K_QUANTS, quantize_k
from .networks import add_value

# For matrices whose rows are not a multiple of the block size. llama.cpp takes types with fewer bits, but the weights
# of the starter model have been quantized to Q4_1 before, and a second error in all of them changes its answers.
FALLBACK = Type.Q8_0

TEXT = """Paris is the capital and largest city of France. It lies on the Seine, in the north of the country. With more
than two million residents, it is a center of finance, fashion, science and the arts. Its museums, such as the Louvre,
attract millions of visitors each year, and the Eiffel Tower has become a symbol of the whole country.

Water boils at a lower temperature on a mountain than at the sea, because the pressure of the air decreases with height.
A cook who lives in the mountains therefore has to wait longer for potatoes or rice. A pressure cooker solves the
problem: its lid keeps the steam inside, the pressure rises, and the water can become hotter than one hundred degrees.

To sort a list of numbers, compare each pair of neighbors and swap the two if the first is larger. After one pass, the
largest number is at the end. Repeat this until a pass makes no swap. The method is simple, but slow for long lists:
for twice as many numbers, it needs four times as many steps. Faster methods divide the list into two halves, sort each
of them, and merge the results.

The old woman closed the door behind her and walked down to the harbor. The boats had come back early, and the fishermen
were cleaning their nets in the sun. "Any news from my son?" she asked. There was no answer. Then the youngest of
them stood up, took off his cap, and gave her a letter that was wet from the sea."""


def measure(kind: Type, folder: Path) -> dict[str, object]:
    """Run this module with the BLAS library of workers, and return what it prints."""
    preload, core = find_blas("auto"), find_blas_core()
    environment = {"LD_PRELOAD": str(preload)} if preload else {}
    environment |= {"OPENBLAS_CORETYPE": core} if core else {}
    command = [sys.executable, "-m", __name__, kind.name, str(folder)]
    result = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, check=True)
    document: dict[str, object] = json.loads(result.stdout)
    return document


def main(kind: Type, folder: Path) -> None:
    source = starter_model.fetch()
    tensors, keys = read_source(source)
    weights = write(folder / "x.gguf", tensors, keys, kind)
    dest = folder / "model"
    dest.mkdir()
    report = importer.import_model(folder / "x.gguf", dest, lambda *_: None)
    (folder / "x.gguf").unlink()
    model, config = load_model(dest)
    model = dequantize_model(model)
    model.set_dtype(mx.float32)
    tokenizer = load_tokenizer(dest, eos_token_ids=config.get("eos_token_id"))
    imported = evaluate(model, tokenizer)
    set_weights(model, source, weights)
    document = {"error": report.worst_error if report else 0.0, "imported": imported}
    print(json.dumps(document | {"file": evaluate(model, tokenizer)}))


def read_source(source):
    """Return the tensors of the starter model as float32, and its metadata."""
    header = read_header(source)
    tensors = {}
    for name, tensor in header.tensors.items():
        data = np.frombuffer(header.read(tensor), np.uint8).reshape(*tensor.shape[:-1], -1)
        tensors[name] = blocks.decode(data, Type[tensor.type], tensor.shape)
    return tensors, dict(header.metadata.items())


def write(path, tensors, keys, kind):
    """Write a file, and return what its matrices contain."""
    writer = gguf.GGUFWriter(path, keys["general.architecture"])
    for key, value in keys.items():
        if key != "general.architecture":
            add_value(writer, key, value)
    weights = {}
    for name, values in tensors.items():
        chosen = kind if values.ndim > 1 else Type.F32
        if values.shape[-1] % gguf.GGML_QUANT_SIZES[chosen][0]:
            chosen = FALLBACK
        data = quantize_k(values, chosen) if chosen in K_QUANTS else gguf.quantize(values, chosen).view(np.uint8)
        weights[name] = blocks.decode(data, chosen, values.shape)
        writer.add_tensor(name, data, raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def set_weights(model, source, weights):
    """Give the network exactly these weights, which are those of a file."""
    exact = []
    for placement in plan_conversion(read_header(source), Options()).placements:
        (tensor,) = placement.sources
        values = weights[tensor.name]
        if placement.transform:
            values = placement.transform.rows(values)
        exact.append((placement.parameter.name, mx.array(values)))
    model.update(tree_unflatten(exact))


def evaluate(model, tokenizer):
    return {
        "perplexity": perplexity(model, tokenizer),
        "completion": complete(model, tokenizer),
        "answer": generate(model, tokenizer),
    }


def perplexity(model, tokenizer):
    tokens = mx.array([tokenizer.encode(TEXT)])
    logits = model(tokens[:, :-1])
    losses = mx.logsumexp(logits, axis=-1) - mx.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    return float(mx.exp(losses.mean()))


def complete(model, tokenizer):
    prompt = tokenizer.encode("Germany: Berlin\nItaly: Rome\nSpain: Madrid\nFrance:")
    return tokenizer.decode([int(mx.argmax(model(mx.array([prompt]))[0, -1]))])


def generate(model, tokenizer):
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True
    )
    answer = []
    for _ in range(8):
        answer.append(int(mx.argmax(model(mx.array([prompt + answer]))[0, -1])))
    return tokenizer.decode(answer)


if __name__ == "__main__":
    main(Type[sys.argv[1]], Path(sys.argv[2]))
