"""mlx_lm without a server: `python -m tests.bench.raw FOLDER` answers a line of JSON with a rate, until end of file."""

import json
import sys
from time import perf_counter
from typing import Any

from mlx_lm import load, stream_generate


def main(folder: str) -> None:
    network, tokenizer, *_ = load(folder)
    for line in sys.stdin:
        order = json.loads(line)
        print(rate(network, tokenizer, order["prompt"], order["tokens"]), flush=True)


def rate(network: Any, tokenizer: Any, prompt: list[int], tokens: int) -> float:
    """Tokens a second of a greedy answer, from the first token to the last."""
    times = [perf_counter() for _ in stream_generate(network, tokenizer, prompt, max_tokens=tokens)]
    return (len(times) - 1) / (times[-1] - times[0])


if __name__ == "__main__":
    main(sys.argv[1])
