"""Pairing codes and proofs."""

import pytest

from osaurusd.errors import InvalidRequest
from osaurusd.hosts.codes import CODE_SECONDS, MAX_WRONG_PROOFS, CodeOffer, Transcript, normalize_code

TRANSCRIPT = Transcript("responder", "initiator", "nonce 1", "nonce 2", "a", ":8444")


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def proof_of(code, transcript=TRANSCRIPT):
    return transcript.proof("initiator", normalize_code(code))


def test_a_code_has_eighty_random_bits():
    codes = {normalize_code(CodeOffer().renew()) for _ in range(100)}
    assert 100 == len(codes)
    assert {16} == {len(code) for code in codes}
    assert 32 == len(set("".join(codes)))


@pytest.mark.parametrize("text", ["7k2m-oqxt-93fb-vhzc", " 7K2M0QXT93FBVHZC ", "7K2M 0QXT 93FB VHZC"])
def test_case_separators_and_letters_for_digits_do_not_matter(text):
    assert "7K2M0QXT93FBVHZC" == normalize_code(text)


@pytest.mark.parametrize("text", ["", "7K2M", "7K2M-0QXT-93FB-VHZCX", "7K2M-0QXT-93FB-VHZU", "7K2M-0QXT-93FB-VHZ\x00"])
def test_text_that_cannot_be_a_code_is_rejected_naming_the_field(text):
    with pytest.raises(InvalidRequest) as caught:
        normalize_code(text)
    assert "code" == caught.value.param


def test_the_right_proof_is_answered_with_another_proof():
    offer = CodeOffer()
    code = offer.renew()
    assert TRANSCRIPT.proof("responder", normalize_code(code)) == offer.verify(TRANSCRIPT, proof_of(code))


@pytest.mark.parametrize("field", Transcript._fields)
def test_a_proof_covers_everything_that_both_sides_saw(field):
    offer = CodeOffer()
    code = offer.renew()
    assert offer.verify(TRANSCRIPT._replace(**{field: "other"}), proof_of(code)) is None


def test_fields_cannot_be_shifted_into_each_other():
    shifted = TRANSCRIPT._replace(name="a:", endpoint="8444")
    assert shifted.proof("initiator", "code") != TRANSCRIPT.proof("initiator", "code")


def test_the_proof_of_one_role_is_not_that_of_the_other():
    offer = CodeOffer()
    code = offer.renew()
    assert offer.verify(TRANSCRIPT, TRANSCRIPT.proof("responder", normalize_code(code))) is None


@pytest.mark.parametrize("proof", ["", "0" * 64, "ü" * 64, "\ud800"])
def test_a_wrong_proof_is_rejected(proof):
    offer = CodeOffer()
    offer.renew()
    assert offer.verify(TRANSCRIPT, proof) is None


def test_a_code_is_withdrawn_after_five_wrong_proofs():
    offer = CodeOffer()
    code = offer.renew()
    for _ in range(MAX_WRONG_PROOFS - 1):
        offer.verify(TRANSCRIPT, "0" * 64)
    assert offer.verify(TRANSCRIPT, proof_of(code)) is not None
    offer.verify(TRANSCRIPT, "0" * 64)
    assert offer.verify(TRANSCRIPT, proof_of(code)) is None


def test_a_code_expires_after_ten_minutes():
    clock = Clock()
    offer = CodeOffer(clock)
    code = offer.renew()
    clock.now = CODE_SECONDS - 1
    assert offer.verify(TRANSCRIPT, proof_of(code)) is not None
    clock.now = CODE_SECONDS
    assert offer.verify(TRANSCRIPT, proof_of(code)) is None


def test_a_new_code_replaces_the_earlier_one():
    offer = CodeOffer()
    earlier = offer.renew()
    offer.renew()
    assert offer.verify(TRANSCRIPT, proof_of(earlier)) is None
