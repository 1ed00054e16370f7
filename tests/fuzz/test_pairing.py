"""Random conversations of unpaired clients on the port for paired hosts. These tests open no connections."""

import asyncio
import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osaurusd.hosts import codes, pairing
from osaurusd.hosts.codes import CodeOffer, Transcript
from osaurusd.hosts.identity import Identity, IdentityFile
from osaurusd.hosts.registry import HostRegistry
from tests.fuzz import inputs

HELLO = {"version": pairing.VERSION, "nonce": "0" * 64}
CLAIM = {"certificate": "", "name": "x", "endpoint": ":1", "proof": "0" * 64}

examples = settings(max_examples=60, derandomize=True)

lines = st.one_of(
    st.binary(max_size=200),
    inputs.values.map(lambda value: json.dumps(value).encode()),
    inputs.mutations([HELLO]).map(lambda value: json.dumps(value).encode()),
    inputs.mutations([CLAIM]).map(lambda value: json.dumps(value).encode()),
)


class Writer:
    """Collects what the host sends to an unpaired client."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def write(self, data: bytes) -> None:
        self.sent.append(json.loads(data))

    async def drain(self) -> None:
        pass

    def get_extra_info(self, _name: str) -> tuple[str, int]:
        return "10.0.0.1", 1


@pytest.fixture(scope="module")
def identity() -> Identity:
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(IdentityFile(Path(folder) / "host.pem").get())


async def converse(identity: Identity, offer: CodeOffer, registry: HostRegistry, data: bytes) -> list[dict[str, Any]]:
    reader, writer = asyncio.StreamReader(limit=pairing.MAX_LINE_BYTES), Writer()
    reader.feed_data(data)
    reader.feed_eof()
    # `ControlServer` expects these; anything else fails the test.
    with contextlib.suppress(ValueError, EOFError, OSError):
        await pairing.answer(
            reader, writer, identity=identity, offer=offer, registry=registry, on_paired=lambda _: pytest.fail("paired")
        )
    return writer.sent


@given(received=st.lists(lines, max_size=4))
@examples
def test_no_conversation_without_the_code_pairs(identity: Identity, received: list[bytes]) -> None:
    offer, registry = CodeOffer(), HostRegistry(Path("/nonexistent/hosts.json"))
    offer.renew()
    data = b"".join(line.replace(b"\n", b"") + b"\n" for line in [json.dumps(HELLO).encode(), *received])
    sent = asyncio.run(converse(identity, offer, registry, data))
    assert all(message.keys() <= {"version", "nonce", "proof", "name_taken"} for message in sent)
    assert all(message.get("proof") is None for message in sent)
    assert [] == registry.all()


@given(field=st.sampled_from(Transcript._fields), value=inputs.text)
@examples
def test_a_proof_is_wrong_for_any_other_transcript(field: str, value: str) -> None:
    """What a machine in the middle can try: a proof that is right for other values."""
    offer = CodeOffer()
    code = codes.normalize_code(offer.renew())
    proven = Transcript("responder", "initiator", "nonce 1", "nonce 2", "x", ":1")
    seen = proven._replace(**{field: value})
    assert (offer.verify(seen, proven.proof("initiator", code)) is None) == (seen != proven)
