import json

import pytest

from osaurusd.inference.events import Delta
from osaurusd.inference.request import (
    ChatPrompt,
    JsonObject,
    Message,
    RequiredToolCalls,
    SamplingParams,
    TextPrompt,
    TokenPrompt,
)
from osaurusd.rpc import framing, messages
from osaurusd.worker.frontend.answer import OutputDelta, Speech
from osaurusd.worker.frontend.likelihood import Score
from osaurusd.worker.frontend.prompts import Prompt
from tests.osaurusd.worker import families

WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
TIME = {"type": "function", "function": {"name": "time"}}
CHAT = ChatPrompt(messages=[Message(role="user", content="hi")])
CHAT_WITH_TOOLS = ChatPrompt(messages=CHAT.messages, tools=[WEATHER, TIME])


@pytest.fixture(scope="module")
def family(tiny_folder, tmp_path_factory):
    """Makes the tokenizer of a family of models."""
    return families.maker(tiny_folder, tmp_path_factory.mktemp("families"))


def order(prompt=CHAT, **fields):
    return messages.Generate(id=1, prompt=prompt, sampling=SamplingParams(temperature=0), **fields)


class Said:
    """All news of one answer, in sum, up to where the sequence has to end."""

    def __init__(self, tokenizer, words, generate, *, prompt=None, cut=False, scores=False):
        self.answer = Speech(tokenizer).answer(generate, prompt or Prompt([1]))
        self.news = []
        ids = words if isinstance(words, list) else tokenizer.encode(words, add_special_tokens=False)
        for token in ids:
            self.news.append(self.answer.add(token, Score(-token) if scores else None))
            if self.answer.stopped:
                break
        else:
            self.news.append(self.answer.finish(cut=cut))
        self.news = [news for news in self.news if news is not None]
        self.text = "".join(news.text for news in self.news)
        self.reasoning = "".join(news.reasoning for news in self.news)
        self.deltas = [delta for news in self.news for delta in news.calls]
        self.tokens = [token for news in self.news for token in news.tokens]

    @property
    def calls(self):
        """Name and arguments of each call."""
        found = []
        for delta in self.deltas:
            if delta.name is not None:
                found.append([delta.name, ""])
            found[delta.index][1] += delta.arguments
        return [(name, json.loads(arguments)) for name, arguments in found]


# Text


@pytest.mark.parametrize(
    "text",
    ["The capital of France is Paris.", "  indented\n\n\tcode()  ", "naïve café", "恐竜 🦕🦖 Ω", "a\u200db 👩‍👩‍👧"],
)
@pytest.mark.parametrize("stop", [[], ["never"]])
def test_text_comes_out_as_it_went_in_but_for_a_space_at_its_beginning(tokenizer, text, stop):
    assert text.removeprefix(" ") == Said(tokenizer, text, order(stop=stop)).text


def test_a_continuation_keeps_the_space_it_begins_with(tokenizer):
    prompt = Prompt(tokenizer.encode("The capital is"))

    assert " Paris" == Said(tokenizer, " Paris", order(TextPrompt(text="The capital is")), prompt=prompt).text


def test_a_character_of_several_tokens_comes_out_whole(tokenizer):
    said = Said(tokenizer, "x🦕y🦖", order())

    assert said.text == "x🦕y🦖"
    assert len(tokenizer.encode("x🦕y🦖")) > 4 >= len(said.news)


def test_an_answer_that_ends_inside_a_character_keeps_what_came_before(tokenizer):
    said = Said(tokenizer, tokenizer.encode("dino 🦕")[:-1], order(), cut=True)

    assert said.text.startswith("dino ")
    assert "🦕" not in said.text


def test_a_token_that_tells_nothing_yet_is_no_news(tokenizer):
    answer = Speech(tokenizer).answer(order(), Prompt([1]))
    first, *_ = tokenizer.encode("🦕")

    assert answer.add(first) is None


def test_a_stop_string_over_token_borders_ends_the_answer_and_is_never_emitted(tokenizer):
    text = "one two three four five"
    for start in range(4, 15):
        for length in range(2, 9):
            stop = text[start : start + length]

            said = Said(tokenizer, text, order(stop=[stop]))

            assert text[: text.index(stop)] == said.text
            assert said.answer.stopped


