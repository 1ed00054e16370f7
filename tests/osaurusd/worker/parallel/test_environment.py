"""The environment in which MLX joins a group."""

import json
import os
from pathlib import Path

import pytest

from osaurusd.rpc import messages
from osaurusd.worker.parallel.group import environment

ADDRESSES = ["10.0.0.1:5001", "10.0.0.2:5002"]
SPEC = messages.RankSpec(rank=1, size=2, split="tensor", address="10.0.0.2")
VARIABLES = ("MLX_RANK", "MLX_HOSTFILE", "MLX_IBV_DEVICES", "MLX_JACCL_COORDINATOR")


def variables(frame):
    """Return the variables that are set while MLX joins, with the content of the file instead of its path."""
    with environment(SPEC, frame):
        found = {name: os.environ[name] for name in VARIABLES if name in os.environ}
        (file,) = (name for name in ("MLX_HOSTFILE", "MLX_IBV_DEVICES") if name in found)
        found[file] = json.loads(Path(found[file]).read_text())
    assert [] == [name for name in VARIABLES if name in os.environ]
    return found


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ([], {"MLX_HOSTFILE": [["10.0.0.1:5001"], ["10.0.0.2:5002"]]}),
        (
            ["rdma_en2", "rdma_en5"],
            {"MLX_IBV_DEVICES": [[None, "rdma_en2"], ["rdma_en5", None]], "MLX_JACCL_COORDINATOR": "10.0.0.1:5001"},
        ),
    ],
    ids=["TCP", "RDMA"],
)
def test_mlx_learns_how_the_ranks_reach_each_other(devices, expected):
    frame = messages.Connect(addresses=ADDRESSES, secret="s", epoch=1, rdma_devices=devices)

    assert {"MLX_RANK": "1", **expected} == variables(frame)
