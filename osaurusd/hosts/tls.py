"""TLS between hosts: version 1.3, a certificate on both sides, and no authority.

A host trusts exactly the certificates of the hosts that it is paired with. They are the only trust anchors, and none
of them may sign another certificate, so the verification of a certificate is a comparison with the pinned ones. What
a certificate or a URL calls a host plays no part: names prove nothing that the key does not.
"""

import ssl
from collections.abc import Iterable

from osaurusd.hosts.identity import Identity, fingerprint_of
from osaurusd.hosts.registry import Host

ALPN_HTTP = "http/1.1"
ALPN_PAIRING = "osaurusd-pairing"


def server_context(identity: Identity, hosts: Iterable[Host]) -> ssl.SSLContext:
    """Build the context of a server that knows `hosts`.

    A client without a certificate is accepted, because pairing begins without one. A client with an unknown certificate
    is rejected during the handshake.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, identity)
    context.verify_mode = ssl.CERT_OPTIONAL
    # A resumed session would bypass the verification of the client's certificate.
    context.num_tickets = 0
    context.set_alpn_protocols([ALPN_HTTP, ALPN_PAIRING])
    _trust(context, hosts)
    return context


def client_context(identity: Identity, host: Host) -> ssl.SSLContext:
    """Build the context of connections to one host."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, identity)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols([ALPN_HTTP])
    _trust(context, [host])
    return context


def pairing_context() -> ssl.SSLContext:
    """Build the context of connections to a host that is not paired yet. Pairing proves which host that is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([ALPN_PAIRING])
    return context


def peer_fingerprint(connection: ssl.SSLObject | None) -> str | None:
    """Return the fingerprint of the other side's certificate, or None if it sent none."""
    certificate = connection.getpeercert(binary_form=True) if connection is not None else None
    return fingerprint_of(certificate) if certificate else None


def _context(protocol: int, identity: Identity) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(identity.file)
    # A certificate that is itself a trust anchor needs no issuer.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _trust(context: ssl.SSLContext, hosts: Iterable[Host]) -> None:
    certificates = "".join(host.certificate for host in hosts)
    if certificates:
        context.load_verify_locations(cadata=certificates)
