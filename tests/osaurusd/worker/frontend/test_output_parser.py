import json

import pytest

from osaurusd.inference.events import Delta
from osaurusd.inference.request import (
    ChatPrompt,
    GenerationRequest,
    JsonObject,
    Message,
    RequiredToolCalls,
    SamplingParams,
    TextPrompt,
    TokenPrompt,
    Tool,
)
from osaurusd.rpc import framing, messages
from osaurusd.worker.frontend.chat_template import EncodedPrompt
from osaurusd.worker.frontend.logprobs import Score
from osaurusd.worker.frontend.output_parser import OutputParser
from osaurusd.worker.frontend.text_assembler import OutputDelta
from tests.osaurusd.worker import families

WEATHER = Tool(name="weather", parameters={"type": "object", "properties": {"city": {"type": "string"}}})
TIME = Tool(name="time")
CHAT = ChatPrompt(messages=[Message.from_text("user", "hi")])
CHAT_WITH_TOOLS = ChatPrompt(messages=CHAT.messages, tools=[WEATHER, TIME])


@pytest.fixture(scope="module")
def family(tiny_folder, tmp_path_factory):
    """Create the tokenizer of a model family."""
    return families.tokenizer_factory(tiny_folder, tmp_path_factory.mktemp("families"))


def build_request(prompt=CHAT, **fields):
    return GenerationRequest(prompt=prompt, sampling=SamplingParams(temperature=0), **fields)


class Parsed:
    """The accumulated output of one sequence, up to the point where it must end."""

    def __init__(self, tokenizer, text, request, *, prompt=None, truncated=False, scores=False):
        self.output = OutputParser(tokenizer).create_output(request, prompt or EncodedPrompt([1]))
        self.deltas = []
        ids = text if isinstance(text, list) else tokenizer.encode(text, add_special_tokens=False)
        for token in ids:
            self.deltas.append(self.output.add(token, Score(-token) if scores else None))
            if self.output.stopped:
                break
        else:
            self.deltas.append(self.output.finish(truncated=truncated))
        self.deltas = [delta for delta in self.deltas if delta is not None]
        self.text = "".join(delta.text for delta in self.deltas)
        self.reasoning = "".join(delta.reasoning for delta in self.deltas)
        self.call_deltas = [call for delta in self.deltas for call in delta.tool_calls]
        self.logprobs = [token for delta in self.deltas for token in delta.logprobs]

    @property
    def calls(self):
        """The name and arguments of each call."""
        calls = []
        for delta in self.call_deltas:
            if delta.name is not None:
                calls.append([delta.name, ""])
            calls[delta.index][1] += delta.arguments
        return [(name, json.loads(arguments)) for name, arguments in calls]


# Text


@pytest.mark.parametrize(
    "text",
    ["The capital of France is Paris.", "  indented\n\n\tcode()  ", "naïve café", "恐竜 🦕🦖 Ω", "a\u200db 👩‍👩‍👧"],
)
@pytest.mark.parametrize("stop", [[], ["never"]])
def test_text_is_emitted_unchanged_except_for_a_leading_space(tokenizer, text, stop):
    assert text.removeprefix(" ") == Parsed(tokenizer, text, build_request(stop=stop)).text


def test_a_continuation_keeps_its_leading_space(tokenizer):
    prompt = EncodedPrompt(tokenizer.encode("The capital is"))

    assert " Paris" == Parsed(tokenizer, " Paris", build_request(TextPrompt(text="The capital is")), prompt=prompt).text


def test_a_character_of_several_tokens_is_emitted_whole(tokenizer):
    parsed = Parsed(tokenizer, "x🦕y🦖", build_request())

    assert parsed.text == "x🦕y🦖"
    assert len(tokenizer.encode("x🦕y🦖")) > 4 >= len(parsed.deltas)


def test_an_output_that_ends_inside_a_character_keeps_the_text_before_it(tokenizer):
    parsed = Parsed(tokenizer, tokenizer.encode("dino 🦕")[:-1], build_request(), truncated=True)

    assert parsed.text.startswith("dino ")
    assert "🦕" not in parsed.text


