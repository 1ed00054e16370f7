"""Pairing: two hosts exchange certificates over a connection that nothing vouches for yet.

One host, the responder, shows a code, which a person types on the other one, the initiator. The code never travels.
Each side proves that it knows the code with an HMAC over both certificates, as it sees them, and both nonces. A machine
in the middle has to show its own certificate to at least one side. The two sides then prove different things, and
neither accepts the other's proof.

The conversation consists of four lines of JSON over TLS: hello, challenge, claim and result.
"""

import asyncio
import secrets
import ssl
import time
from collections.abc import Callable
from typing import Annotated, TypeVar

import msgspec

from osaurusd import addresses
from osaurusd.errors import HostNameTaken, HostUnreachable, InternalError, InvalidRequest, PairingFailed
from osaurusd.hosts import link
from osaurusd.hosts.codes import CodeOffer, Transcript, is_equal
from osaurusd.hosts.identity import Identity, fingerprint_of, fingerprint_of_pem
from osaurusd.hosts.registry import Host, HostRegistry
from osaurusd.hosts.tls import pairing_context
from osaurusd.log import get_logger
from osaurusd.wire.hosts import HostName

log = get_logger(__name__)

VERSION = 1
MAX_LINE_BYTES = 8 * 1024
PAIRING_SECONDS = 10.0

Nonce = Annotated[str, msgspec.Meta(min_length=32, max_length=128)]
Proof = Annotated[str, msgspec.Meta(min_length=64, max_length=64)]

_Message = TypeVar("_Message")


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """The initiator begins."""

    version: int
    nonce: Nonce


class Challenge(msgspec.Struct, frozen=True, kw_only=True):
    """The responder's nonce. It is sent whether or not a code is offered, so that unpaired clients cannot tell."""

    version: int = VERSION
    nonce: Nonce


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """The initiator's certificate and proof.

    Attributes:
        name: what the responder calls the initiator from now on.
        endpoint: where the initiator accepts paired hosts: `IP:port`, `:port` at the address of this connection, or
            empty.
    """

    certificate: str
    name: HostName
    endpoint: str
    proof: Proof


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The responder's proof; without one, it rejects the initiator.

    Attributes:
        name_taken: the responder calls another host so.
        failed: the responder accepts the initiator, but cannot save the pairing.
    """

    proof: Proof | None = None
    name_taken: bool = False
    failed: bool = False


class Initiator(msgspec.Struct, frozen=True):
    """How the host that types the code presents itself; see `Claim`."""

    identity: Identity
    name: str
    endpoint: str


async def answer(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    *,
    identity: Identity,
    offer: CodeOffer,
    registry: HostRegistry,
    on_paired: Callable[[Host], None],
) -> None:
    """Take the responder's side of the conversation with an unpaired client.

    Raises:
        ValueError, EOFError, OSError: the unpaired client does not follow the protocol, or is gone.
    """
    hello = await _receive(reader, Hello)
    challenge = Challenge(nonce=secrets.token_hex())
    await _send(writer, challenge)
    if hello.version != VERSION:
        return
    claim = await _receive(reader, Claim)
    initiator = fingerprint_of_pem(claim.certificate)
    transcript = Transcript(identity.fingerprint, initiator, challenge.nonce, hello.nonce, claim.name, claim.endpoint)
    proof = offer.verify(transcript, claim.proof)
    if proof is None:
        log.warning("pairing attempt rejected", address=_peer_address(writer))
        await _send(writer, Result())
        return
    host = _host(claim.name, _url(claim.endpoint, _peer_address(writer)), claim.certificate)
    try:
        registry.check_name(claim.name, initiator)
        offer.withdraw()
        await registry.add(host)
    except HostNameTaken:
        await _send(writer, Result(name_taken=True))
    except InternalError as error:
        log.warning("pairing failed", host=host.name, reason=error.message)
        await _send(writer, Result(failed=True))
    else:
        on_paired(host)
        await _send(writer, Result(proof=proof))


async def pair(name: str, url: str, code: str, link_address: str | None, initiator: Initiator) -> Host:
    """Take the initiator's side: pair with the host at `url`, which offers `code`.

    Returns:
        The host, which the caller has to register.

    Raises:
        HostUnreachable: there is no osaurusd at the URL.
        PairingFailed, HostNameTaken: the other side, or its proof, is refused.
    """
    address, port = addresses.parse_url(url)
    place = addresses.join(address, port)
    try:
        async with asyncio.timeout(PAIRING_SECONDS):
            reader, writer = await asyncio.open_connection(
                address, port, ssl=pairing_context(), server_hostname="", limit=MAX_LINE_BYTES
            )
            try:
                certificate = await _converse(reader, writer, code, initiator)
            finally:
                writer.transport.abort()
    except TimeoutError as error:
        raise HostUnreachable(f"{place} did not respond within {PAIRING_SECONDS:g} s; check the URL") from error
    except (OSError, ValueError, EOFError) as error:
        raise HostUnreachable(
            f"no osaurusd accepts hosts at {place}: {_reason(error)}; check the URL, and "
            "`distributed.listen` on that host"
        ) from error
    return _host(name, f"https://{place}", certificate, link_address)


def _reason(error: Exception) -> str:
    return (link.describe(error) if isinstance(error, OSError) else str(error)) or type(error).__name__


async def _converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, code: str, initiator: Initiator) -> str:
    """Hold the conversation, and return the responder's certificate once it has proven to know the code."""
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True) or b""
    if fingerprint_of(der) == initiator.identity.fingerprint:
        raise InvalidRequest("`url`: this is the URL of this host itself", param="url")
    hello = Hello(version=VERSION, nonce=secrets.token_hex())
    await _send(writer, hello)
    challenge = await _receive(reader, Challenge)
    if challenge.version != VERSION:
        raise PairingFailed(
            "the releases of osaurusd on the two hosts pair in different ways; install the same release on both"
        )
    identity = initiator.identity
    transcript = Transcript(
        fingerprint_of(der), identity.fingerprint, challenge.nonce, hello.nonce, initiator.name, initiator.endpoint
    )
    claim = Claim(
        certificate=identity.certificate,
        name=initiator.name,
        endpoint=initiator.endpoint,
        proof=transcript.proof("initiator", code),
    )
    await _send(writer, claim)
    result = await _receive(reader, Result)
    _check_result(result, transcript.proof("responder", code), initiator.name)
    return ssl.DER_cert_to_PEM_cert(der)


