"""Checks of a pair: what prevents models on both hosts, and what each host says about itself."""

import asyncio
import errno
import socket
from types import SimpleNamespace

import msgspec
import psutil
import pytest
from aiohttp import WSMsgType

from osaurusd.errors import HostNotFound, HostUnreachable, InvalidRequest
from osaurusd.hosts import check, facts, link, machine
from osaurusd.hosts.client import HostClient
from osaurusd.hosts.server import websocket
from osaurusd.wire.hosts import ControlRoute, HostFacts, ListenReply, ListenRequest
from osaurusd.wire.installation import installation
from tests.daemons import second_address

from .nodes import pair, running

pytestmark = pytest.mark.skipif(
    second_address() == "127.0.0.1", reason="the hosts need different addresses: sudo ifconfig lo0 alias 127.0.0.2"
)


@pytest.fixture(autouse=True)
def short_transfer(monkeypatch):
    """The hosts transfer little, but have time for it."""
    monkeypatch.setattr(link, "TRANSFER_BYTES", 4 * 1024 * 1024)
    monkeypatch.setattr(link, "TRANSFER_SECONDS", 60.0)
    monkeypatch.setattr(check, "SLOW_LINK_BYTES_PER_SECOND", 1)


async def check_one(node, name="b"):
    (result,) = await node.hosts.check(name)
    return result


@pytest.fixture
def change_facts(monkeypatch):
    """Changes what one host says about itself."""
    collect = facts._collect

    def change(address, **fields):
        def changed(lendable_bytes, link_address, peer_address):
            found = collect(lendable_bytes, link_address, peer_address)
            return msgspec.structs.replace(found, **fields) if link_address == address else found

        monkeypatch.setattr(facts, "_collect", changed)

    return change


async def test_hosts_that_match_have_no_problem(paired):
    a, _ = paired
    result = await check_one(a)
    assert [] == result.problems == result.warnings == result.differences
    assert ("127.0.0.1", "127.0.0.2") == (result.link_address, result.facts.link_address)
    assert 0 < result.latency_seconds < 10
    assert result.bytes_per_second > 0
    assert abs(result.clock_seconds) < 10
    assert 10**9 == result.facts.lendable_bytes
    assert psutil.virtual_memory().total == result.facts.memory_bytes
    assert {"osaurusd", "mlx", "mlx-lm"} <= result.facts.installation.packages.keys()


@pytest.fixture
def echo(monkeypatch):
    """Replaces the response to the messages that measure the latency; used before the hosts start."""

    async def respond(_self, request):
        async with websocket(request) as connection:
            await replies.respond(connection)
        return connection

    replies = SimpleNamespace(respond=None)
    monkeypatch.setattr(facts.Facts, "echo", respond)
    return replies


async def test_a_connection_that_ends_while_the_latency_is_measured_is_a_problem(echo, paired):
    async def respond(connection):
        await connection.send_bytes(await connection.receive_bytes())

    echo.respond = respond
    assert ['host "b" closed the connection that measures the latency'] == (await check_one(paired[0])).problems


async def test_a_host_that_returns_no_messages_is_a_problem(echo, paired, monkeypatch):
    async def respond(connection):
        while (await connection.receive()).type is WSMsgType.BINARY:
            pass

    echo.respond = respond
    monkeypatch.setattr(check, "LATENCY_SECONDS", 0.3)
    (problem,) = (await check_one(paired[0])).problems
    assert problem.startswith('host "b" did not return 20 messages within 0.3 s; check its daemon')


async def test_a_host_that_is_removed_while_a_connection_is_prepared_gets_none(paired, monkeypatch):
    a, _ = paired
    host, identity = a.hosts.registry.get("b"), await a.hosts.identity.get()

    async def remove():
        await a.hosts.registry.remove("b")
        return identity

    client = HostClient(a.hosts.identity, a.hosts.registry)
    monkeypatch.setattr(a.hosts.identity, "get", remove)
    with pytest.raises(HostUnreachable, match='host "b" is no longer paired'):
        await client.fetch(host, ControlRoute.FACTS, HostFacts)


async def test_a_host_that_lends_nothing_is_a_problem(paired):
    _, b = paired
    result = await check_one(b, "a")
    assert ['a lends no memory; run "osaurusctl config set distributed.lend_bytes BYTES" there'] == result.problems