def test_a_token_without_complete_text_emits_nothing(tokenizer):
    output = OutputParser(tokenizer).create_output(build_request(), EncodedPrompt([1]))
    first, *_ = tokenizer.encode("🦕")

    assert output.add(first) is None


def test_a_stop_string_across_tokens_ends_the_output_and_is_not_emitted(tokenizer):
    text = "one two three four five"
    for start in range(4, 15):
        for length in range(2, 9):
            stop = text[start : start + length]

            parsed = Parsed(tokenizer, text, build_request(stop=[stop]))

            assert text[: text.index(stop)] == parsed.text
            assert parsed.output.stopped


def test_a_stop_string_completed_by_the_final_flush_is_found(tokenizer):
    # The detokenizer holds a lone space until it is finalized.
    parsed = Parsed(tokenizer, "the end ", build_request(stop=["end "]))

    assert parsed.text == "the "
    assert parsed.output.stopped


def test_stop_strings_of_the_prompt_apply(tokenizer):
    assert "a" == Parsed(tokenizer, "a\nuser: b", build_request(), prompt=EncodedPrompt([1], ["\nuser:"])).text


def test_outputs_are_independent(tokenizer):
    parser = OutputParser(tokenizer)
    first, second = (
        parser.create_output(build_request(), EncodedPrompt([1])),
        parser.create_output(build_request(), EncodedPrompt([1])),
    )
    pairs = zip(tokenizer.encode("one two three"), tokenizer.encode("one day for"), strict=True)

    texts = [(first.add(a).text, second.add(b).text) for a, b in pairs]

    assert "one two three" == "".join(a for a, _ in texts)
    assert "one day for" == "".join(b for _, b in texts)


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
def test_reasoning_is_separated_from_text(family, written, thinking, reasoning, text):
    parsed = Parsed(family("qwen3"), written, build_request(), prompt=EncodedPrompt([1], starts_reasoning=thinking))

    assert (reasoning, text) == (parsed.reasoning, parsed.text)


def test_reasoning_tokens_are_counted_with_their_markers(family):
    tokenizer = family("qwen3")
    thought = tokenizer.encode("<think>let me see</think>", add_special_tokens=False)

    parsed = Parsed(tokenizer, "<think>let me see</think>Yes, of course.", build_request())

    assert len(thought) == parsed.output.reasoning_tokens
    assert Parsed(tokenizer, "Yes, of course.", build_request()).output.reasoning_tokens == 0


def test_markers_of_several_tokens_are_recognized(family):
    parsed = Parsed(family("gemma4"), "<|channel>thought\nhm<channel|>Yes.", build_request())

    assert ("hm", "Yes.") == (parsed.reasoning, parsed.text)


def test_a_model_without_reasoning_markers_has_no_reasoning(tokenizer):
    parsed = Parsed(tokenizer, "<think>hm</think>Yes.", build_request())

    assert ("", "<think>hm</think>Yes.") == (parsed.reasoning, parsed.text)
    assert parsed.output.reasoning_tokens == 0


def test_a_raw_continuation_has_no_reasoning(family):
    parsed = Parsed(family("qwen3"), "<think>hm</think>Yes.", build_request(TokenPrompt(tokens=[1])))

    assert ("", "<think>hm</think>Yes.") == (parsed.reasoning, parsed.text)


def test_stop_strings_do_not_match_in_reasoning(family):
    parsed = Parsed(family("qwen3"), "<think>one, two</think>three, four", build_request(stop=[","]))

    assert ("one, two", "three") == (parsed.reasoning, parsed.text)
    assert parsed.output.stopped


