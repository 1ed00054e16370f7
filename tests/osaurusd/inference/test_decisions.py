import math
from itertools import permutations

import pytest

from osaurusd.errors import ContextLengthExceeded, InternalError
from osaurusd.inference.decisions import Option, Question, build_request, labels, locate_question, probabilities
from osaurusd.inference.request import Message

INPUT = [Message.from_text("user", "The sky is blue.")]


def question(*names, **fields):
    return Question(text="Which color?", options=[Option(name=name) for name in names], **fields)


def numbered(count):
    return question(*(f"option {letter}" for letter in labels(count)))


def answer(asked, logprob):
    """The probabilities if the model gives each option the log-probability `logprob(option, position)`."""
    continuations = build_request(INPUT, [asked]).continuations
    orders = zip(asked.orders, continuations, strict=True)
    logprobs = [[logprob(number, position) for position, number in enumerate(order)] for order, _ in orders]
    return probabilities([asked], logprobs)[0]


def test_probabilities_are_the_softmax_of_the_mean_log_probabilities():
    asked = question("red", "blue")
    assert probabilities([asked], [[-1.0, -3.0], [-1.0, -3.0]])[0] == pytest.approx([0.5, 0.5])
    assert answer(asked, lambda number, _: [-1.0, -2.0][number])[0] == pytest.approx(1 / (1 + math.exp(-1)))


@pytest.mark.parametrize("count", range(2, 9))
def test_a_preference_for_positions_does_not_change_probabilities(count):
    preference = [0.0, -5.0, 2.0, -1.0, 3.0, -4.0, 1.0, 2.5]
    fair = answer(numbered(count), lambda number, _: -0.3 * number)
    biased = answer(numbered(count), lambda number, position: -0.3 * number + preference[position])
    assert biased == pytest.approx(fair)


@pytest.mark.parametrize("count", [2, 3])
def test_few_options_are_listed_in_all_orders(count):
    assert {tuple(order) for order in numbered(count).orders} == set(permutations(range(count)))


@pytest.mark.parametrize(("count", "orders"), [(4, 4), (8, 8), (16, 4), (64, 2), (255, 2)])
def test_the_number_of_orders_is_bounded(count, orders):
    listed = numbered(count).orders
    assert len(listed) == orders
    assert all(sorted(order) == list(range(count)) for order in listed)
    assert len({order[0] for order in listed}) == orders


def test_levels_of_a_scale_are_listed_in_both_directions():
    assert question("low", "medium", "high", ordered=True).orders == [[0, 1, 2], [2, 1, 0]]


def test_the_candidates_are_the_names_of_the_options():
    asked = Question(text="Which?", options=[Option(name="red", description="like fire"), Option(name="blue")])
    first, second = build_request(INPUT, [asked]).continuations
    assert first.candidates == ["red", "blue"]
    assert second.candidates == ["blue", "red"]
    assert first.text.index("- red: like fire\n") < first.text.index("- blue\n")


@pytest.mark.parametrize("names", [("red", "reddish"), ("1", "10"), ("", "x")])
def test_options_of_which_one_begins_with_another_have_letters(names):
    first, second = build_request(INPUT, [question(*names)]).continuations
    assert first.candidates == second.candidates == ["A", "B"]
    assert f"A. {names[0]}\nB. {names[1]}\n" in first.text
    assert f"A. {names[1]}\nB. {names[0]}\n" in second.text


def test_labels_never_begin_with_another_label():
    for count in (2, 26, 27, 255):
        assert len(set(labels(count))) == count
        assert len({len(label) for label in labels(count)}) == 1


def test_questions_follow_the_input():
    assert build_request(INPUT, [question("a", "b")]).prompt.messages[-1].text == "The sky is blue.\n\n"
    chat = [*INPUT, Message.from_text("assistant", "Yes.")]
    messages = build_request(chat, [question("a", "b")]).prompt.messages
    assert [message.role for message in messages] == ["user", "assistant", "user"]


def test_an_error_of_a_continuation_names_its_question():
    questions = [question("a", "b"), numbered(5)]
    error = ContextLengthExceeded("too long", location=("continuations", 3))
    assert locate_question(error, questions).location == ("questions", 1)
    other = InternalError("broken")
    assert locate_question(other, questions) is other