@pytest.mark.parametrize("package", ["osaurusd", "mlx", "mlx-lm"])
@pytest.mark.parametrize("version", ["0.1", None])
async def test_versions_that_differ_are_a_problem(paired, change_facts, package, version):
    a, _ = paired
    installed = await asyncio.to_thread(installation)
    packages = {**installed.packages, package: version} if version else {**installed.packages}
    if version is None:
        del packages[package]
    change_facts("127.0.0.2", installation=msgspec.structs.replace(installed, packages=packages))
    result = await check_one(a)
    (problem,) = result.problems
    assert f"{package} differs" in problem
    assert f"{version or 'not installed'} there" in problem
    assert [(package, version)] == [(each.name, each.there) for each in result.differences]


async def test_another_system_or_python_is_shown_but_no_problem(paired, change_facts):
    a, _ = paired
    installed = msgspec.structs.replace(await asyncio.to_thread(installation), python="3.99.0")
    change_facts("127.0.0.2", system="Other 1.0", installation=installed)
    result = await check_one(a)
    assert [] == result.problems
    assert ["Python", "system"] == [each.name for each in result.differences]


async def test_clocks_and_processors_that_differ_are_warnings(paired, change_facts):
    a, _ = paired
    change_facts("127.0.0.2", time=0.0, chip="Other")
    result = await check_one(a)
    assert [] == result.problems
    assert 2 == len(result.warnings)
    assert "the clocks differ by" in result.warnings[0]


async def test_a_slow_link_is_a_warning(paired, monkeypatch):
    a, _ = paired
    monkeypatch.setattr(check, "SLOW_LINK_BYTES_PER_SECOND", 10**15)
    assert ["slower than gigabit" in warning for warning in (await check_one(a)).warnings] == [True]


async def test_a_public_link_address_is_a_problem(paired, change_facts):
    a, _ = paired
    change_facts("127.0.0.2", link_address="8.8.8.8")
    result = await check_one(a)
    assert any("the link address of b is unusable: 8.8.8.8 is a public address" in each for each in result.problems)
    assert result.bytes_per_second is None
    assert "8.8.8.8 is a public address" in (await a.hosts.diagnose()).unusable_links["b"]


async def test_a_link_address_that_the_other_host_does_not_have_is_a_problem(tmp_path, a, b):
    await a.add("b", b.url, (await b.hosts.offer_code()).code, link_address="10.255.255.1")
    result = await check_one(a)
    assert 2 == len(result.problems)
    assert all("no connection" in problem and "10.255.255.1" in problem for problem in result.problems)


async def test_an_own_link_address_that_does_not_exist_is_a_problem(tmp_path, b):
    async with running(tmp_path / "c", link_address="10.255.255.1") as c:
        await pair(c, b)
        assert any("no connection from 127.0.0.2 (b) to 10.255.255.1" in each for each in (await check_one(c)).problems)


async def test_a_port_that_nothing_can_reach_is_a_problem(paired, monkeypatch):
    a, _ = paired

    async def refuse(*_):
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(link, "receive", refuse)
    result = await check_one(a)
    assert [
        "no connection from 127.0.0.1 to 127.0.0.2 (b): Connection refused",
        "no connection from 127.0.0.2 (b) to 127.0.0.1: Connection refused",
    ] == result.problems


async def test_rdma_is_required_for_jaccl(tmp_path, b, change_facts):
    async with running(tmp_path / "c", backend="jaccl") as c:
        await pair(c, b)
        change_facts("127.0.0.2", system="macOS 26.3 (25D1)", rdma="disabled")
        problems = (await check_one(c)).problems
        assert any("RDMA is disabled on the other host" in each for each in problems)
        assert any("the systems differ" in each for each in problems)


async def test_a_host_that_does_not_run_is_a_problem(tmp_path, a):
    async with running(tmp_path / "c", "127.0.0.1") as c:
        await pair(a, c)
    result = await check_one(a)
    assert result.facts is None
    assert ["cannot be reached" in problem for problem in result.problems] == [True]


async def test_all_hosts_are_checked_without_a_name(paired, tmp_path):
    a, _ = paired
    assert ["b"] == [each.name for each in await a.hosts.check(None)]
    with pytest.raises(HostNotFound):
        await a.hosts.check("x")


async def test_a_host_that_others_cannot_reach_is_warned(tmp_path, b):
    async with running(tmp_path / "c", None) as c:
        await c.add("b", b.url, (await b.hosts.offer_code()).code, own_name="c")
        assert any("`distributed.listen` is not set here" in warning for warning in (await check_one(c)).warnings)