def test_reasoning_is_streamed(family):
    parsed = Parsed(family("qwen3"), "<think>one two three</think>", build_request())

    assert len(parsed.deltas) >= 3


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
def test_calls_are_parsed_in_the_format_of_the_model(family, name, written, text, calls):
    parsed = Parsed(family(name), written, build_request(CHAT_WITH_TOOLS))

    assert calls == parsed.calls
    assert text == parsed.text
    assert parsed.output.has_tool_calls


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
def test_invalid_calls_are_emitted_as_text_unchanged(family, name, written):
    parsed = Parsed(family(name), written, build_request(CHAT_WITH_TOOLS))

    assert written == parsed.text
    assert [] == parsed.call_deltas
    assert not parsed.output.has_tool_calls


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("qwen3", f"<think>\nhm\n</think>\n\nSee <tool_call> x </tool_call>:\n\n<tool_call>\n{OSLO}\n</tool_call>\n"),
        ("qwen3", f"<think></think><tool_call>{OSLO}</tool_call><tool_call>{PARIS}</tool_call>END."),
        ("gemma4", f"<|channel>thought\nhm<channel|>\n<tool_call>{OSLO}</tool_call> and STO ST STOP and more"),
        ("llama3", f"```json\n{OSLO}\n```"),
        ("llama3", '{"name": "unknown"} STOP'),
    ],
)
def test_the_result_does_not_depend_on_how_the_text_is_tokenized(family, name, written):
    tokenizer = family(name)
    request = build_request(CHAT_WITH_TOOLS, stop=["STOP", "D."], logprobs=0)
    expected = Parsed(tokenizer, written, request, scores=True)

    single = [token for letter in written for token in tokenizer.encode(letter, add_special_tokens=False)]
    actual = Parsed(tokenizer, single, request, scores=True)

    assert (expected.reasoning, expected.text, expected.calls) == (actual.reasoning, actual.text, actual.calls)
    assert expected.output.stopped == actual.output.stopped
    assert actual.text == logprob_text(actual)


def test_a_call_is_streamed_as_id_and_name_then_argument_chunks(family):
    city = "Å" * 100
    written = f'<tool_call>{{"name": "weather", "arguments": {{"city": "{city}"}}}}</tool_call>'

    first, *rest = Parsed(family("qwen3"), written, build_request(CHAT_WITH_TOOLS)).call_deltas

    assert (0, "weather", "") == (first.index, first.name, first.arguments)
    assert first.id.startswith("call_")
    assert len(rest) >= 2
    assert {(0, None, None)} == {(delta.index, delta.id, delta.name) for delta in rest}
    assert f'{{"city": "{city}"}}' == "".join(delta.arguments for delta in rest)


def test_calls_have_increasing_indexes_and_distinct_ids(family):
    written = f"<tool_call>{OSLO}</tool_call><tool_call>{PARIS}</tool_call>"

    heads = [
        delta for delta in Parsed(family("qwen3"), written, build_request(CHAT_WITH_TOOLS)).call_deltas if delta.name
    ]

    assert [0, 1] == [delta.index for delta in heads]
    assert len({delta.id for delta in heads}) == 2


@pytest.mark.parametrize("name", ["qwen3", "llama3"])
def test_a_truncated_call_is_text(family, name):
    parsed = Parsed(family(name), f"<tool_call>{OSLO[:-4]}", build_request(CHAT_WITH_TOOLS), truncated=True)

    assert f"<tool_call>{OSLO[:-4]}" == parsed.text
    assert not parsed.output.has_tool_calls


@pytest.mark.parametrize("name", ["qwen3", "llama3"])
@pytest.mark.parametrize(
    "generation",
    [
        build_request(CHAT_WITH_TOOLS, parse_tool_calls=False),
        build_request(CHAT),
        build_request(CHAT_WITH_TOOLS, constraint=JsonObject()),
    ],
)
def test_calls_stay_in_the_text_if_they_are_not_parsed(family, name, generation):
    for written in (OSLO, f"<tool_call>{OSLO}</tool_call>"):
        parsed = Parsed(family(name), written, generation)

        assert written == parsed.text
        assert not parsed.output.has_tool_calls


