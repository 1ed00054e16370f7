"""Two paired hosts: facts, plans and files over connections with mutual TLS."""

import contextlib
from dataclasses import dataclass, field

import msgspec
import pytest

from osaurusd.config import Config, Worker
from osaurusd.config.distributed import Distributed, DistributedModel
from osaurusd.errors import (
    Forbidden,
    HostNotFound,
    HostUnreachable,
    InsufficientMemory,
    InvalidRequest,
    LoadFailed,
    ModelNotFound,
    VersionMismatch,
)
from osaurusd.events import EventBus
from osaurusd.groups.distribution import Distribution
from osaurusd.groups.file_service import FileService
from osaurusd.groups.files import ModelFiles
from osaurusd.hosts.service import Hosts
from osaurusd.rpc import messages
from osaurusd.wire.hosts import AddHostRequest, ControlRoute, HostFacts
from tests.daemons import second_address
from tests.osaurusd.groups.conftest import LAYERS, HostDisk, divided_model, weights
from tests.osaurusd.models import disk

MEMORY = 64 * 10**9
CONFIG = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64}


@dataclass
class Machine:
    """One host.

    Attributes:
        lends: its memory for others.
        members: the hosts that run its models.
        facts: changes what it states about itself.
    """

    disk: HostDisk
    config: Config
    hosts: Hosts = None
    lends: int = MEMORY
    members: tuple = ("a", "b")
    facts: dict = field(default_factory=dict)

    def set(self, **distributed):
        changed = msgspec.structs.replace(self.config.distributed, **distributed)
        self.config = msgspec.structs.replace(self.config, distributed=changed)


@contextlib.asynccontextmanager
async def running(root, listen):
    machine = Machine(HostDisk(root), Config(distributed=Distributed(listen=listen), worker=Worker(dequantize="never")))
    (root / "state").mkdir()
    hosts = Hosts(root / "state", lambda: machine.config, EventBus(), lambda: machine.lends)
    machine.hosts = hosts
    service = FileService(machine.disk.catalog, machine.disk.manifests, lambda _, host: host in machine.members)
    await hosts.start(service.routes)
    try:
        yield machine
    finally:
        await hosts.close()


@pytest.fixture
async def pair(tmp_path):
    """Two hosts, `a` and `b`; `a` has a model of which `b` has nothing."""
    async with running(tmp_path / "a", "127.0.0.1:0") as a, running(tmp_path / "b", f"{second_address()}:0") as b:
        files = divided_model() | {"config.json": disk.config(**CONFIG | {"model_type": "qwen2"})}
        disk.write(a.disk.models / "m", files)
        code = await b.hosts.offer_code()
        await a.hosts.add(AddHostRequest(name="b", url=code.urls[0], code=code.code, own_name="a"))
        yield a, b


@pytest.fixture
def distribution(pair):
    """Where the models of `a` run."""
    a, b = pair

    async def ask(host):
        stated = await a.hosts.client.fetch(host, ControlRoute.FACTS, HostFacts)
        return msgspec.structs.replace(stated, **b.facts)

    return Distribution(
        lambda: a.config, a.disk.catalog, a.hosts.registry, a.disk.manifests, ask=ask, describe=a.hosts.facts.collect
    )


async def find(machine, name="m"):
    return await machine.disk.catalog.find(name)


async def test_files_are_copied_over_the_encrypted_connection(pair):
    a, b = pair
    files = ModelFiles(b.disk.catalog, b.disk.manifests, lambda: b.disk.options, b.hosts.identity)
    manifest = await a.disk.manifest()
    folder = await files.ensure(manifest, b.hosts.registry.get("a"), range(1), lambda *_: None)

    copied = {path.name for path in folder.iterdir()}
    assert {LAYERS[0], LAYERS[1]} == copied & set(LAYERS)
    assert weights("model.layers.0.", seed=2) == (folder / LAYERS[1]).read_bytes()


async def test_host_that_runs_no_part_of_the_model_gets_no_files(pair, distribution):
    a, b = pair
    a.members = ()
    files = ModelFiles(b.disk.catalog, b.disk.manifests, lambda: b.disk.options, b.hosts.identity)
    with pytest.raises(Forbidden, match='status 403: model "m" is not distributed to this host'):
        await files.ensure(await a.disk.manifest(), b.hosts.registry.get("a"), None, lambda *_: None)

    record = await find(a)
    assert not distribution.includes(record, "b")
    a.set(models={"m": DistributedModel(hosts=["B"])})
    assert distribution.includes(record, "b")
    assert not distribution.includes(record, "c")


async def test_host_that_was_removed_gets_no_files(pair):
    a, b = pair
    leader = b.hosts.registry.get("a")
    await a.hosts.remove("b")
    b.disk.options = msgspec.structs.replace(b.disk.options, retry_seconds=0)
    files = ModelFiles(b.disk.catalog, b.disk.manifests, lambda: b.disk.options, b.hosts.identity)
    with pytest.raises(Exception, match="no data for"):
        await files.ensure(await a.disk.manifest(), leader, None, lambda *_: None)

    assert [] == [path for path in b.disk.models.iterdir() if not path.name.startswith(".")]


async def test_leader_that_does_not_listen_is_an_error_that_says_what_to_set(pair):
    a, b = pair
    files = ModelFiles(b.disk.catalog, b.disk.manifests, lambda: b.disk.options, b.hosts.identity)
    leader = msgspec.structs.replace(b.hosts.registry.get("a"), url="")
    with pytest.raises(LoadFailed, match=r'host "a" accepts no connections.*`distributed\.listen`'):
        await files.ensure(await a.disk.manifest(), leader, None, lambda *_: None)