async def request_probe(node, request):
    client: HostClient = node.hosts.client
    return await client.fetch(node.hosts.registry.get("b"), ControlRoute.LISTEN, ListenReply, json=request)


@pytest.mark.parametrize("fields", [{"connect_to": "8.8.8.8:53"}, {"connect_to": "x"}, {"address": "0.0.0.0"}])
async def test_a_paired_host_cannot_have_another_connect_elsewhere(paired, fields):
    a, _ = paired
    with pytest.raises(InvalidRequest):
        await request_probe(a, ListenRequest(**fields))


async def test_a_probe_port_accepts_one_connection(paired):
    a, _ = paired
    reply = await request_probe(a, ListenRequest())
    assert await link.receive("127.0.0.1", "127.0.0.2", reply.port) > 0
    with pytest.raises(ConnectionRefusedError):
        await link.receive("127.0.0.1", "127.0.0.2", reply.port)


async def test_a_probe_port_is_closed_when_nothing_connects(monkeypatch):
    monkeypatch.setattr(link, "LISTEN_SECONDS", 0.0)
    probe = await link.LinkProbe.open("127.0.0.1")
    await asyncio.sleep(0.01)
    with pytest.raises(ConnectionRefusedError):
        await link.receive("127.0.0.1", "127.0.0.1", probe.port)


async def test_facts_name_the_addresses_of_the_connection(paired):
    a, _ = paired
    found = await a.hosts.client.fetch(a.hosts.registry.get("b"), ControlRoute.FACTS, HostFacts)
    assert ("127.0.0.2", "127.0.0.1") == (found.link_address, found.peer_address)


async def test_the_diagnosis_shows_which_hosts_respond(tmp_path, paired):
    a, _ = paired
    async with running(tmp_path / "c", "127.0.0.1") as c:
        await a.add("c", c.url, (await c.hosts.offer_code()).code)
    async with running(tmp_path / "d", None) as d:
        # It cannot be asked, which is no problem.
        await d.add("a", a.url, (await a.hosts.offer_code()).code, own_name="d")
    diagnosis = await a.hosts.diagnose()
    assert 2 == diagnosis.hosts
    assert ["c"] == list(diagnosis.unreachable)
    assert a.hosts.endpoints == diagnosis.endpoints
    assert diagnosis.fault is None


async def test_an_address_that_is_in_use_is_a_fault_until_it_is_free(tmp_path, monkeypatch):
    monkeypatch.setattr("osaurusd.hosts.service.retry_delays", lambda: iter([0.01] * 1000))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        node = running(tmp_path / "c", "127.0.0.1", port=port)
        async with node as c:
            assert [] == c.hosts.endpoints
            (fault,) = c.hosts.faults
            assert f"`distributed.listen`: cannot listen on 127.0.0.1:{port}: " in fault
            assert fault == (await c.hosts.diagnose()).fault
            taken.close()
            await c.started()
            assert [f"127.0.0.1:{port}"] == c.hosts.endpoints
            assert [] == list(c.hosts.faults)


@pytest.mark.parametrize(
    ("host_name", "expected"),
    [("studio.local", "studio"), ("Ann's Mac", "Ann-s-Mac"), ("-", "host"), ("x" * 70, "x" * 63)],
)
def test_the_name_of_the_machine_becomes_a_valid_name(monkeypatch, host_name, expected):
    monkeypatch.setattr(socket, "gethostname", lambda: host_name)
    assert expected == machine.own_name()


def test_rdma_devices_are_read_from_the_table():
    output = (
        "    device          \t   node GUID\n    ------          \t----------------\n    rdma_en2  \t8c8590fffe1\n\n"
    )
    assert ["rdma_en2"] == machine.parse_ibv_devices(output)
    assert [] == machine.parse_ibv_devices("")


@pytest.mark.parametrize(("platform", "mentioned"), [("darwin", True), ("linux", False)])
def test_unreachable_host_may_lack_a_permission_on_macos(monkeypatch, platform, mentioned):
    monkeypatch.setattr("sys.platform", platform)
    reason = link.describe(OSError(errno.EHOSTUNREACH, "No route to host"))
    assert reason.startswith("No route to host")
    assert ("Local Network" in reason) == mentioned


def test_rdma_devices_of_linux_are_listed(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(machine, "_INFINIBAND", tmp_path / "infiniband")
    assert ("unavailable", []) == machine.rdma()
    (tmp_path / "infiniband" / "mlx5_0").mkdir(parents=True)
    assert ("enabled", ["mlx5_0"]) == machine.rdma()
