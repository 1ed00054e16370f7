"""Pairing two hosts over real connections, and attacks on it."""

import asyncio
import contextlib
import json
import socket
import ssl

import pytest

from osaurusd.errors import HostNameTaken, HostNotFound, HostUnreachable, InvalidRequest, PairingFailed
from osaurusd.hosts import codes, pairing
from osaurusd.hosts.identity import IdentityFile, fingerprint_of
from osaurusd.wire.hosts import AddHostRequest
from osaurusd.wire.residency import EventKind
from tests.streams import close

from .nodes import identity, pair, running, unpaired_client

WRONG = "0000-0000-0000-0000"


async def code_of(node):
    return (await node.hosts.offer_code()).code


def names(node):
    return [host.name for host in node.hosts.registry.all()]


async def test_both_hosts_know_each_other_afterwards(a, b):
    await pair(a, b)
    assert ["b"] == names(a)
    assert ["a"] == names(b)
    assert "a" == await a.whoami("b")
    assert "b" == await b.whoami("a")


async def test_both_hosts_report_the_pairing(a, b):
    await pair(a, b)
    for node, other in ((a, "b"), (b, "a")):
        (event,) = node.bus.history()
        assert (EventKind.HOST_PAIRED, other) == (event.kind, event.host)


async def test_pairing_that_the_other_host_cannot_save_fails_on_both(a, b):
    (b.state / "hosts.json" / "x").mkdir(parents=True)
    with pytest.raises(PairingFailed, match="the other host cannot save the pairing; its log says why"):
        await pair(a, b)
    assert [] == names(a) == names(b)


async def test_a_host_that_accepts_no_connections_can_pair_with_one_that_does(tmp_path, b):
    async with running(tmp_path / "c", None) as c:
        await c.add("b", b.url, await code_of(b), own_name="c")
        assert "c" == await c.whoami("b")
        assert "" == b.hosts.registry.get("c").url
        with pytest.raises(HostUnreachable, match=r'host "c" accepts no connections: set `distributed.listen` there'):
            await b.whoami("c")


async def test_a_host_that_listens_on_all_addresses_is_known_by_the_one_that_it_used(tmp_path, b):
    async with running(tmp_path / "c", "0.0.0.0") as c:
        await c.add("b", b.url, await code_of(b), own_name="c")
        assert f"https://127.0.0.1:{c.port}" == b.hosts.registry.get("c").url
        assert "b" == await b.whoami("c")


async def test_a_code_can_be_used_once(tmp_path, a, b):
    code = await code_of(b)
    await a.add("b", b.url, code)
    async with running(tmp_path / "c") as c:
        with pytest.raises(PairingFailed, match="the other host rejected the code: it is wrong, used or expired"):
            await c.add("b", b.url, code, own_name="c")
    assert ["a"] == names(b)


async def test_pairing_fails_while_no_code_is_offered(a, b):
    with pytest.raises(PairingFailed):
        await a.add("b", b.url, WRONG)
    assert [] == names(a) == names(b)


async def test_wrong_codes_withdraw_the_right_one(a, b):
    code = await code_of(b)
    for _ in range(codes.MAX_WRONG_PROOFS):
        with pytest.raises(PairingFailed):
            await a.add("b", b.url, WRONG)
    with pytest.raises(PairingFailed):
        await a.add("b", b.url, code)


async def test_an_expired_code_is_rejected(a, b, monkeypatch):
    monkeypatch.setattr("osaurusd.hosts.codes.CODE_SECONDS", 0.0)
    code = await code_of(b)
    with pytest.raises(PairingFailed):
        await a.add("b", b.url, code)


async def test_a_host_that_is_paired_again_replaces_its_entry(a, b):
    await pair(a, b)
    await a.hosts.remove("b")
    await a.add("studio", b.url, await code_of(b), own_name="desk")
    assert ["studio"] == names(a)
    assert ["desk"] == names(b)