async def test_request_plans_with_the_facts_of_both_hosts(pair, distribution):
    a, _ = pair
    record = await find(a)
    await distribution.request(record, ["b"], None, MEMORY)

    info = distribution.info(record)
    assert (["b"], "auto", "pipeline") == (info.hosts, info.split, info.chosen)
    assert [(1, 1), (0, 0)] == [rank.layers for rank in info.ranks]
    assert info.ranks[0].needs_bytes == distribution.estimate_bytes(record)
    placement = await distribution.plan_load(messages.Load(path="", memory_limit_bytes=MEMORY), record.repo)
    assert (1, 1) == placement.layer_counts
    assert (await distribution.build(record.repo)).digest == (await a.disk.manifest()).digest


async def test_request_overrides_the_configuration_until_it_is_forgotten(pair, distribution):
    a, _ = pair
    a.set(models={"M": DistributedModel(hosts=["b"], split="tensor")})
    record = await find(a)
    assert (("b",), "tensor") == (distribution.find_request(record).hosts, distribution.find_request(record).split)
    assert distribution.is_placed(record, ["b"], None)

    await distribution.request(record, ["b"], "pipeline", MEMORY)
    assert "pipeline" == distribution.find_request(record).split
    assert not distribution.is_placed(record, ["b"], "tensor")
    await distribution.request(record, [], None, MEMORY)
    assert distribution.find_request(record) is None
    assert distribution.info(record) is None
    assert distribution.estimate_bytes(record) is None
    assert await distribution.plan_load(messages.Load(path=""), record.repo) is None
    distribution.forget(record.repo)
    assert "tensor" == distribution.find_request(record).split


async def test_plan_does_not_outlive_a_change_of_the_configuration(pair, distribution):
    a, _ = pair
    a.set(models={"m": DistributedModel(hosts=["b"], split="tensor")})
    record = await find(a)
    await distribution.plan_load(messages.Load(path=""), "m")
    assert "tensor" == distribution.info(record).chosen

    a.set(models={"m": DistributedModel(hosts=["b"], split="pipeline")})
    assert distribution.info(record).chosen is None


async def test_estimate_before_the_first_plan_is_an_even_share(pair, distribution):
    a, _ = pair
    record = await find(a)
    a.set(models={"m": DistributedModel(hosts=["b"])})

    whole = record.memory.weights_bytes + record.memory.cache_bytes_per_token * 2048
    assert 0 < distribution.estimate_bytes(record) < 0.6 * whole
    assert (["b"], None) == (distribution.info(record).hosts, distribution.info(record).chosen)


async def test_other_model_of_the_host_is_not_distributed(pair, distribution):
    a, _ = pair
    disk.write(a.disk.models / "other", divided_model())
    a.set(models={"m": DistributedModel(hosts=["b"])})
    await a.disk.catalog.refresh()

    assert distribution.find_request(await find(a, "other")) is None
    with pytest.raises(ModelNotFound):
        await distribution.plan_load(messages.Load(path=""), "gone")


@pytest.mark.parametrize(
    ("hosts", "split", "changes", "error", "param", "message"),
    [
        (["c"], None, {}, HostNotFound, "hosts", '"c"'),
        (["b", "b"], None, {}, InvalidRequest, "hosts", "names a host twice"),
        ([], "tensor", {}, InvalidRequest, "split", "`split` requires `hosts`"),
        (["b"], None, {"lendable_bytes": 0}, InsufficientMemory, "hosts", 'host "b" needs'),
        (["b"], None, {"link_address": "8.8.8.8"}, InvalidRequest, "hosts", "not a private address"),
        (["b"], None, {"backend": "jaccl"}, InvalidRequest, "hosts", "the same `distributed.backend`"),
    ],
)
async def test_impossible_request_is_refused_and_changes_nothing(
    pair, distribution, hosts, split, changes, error, param, message
):
    a, b = pair
    b.facts = changes
    record = await find(a)
    with pytest.raises(error) as refusal:
        await distribution.request(record, hosts, split, MEMORY)

    assert (param, True) == (refusal.value.param, message in refusal.value.message)
    assert distribution.find_request(record) is None


async def test_other_version_on_a_host_is_refused(pair, distribution):
    a, b = pair
    own = await a.hosts.facts.collect("127.0.0.1", second_address())
    packages = own.installation.packages | {"mlx": "0.1"}
    b.facts = {"installation": msgspec.structs.replace(own.installation, packages=packages)}
    with pytest.raises(VersionMismatch, match=r'host "b" has mlx 0\.1'):
        await distribution.request(await find(a), ["b"], None, MEMORY)


async def test_configured_model_that_cannot_be_divided_names_the_key_to_the_user_and_blames_no_request(
    pair, distribution
):
    a, _ = pair
    a.set(models={"m": DistributedModel(hosts=["c"])})
    with pytest.raises(LoadFailed, match=r'`distributed\.models\."m"`: .*"c"'):
        await distribution.plan_load(messages.Load(path=""), "m")


async def test_host_that_is_gone_is_named(pair, distribution):
    a, b = pair
    await b.hosts.close()
    with pytest.raises(HostUnreachable, match='"b"'):
        await distribution.request(await find(a), ["b"], None, MEMORY)
