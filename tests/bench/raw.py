"""mlx_lm without a server: `python -m tests.bench.raw MODEL` reads requests and prints rates, one per line."""

import json
import sys
from time import perf_counter
from typing import Any

from mlx_lm import load, stream_generate


def main(folder: str) -> None:
    network, tokenizer, *_ = load(folder)
    for line in sys.stdin:
        request = json.loads(line)
        print(measure_rate(network, tokenizer, request["prompt"], request["tokens"]), flush=True)


def measure_rate(network: Any, tokenizer: Any, prompt: list[int], tokens: int) -> float:
    """Return the tokens per second of greedy decoding, from the first to the last token."""
    times = [perf_counter() for _ in stream_generate(network, tokenizer, prompt, max_tokens=tokens)]
    return (len(times) - 1) / (times[-1] - times[0])


if __name__ == "__main__":
    main(sys.argv[1])