def test_a_stop_string_that_the_last_token_completes_late_is_found(tokenizer):
    # A lone space stays in the detokenizer until it is certain that nothing follows.
    said = Said(tokenizer, "the end ", order(stop=["end "]))

    assert said.text == "the "
    assert said.answer.stopped


def test_stop_strings_of_the_prompt_count_too(tokenizer):
    assert "a" == Said(tokenizer, "a\nuser: b", order(), prompt=Prompt([1], ["\nuser:"])).text


def test_answers_do_not_share_anything(tokenizer):
    speech = Speech(tokenizer)
    first, second = speech.answer(order(), Prompt([1])), speech.answer(order(), Prompt([1]))
    pairs = zip(tokenizer.encode("one two three"), tokenizer.encode("red green blue"), strict=True)

    told = [(first.add(a).text, second.add(b).text) for a, b in pairs]

    assert "one two three" == "".join(a for a, _ in told)
    assert "red green blue" == "".join(b for _, b in told)


# Reasoning


@pytest.mark.parametrize(
    ("written", "thinking", "reasoning", "text"),
    [
        ("<think>\nhm\nwell\n</think>\n\nYes.\n", False, "hm\nwell", "Yes.\n"),
        ("hm\n</think>\n\nYes.", True, "hm", "Yes."),
        ("\n\n</think>\n\nYes.", True, "", "Yes."),
        ("hm, <b> </thin", True, "hm, <b> </thin", ""),
        ("No thought.", False, "", "No thought."),
        ("One. <think>two</think>three", False, "two", "One. three"),
        ("\nfirst", False, "", "\nfirst"),
    ],
)
def test_thoughts_are_told_apart_from_text(family, written, thinking, reasoning, text):
    said = Said(family("qwen3"), written, order(), prompt=Prompt([1], thinking=thinking))

    assert (reasoning, text) == (said.reasoning, said.text)


def test_tokens_of_thoughts_are_counted_with_their_markers(family):
    tokenizer = family("qwen3")
    thought = tokenizer.encode("<think>let me see</think>", add_special_tokens=False)

    said = Said(tokenizer, "<think>let me see</think>Yes, of course.", order())

    assert len(thought) == said.answer.reasoning_tokens
    assert Said(tokenizer, "Yes, of course.", order()).answer.reasoning_tokens == 0


def test_markers_of_several_tokens_are_found(family):
    said = Said(family("gemma4"), "<|channel>thought\nhm<channel|>Yes.", order())

    assert ("hm", "Yes.") == (said.reasoning, said.text)


def test_a_model_without_think_tokens_does_not_think(tokenizer):
    said = Said(tokenizer, "<think>hm</think>Yes.", order())

    assert ("", "<think>hm</think>Yes.") == (said.reasoning, said.text)
    assert said.answer.reasoning_tokens == 0


def test_a_plain_continuation_has_no_thoughts(family):
    said = Said(family("qwen3"), "<think>hm</think>Yes.", order(TokenPrompt(tokens=[1])))

    assert ("", "<think>hm</think>Yes.") == (said.reasoning, said.text)


def test_stop_strings_are_not_looked_for_in_thoughts(family):
    said = Said(family("qwen3"), "<think>one, two</think>three, four", order(stop=[","]))

    assert ("one, two", "three") == (said.reasoning, said.text)
    assert said.answer.stopped


def test_thoughts_are_told_while_they_come(family):
    said = Said(family("qwen3"), "<think>one two three</think>", order())

    assert len(said.news) >= 3


# Calls

OSLO = '{"name": "weather", "arguments": {"city": "Oslo"}}'
PARIS = '{"name": "weather", "arguments": {"city": "Paris"}}'
ONE_CALL = [("weather", {"city": "Oslo"})]
TWO_CALLS = [("weather", {"city": "Oslo"}), ("weather", {"city": "Paris"})]


