import itertools

import pytest

from osaurusd.worker.text import StopMatcher, TextStream


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


# Stop strings


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


# With a real tokenizer


@pytest.fixture
def tokens(tokenizer):
    """The tokens of a text."""
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


@pytest.fixture
def stream(tokenizer):
    """Makes text streams."""
    return lambda *stop: TextStream(tokenizer.detokenizer, stop)


def add_all(stream, tokens):
    """All that is emitted, up to the stop string if there is one."""
    pieces = []
    for token in tokens:
        pieces.append(stream.add(token))
        if stream.stopped:
            return pieces
    return [*pieces, stream.finish()]


@pytest.mark.parametrize(
    "text",
    ["The capital of France is Paris.", "  indented\n\n\tcode()  ", "naïve café", "恐竜 🦕🦖 Ω", "a\u200db 👩‍👩‍👧"],
)
def test_text_comes_out_as_it_went_in_but_for_a_space_at_its_beginning(stream, tokens, text):
    assert text.removeprefix(" ") == "".join(add_all(stream(), tokens(text)))


def test_a_character_of_several_tokens_comes_out_whole(stream, tokens):
    text = "x🦕y🦖"
    assert len(tokens(text)) > len(text), "this text must have characters of several tokens"

    pieces = add_all(stream(), tokens(text))

    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_an_answer_that_ends_inside_a_character_keeps_what_came_before(stream, tokens):
    cut = tokens("dino 🦕")[:-1]

    text = "".join(add_all(stream(), cut))

    assert text.startswith("dino ")
    assert "🦕" not in text


def test_a_stop_string_over_token_borders_is_found_and_never_emitted(stream, tokens):
    text = "one two three four five"
    assert len(tokens(text)) > 3
    for start in range(4, 15):
        for length in range(2, 9):
            stop = text[start : start + length]

            streaming = stream(stop)
            emitted = "".join(add_all(streaming, tokens(text)))

            assert text[: text.index(stop)] == emitted
            assert streaming.stopped


def test_a_stop_string_may_be_a_character_of_several_tokens(stream, tokens):
    assert len(tokens("🦕")) > 1
    streaming = stream("🦕")

    assert "".join(add_all(streaming, tokens("a dino 🦕 and more"))) == "a dino "
    assert streaming.stopped


def test_what_looked_like_a_stop_string_is_emitted_in_the_end(stream, tokens):
    streaming = stream("four five six")

    assert "".join(add_all(streaming, tokens("three four five"))) == "three four five"
    assert not streaming.stopped


def test_a_stop_string_that_the_last_token_completes_late_is_found(stream, tokens):
    # A lone space stays in the detokenizer until it is certain that nothing follows.
    ids = tokens("the end ")
    assert "the end " == "".join(add_all(stream(), ids))
    streaming = stream("end ")

    assert "".join(add_all(streaming, ids)) == "the "
    assert streaming.stopped


def test_streams_do_not_share_anything(stream, tokens):
    first, second = stream(), stream()
    one, two = tokens("one two three"), tokens("red green blue")

    pairs = [(first.add(a), second.add(b)) for a, b in zip(one, two, strict=True)]

    assert "".join(a for a, _ in pairs) + first.finish() == "one two three"
    assert "".join(b for _, b in pairs) + second.finish() == "red green blue"
