"""`make soak-distributed`: run models on three hosts while hosts, links and ranks fail, and check every token.

Progress goes to standard error, the report as JSON to standard output. The exit code is 1 if a check fails.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
from pathlib import Path

from tests import starter_model
from tests.distributed.cluster import running_cluster
from tests.distributed.models import make_models
from tests.models import make_tokenizer
from tests.soak.distributed import run
from tests.soak.distributed.faults import TIMEOUTS

DEFAULT_MINUTES = 10.0


def main() -> None:
    options = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    seed = random.randrange(10**6) if options.seed is None else options.seed
    run.print_progress(f"seed {seed}")
    with tempfile.TemporaryDirectory() as folder, running_cluster("a", "b", "c", **TIMEOUTS) as cluster:
        tokenizer = create_tokenizer(Path(folder))
        make_models(cluster.leader.home / "models", tokenizer, *run.SPLITS)
        evidence = run.Soak(cluster, seed).run(options.minutes * 60)
    report = run.build_report(evidence, options.minutes * 60)
    print(json.dumps(report, indent=2))
    sys.exit(1 if report["problems"] else 0)


def create_tokenizer(folder: Path) -> Path:
    from osaurusd.imports.worker.importer import import_model  # noqa: PLC0415  imports MLX, which `--help` does not need

    (folder / "smollm").mkdir()
    import_model(starter_model.fetch(), folder / "smollm", lambda *_: None)
    return make_tokenizer(folder / "tokenizer", folder / "smollm")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.distributed", description=__doc__)
    parser.add_argument("--minutes", type=float, default=DEFAULT_MINUTES)
    parser.add_argument("--seed", type=int, help="repeat the random choices of a run, as far as timing allows")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