@pytest.mark.parametrize(
    ("name", "written", "text", "calls"),
    [
        ("qwen3", f"<tool_call>\n{OSLO}\n</tool_call>", "", ONE_CALL),
        (
            "qwen3",
            f"Sure.\n\n<tool_call>\n{OSLO}\n</tool_call>\n<tool_call>\n{PARIS}\n</tool_call>\n",
            "Sure.",
            TWO_CALLS,
        ),
        ("qwen3", f"<tool_call>\n{OSLO}\n</tool_call> Done.", " Done.", ONE_CALL),
        ("qwen3", f"<tool_call>{OSLO}", "", ONE_CALL),
        ("mistral", '[TOOL_CALLS]weather[ARGS]{"city": "Oslo"}', "", ONE_CALL),
        ("mistral", f"[TOOL_CALLS][{OSLO}, {PARIS}]", "", TWO_CALLS),
        ("lfm2", '<|tool_call_start|>[weather(city="Oslo"), weather(city="Paris")]<|tool_call_end|>', "", TWO_CALLS),
        ("llama3", '{"name": "weather", "parameters": {"city": "Oslo"}}', "", ONE_CALL),
        ("llama3", f"<|python_tag|>{OSLO}", "", ONE_CALL),
        ("llama3", f"```json\n[{OSLO}, {PARIS}]\n```", "", TWO_CALLS),
        ("llama3", f' {{"type": "function", "function": {OSLO}}}\n', "", ONE_CALL),
        ("llama3", f"I will look.\n<tool_call>{OSLO}</tool_call>", "I will look.", ONE_CALL),
        ("llama3", '<tool_call>{"name": "time"}</tool_call>', "", [("time", {})]),
        ("deepseek-r1", f"<think>hm</think>\n\n{OSLO}", "", ONE_CALL),
    ],
)
def test_calls_are_found_in_the_form_of_the_model(family, name, written, text, calls):
    said = Said(family(name), written, order(CHAT_WITH_TOOLS))

    assert calls == said.calls
    assert text == said.text
    assert said.answer.has_tool_calls


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("qwen3", "<tool_call>\n{not JSON}\n</tool_call>"),
        ("qwen3", 'See: <tool_call>\n{"name": "no such tool", "arguments": {}}\n</tool_call> and so on'),
        ("qwen3", '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>'),
        ("qwen3", '<tool_call>{"name": "weather", "arguments": {"city": NaN}}</tool_call>'),
        ("qwen3", '<tool_call>{"name": ["weather"]}</tool_call>'),
        ("mistral", "[TOOL_CALLS]weather[ARGS]{"),
        ("lfm2", "<|tool_call_start|>[weather(city={1, 2})]<|tool_call_end|>"),
        ("llama3", '{"name": "no such tool", "parameters": {}}'),
        ("llama3", '{"name": "weather"}'),
        ("llama3", "```json\n[1, 2]\n```\n"),
        ("llama3", '[{"name": "weather", "parameters": {}}, 3]'),
        ("llama3", "[1] is a reference\n"),
    ],
)
def test_what_is_no_call_is_text_exactly_as_it_was_written(family, name, written):
    said = Said(family(name), written, order(CHAT_WITH_TOOLS))

    assert written == said.text
    assert [] == said.deltas
    assert not said.answer.has_tool_calls


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("qwen3", f"<think>\nhm\n</think>\n\nSee <tool_call> x </tool_call>:\n\n<tool_call>\n{OSLO}\n</tool_call>\n"),
        ("qwen3", f"<think></think><tool_call>{OSLO}</tool_call><tool_call>{PARIS}</tool_call>END."),
        ("gemma4", f"<|channel>thought\nhm<channel|>\n<tool_call>{OSLO}</tool_call> and STO ST STOP and more"),
        ("llama3", f"```json\n{OSLO}\n```"),
        ("llama3", '{"name": "nobody"} STOP'),
    ],
)
def test_it_does_not_matter_how_the_text_is_cut_into_tokens(family, name, written):
    tokenizer = family(name)
    generate = order(CHAT_WITH_TOOLS, stop=["STOP", "D."], logprobs=0)
    usual = Said(tokenizer, written, generate, scores=True)

    single = [token for letter in written for token in tokenizer.encode(letter, add_special_tokens=False)]
    other = Said(tokenizer, single, generate, scores=True)

    assert (usual.reasoning, usual.text, usual.calls) == (other.reasoning, other.text, other.calls)
    assert usual.answer.stopped == other.answer.stopped
    assert other.text == told_tokens(other)


