"""Listening on TCP and on the Unix socket, and the lock of a home."""

import errno
import fcntl
import os
import socket
import stat
import subprocess
import sys
import time

import pytest

from osaurusd.errors import ConfigError, HomeInUse, ListenFailed
from osaurusd.http import listen
from osaurusd.http.listen import listen_tcp, listen_unix, lock_home, make_private_dir, url_of


def has_ipv6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")


@pytest.fixture
def open_tcp():
    """Opens listeners, and closes them after the test."""
    listeners = []

    def open_tcp(host, port=0):
        listeners.extend(new := listen_tcp(host, port))
        return new

    yield open_tcp
    for listener in listeners:
        listener.close()


@pytest.fixture
def used_port():
    """A port of 127.0.0.1 that is in use."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def addresses(listeners):
    return [listener.getsockname()[0] for listener in listeners]


def accepts(host, port):
    try:
        socket.create_connection((host, port), timeout=60).close()
    except ConnectionRefusedError:
        return False
    return True


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


@ipv6
def test_localhost_listens_on_both_families_with_one_port(open_tcp):
    listeners = open_tcp("localhost")
    assert addresses(listeners) == ["127.0.0.1", "::1"]
    first, second = (listener.getsockname()[1] for listener in listeners)
    assert first == second > 0
    assert accepts("127.0.0.1", first)
    assert accepts("::1", first)


@pytest.fixture
def like_xnu(monkeypatch):
    """Binds as macOS does: SO_REUSEADDR suffices to bind an address that a listener on all addresses includes.

    On Linux, SO_REUSEPORT has this effect.
    """
    monkeypatch.setattr(socket, "SO_REUSEADDR", socket.SO_REUSEPORT)
    monkeypatch.setattr(sys, "platform", "darwin")


def serve_everywhere(family, address):
    """Listen on a port that no other process uses on any address."""
    other = (socket.AF_INET, "0.0.0.0") if family == socket.AF_INET6 else (socket.AF_INET6, "::")
    while True:
        server = bound_socket(family, address, 0)
        try:
            bound_socket(*other, server.getsockname()[1]).close()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                server.close()
                continue
        server.listen()
        return server


def bound_socket(family, address, port):
    server = socket.socket(family)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        server.bind((address, port))
    except OSError:
        server.close()
        raise
    return server


@pytest.mark.parametrize(
    ("family", "used", "host", "named"),
    [
        (socket.AF_INET, "0.0.0.0", "localhost", "127.0.0.1"),
        (socket.AF_INET, "0.0.0.0", "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET, "127.0.0.1", "0.0.0.0", "0.0.0.0"),
        pytest.param(socket.AF_INET6, "::", "localhost", "::1", marks=ipv6),
        pytest.param(socket.AF_INET6, "::1", "::", "::", marks=ipv6),
    ],
)
def test_listener_on_overlapping_addresses_is_a_conflict_on_macos(open_tcp, like_xnu, family, used, host, named):
    with serve_everywhere(family, used) as server:
        port = server.getsockname()[1]
        with pytest.raises(
            ListenFailed, match=f"cannot listen on {named} port {port}: Address already in use"
        ) as raised:
            open_tcp(host, port)

    assert raised.value.__cause__.errno == errno.EADDRINUSE
    assert addresses(open_tcp(host, port))


@ipv6
def test_localhost_closes_ipv4_if_ipv6_is_used_on_macos(open_tcp, like_xnu):
    with serve_everywhere(socket.AF_INET6, "::") as server:
        port = server.getsockname()[1]
        with pytest.raises(ListenFailed):
            open_tcp("localhost", port)
        assert not accepts("127.0.0.1", port)


@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT])
def test_localhost_without_ipv6_listens_on_ipv4(open_tcp, monkeypatch, number):
    real = listen._bind

    def bind(address, port):
        if address != "::1":
            return real(address, port)
        try:
            raise OSError(number, os.strerror(number))
        except OSError as error:
            raise ListenFailed("cannot listen on ::1") from error

    monkeypatch.setattr(listen, "_bind", bind)
    listeners = open_tcp("localhost")
    assert addresses(listeners) == ["127.0.0.1"]
    assert accepts("127.0.0.1", listeners[0].getsockname()[1])


@ipv6
def test_free_port_of_localhost_is_free_on_both_families(open_tcp, monkeypatch):
    real, tried = listen._bind, []

    def bind_second_time(address, port):
        tried.append(address)
        if tried == ["127.0.0.1", "::1"]:
            raise ListenFailed("in use")
        return real(address, port)

    monkeypatch.setattr(listen, "_bind", bind_second_time)
    assert addresses(open_tcp("localhost")) == ["127.0.0.1", "::1"]


@ipv6
def test_localhost_fails_if_its_ipv6_port_is_in_use():
    with serve_everywhere(socket.AF_INET6, "::1") as other:
        port = other.getsockname()[1]
        with pytest.raises(ListenFailed, match=f"cannot listen on ::1 port {port}: ") as error:
            listen_tcp("localhost", port)
        assert not accepts("127.0.0.1", port), error


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_error_names_the_port_in_use(used_port, host):
    with pytest.raises(ListenFailed) as error:
        listen_tcp(host, used_port)
    message = f"cannot listen on 127.0.0.1 port {used_port}: {os.strerror(errno.EADDRINUSE)}"
    assert error.value.message.startswith(message)


def test_error_names_an_address_of_another_machine():
    with pytest.raises(ListenFailed) as error:
        listen_tcp("192.0.2.1", 0)
    assert error.value.message == f"cannot listen on 192.0.2.1 port 0: {os.strerror(errno.EADDRNOTAVAIL)}"


@pytest.mark.parametrize("host", ["", "no-such-host.invalid", "a..b", "x" * 64])
def test_error_names_an_unresolvable_host(host):
    with pytest.raises(ListenFailed) as error:
        listen_tcp(host, 0)
    assert f'"{host}"' in error.value.message


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", ["127.0.0.1"]), ("0.0.0.0", ["0.0.0.0"]), pytest.param("::1", ["::1"], marks=ipv6)],
)
def test_address_is_bound_as_given(open_tcp, host, expected):
    assert addresses(open_tcp(host)) == expected


@ipv6
def test_ipv6_wildcard_does_not_include_ipv4(open_tcp):
    (listener,) = open_tcp("::")
    assert listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


@ipv6
def test_host_with_several_addresses_is_bound_on_all(open_tcp, monkeypatch):
    monkeypatch.setattr(listen, "_resolve", lambda host, port: ["::1", "127.0.0.1"])
    assert addresses(open_tcp("two.example")) == ["::1", "127.0.0.1"]


def test_no_address_stays_bound_if_one_fails(used_port, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    monkeypatch.setattr(listen, "_resolve", lambda host, _: ["127.0.0.1", "192.0.2.1"])
    with pytest.raises(ListenFailed, match=r"192\.0\.2\.1") as error:
        listen_tcp("two.example", port)
    assert not accepts("127.0.0.1", port), error


def test_listeners_do_not_block(open_tcp):
    assert [listener.getblocking() for listener in open_tcp("127.0.0.1")] == [False]


def test_port_can_be_reused_immediately(open_tcp):
    (listener,) = open_tcp("127.0.0.1")
    port = listener.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)):
        listener.close()
    assert open_tcp("127.0.0.1", port)[0].getsockname()[1] == port


@pytest.mark.parametrize(
    ("host", "expected"), [("localhost", ["127.0.0.1", "::1"]), ("127.0.0.1", ["127.0.0.1"]), ("0.0.0.0", ["0.0.0.0"])]
)
def test_addresses_are_checked_before_any_is_bound(used_port, host, expected):
    checked = []

    def reject(addresses):
        checked.extend(addresses)
        raise ConfigError("no")

    # The port is in use: binding it first would fail with another error.
    with pytest.raises(ConfigError):
        listen_tcp(host, used_port, reject)
    assert checked == expected


def test_url_of_a_tls_socket_is_https(open_tcp):
    (listener,) = open_tcp("127.0.0.1")
    assert url_of(listener, tls=True) == f"https://127.0.0.1:{listener.getsockname()[1]}"


@ipv6
def test_url_has_the_bound_address_and_port(open_tcp):
    first, second = open_tcp("localhost")
    port = first.getsockname()[1]
    assert [url_of(first), url_of(second)] == [f"http://127.0.0.1:{port}", f"http://[::1]:{port}"]


def test_unix_socket_is_private(home):
    path = home / "run" / "admin.sock"
    with listen_unix(path) as listener:
        assert stat.S_ISSOCK(path.lstat().st_mode)
        assert (mode(path), mode(path.parent)) == (0o600, 0o700)
        assert not listener.getblocking()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_unix_socket_is_removed_afterwards(home):
    path = home / "run" / "admin.sock"
    with listen_unix(path):
        assert path.exists()
    assert list(path.parent.iterdir()) == []


def test_unix_socket_is_removed_after_an_error(home):
    path = home / "run" / "admin.sock"

    def serve():
        with listen_unix(path):
            raise RuntimeError("ended")

    with pytest.raises(RuntimeError, match="ended"):
        serve()
    assert list(path.parent.iterdir()) == []


def test_umask_is_restored(home):
    before = os.umask(0o022)
    try:
        with listen_unix(home / "run" / "admin.sock"):
            assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


def test_directory_of_the_socket_becomes_private(home):
    (home / "run").mkdir(mode=0o755)
    (home / "run").chmod(0o755)
    with listen_unix(home / "run" / "admin.sock"):
        assert mode(home / "run") == 0o700


def test_leftover_socket_of_a_crashed_daemon_is_replaced(home):
    path = home / "run" / "admin.sock"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert stat.S_ISSOCK(path.lstat().st_mode)
    with listen_unix(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


@pytest.mark.parametrize("kind", ["SOCK_STREAM", "SOCK_DGRAM"])
def test_socket_of_a_running_program_is_not_replaced(home, kind):
    path = home / "run" / "admin.sock"
    path.parent.mkdir()
    script = (
        "import socket, sys\n"
        "server = socket.socket(socket.AF_UNIX, getattr(socket, sys.argv[2]))\n"
        "server.bind(sys.argv[1])\n"
        "if sys.argv[2] == 'SOCK_STREAM': server.listen(0)\n"
        "print(flush=True)\nsys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path), kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        before = path.lstat()
        for _ in range(3):  # also when its backlog is full
            with pytest.raises(ListenFailed, match="in use by another program"), listen_unix(path):
                pass
        assert path.lstat().st_ino == before.st_ino
        process.kill()
        process.wait()
    if kind == "SOCK_STREAM":
        with listen_unix(path), socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_socket_that_replaced_ours_is_not_removed(home):
    path = home / "run" / "admin.sock"
    with listen_unix(path), socket.socket(socket.AF_UNIX) as other:
        path.rename(path.with_name("aside"))
        other.bind(str(path))
    assert path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a socket away")
def test_socket_of_another_user_is_not_replaced(home):
    path = home / "run" / "admin.sock"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
    os.chown(path, 65534, -1)
    with pytest.raises(ListenFailed, match="not a socket of this user"), listen_unix(path):
        pass
    assert path.lstat().st_uid == 65534


def test_world_writable_directory_becomes_private_and_its_content_is_checked(home):
    path = home / "run" / "admin.sock"
    path.parent.mkdir()
    path.parent.chmod(0o777)
    path.symlink_to("/etc/passwd")
    with pytest.raises(ListenFailed, match="not a socket of this user"), listen_unix(path):
        pass
    assert (mode(path.parent), path.is_symlink()) == (0o700, True)


def make_file(path):
    path.write_text("mine")


def make_folder(path):
    path.mkdir()


def make_link(path):
    path.symlink_to(path.with_name("elsewhere"))


def make_link_to_socket(path):
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path.with_name("other.sock")))
    path.symlink_to("other.sock")


@pytest.mark.parametrize("make", [make_file, make_folder, make_link, make_link_to_socket])
def test_path_that_is_not_a_socket_is_not_replaced(home, make):
    path = home / "run" / "admin.sock"
    path.parent.mkdir()
    make(path)
    before = path.lstat()
    with pytest.raises(ListenFailed) as error, listen_unix(path):
        pass
    assert str(path) in error.value.message
    assert path.lstat().st_ino == before.st_ino


def test_private_directory_is_created_with_its_parents(home):
    make_private_dir(home / "a" / "b")
    assert mode(home / "a" / "b") == 0o700


def test_private_directory_keeps_its_content(home):
    make_private_dir(home / "a")
    (home / "a" / "file").write_text("")
    make_private_dir(home / "a")
    assert (mode(home / "a"), [path.name for path in (home / "a").iterdir()]) == (0o700, ["file"])


def make_link_to_folder(path):
    path.with_name("folder").mkdir()
    path.symlink_to("folder")


@pytest.mark.parametrize("make", [make_file, make_link, make_link_to_folder])
def test_path_that_is_not_a_directory_is_rejected(home, make):
    make(home / "run")
    with pytest.raises(ListenFailed) as error:
        make_private_dir(home / "run")
    assert str(home / "run") in error.value.message


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_directory_of_another_user_is_rejected(home):
    (home / "run").mkdir()
    os.chown(home / "run", 65534, -1)
    with pytest.raises(ListenFailed, match="is not a directory of this user"):
        make_private_dir(home / "run")


def test_lock_file_contains_the_pid_and_is_private(home):
    lock = home / "run" / "admin.sock.lock"
    with lock_home(lock):
        assert lock.read_text() == f"{os.getpid()}\n"
        assert (mode(lock), mode(lock.parent)) == (0o600, 0o700)
    assert lock.exists()


def test_second_daemon_is_rejected_with_the_pid_of_the_first(home):
    lock = home / "run" / "admin.sock.lock"
    with lock_home(lock):
        with pytest.raises(HomeInUse) as error, lock_home(lock):
            pass
        assert error.value.message == f"another osaurusd (pid {os.getpid()}) already runs on {home}"
        assert lock.read_text() == f"{os.getpid()}\n"
        with pytest.raises(HomeInUse), lock_home(lock):
            pass


def test_brief_probe_of_the_lock_does_not_prevent_a_start(home, monkeypatch):
    lock = home / "run" / "admin.sock.lock"
    lock.parent.mkdir()
    probe = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(probe, fcntl.LOCK_EX)
    monkeypatch.setattr(time, "sleep", lambda _: fcntl.flock(probe, fcntl.LOCK_UN))
    with lock_home(lock):
        assert lock.read_text() == f"{os.getpid()}\n"
    os.close(probe)


def test_home_can_be_locked_again_after_release(home):
    lock = home / "run" / "admin.sock.lock"
    for _ in range(2):
        with lock_home(lock):
            pass


def test_home_can_be_locked_again_after_a_crash(home):
    lock = home / "run" / "admin.sock.lock"
    script = (
        "import os, pathlib, sys\nfrom osaurusd.http.listen import lock_home\n"
        "with lock_home(pathlib.Path(sys.argv[1])):\n"
        "    print(os.getpid(), flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        pid = process.stdout.readline().strip()
        with pytest.raises(HomeInUse, match=rf"\(pid {pid}\)"), lock_home(lock):
            pass
        process.kill()
        process.wait()
    with lock_home(lock):
        assert lock.read_text() == f"{os.getpid()}\n"


def test_longer_pid_in_the_lock_file_is_overwritten_completely(home):
    lock = home / "run" / "admin.sock.lock"
    lock.parent.mkdir()
    lock.write_text("999999999999\n")
    with lock_home(lock):
        assert lock.read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize("content", ["", "\n"])
def test_lock_without_pid_is_respected(home, content):
    lock = home / "run" / "admin.sock.lock"
    with lock_home(lock):
        lock.write_text(content)
        with pytest.raises(HomeInUse, match=r"\(pid unknown\)"), lock_home(lock):
            pass


@pytest.mark.parametrize("make", [make_link, make_link_to_socket, make_folder, os.mkfifo])
def test_lock_path_that_is_not_a_file_is_rejected(home, make):
    lock = home / "run" / "admin.sock.lock"
    lock.parent.mkdir()
    make(lock)
    with pytest.raises(ListenFailed) as error, lock_home(lock):
        pass
    assert str(lock) in error.value.message


def test_file_that_the_lock_path_links_to_is_not_changed(home):
    lock = home / "run" / "admin.sock.lock"
    lock.parent.mkdir()
    (home / "precious").write_text("mine")
    lock.symlink_to(home / "precious")
    with pytest.raises(ListenFailed), lock_home(lock):
        pass
    assert (home / "precious").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_lock_of_another_user_is_rejected(home):
    lock = home / "run" / "admin.sock.lock"
    lock.parent.mkdir()
    lock.touch()
    os.chown(lock, 65534, -1)
    with pytest.raises(ListenFailed, match="not a regular file of this user"), lock_home(lock):
        pass


def test_existing_lock_file_becomes_private(home):
    lock = home / "run" / "admin.sock.lock"
    lock.parent.mkdir()
    lock.touch(mode=0o644)
    with lock_home(lock):
        assert mode(lock) == 0o600
