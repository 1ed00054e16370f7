"""IP addresses as settings: where to listen, and which networks count as private."""

import ipaddress
import re
import urllib.parse

from osaurusd.wire.errors import as_json

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

DEFAULT_PORT = 8444
"""The port on which paired hosts connect, unless a URL or `distributed.listen` names another."""

# A name, or an IP address, with the zone of a link-local one.
_HOST = re.compile(r"[A-Za-z0-9.:%_-]{1,253}")

_HOST_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")

# RFC 1918 and RFC 4193, link-local, loopback. `is_private` of the standard library also covers networks that
# are neither, such as those for documentation and benchmarks.
_PRIVATE = tuple(
    ipaddress.ip_network(network)
    for network in (
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "127.0.0.0/8",
        "fc00::/7",
        "fe80::/10",
        "::1/128",
    )
)


def parse_address(text: str) -> Address:
    """Parse an IP address.

    Raises:
        ValueError: it is not one; the message says what would be.
    """
    try:
        return ipaddress.ip_address(text)
    except ValueError as error:
        raise ValueError(f"{as_json(text)} is not an IP address, such as 10.0.0.1 or fd00::1") from error


def parse_endpoint(text: str) -> tuple[Address, int]:
    """Parse an IP address with a port, such as `10.0.0.1:8444` or `[fd00::1]:8444`.

    Raises:
        ValueError: it is not one; the message says what would be.
    """
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ipaddress.ip_address(host[1:-1] if bracketed else host)
        if (address.version == 6) == bracketed and port.isascii() and port.isdigit() and int(port) <= 65535:
            return address, int(port)
    except ValueError:
        # Reported below.
        pass
    raise ValueError(f"{as_json(text)} is not an IP address with a port, such as 10.0.0.1:8444 or [fd00::1]:8444")


def check_listen_host(text: str) -> None:
    """Check that a text is a host name or an IP address.

    Raises:
        ValueError: it is neither; the message says what would be.
    """
    if _HOST_NAME.fullmatch(text):
        return
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(
            f'{as_json(text[:100])} is neither a host name nor an IP address; use a value such as "localhost" or '
            '"::1", and set the port with `server.port`'
        ) from None


def parse_private_address(text: str) -> Address:
    """Parse the address of a host on the network that carries tensors: IPv4, on a private network.

    Raises:
        ValueError: it is not one; the message says what would be.
    """
    address = parse_address(text)
    if not is_private(address):
        raise ValueError(
            f"{text} is a public address; tensors travel unencrypted, so the network must be private "
            "(10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 169.254.0.0/16) or loopback"
        )
    if address.version != 4:
        # `mx.distributed` cannot parse others ("Can't parse address [::1]:1").
        raise ValueError(f"{text} is an IPv6 address; MLX connects hosts over IPv4 only")
    return address


def is_private(address: Address) -> bool:
    """Whether an address belongs to a private network, to one link, or to this machine."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in network for network in _PRIVATE)


def bracket(host: str) -> str:
    """Return a host as it appears in URLs: with brackets around an IPv6 address."""
    return f"[{host}]" if ":" in host else host


def join(host: str, port: int) -> str:
    """Return a host with its port, with brackets around an IPv6 address."""
    return f"{bracket(host)}:{port}"


def parse_url(text: str) -> tuple[str, int]:
    """Return host and port of a URL such as `https://10.0.0.2:8444`; the scheme and the port may be omitted.

    Raises:
        ValueError: it is not one; the message says what would be.
    """
    problem = f"{as_json(text)} is not a URL such as https://10.0.0.2:{DEFAULT_PORT}"
    try:
        url = urllib.parse.urlsplit(text if "://" in text else f"https://{text}")
        host, port = url.hostname or "", url.port
    except ValueError as error:
        raise ValueError(problem) from error
    extra = url.path.strip("/") or url.query or url.fragment or url.username is not None
    if url.scheme != "https" or not _HOST.fullmatch(host) or extra or port == 0:
        raise ValueError(problem)
    return host, port or DEFAULT_PORT
