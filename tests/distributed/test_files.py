"""The files of a divided model: a host gets those with its layers from the leader, and loads them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.hosts import CommandFailed, Host, connected_hosts
from tests.distributed.models import PIPELINE, complete, connect, make_models

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

FILES = [f"model-{number:05}-of-00004.safetensors" for number in range(1, 5)]
"""The embeddings, and each of three layers."""

PROMPT = "amber basin copper"


@pytest.fixture(scope="module")
def hosts(tiny_tokenizer: Path) -> Iterator[list[Host]]:
    """A leader with a model in several files, and a paired host without it."""
    with connected_hosts("a", "b") as (leader, follower):
        make_models(leader.home / "models", tiny_tokenizer, PIPELINE)
        divide_files(leader.home / "models" / PIPELINE)
        for host in (leader, follower):
            host.start()
        code = follower.ctl("host", "code")["code"]
        own = ("--link-address", follower.node.address, "--as", leader.name)
        leader.ctl("host", "add", follower.name, f"https://{follower.node.control}", *own, text=f"{code}\n")
        yield [leader, follower]


def divide_files(folder: Path) -> None:
    """Divide the weights of a model into a file for the embeddings, and one for each layer."""
    import mlx.core as mx  # noqa: PLC0415  most tests do not need it

    weights = mx.load(str(folder / "model.safetensors"))
    parts: dict[int, dict[str, mx.array]] = {}
    for name, weight in weights.items():
        layer = re.search(r"layers\.(\d+)\.", name)
        parts.setdefault(int(layer[1]) + 1 if layer else 0, {})[name] = weight
    for number, part in parts.items():
        mx.save_safetensors(str(folder / FILES[number]), part, metadata={"format": "mlx"})
    weight_map = {name: FILES[number] for number, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "model.safetensors").unlink()


def answer(host: Host) -> str:
    with connect(host.url) as client:
        content: str = complete(client, PIPELINE, PROMPT).message.content
        return content


def test_host_copies_the_files_with_its_layers_and_computes_with_them(hosts: list[Host]) -> None:
    leader, follower = hosts
    expected = answer(leader)
    leader.ctl("unload", PIPELINE)

    leader.ctl("load", PIPELINE, "--hosts", follower.name)
    assert expected == answer(leader)
    placement = leader.ctl("show", PIPELINE)["placement"]
    assert ("pipeline", [1, 2], [0, 0]) == (placement["chosen"], *(rank["layers"] for rank in placement["ranks"]))
    assert FILES[:2] == sorted(path.name for path in (follower.home / "models" / PIPELINE).glob("*.safetensors"))
    (copy,) = follower.ctl("ls")
    assert ("partial", True) == (copy["state"], "cannot be loaded on its own" in copy["reason"])
    with pytest.raises(CommandFailed, match=r"runs here for host .* unload it there first"):
        follower.ctl("rm", PIPELINE, "--yes")
    (*_, verified) = follower.ctl("verify", PIPELINE)
    assert {"intact"} == {file["state"] for file in verified["files"]}

    with pytest.raises(CommandFailed, match="is loaded in another way"):
        leader.ctl("load", PIPELINE, "--hosts", follower.name, "--split", "tensor")
    leader.ctl("unload", PIPELINE)
    leader.ctl("load", PIPELINE, "--hosts", follower.name, "--split", "tensor")
    assert expected == answer(leader)
    assert "available" == follower.ctl("ls")[0]["state"]
    leader.ctl("unload", PIPELINE)
    follower.ctl("rm", PIPELINE, "--yes")
    assert [] == follower.ctl("ls")


@pytest.mark.parametrize(
    ("hosts_option", "code", "message"),
    [("b,b", 1, "names a host twice"), ("c", 1, 'no host "c" is paired'), ("b,c", 1, 'no host "c" is paired')],
)
def test_impossible_hosts_are_refused_before_anything_starts(
    hosts: list[Host], hosts_option: str, code: int, message: str
) -> None:
    leader, follower = hosts
    with pytest.raises(CommandFailed, match=message) as failure:
        leader.ctl("load", PIPELINE, "--hosts", hosts_option)
    assert code == failure.value.code
    assert [] == leader.ranks() + follower.ranks()
