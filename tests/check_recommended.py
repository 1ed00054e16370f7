"""`make check-recommended`: compare the recommended models with the hub. Needs the network; not part of the tests.

Checks that each repository exists without a token, that its files make up a model which mlx_lm can load, that its
architecture is the one in the list, and that its weights have the listed size.
"""

import json
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import hf_hub_download

from osaurusctl.formatting import format_table
from osaurusctl.recommended import CHECKED, MODELS, RecommendedModel
from osaurusd.downloads.worker import hub, selection
from osaurusd.downloads.worker.errors import PullError
from osaurusd.wire.sizes import format_bytes

# The list has sizes with one decimal, in GB.
ROUNDING_BYTES = 60_000_000


def find_problem(model: RecommendedModel, cache: str) -> str | None:
    """Return what is wrong with an entry of the list; None if nothing is."""
    try:
        listing = hub.list_files(model.repo, "main")
        files = selection.select_files(listing)
        config_file = hf_hub_download(
            model.repo, selection.CONFIG, revision=listing.commit, cache_dir=cache, token=False
        )
    except PullError as error:
        return error.message
    config = json.loads(Path(config_file).read_bytes())
    if config.get("model_type") != model.architecture:
        return f"the architecture is {config.get('model_type')}, not {model.architecture}"
    size = sum(file.size for file in files if file.name.endswith(".safetensors"))
    if abs(size - model.bytes) > ROUNDING_BYTES:
        return f"the weights have {format_bytes(size)}, not {format_bytes(model.bytes)}"
    return None


def main(models: Iterable[RecommendedModel] = MODELS) -> int:
    """Print a table with the result of each model. Return 1 if the list has to be corrected."""
    with tempfile.TemporaryDirectory() as cache:
        problems = {model.repo: find_problem(model, cache) for model in models}
    rows = [("REPO", "RESULT"), *((repo, problem or "ok") for repo, problem in problems.items())]
    failed = sum(problem is not None for problem in problems.values())
    sys.stdout.write(f"{format_table(rows)}\n\n")
    if failed:
        sys.stdout.write(f"{failed} of {len(problems)} entries in osaurusctl/recommended.py are wrong\n")
        return 1
    sys.stdout.write(f"the list of {CHECKED} is correct; set CHECKED in osaurusctl/recommended.py\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