def _check_result(result: Result, expected_proof: str, own_name: str) -> None:
    if result.name_taken:
        raise HostNameTaken(
            f'the other host already calls another host "{own_name}"; choose a name with --as', param="own_name"
        )
    if result.failed:
        raise PairingFailed("the other host cannot save the pairing; its log says why")
    if result.proof is None:
        raise PairingFailed(
            'the other host rejected the code: it is wrong, used or expired; run "osaurusctl host code" there for '
            "another",
            param="code",
        )
    if not is_equal(expected_proof, result.proof):
        raise PairingFailed(
            "the other side does not know the code: it is not the host that showed it, or another machine intercepts "
            "the connection",
            param="url",
        )


async def _send(writer: asyncio.StreamWriter, message: msgspec.Struct) -> None:
    writer.write(msgspec.json.encode(message) + b"\n")
    await writer.drain()


async def _receive(reader: asyncio.StreamReader, kind: type[_Message]) -> _Message:
    """Receive a message.

    Raises:
        ValueError: it is too long or invalid.
        EOFError: the connection was closed.
    """
    line = await reader.readline()
    if not line.endswith(b"\n"):
        raise EOFError("the connection was closed")
    try:
        return msgspec.json.decode(line, type=kind)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _peer_address(writer: asyncio.StreamWriter) -> str:
    return str(writer.get_extra_info("peername")[0])


def _url(endpoint: str, peer_address: str) -> str:
    """Return the URL of an initiator. It knows its address only if it does not listen on all of them."""
    if not endpoint:
        return ""
    is_port = endpoint.startswith(":")
    address, port = addresses.parse_url(addresses.bracket(peer_address) + endpoint if is_port else endpoint)
    return f"https://{addresses.join(address, port)}"


def _host(name: str, url: str, certificate: str, link_address: str | None = None) -> Host:
    return Host(
        name=name,
        url=url,
        certificate=certificate,
        fingerprint=fingerprint_of_pem(certificate),
        link_address=link_address,
        added_at=time.time(),
    )