async def test_a_name_of_another_host_is_refused_on_either_side(tmp_path, a, b):
    await pair(a, b)
    async with running(tmp_path / "c", "127.0.0.1") as c:
        with pytest.raises(HostNameTaken, match='a host "b" is paired already'):
            await a.add("B", c.url, await code_of(c))
        code = await code_of(b)
        with pytest.raises(HostNameTaken, match="--as") as caught:
            await c.add("b", b.url, code, own_name="A")
        assert "own_name" == caught.value.param
        # The code is not used up.
        await c.add("b", b.url, code, own_name="c")
    assert ["a", "c"] == names(b)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"url": "http://127.0.0.1"}, "url"),
        ({"code": "1234"}, "code"),
        ({"link_address": "8.8.8.8"}, "link_address"),
        ({"link_address": "studio"}, "link_address"),
    ],
)
async def test_unusable_fields_are_rejected_by_name(a, fields, param):
    with pytest.raises(InvalidRequest) as caught:
        await a.hosts.add(AddHostRequest(**{"name": "b", "url": "127.0.0.2", "code": WRONG, **fields}))
    assert param == caught.value.param


async def test_a_host_cannot_be_paired_with_itself(a):
    with pytest.raises(InvalidRequest, match="this host itself"):
        await a.add("b", a.url, await code_of(a))


async def test_a_port_that_does_not_listen_is_unreachable(a, unused_port):
    with pytest.raises(HostUnreachable, match=f"no osaurusd accepts hosts at 127.0.0.1:{unused_port}"):
        await a.add("b", f"127.0.0.1:{unused_port}", WRONG)


async def test_a_silent_server_is_unreachable(a, monkeypatch):
    monkeypatch.setattr(pairing, "PAIRING_SECONDS", 0.2)
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        pytest.raises(HostUnreachable, match=r"did not respond within 0\.2 s"),
    ):
        await a.add("b", f"127.0.0.1:{listener.getsockname()[1]}", WRONG)


async def test_a_host_without_a_listening_address_offers_no_code(tmp_path):
    async with running(tmp_path / "c", None) as c:
        with pytest.raises(InvalidRequest, match=r"set `distributed.listen`"):
            await c.hosts.offer_code()


