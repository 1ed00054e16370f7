"""The identity of a host, its file, and its registry of other hosts."""

import asyncio
import shutil
import stat
import subprocess
import sys

import msgspec
import pytest

from osaurusd.errors import HostNameTaken, HostNotFound, InternalError
from osaurusd.hosts.identity import IdentityFile, fingerprint_of_pem
from osaurusd.hosts.registry import Host, HostRegistry

from .nodes import pair, running


def load(file):
    return asyncio.run(IdentityFile(file).get())


def test_an_identity_is_created_once(tmp_path):
    file = tmp_path / "host.pem"
    assert load(file) == load(file)
    assert load(file).fingerprint != load(tmp_path / "other.pem").fingerprint


def test_only_the_owner_can_read_it(tmp_path):
    file = tmp_path / "host.pem"
    load(file)
    assert 0o600 == stat.S_IMODE(file.stat().st_mode)
    file.chmod(0o644)
    load(file)
    assert 0o600 == stat.S_IMODE(file.stat().st_mode)


@pytest.mark.parametrize("damage", [lambda text: "", lambda text: text[: len(text) // 2], lambda text: text[200:]])
def test_a_damaged_identity_is_not_replaced(tmp_path, damage):
    file = tmp_path / "host.pem"
    load(file)
    damaged = damage(file.read_text())
    file.write_text(damaged)
    with pytest.raises(InternalError, match="Restore the file, or remove it"):
        load(file)
    assert damaged == file.read_text()


def test_the_library_for_certificates_stays_out_of_the_daemon(tmp_path):
    program = (
        "import asyncio, pathlib, sys; from osaurusd.hosts.service import Hosts; "
        "from osaurusd.hosts.identity import IdentityFile; "
        f"asyncio.run(IdentityFile(pathlib.Path({str(tmp_path)!r}) / 'host.pem').get()); "
        "print([name for name in sys.modules if name.partition('.')[0] == 'cryptography'])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "[]" == result.stdout.splitlines()[-1]
    assert (tmp_path / "host.pem").exists()


def test_a_failure_to_create_an_identity_is_explained(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(InternalError, match="it could not be created"):
        load(tmp_path / "host.pem")
    assert not (tmp_path / "host.pem").exists()


@pytest.mark.parametrize("text", ["", "x", "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"])
def test_text_that_is_no_certificate_has_no_fingerprint(text):
    with pytest.raises(ValueError, match="PEM certificate"):
        fingerprint_of_pem(text)


def host(name, fingerprint, **fields):
    return Host(name=name, url="https://10.0.0.1:1", certificate="x", fingerprint=fingerprint, added_at=1.0, **fields)


async def test_hosts_are_found_by_name_and_by_fingerprint(tmp_path):
    registry = HostRegistry(tmp_path / "hosts.json")
    await registry.add(host("Studio", "1"))
    await registry.add(host("mini", "2", link_address="10.1.0.2"))
    assert ["Studio", "mini"] == [each.name for each in registry.all()]
    assert "1" == registry.get("studio").fingerprint
    assert "mini" == registry.by_fingerprint("2").name
    assert registry.by_fingerprint("3") is None
    with pytest.raises(HostNotFound, match=r'no host "max" is paired \(paired hosts: Studio, mini\)'):
        registry.get("max")


async def test_names_are_unique_regardless_of_case(tmp_path):
    registry = HostRegistry(tmp_path / "hosts.json")
    await registry.add(host("Studio", "1"))
    with pytest.raises(HostNameTaken, match="host rm Studio"):
        await registry.add(host("studio", "2"))
    await registry.add(host("studio", "1"))
    assert ["studio"] == [each.name for each in registry.all()]


async def test_hosts_survive_a_restart(tmp_path):
    file = tmp_path / "hosts.json"
    registry = HostRegistry(file)
    await registry.add(host("a", "1"))
    await registry.add(host("b", "2"))
    await registry.remove("A")
    assert [host("b", "2")] == HostRegistry(file).all()
    assert 0o600 == stat.S_IMODE(file.stat().st_mode)


@pytest.mark.parametrize(
    "content", ["", "{", '{"version": 2, "hosts": []}', '{"version": 1, "hosts": [{"name": "a b"}]}', "[]"]
)
def test_a_damaged_file_is_moved_aside_and_no_host_is_trusted(tmp_path, content):
    file = tmp_path / "hosts.json"
    file.write_text(content)
    registry = HostRegistry(file)
    assert [] == registry.all()
    assert "hosts.json was unusable and has been moved to hosts.damaged.json" in registry.fault
    assert content == (tmp_path / "hosts.damaged.json").read_text()


async def test_a_host_that_cannot_be_saved_is_not_added(tmp_path):
    registry = HostRegistry(tmp_path / "file" / "hosts.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(InternalError, match="cannot add the host"):
        await registry.add(host("a", "1"))
    assert [] == registry.all()


async def test_a_host_is_removed_even_if_that_cannot_be_saved(tmp_path):
    (tmp_path / "state").mkdir()
    registry = HostRegistry(tmp_path / "state" / "hosts.json")
    await registry.add(host("a", "1"))
    for file in (tmp_path / "state").iterdir():
        file.unlink()
    (tmp_path / "state").rmdir()
    (tmp_path / "state").write_text("")
    with pytest.raises(InternalError, match="removed until the daemon restarts"):
        await registry.remove("a")
    assert [] == registry.all()


async def test_without_settings_and_hosts_there_is_no_identity_and_no_port(tmp_path):
    async with running(tmp_path / "c", None, has_identity=False) as c:
        assert [] == c.hosts.endpoints
        assert [] == list(c.hosts.faults)
        assert [] == list(c.state.iterdir())


async def test_paired_hosts_know_each_other_after_a_restart(tmp_path, b):
    async with running(tmp_path / "c", "127.0.0.1") as c:
        await pair(c, b)
    async with running(tmp_path / "c", "127.0.0.1") as c:
        assert "a" == await c.whoami("b")


async def test_a_damaged_identity_is_a_fault_and_the_host_accepts_no_others(tmp_path):
    state = tmp_path / "c"
    state.mkdir()
    (state / "host.pem").write_text("x")
    async with running(state) as c:
        assert [] == c.hosts.endpoints
        assert any("the identity of this host" in fault for fault in c.hosts.faults)


def test_the_registry_has_no_secrets():
    assert {"name", "url", "certificate", "fingerprint", "link_address", "added_at"} == {
        field.name for field in msgspec.structs.fields(Host)
    }
