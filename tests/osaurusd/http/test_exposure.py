"""What is open to other machines is known by the addresses that are bound; names follow from them."""

import collections
import ipaddress
import socket

import pytest

from osaurusd.config import Config, Server
from osaurusd.errors import ConfigError
from osaurusd.http import exposure, guard
from osaurusd.http.app import make_app
from osaurusd.http.exposure import Exposure
from osaurusd.http.keyring import Keyring

from .serve import serving

LOOPBACK = ["127.0.0.1", "::1"]


@pytest.fixture
def keyring(tmp_path):
    return Keyring(tmp_path / "keys.json")


@pytest.mark.parametrize(
    ("addresses", "exposed"),
    [
        (LOOPBACK, False),
        (["127.0.0.2"], False),
        (["::ffff:127.0.0.1"], False),
        (["0.0.0.0"], True),
        (["::"], True),
        (["192.168.1.5"], True),
        (["fe80::1%eth0"], True),
        (["fd00::1"], True),
        (["::ffff:192.168.1.5"], True),
        (["127.0.0.1", "192.168.1.5"], True),
    ],
)
def test_exposed_is_whatever_is_not_loopback(keyring, addresses, exposed):
    assert exposed == Exposure(addresses, keyring).exposed


Request = collections.namedtuple("Request", "transport")


class Transport:
    def __init__(self, peer):
        self.peer = peer

    def get_extra_info(self, name):
        return {"peername": self.peer}[name]


HERE = [("127.0.0.1", 5), ("::1", 5, 0, 0), ("::ffff:127.0.0.1", 5, 0, 0)]
ELSEWHERE = [("192.168.1.5", 5), ("fe80::1%eth0", 5, 0, 2)]


@pytest.mark.parametrize(
    ("addresses", "settings", "here", "elsewhere"),
    [
        (LOOPBACK, {}, False, False),
        (LOOPBACK, {"require_key": True}, True, True),
        (LOOPBACK, {"require_key": True, "insecure": True}, True, True),
        (LOOPBACK, {"require_key": True, "trust_loopback": True}, True, True),
        (["0.0.0.0"], {}, True, True),
        (["0.0.0.0"], {"trust_loopback": True}, False, True),
        (["0.0.0.0"], {"insecure": True}, False, False),
        (["0.0.0.0"], {"require_key": True, "insecure": True, "trust_loopback": True}, True, True),
        # What the configuration says of the address does not matter: sockets may be a service manager's.
        (["0.0.0.0"], {"host": "localhost"}, True, True),
        (LOOPBACK, {"host": "0.0.0.0"}, False, False),
    ],
)
def test_who_is_asked_for_a_key(keyring, addresses, settings, here, elsewhere):
    found, server = Exposure(addresses, keyring), Server(**settings)

    assert [here] * 3 == [found.asks(server, Request(Transport(peer))) for peer in HERE]
    assert [elsewhere] * 2 == [found.asks(server, Request(Transport(peer))) for peer in ELSEWHERE]


def test_a_client_that_is_gone_is_not_trusted(keyring):
    found, server = Exposure(["0.0.0.0"], keyring), Server(trust_loopback=True)
    assert found.asks(server, Request(None))
    assert found.asks(server, Request(Transport(None)))


@pytest.mark.parametrize(
    ("addresses", "settings", "param"),
    [
        (["0.0.0.0", "::1"], {}, "server.host"),
        (["0.0.0.0"], {"trust_loopback": True}, "server.host"),
        (LOOPBACK, {"require_key": True}, "server.require_key"),
    ],
)
def test_where_keys_are_asked_for_there_must_be_one(keyring, addresses, settings, param):
    found, server = Exposure(addresses, keyring), Server(**settings)
    with pytest.raises(ConfigError) as error:
        found.check(server)
    assert param == error.value.param
    for way_out in ("`osaurusctl key create`", "`server.host`", "`--insecure`"):
        assert way_out in error.value.message
    assert "::1" not in error.value.message

    made = keyring.create()
    found.check(server)
    assert [] == found.faults(server)
    keyring.revoke(made.id)
    assert "no API key is left" in found.faults(server)[0]


@pytest.mark.parametrize(("addresses", "settings"), [(LOOPBACK, {}), (["0.0.0.0"], {"insecure": True})])
def test_where_none_is_asked_for_none_is_needed(keyring, addresses, settings):
    found, server = Exposure(addresses, keyring), Server(**settings)
    found.check(server)
    assert [] == found.faults(server)


def test_keys_that_were_lost_are_told_where_one_is_needed(tmp_path):
    (tmp_path / "keys.json").write_text("{")
    with pytest.raises(ConfigError, match=r"keys\.damaged\.json"):
        Exposure(["0.0.0.0"], Keyring(tmp_path / "keys.json")).check(Server())


@pytest.mark.parametrize(
    ("addresses", "names"),
    [
        (LOOPBACK, set()),
        (["192.168.1.5", "127.0.0.1"], {"192.168.1.5", "127.0.0.1"}),
        (["FD00:0::1"], {"[fd00::1]"}),
        (["fe80::1%eth0"], {"[fe80::1]"}),
    ],
)
def test_bound_addresses_are_names_of_ours(keyring, addresses, names):
    assert names == Exposure(addresses, keyring).names()


Address = collections.namedtuple("Address", "family address")


@pytest.mark.parametrize(
    ("hostname", "names"),
    [("Studio", {"studio", "studio.local"}), ("studio.fritz.box", {"studio.fritz.box"})],
)
@pytest.mark.parametrize("wildcard", ["0.0.0.0", "::"])
def test_where_all_addresses_are_bound_every_one_of_the_machine_is_a_name(
    keyring, monkeypatch, wildcard, hostname, names
):
    interfaces = {
        "eth0": [
            Address(socket.AF_INET, "192.168.1.5"),
            Address(socket.AF_INET6, "fe80::1%eth0"),
            Address(socket.AF_UNIX, "00:11:22:33:44:55"),
        ]
    }
    now = [100.0]
    monkeypatch.setattr(exposure.psutil, "net_if_addrs", lambda: interfaces)
    monkeypatch.setattr(exposure.socket, "gethostname", lambda: hostname)
    monkeypatch.setattr(exposure.time, "monotonic", lambda: now[0])
    found = Exposure([wildcard], keyring)
    assert names | {"192.168.1.5", "[fe80::1]"} == found.names()

    interfaces["eth0"] = [Address(socket.AF_INET, "10.0.0.7")]
    now[0] += exposure.NAMES_SECONDS
    assert names | {"10.0.0.7"} == found.names()


async def test_a_daemon_on_all_addresses_answers_to_those_and_to_no_other_name(keyring):
    app = make_app(Config())
    server = Server(host="0.0.0.0", allowed_hosts=["studio.example"])
    guard.guard_tcp(app, lambda: server, Exposure(["0.0.0.0"], keyring).names)
    own = {name.lower() for name in (socket.gethostname(), "studio.example", "localhost", "127.0.0.1")}
    own |= {str(each) for each in own_addresses()}
    async with serving(app) as served:
        assert {404} == {(await served.ask(host=f"{name}:8080")).status for name in own}
        for name in ("0.0.0.0", "[::]", "evil.example", "192.0.2.77", f"{socket.gethostname()}.evil.example"):
            answer = await served.ask(host=name)
            assert 403 == answer.status
            assert "server.allowed_hosts" in answer.error["message"]


def own_addresses():
    """IPv4 addresses of this machine as the system's own resolver and routing know them."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Connecting a datagram socket sends nothing; it only chooses an address to send from.
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return []
        return [ipaddress.ip_address(probe.getsockname()[0])]
