"""`make soak-distributed`: run models on three hosts while hosts, links and ranks fail, and check every token.

Progress goes to standard error, the report as JSON to standard output. The exit code is 1 if a check fails.
"""

import json
import sys
import tempfile
from pathlib import Path

from tests import starter_model
from tests.distributed.cluster import running_cluster
from tests.models import make_tokenizer
from tests.soak import command
from tests.soak.distributed import run
from tests.soak.distributed.faults import TIMEOUTS


def main() -> None:
    options = command.start(command.create_parser("tests.soak.distributed", __doc__))
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = create_tokenizer(Path(folder))
        with running_cluster("a", "b", "c", tokenizer=tokenizer, models=list(run.SPLITS), **TIMEOUTS) as cluster:
            evidence = run.Soak(cluster, options.seed).run(options.minutes * 60)
    report = run.build_report(evidence, options.minutes * 60)
    print(json.dumps(report, indent=2))
    sys.exit(1 if report["problems"] else 0)


def create_tokenizer(folder: Path) -> Path:
    from osaurusd.imports.worker.importer import import_model  # noqa: PLC0415  imports MLX, which `--help` does not need

    (folder / "smollm").mkdir()
    import_model(starter_model.fetch(), folder / "smollm", lambda *_: None)
    return make_tokenizer(folder / "tokenizer", folder / "smollm")


if __name__ == "__main__":
    command.run(main)
