"""The doors: TCP on both loopback families, the Unix socket, and the lock on a home."""

import errno
import fcntl
import os
import socket
import stat
import subprocess
import sys

import pytest

from osaurusd.errors import ConfigError, HomeInUse, ListenFailed
from osaurusd.http import listen


def has_ipv6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")


@pytest.fixture
def opened():
    """Opens listeners, and closes them at the end."""
    listeners = []

    def opened(host, port=0):
        listeners.extend(found := listen.tcp(host, port))
        return found

    yield opened
    for listener in listeners:
        listener.close()


@pytest.fixture
def taken():
    """A port of 127.0.0.1 that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def addresses(listeners):
    return [listener.getsockname()[0] for listener in listeners]


def accepts(host, port):
    try:
        socket.create_connection((host, port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


@ipv6
def test_localhost_is_both_families_on_one_port(opened):
    listeners = opened("localhost")
    assert addresses(listeners) == ["127.0.0.1", "::1"]
    first, second = (listener.getsockname()[1] for listener in listeners)
    assert first == second > 0
    assert accepts("127.0.0.1", first)
    assert accepts("::1", first)


@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT])
def test_localhost_without_ipv6_is_127_0_0_1(opened, monkeypatch, number):
    real = listen._bind

    def bind(address, port):
        if address != "::1":
            return real(address, port)
        try:
            raise OSError(number, os.strerror(number))
        except OSError as error:
            raise ListenFailed("cannot listen on ::1") from error

    monkeypatch.setattr(listen, "_bind", bind)
    listeners = opened("localhost")
    assert addresses(listeners) == ["127.0.0.1"]
    assert accepts("127.0.0.1", listeners[0].getsockname()[1])


@ipv6
def test_localhost_is_refused_if_its_ipv6_port_is_taken():
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as other:
        port = other.getsockname()[1]
        with pytest.raises(ListenFailed, match=f"cannot listen on ::1 port {port}: ") as refusal:
            listen.tcp("localhost", port)
        assert not accepts("127.0.0.1", port), refusal


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_port_that_is_taken_is_named(taken, host):
    with pytest.raises(ListenFailed) as refusal:
        listen.tcp(host, taken)
    said = f"cannot listen on 127.0.0.1 port {taken}: {os.strerror(errno.EADDRINUSE)}"
    assert refusal.value.message.startswith(said)


def test_an_address_of_another_machine_is_named():
    with pytest.raises(ListenFailed) as refusal:
        listen.tcp("192.0.2.1", 0)
    assert refusal.value.message == f"cannot listen on 192.0.2.1 port 0: {os.strerror(errno.EADDRNOTAVAIL)}"


@pytest.mark.parametrize("host", ["", "no-such-host.invalid", "a..b", "x" * 64])
def test_what_is_no_address_is_named(host):
    with pytest.raises(ListenFailed) as refusal:
        listen.tcp(host, 0)
    assert repr(host) in refusal.value.message


@pytest.mark.parametrize(
    ("host", "found"),
    [("127.0.0.1", ["127.0.0.1"]), ("0.0.0.0", ["0.0.0.0"]), pytest.param("::1", ["::1"], marks=ipv6)],
)
def test_an_address_is_bound_as_given(opened, host, found):
    assert addresses(opened(host)) == found


@ipv6
def test_the_ipv6_wildcard_does_not_take_ipv4_too(opened):
    (listener,) = opened("::")
    assert listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


@ipv6
def test_a_host_with_several_addresses_is_bound_on_all(opened, monkeypatch):
    monkeypatch.setattr(listen, "_resolve", lambda host, port: ["::1", "127.0.0.1"])
    assert addresses(opened("two.example")) == ["::1", "127.0.0.1"]


def test_if_one_of_several_addresses_fails_none_stays_open(taken, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    monkeypatch.setattr(listen, "_resolve", lambda host, _: ["127.0.0.1", "192.0.2.1"])
    with pytest.raises(ListenFailed, match=r"192\.0\.2\.1") as refusal:
        listen.tcp("two.example", port)
    assert not accepts("127.0.0.1", port), refusal


def test_listeners_do_not_block(opened):
    assert [listener.getblocking() for listener in opened("127.0.0.1")] == [False]


def test_a_port_can_be_taken_again_at_once(opened):
    (listener,) = opened("127.0.0.1")
    port = listener.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)):
        listener.close()
    assert opened("127.0.0.1", port)[0].getsockname()[1] == port


@pytest.mark.parametrize(
    ("host", "found"), [("localhost", ["127.0.0.1", "::1"]), ("127.0.0.1", ["127.0.0.1"]), ("0.0.0.0", ["0.0.0.0"])]
)
def test_addresses_are_told_before_any_is_bound(taken, host, found):
    told = []

    def refuse(addresses):
        told.extend(addresses)
        raise ConfigError("no")

    # On a port that is taken: if it were bound first, that would be what it fails with.
    with pytest.raises(ConfigError):
        listen.tcp(host, taken, refuse)
    assert told == found


def test_the_url_says_whether_it_is_tls(opened):
    (listener,) = opened("127.0.0.1")
    assert listen.url(listener, tls=True) == f"https://127.0.0.1:{listener.getsockname()[1]}"


@ipv6
def test_the_url_is_where_clients_reach_it(opened):
    first, second = opened("localhost")
    port = first.getsockname()[1]
    assert [listen.url(first), listen.url(second)] == [f"http://127.0.0.1:{port}", f"http://[::1]:{port}"]


def test_the_unix_socket_is_for_its_owner_only(home):
    path = home / "run" / "admin.sock"
    with listen.unix(path) as listener:
        assert stat.S_ISSOCK(path.lstat().st_mode)
        assert (mode(path), mode(path.parent)) == (0o600, 0o700)
        assert not listener.getblocking()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_the_unix_socket_is_gone_at_the_end(home):
    path = home / "run" / "admin.sock"
    with listen.unix(path):
        assert path.exists()
    assert list(path.parent.iterdir()) == []


def test_the_unix_socket_is_gone_even_if_the_end_is_an_error(home):
    path = home / "run" / "admin.sock"

    def serve():
        with listen.unix(path):
            raise RuntimeError("ended")

    with pytest.raises(RuntimeError, match="ended"):
        serve()
    assert list(path.parent.iterdir()) == []


def test_the_umask_is_as_it_was(home):
    before = os.umask(0o022)
    try:
        with listen.unix(home / "run" / "admin.sock"):
            assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


def test_a_directory_that_others_could_enter_is_closed_to_them(home):
    (home / "run").mkdir(mode=0o755)
    (home / "run").chmod(0o755)
    with listen.unix(home / "run" / "admin.sock"):
        assert mode(home / "run") == 0o700


def test_a_socket_that_a_dead_daemon_left_is_replaced(home):
    path = home / "run" / "admin.sock"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert stat.S_ISSOCK(path.lstat().st_mode)
    with listen.unix(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


@pytest.mark.parametrize("kind", ["SOCK_STREAM", "SOCK_DGRAM"])
def test_a_socket_that_another_program_listens_on_is_left_to_it(home, kind):
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
        for _ in range(3):  # also when no more clients are taken there
            with pytest.raises(ListenFailed, match="in use by another program"), listen.unix(path):
                pass
        assert path.lstat().st_ino == before.st_ino
        process.kill()
        process.wait()
    if kind == "SOCK_STREAM":
        with listen.unix(path), socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_a_socket_that_took_our_place_is_left_to_its_owner(home):
    path = home / "run" / "admin.sock"
    with listen.unix(path), socket.socket(socket.AF_UNIX) as other:
        path.rename(path.with_name("aside"))
        other.bind(str(path))
    assert path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a socket away")
def test_a_socket_of_another_user_is_left_alone_and_refused(home):
    path = home / "run" / "admin.sock"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
    os.chown(path, 65534, -1)
    with pytest.raises(ListenFailed, match="no socket of this user"), listen.unix(path):
        pass
    assert path.lstat().st_uid == 65534


def test_a_directory_that_everybody_could_write_is_closed_and_what_lies_there_still_checked(home):
    path = home / "run" / "admin.sock"
    path.parent.mkdir()
    path.parent.chmod(0o777)
    path.symlink_to("/etc/passwd")
    with pytest.raises(ListenFailed, match="no socket of this user"), listen.unix(path):
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
def test_what_is_no_socket_is_left_alone_and_refused(home, make):
    path = home / "run" / "admin.sock"
    path.parent.mkdir()
    make(path)
    before = path.lstat()
    with pytest.raises(ListenFailed) as refusal, listen.unix(path):
        pass
    assert str(path) in refusal.value.message
    assert path.lstat().st_ino == before.st_ino


def test_a_private_directory_is_made_with_what_is_above_it(home):
    listen.make_private_dir(home / "a" / "b")
    assert mode(home / "a" / "b") == 0o700


def test_a_private_directory_that_is_one_stays_as_it_is(home):
    listen.make_private_dir(home / "a")
    (home / "a" / "file").write_text("")
    listen.make_private_dir(home / "a")
    assert (mode(home / "a"), [path.name for path in (home / "a").iterdir()]) == (0o700, ["file"])


def make_link_to_folder(path):
    path.with_name("folder").mkdir()
    path.symlink_to("folder")


@pytest.mark.parametrize("make", [make_file, make_link, make_link_to_folder])
def test_what_is_no_directory_of_ours_is_refused(home, make):
    make(home / "run")
    with pytest.raises(ListenFailed) as refusal:
        listen.make_private_dir(home / "run")
    assert str(home / "run") in refusal.value.message


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_refused(home):
    (home / "run").mkdir()
    os.chown(home / "run", 65534, -1)
    with pytest.raises(ListenFailed, match="is not a directory of this user"):
        listen.make_private_dir(home / "run")


def test_the_lock_holds_our_pid_and_is_for_us_only(home):
    lock = home / "run" / "admin.sock.lock"
    with listen.locked_home(lock):
        assert lock.read_text() == f"{os.getpid()}\n"
        assert (mode(lock), mode(lock.parent)) == (0o600, 0o700)
    assert lock.exists()


def test_a_second_daemon_is_refused_with_the_pid_of_the_first(home):
    lock = home / "run" / "admin.sock.lock"
    with listen.locked_home(lock):
        with pytest.raises(HomeInUse) as refusal, listen.locked_home(lock):
            pass
        assert refusal.value.message == f"another osaurusd (pid {os.getpid()}) already runs on {home}"
        assert lock.read_text() == f"{os.getpid()}\n"
        with pytest.raises(HomeInUse), listen.locked_home(lock):
            pass


def test_somebody_who_only_looks_at_the_lock_keeps_nobody_out(home, monkeypatch):
    lock = home / "run" / "admin.sock.lock"
    lock.parent.mkdir()
    looking = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(looking, fcntl.LOCK_EX)
    monkeypatch.setattr(listen.time, "sleep", lambda _: fcntl.flock(looking, fcntl.LOCK_UN))
    with listen.locked_home(lock):
        assert lock.read_text() == f"{os.getpid()}\n"
    os.close(looking)


def test_a_home_is_free_again_after_its_daemon(home):
    lock = home / "run" / "admin.sock.lock"
    for _ in range(2):
        with listen.locked_home(lock):
            pass


def test_a_home_is_free_again_after_its_daemon_died(home):
    lock = home / "run" / "admin.sock.lock"
    script = (
        "import os, pathlib, sys\nfrom osaurusd.http import listen\n"
        "with listen.locked_home(pathlib.Path(sys.argv[1])):\n"
        "    print(os.getpid(), flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        pid = process.stdout.readline().strip()
        with pytest.raises(HomeInUse, match=rf"\(pid {pid}\)"), listen.locked_home(lock):
            pass
        process.kill()
        process.wait()
    with listen.locked_home(lock):
        assert lock.read_text() == f"{os.getpid()}\n"


def test_a_longer_pid_of_an_earlier_daemon_leaves_no_digits_behind(home):
    lock = home / "run" / "admin.sock.lock"
    lock.parent.mkdir()
    lock.write_text("999999999999\n")
    with listen.locked_home(lock):
        assert lock.read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize("content", ["", "\n"])
def test_a_lock_without_a_pid_still_counts(home, content):
    lock = home / "run" / "admin.sock.lock"
    with listen.locked_home(lock):
        lock.write_text(content)
        with pytest.raises(HomeInUse, match=r"\(pid unknown\)"), listen.locked_home(lock):
            pass


@pytest.mark.parametrize("make", [make_link, make_link_to_socket, make_folder, os.mkfifo])
def test_a_lock_that_is_no_file_is_left_alone_and_refused(home, make):
    lock = home / "run" / "admin.sock.lock"
    lock.parent.mkdir()
    make(lock)
    with pytest.raises(ListenFailed) as refusal, listen.locked_home(lock):
        pass
    assert str(lock) in refusal.value.message


def test_a_lock_that_is_a_link_to_a_file_does_not_cost_that_file(home):
    lock = home / "run" / "admin.sock.lock"
    lock.parent.mkdir()
    (home / "precious").write_text("mine")
    lock.symlink_to(home / "precious")
    with pytest.raises(ListenFailed), listen.locked_home(lock):
        pass
    assert (home / "precious").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_lock_of_another_user_is_refused(home):
    lock = home / "run" / "admin.sock.lock"
    lock.parent.mkdir()
    lock.touch()
    os.chown(lock, 65534, -1)
    with pytest.raises(ListenFailed, match="no file of this user"), listen.locked_home(lock):
        pass


def test_a_lock_is_for_its_owner_only_whatever_it_was(home):
    lock = home / "run" / "admin.sock.lock"
    lock.parent.mkdir()
    lock.touch(mode=0o644)
    with listen.locked_home(lock):
        assert mode(lock) == 0o600