def test_without_parallel_calls_the_output_ends_with_its_first_call(family):
    written = f"<tool_call>{OSLO}</tool_call><tool_call>{PARIS}</tool_call>"

    parsed = Parsed(family("qwen3"), written, build_request(CHAT_WITH_TOOLS, parallel_tool_calls=False))

    assert ONE_CALL == parsed.calls
    assert parsed.output.stopped
    assert parsed.output.has_tool_calls


def test_without_parallel_calls_only_the_first_call_of_a_list_is_emitted(family):
    parsed = Parsed(family("llama3"), f"[{OSLO}, {PARIS}]", build_request(CHAT_WITH_TOOLS, parallel_tool_calls=False))

    assert ONE_CALL == parsed.calls


def test_text_that_cannot_be_a_call_is_not_held_back(family):
    parsed = Parsed(family("llama3"), '{"city": "Oslo"} is an object', build_request(CHAT_WITH_TOOLS))

    assert len(parsed.deltas) >= 5


def test_a_stop_string_in_a_call_does_not_end_the_output(family):
    parsed = Parsed(family("qwen3"), f"<tool_call>{OSLO}</tool_call>", build_request(CHAT_WITH_TOOLS, stop=["Oslo"]))

    assert ONE_CALL == parsed.calls


def test_a_lone_surrogate_in_arguments_becomes_a_replacement_character(family):
    written = '<tool_call>{"name": "weather", "arguments": {"city": "\\ud83e"}}</tool_call>'

    parsed = Parsed(family("qwen3"), written, build_request(CHAT_WITH_TOOLS))

    assert [("weather", {"city": "\ufffd"})] == parsed.calls
    framing.encode([messages.Output(id=1, event=Delta(tool_calls=parsed.call_deltas))])


# Required calls


def request_calls(**fields):
    return build_request(
        CHAT_WITH_TOOLS, constraint=RequiredToolCalls(names=["weather", "time"], max_calls=4), **fields
    )


@pytest.mark.parametrize("name", ["qwen3", "llama3"])
@pytest.mark.parametrize("before", ["", "\n\n"])
def test_required_calls_are_emitted(family, name, before):
    tricky = '{"name": "time", "arguments": {"zone": "}\\"{\\\\", "more": [{"a": {}}]}}'

    parsed = Parsed(family(name), f"{before}{OSLO}\n{tricky}", request_calls())

    assert [*ONE_CALL, ("time", {"zone": '}"{\\', "more": [{"a": {}}]})] == parsed.calls
    assert parsed.text == ""
    assert parsed.output.has_tool_calls


@pytest.mark.parametrize("truncated", [True, False])
def test_text_of_a_call_becomes_its_argument(tokenizer, truncated):
    text = 'a "b"\n\\{"name": "x"}'
    parsed = Parsed(tokenizer, f'{OSLO}\n{{"name": "time", "input":\n{text}', request_calls(), truncated=truncated)
    assert [*ONE_CALL, ("time", {"input": text})] == parsed.calls

    parsed = Parsed(tokenizer, f'{{"name": "time", "input":\n{text}', request_calls(), truncated=truncated)
    assert [("time", {"input": text})] == parsed.calls
    assert len(parsed.deltas) >= 3


def test_required_calls_are_streamed(tokenizer):
    parsed = Parsed(tokenizer, OSLO[:-5], request_calls(), truncated=True)

    assert len(parsed.deltas) >= 3
    assert "weather" == parsed.call_deltas[0].name
    assert OSLO[:-5].endswith("".join(delta.arguments for delta in parsed.call_deltas))


@pytest.mark.parametrize("repeated", [OSLO, OSLO.replace(" ", "").replace('"arguments":', ' "arguments": ')])
def test_required_call_that_repeats_an_earlier_one_ends_the_output(tokenizer, repeated):
    now = '{"name": "time", "arguments": {}}'
    repeated = repeated if repeated == OSLO else '{"name": "weather", "arguments": {"city":"Oslo"}}'

    parsed = Parsed(tokenizer, f"{OSLO}\n{now}\n{repeated}\n{now}", request_calls())

    assert [*ONE_CALL, ("time", {})] == parsed.calls
    assert parsed.output.stopped
    assert parsed.output.has_tool_calls


