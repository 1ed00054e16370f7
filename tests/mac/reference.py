"""`python -m tests.mac.reference MODEL PROMPT TOKENS`: print the greedy answer of mlx_lm as a JSON string."""

import json
import sys

import mlx.core as mx
from mlx_lm import generate, load
from mlx_lm.utils import dequantize_model


def main(folder: str, prompt: str, tokens: str) -> None:
    network, tokenizer, *_ = load(folder)
    if mx.default_device() == mx.Device(mx.cpu):
        # As the daemon does on a CPU, where that is much faster.
        dequantize_model(network)
        network.set_dtype(mx.float32)
    messages = [{"role": "user", "content": prompt}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    print(json.dumps(generate(network, tokenizer, ids, max_tokens=int(tokens))))


if __name__ == "__main__":
    main(*sys.argv[1:])