def test_a_call_is_told_with_id_name_and_pieces_of_its_arguments(family):
    city = "Å" * 100
    written = f'<tool_call>{{"name": "weather", "arguments": {{"city": "{city}"}}}}</tool_call>'

    first, *rest = Said(family("qwen3"), written, order(CHAT_WITH_TOOLS)).deltas

    assert (0, "weather", "") == (first.index, first.name, first.arguments)
    assert first.id.startswith("call_")
    assert len(rest) >= 2
    assert {(0, None, None)} == {(delta.index, delta.id, delta.name) for delta in rest}
    assert f'{{"city": "{city}"}}' == "".join(delta.arguments for delta in rest)


def test_calls_have_rising_indexes_and_ids_of_their_own(family):
    written = f"<tool_call>{OSLO}</tool_call><tool_call>{PARIS}</tool_call>"

    heads = [delta for delta in Said(family("qwen3"), written, order(CHAT_WITH_TOOLS)).deltas if delta.name]

    assert [0, 1] == [delta.index for delta in heads]
    assert len({delta.id for delta in heads}) == 2


@pytest.mark.parametrize("name", ["qwen3", "llama3"])
def test_a_call_that_is_cut_is_text(family, name):
    said = Said(family(name), f"<tool_call>{OSLO[:-4]}", order(CHAT_WITH_TOOLS), cut=True)

    assert f"<tool_call>{OSLO[:-4]}" == said.text
    assert not said.answer.has_tool_calls


@pytest.mark.parametrize("name", ["qwen3", "llama3"])
@pytest.mark.parametrize(
    "generate",
    [order(CHAT_WITH_TOOLS, call_tools=False), order(CHAT), order(CHAT_WITH_TOOLS, constraint=JsonObject())],
)
def test_calls_stay_in_the_text_where_they_are_not_wanted(family, name, generate):
    for written in (OSLO, f"<tool_call>{OSLO}</tool_call>"):
        said = Said(family(name), written, generate)

        assert written == said.text
        assert not said.answer.has_tool_calls


def test_without_parallel_calls_the_answer_ends_with_its_first(family):
    written = f"<tool_call>{OSLO}</tool_call><tool_call>{PARIS}</tool_call>"

    said = Said(family("qwen3"), written, order(CHAT_WITH_TOOLS, parallel_calls=False))

    assert ONE_CALL == said.calls
    assert said.answer.stopped
    assert said.answer.has_tool_calls


def test_without_parallel_calls_only_the_first_of_a_list_is_told(family):
    said = Said(family("llama3"), f"[{OSLO}, {PARIS}]", order(CHAT_WITH_TOOLS, parallel_calls=False))

    assert ONE_CALL == said.calls


def test_text_that_is_no_call_is_not_held_back(family):
    said = Said(family("llama3"), '{"city": "Oslo"} is an object', order(CHAT_WITH_TOOLS))

    assert len(said.news) >= 5


def test_a_stop_string_in_a_call_does_not_end_the_answer(family):
    said = Said(family("qwen3"), f"<tool_call>{OSLO}</tool_call>", order(CHAT_WITH_TOOLS, stop=["Oslo"]))

    assert ONE_CALL == said.calls


def test_half_a_surrogate_pair_in_arguments_can_be_sent(family):
    written = '<tool_call>{"name": "weather", "arguments": {"city": "\\ud83e"}}</tool_call>'

    said = Said(family("qwen3"), written, order(CHAT_WITH_TOOLS))

    assert b"\\ud83e" in framing.encode([Delta(id=1, calls=said.deltas)])


# Calls that the answer is held to


def held_to_calls(**fields):
    return order(CHAT_WITH_TOOLS, constraint=RequiredToolCalls(names=["weather", "time"], parallel=True), **fields)