@contextlib.asynccontextmanager
async def tls_server(identity, serve):
    """Run a server with a certificate. Yields its URL; waits for the end of its connections afterwards."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity.file)
    connections = set()

    async def serve_and_close(reader, writer):
        connections.add(asyncio.current_task())
        try:
            await serve(reader, writer)
        finally:
            await close(writer)

    async with await asyncio.start_server(serve_and_close, "127.0.0.1", 0, ssl=context) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await asyncio.gather(*connections)


@contextlib.asynccontextmanager
async def man_in_the_middle(tmp_path, target, tamper=lambda line: line):
    """Relay lines between two hosts, over TLS with an own certificate on both sides. Yields the URL and the lines."""
    lines = []

    async def relay(reader, writer):
        async with unpaired_client(target) as other:

            async def copy(source, sink):
                with contextlib.suppress(OSError, ssl.SSLError):
                    while line := await source.readline():
                        lines.append(line)
                        sink.write(tamper(line))

            tasks = [asyncio.create_task(copy(reader, other.writer)), asyncio.create_task(copy(other.reader, writer))]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()

    async with tls_server(await IdentityFile(tmp_path / "middle.pem").get(), relay) as url:
        yield url, lines


async def test_a_relay_with_its_own_certificate_cannot_pair(a, b, tmp_path):
    code = await code_of(b)
    async with man_in_the_middle(tmp_path, b) as (url, lines):
        with pytest.raises(PairingFailed):
            await a.add("b", url, code)
    assert 4 == len(lines)
    assert [] == names(a) == names(b)


async def test_a_relay_that_puts_its_certificate_into_the_claim_cannot_pair(a, b, tmp_path):
    identity = await IdentityFile(tmp_path / "middle.pem").get()

    def tamper(line):
        message = json.loads(line)
        if "certificate" in message:
            message["certificate"] = identity.certificate
        return json.dumps(message).encode() + b"\n"

    code = await code_of(b)
    async with man_in_the_middle(tmp_path, b, tamper) as (url, _):
        with pytest.raises(PairingFailed):
            await a.add("b", url, code)
    assert [] == names(a) == names(b)


async def test_a_relay_that_claims_success_is_found_out(a, b, tmp_path):
    def tamper(line):
        return b'{"proof": "%s"}\n' % (b"0" * 64) if b"name_taken" in line else line

    async with man_in_the_middle(tmp_path, b, tamper) as (url, _):
        with pytest.raises(PairingFailed, match="the other side does not know the code"):
            await a.add("b", url, await code_of(b))
    assert [] == names(a)


HELLO = {"version": 1, "nonce": "0" * 64}


@contextlib.asynccontextmanager
async def conversation(node):
    """Begin a conversation without a certificate; yield a function that returns replies, and the challenge."""
    async with unpaired_client(node) as connection:

        async def send(message):
            await connection.send(json.dumps(message).encode() + b"\n")
            return json.loads(await connection.reader.readline() or b"null")

        yield send, await send(HELLO)


def claim_for(challenge, offered, initiator):
    """The message of an initiator that knows the code."""
    transcript = codes.Transcript(
        offered.fingerprint, initiator.fingerprint, challenge["nonce"], HELLO["nonce"], name="x", endpoint=":1"
    )
    proof = transcript.proof("initiator", codes.normalize_code(offered.code))
    return {"certificate": initiator.certificate, "name": "x", "endpoint": ":1", "proof": proof}


@pytest.fixture
async def initiator(tmp_path):
    file = tmp_path / "initiator.pem"
    await asyncio.to_thread(file.write_bytes, identity("initiator"))
    return await IdentityFile(file).get()


async def test_a_recorded_conversation_cannot_be_replayed(b, initiator):
    offered = await b.hosts.offer_code()
    async with conversation(b) as (_, challenge):
        # The connection breaks before the claim is sent, so that the code is still valid.
        recorded = claim_for(challenge, offered, initiator)
    async with conversation(b) as (send, _):
        assert {"proof": None, "name_taken": False, "failed": False} == await send(recorded)
    async with conversation(b) as (send, challenge):
        result = await send(claim_for(challenge, offered, initiator))
        assert result["proof"] is not None
    assert ["x"] == names(b)


@pytest.mark.parametrize(
    "change",
    [
        {"certificate": "x"},
        {"certificate": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"},
        {"certificate": ""},
        {"name": "x y"},
        {"name": ""},
        {"name": "x" * 64},
        {"proof": "0"},
        {"proof": None},
        {"endpoint": None},
    ],
)
async def test_a_malformed_claim_ends_the_conversation(b, initiator, change):
    offered = await b.hosts.offer_code()
    async with conversation(b) as (send, challenge):
        assert await send(claim_for(challenge, offered, initiator) | change) is None
    assert [] == names(b)


async def test_two_certificates_in_one_claim_are_refused(b, initiator):
    offered = await b.hosts.offer_code()
    async with conversation(b) as (send, challenge):
        assert await send(claim_for(challenge, offered, initiator) | {"certificate": 2 * initiator.certificate}) is None
    assert [] == names(b)


async def test_unpaired_clients_cannot_tell_whether_a_code_is_offered(b):
    async with conversation(b) as (_, without):
        pass
    await b.hosts.offer_code()
    async with conversation(b) as (_, first), conversation(b) as (_, second):
        assert without.keys() == first.keys() == second.keys() == {"version", "nonce"}
        assert 3 == len({without["nonce"], first["nonce"], second["nonce"]})


def test_the_certificate_of_a_host_names_nothing(tmp_path):
    identity = asyncio.run(IdentityFile(tmp_path / "host.pem").get())
    der = ssl.PEM_cert_to_DER_cert(identity.certificate)
    assert fingerprint_of(der) == identity.fingerprint
    assert b"osaurus" not in der


async def test_another_version_of_the_protocol_is_refused(a, initiator):
    async def other_release(reader, writer):
        await reader.readline()
        writer.write(b'{"version": 2, "nonce": "%s"}\n' % (b"0" * 64))
        await reader.readline()

    async with tls_server(initiator, other_release) as url:
        with pytest.raises(PairingFailed, match="install the same release on both"):
            await a.add("b", url, WRONG)


async def test_a_host_of_another_version_gets_no_result(b):
    async with unpaired_client(b) as connection:
        await connection.send(json.dumps(HELLO | {"version": 2}).encode() + b"\n")
        assert 1 == (await connection.receive()).count(b"\n")


async def test_removing_an_unknown_host_is_an_error(a):
    with pytest.raises(HostNotFound, match=r'no host "x" is paired \(paired hosts: none\)'):
        await a.hosts.remove("x")
