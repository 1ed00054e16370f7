"""IP addresses as settings, and private networks."""

import ipaddress

import pytest

from osaurusd import addresses


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1:8444", ("10.0.0.1", 8444)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),
        ("[fd00::1]:65535", ("fd00::1", 65535)),
    ],
)
def test_an_endpoint_is_an_address_and_a_port(text, expected):
    address, port = addresses.parse_endpoint(text)
    assert expected == (str(address), port)


@pytest.mark.parametrize(
    "text",
    ["", ":1", "10.0.0.1", "10.0.0.1:", "10.0.0.1:x", "10.0.0.1:65536", "10.0.0.1:-1", "::1:80", "[10.0.0.1]:1", "a:1"],
)
def test_anything_else_is_no_endpoint(text):
    with pytest.raises(ValueError, match="is not an IP address with a port, such as"):
        addresses.parse_endpoint(text)


@pytest.mark.parametrize(
    "text",
    [
        "10.1.2.3",
        "172.31.0.1",
        "192.168.1.1",
        "169.254.9.9",
        "127.0.0.2",
        "fd12::1",
        "fe80::1",
        "::1",
        "::ffff:10.0.0.1",
    ],
)
def test_private_networks_links_and_loopback_are_private(text):
    assert addresses.is_private(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    "text",
    ["8.8.8.8", "172.32.0.1", "192.0.2.1", "100.64.0.1", "198.18.0.1", "2001:db8::1", "::ffff:8.8.8.8", "0.0.0.0"],
)
def test_other_networks_are_not_private(text):
    with pytest.raises(ValueError, match="tensors travel unencrypted"):
        addresses.parse_private_address(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://10.0.0.2:8444", ("10.0.0.2", 8444)),
        ("https://10.0.0.2/", ("10.0.0.2", 8444)),
        ("studio.local:9000", ("studio.local", 9000)),
        ("studio", ("studio", 8444)),
        ("https://[fd00::2]:1", ("fd00::2", 1)),
    ],
)
def test_the_scheme_and_the_port_of_a_url_may_be_omitted(text, expected):
    assert expected == addresses.parse_url(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "http://10.0.0.2:8444",
        "https://",
        "https://a/b",
        "https://a?b",
        "https://u@a",
        "https://a:0",
        "https://a:b",
        "a b",
        "[::1",
    ],
)
def test_anything_else_is_no_url(text):
    with pytest.raises(ValueError, match="is not a URL such as"):
        addresses.parse_url(text)


@pytest.mark.parametrize("text", ["fd00::1", "::1", "::ffff:10.0.0.1"])
def test_ipv6_cannot_carry_tensors(text):
    with pytest.raises(ValueError, match="IPv4 only"):
        addresses.parse_private_address(text)