@pytest.mark.parametrize("name", ["qwen3", "llama3"])
@pytest.mark.parametrize("before", ["", "\n\n"])
def test_calls_that_the_answer_is_held_to_are_told(family, name, before):
    tricky = '{"name": "time", "arguments": {"zone": "}\\"{\\\\", "more": [{"a": {}}]}}'

    said = Said(family(name), f"{before}{OSLO}\n{tricky}", held_to_calls())

    assert [*ONE_CALL, ("time", {"zone": '}"{\\', "more": [{"a": {}}]})] == said.calls
    assert said.text == ""
    assert said.answer.has_tool_calls


def test_calls_that_the_answer_is_held_to_are_told_while_they_come(tokenizer):
    said = Said(tokenizer, OSLO[:-5], held_to_calls(), cut=True)

    assert len(said.news) >= 3
    assert "weather" == said.deltas[0].name
    assert OSLO[:-5].endswith("".join(delta.arguments for delta in said.deltas))


def test_calls_that_the_answer_is_held_to_may_follow_a_thought(family):
    said = Said(family("qwen3"), f"hm\n</think>\n\n{OSLO}", held_to_calls(), prompt=Prompt([1], thinking=True))

    assert ("hm", ONE_CALL) == (said.reasoning, said.calls)


# Likelihoods


def told_tokens(said):
    return "".join(token.text for token in said.tokens)


def test_tokens_are_told_with_their_text_and_scores(tokenizer):
    ids = tokenizer.encode("one two")

    said = Said(tokenizer, ids, order(logprobs=0), scores=True)

    assert [-token for token in ids] == [token.logprob for token in said.tokens]
    assert [list(b"one"), list(b" two")] == [token.bytes for token in said.tokens]
    assert [1, 1] == [len(news.tokens) for news in said.news]


def test_the_bytes_of_a_character_come_with_it(tokenizer):
    ids = tokenizer.encode("a🦕")

    said = Said(tokenizer, ids, order(logprobs=0), scores=True)

    assert "a🦕".encode() == bytes(byte for token in said.tokens for byte in token.bytes)
    assert [1, len(ids) - 1] == [len(news.tokens) for news in said.news]


def test_tokens_that_a_stop_string_cuts_off_are_not_told(tokenizer):
    said = Said(tokenizer, "one two three four", order(logprobs=0, stop=[" three four"]), scores=True)

    assert "one two" == said.text == told_tokens(said)


def test_tokens_that_were_held_back_are_told_with_their_text(tokenizer):
    said = Said(tokenizer, "one two three five", order(logprobs=0, stop=[" two three four"]), scores=True)

    assert "one two three five" == said.text == told_tokens(said)
    assert [1, 3] == [len(news.tokens) for news in said.news]


def test_only_tokens_of_text_are_told(family):
    written = f"<think>hm</think>\n\nSee <tool_call>no</tool_call> and<tool_call>{OSLO}</tool_call>"

    said = Said(family("qwen3"), written, order(CHAT_WITH_TOOLS, logprobs=0), scores=True)

    assert "See <tool_call>no</tool_call> and" == said.text == told_tokens(said)


def test_the_likeliest_tokens_are_told_beside_each(tokenizer):
    answer = Speech(tokenizer).answer(order(logprobs=2), Prompt([1]))
    (cat,) = tokenizer.encode("cat")
    (dog,) = tokenizer.encode("dog")

    (token,) = answer.add(cat, Score(-1.0, [(dog, -0.5), (cat, -1.0)])).tokens

    assert [("dog", -0.5), ("cat", -1.0)] == [(likely.text, likely.logprob) for likely in token.top]


def test_an_echoed_prompt_is_scored_but_for_its_first_token(tokenizer):
    ids = tokenizer.encode("one two")

    first, second = Speech(tokenizer).scored(ids, [None, Score(-2.0, [(ids[0], -1.0)])])

    assert ("one", None, []) == (first.text, first.logprob, first.top)
    assert (" two", -2.0, "one") == (second.text, second.logprob, second.top[0].text)


def test_news_without_anything_in_it_are_false():
    assert not OutputDelta()
    assert OutputDelta(reasoning="x")