def test_later_required_call_is_reported_when_it_is_complete(tokenizer):
    longer = OSLO.replace("Oslo", "Oslo, Norway")

    complete = Parsed(tokenizer, f"{OSLO}\n{longer}", request_calls())
    truncated = Parsed(tokenizer, f"{OSLO}\n{longer[:-3]}", request_calls(), truncated=True)

    assert [*ONE_CALL, ("weather", {"city": "Oslo, Norway"})] == complete.calls
    assert ONE_CALL == truncated.calls
    assert not truncated.output.stopped


def test_required_calls_may_follow_reasoning(family):
    parsed = Parsed(
        family("qwen3"), f"hm\n</think>\n\n{OSLO}", request_calls(), prompt=EncodedPrompt([1], starts_reasoning=True)
    )

    assert ("hm", ONE_CALL) == (parsed.reasoning, parsed.calls)


# Log-probabilities


def logprob_text(parsed):
    return "".join(token.text for token in parsed.logprobs)


def test_tokens_are_emitted_with_text_and_logprobs(tokenizer):
    ids = tokenizer.encode("one two")

    parsed = Parsed(tokenizer, ids, build_request(logprobs=0), scores=True)

    assert [-token for token in ids] == [token.logprob for token in parsed.logprobs]
    assert [list(b"one"), list(b" two")] == [token.bytes for token in parsed.logprobs]
    assert [1, 1] == [len(delta.logprobs) for delta in parsed.deltas]


def test_the_tokens_of_a_character_are_emitted_with_it(tokenizer):
    ids = tokenizer.encode("a🦕")

    parsed = Parsed(tokenizer, ids, build_request(logprobs=0), scores=True)

    assert "a🦕".encode() == bytes(byte for token in parsed.logprobs for byte in token.bytes)
    assert [1, len(ids) - 1] == [len(delta.logprobs) for delta in parsed.deltas]


def test_tokens_removed_by_a_stop_string_are_not_emitted(tokenizer):
    parsed = Parsed(tokenizer, "one two three four", build_request(logprobs=0, stop=[" three four"]), scores=True)

    assert "one two" == parsed.text == logprob_text(parsed)


def test_held_tokens_are_emitted_with_their_text(tokenizer):
    parsed = Parsed(tokenizer, "one two three five", build_request(logprobs=0, stop=[" two three four"]), scores=True)

    assert "one two three five" == parsed.text == logprob_text(parsed)
    assert [1, 3] == [len(delta.logprobs) for delta in parsed.deltas]


def test_only_tokens_of_visible_text_are_emitted(family):
    written = f"<think>hm</think>\n\nSee <tool_call>no</tool_call> and<tool_call>{OSLO}</tool_call>"

    parsed = Parsed(family("qwen3"), written, build_request(CHAT_WITH_TOOLS, logprobs=0), scores=True)

    assert "See <tool_call>no</tool_call> and" == parsed.text == logprob_text(parsed)


def test_the_most_likely_tokens_are_reported_for_each_token(tokenizer):
    output = OutputParser(tokenizer).create_output(build_request(logprobs=2), EncodedPrompt([1]))
    (air,) = tokenizer.encode("air")
    (water,) = tokenizer.encode("water")

    (token,) = output.add(air, Score(-1.0, [(water, -0.5), (air, -1.0)])).logprobs

    assert [("water", -0.5), ("air", -1.0)] == [(likely.text, likely.logprob) for likely in token.top]


def test_an_echoed_prompt_has_logprobs_except_for_its_first_token(tokenizer):
    ids = tokenizer.encode("one two")

    first, second = OutputParser(tokenizer).prompt_logprobs(ids, [None, Score(-2.0, [(ids[0], -1.0)])])

    assert ("one", None, []) == (first.text, first.logprob, first.top)
    assert (" two", -2.0, "one") == (second.text, second.logprob, second.top[0].text)


def test_an_empty_delta_is_falsy():
    assert not OutputDelta()
    assert OutputDelta(reasoning="x")
