import itertools

import pytest

from osaurusd.worker.frontend.text import StopMatcher


def feed(stop, *pieces):
    """What is emitted for each piece, and whether a stop string was found."""
    matcher = StopMatcher(stop)
    emitted = [matcher.feed(piece) for piece in pieces]
    return emitted, matcher.matched


def cuts(text):
    """Every way to cut a text into pieces."""
    for borders in itertools.product([False, True], repeat=len(text) - 1):
        pieces = [text[0]]
        for letter, border in zip(text[1:], borders, strict=True):
            if border:
                pieces.append(letter)
            else:
                pieces[-1] += letter
        yield pieces


def test_without_stop_strings_text_passes_at_once():
    assert (["a", "", "b"], False) == feed([], "a", "", "b")


def test_an_empty_stop_string_never_matches():
    assert (["ab"], False) == feed(["", ""], "ab")


def test_text_ends_before_the_stop_string():
    assert (["before "], True) == feed(["END"], "before END after")


def test_a_stop_string_may_come_in_pieces():
    assert (["a", "", "", ""], True) == feed(["STOP"], "aS", "T", "O", "P")


def test_what_may_become_a_stop_string_is_held_and_no_more():
    assert (["some text ", ""], False) == feed(["STOP"], "some text ST", "O")


def test_what_was_held_is_released_once_it_is_known_to_be_text():
    assert (["a", "STEP b"], False) == feed(["STOP"], "aST", "EP b")


def test_what_was_held_is_released_but_for_a_new_beginning():
    assert (["", "aa", ""], True) == feed(["aab"], "aa", "aa", "b")


def test_what_was_held_is_there_at_the_end():
    matcher = StopMatcher(["STOP"])

    assert matcher.feed("a ST") == "a "
    assert matcher.flush() == "ST"
    assert matcher.flush() == ""
    assert not matcher.matched


def test_of_several_stop_strings_the_earliest_wins():
    assert (["a "], True) == feed(["two", "one"], "a one b two")
    assert (["a "], True) == feed(["one", "two"], "a two b one")


def test_a_stop_string_waits_for_a_longer_one_that_began_before_it():
    assert (["x", "", ""], True) == feed(["abcd", "bc"], "xab", "c", "d")
    assert (["x", "", "a"], True) == feed(["abcd", "bc"], "xab", "c", "e")


def test_a_stop_string_that_waited_in_vain_ends_the_text():
    matcher = StopMatcher(["abcd", "bc"])

    assert matcher.feed("xabc") == "x"
    assert matcher.flush() == "a"
    assert matcher.matched


def test_the_longest_possible_beginning_is_held():
    assert (["x", "", "abc!"], False) == feed(["abcd", "bx"], "xab", "c", "!")


def test_a_stop_string_of_one_character_holds_nothing():
    assert (["ab", "c"], True) == feed(["\n"], "ab", "c\nd")


def test_nothing_is_left_after_a_match():
    matcher = StopMatcher(["STOP"])
    matcher.feed("a STOP and S")

    assert matcher.flush() == ""


@pytest.mark.parametrize(
    ("stop", "text", "expected"),
    [
        (["abab"], "xabaababz", "xaba"),
        (["aab"], "aaaab!", "aa"),
        (["\n\n", "\nuser:"], "hi\nuse\nuser: x", "hi\nuse"),
        (["END", "STOP"], "xENSTOPEND", "xEN"),
        (["恐竜"], "x恐恐竜y", "x恐"),
        (["zz"], "no stop here", "no stop here"),
        (["abcd", "bc"], "xabcd", "x"),
        (["abcd", "bc"], "xabce", "xa"),
        (["abcd", "bc"], "xabc", "xa"),
        (["abcdef", "cde", "d"], "abcdeg", "ab"),
    ],
)
def test_it_does_not_matter_how_the_text_is_cut(stop, text, expected):
    for pieces in cuts(text):
        matcher = StopMatcher(stop)
        emitted = ""
        for piece in pieces:
            emitted += matcher.feed(piece)
            if matcher.matched:
                break
        else:
            emitted += matcher.flush()

        assert expected == emitted, pieces
