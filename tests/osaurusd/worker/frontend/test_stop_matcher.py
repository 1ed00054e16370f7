import itertools

import pytest

from osaurusd.worker.frontend.text_assembler import StopMatcher


def feed(stop, *chunks):
    """Return what is emitted for each chunk, and whether a stop string matched."""
    matcher = StopMatcher(stop)
    emitted = [matcher.feed(chunk) for chunk in chunks]
    return emitted, matcher.matched


def splits(text):
    """Yield every way to split a text into chunks."""
    for borders in itertools.product([False, True], repeat=len(text) - 1):
        chunks = [text[0]]
        for letter, border in zip(text[1:], borders, strict=True):
            if border:
                chunks.append(letter)
            else:
                chunks[-1] += letter
        yield chunks


def test_without_stop_strings_text_passes_unchanged():
    assert (["a", "", "b"], False) == feed([], "a", "", "b")


def test_an_empty_stop_string_never_matches():
    assert (["ab"], False) == feed(["", ""], "ab")


def test_text_ends_before_the_stop_string():
    assert (["before "], True) == feed(["END"], "before END after")


def test_a_stop_string_may_arrive_in_chunks():
    assert (["a", "", "", ""], True) == feed(["STOP"], "aS", "T", "O", "P")


def test_only_text_that_may_become_a_stop_string_is_held():
    assert (["some text ", ""], False) == feed(["STOP"], "some text ST", "O")


def test_held_text_is_released_once_it_cannot_match():
    assert (["a", "STEP b"], False) == feed(["STOP"], "aST", "EP b")


def test_held_text_is_released_up_to_a_new_candidate():
    assert (["", "aa", ""], True) == feed(["aab"], "aa", "aa", "b")


def test_flush_returns_held_text():
    matcher = StopMatcher(["STOP"])

    assert matcher.feed("a ST") == "a "
    assert matcher.flush() == "ST"
    assert matcher.flush() == ""
    assert not matcher.matched


def test_the_stop_string_that_begins_first_wins():
    assert (["a "], True) == feed(["two", "one"], "a one b two")
    assert (["a "], True) == feed(["one", "two"], "a two b one")


def test_a_match_waits_for_a_longer_candidate_that_began_earlier():
    assert (["x", "", ""], True) == feed(["abcd", "bc"], "xab", "c", "d")
    assert (["x", "", "a"], True) == feed(["abcd", "bc"], "xab", "c", "e")


def test_a_match_that_waited_counts_at_the_end():
    matcher = StopMatcher(["abcd", "bc"])

    assert matcher.feed("xabc") == "x"
    assert matcher.flush() == "a"
    assert matcher.matched


def test_the_longest_candidate_is_held():
    assert (["x", "", "abc!"], False) == feed(["abcd", "bx"], "xab", "c", "!")


def test_a_single_character_stop_string_holds_nothing():
    assert (["ab", "c"], True) == feed(["\n"], "ab", "c\nd")


def test_nothing_is_held_after_a_match():
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
def test_the_result_does_not_depend_on_how_the_text_is_split(stop, text, expected):
    for chunks in splits(text):
        matcher = StopMatcher(stop)
        emitted = ""
        for chunk in chunks:
            emitted += matcher.feed(chunk)
            if matcher.matched:
                break
        else:
            emitted += matcher.flush()

        assert expected == emitted, chunks


@pytest.mark.parametrize(
    ("stop", "text", "matched"), [(["a", "b"], "xb", "b"), (["bc", "abcd"], "xabcd", "abcd"), (["z"], "x", None)]
)
def test_the_matched_stop_string_is_reported(stop, text, matched):
    matcher = StopMatcher(stop)
    matcher.feed(text)
    matcher.flush()

    assert matched == matcher.matched_stop
