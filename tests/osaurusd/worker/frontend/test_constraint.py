import json
import re
import threading

import jsonschema
import mlx.core as mx
import numpy as np
import pytest

from osaurusd.errors import InvalidRequest
from osaurusd.inference.request import JsonObject, JsonSchema, RequiredToolCalls, TextChoice, Tool
from osaurusd.worker.frontend import constraint as constraint_module
from osaurusd.worker.frontend.constraint import ConstraintCompiler, ConstraintFailed, apply, compile_masks
from osaurusd.worker.frontend.tool_calls import CallStreamer
from tests.osaurusd.worker import families

VOCABULARY = 49280
END_TOKENS = [0, 2]

SCHEMAS = {
    "flat": {
        "type": "object",
        "properties": {"a/b": {"type": "integer"}, "ok": {"type": "boolean"}, "who": {"enum": ["x", "y", None]}},
        "required": ["a/b", "ok"],
        "additionalProperties": False,
    },
    "nested": {
        "$defs": {"point": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}},
        "type": "object",
        "properties": {"points": {"type": "array", "items": {"$ref": "#/$defs/point"}, "maxItems": 3}},
        "required": ["points"],
        "additionalProperties": False,
    },
    "union": {"anyOf": [{"type": "integer", "minimum": 3, "maximum": 12}, {"const": {"deep": [1, "two"]}}]},
    "strings": {
        "type": "array",
        "items": {"type": "string", "pattern": "^[a-c]{2,4}$", "maxLength": 4},
        "minItems": 1,
        "maxItems": 3,
    },
    "control character": {
        "type": "object",
        "properties": {"line\nbreak": {"type": "integer", "maximum": 9, "minimum": 0}},
        "required": ["line\nbreak"],
        "additionalProperties": False,
    },
    "map": {
        "type": "object",
        "patternProperties": {"^x[0-9]$": {"type": "boolean"}},
        "additionalProperties": False,
        "maxProperties": 3,
    },
}


def tool(name, parameters=None):
    return Tool(name=name, parameters=parameters)


TOOLS = [tool("get", SCHEMAS["flat"]), tool("get_all", SCHEMAS["nested"]), tool("now")]


@pytest.fixture(scope="module")
def family(tiny_folder, tmp_path_factory):
    """Create the tokenizer of a model family."""
    return families.tokenizer_factory(tiny_folder, tmp_path_factory.mktemp("families"))


@pytest.fixture(scope="module")
def compiler(tokenizer):
    return ConstraintCompiler(tokenizer, VOCABULARY, END_TOKENS)


@pytest.fixture(scope="module")
def reasoning_tokenizer(family):
    return family("qwen3")


@pytest.fixture(scope="module")
def reasoning_compiler(reasoning_tokenizer):
    return ConstraintCompiler(reasoning_tokenizer, VOCABULARY, END_TOKENS)


def allowed(constraint):
    """Return the tokens that are allowed next."""
    row = np.zeros((VOCABULARY + 31) // 32, np.int32)
    constraint.fill(row)
    return np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist()


def checked(constraint):
    """Return the tokens of which it is known, without computing all, that they are allowed next."""
    return {token for token in range(VOCABULARY) if constraint.allows(token)}


def take(constraint, tokens):
    for token in tokens:
        constraint.advance(token)


def sample(tokenizer, constraint, seed, *, limit=600, prefer=frozenset()):
    """Sample allowed tokens at random, preferred ones first. Return the text, or None if it does not end."""
    random = np.random.default_rng(seed)
    output = []
    while len(output) < limit:
        choices = allowed(constraint)
        token = int(random.choice([choice for choice in choices if choice in prefer] or choices))
        if token in END_TOKENS:
            return tokenizer.decode(output)
        constraint.advance(token)
        output.append(token)
    return None


# Conformance


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_complete_output_conforms_to_the_schema(tokenizer, compiler, name):
    for seed in range(20):
        text = sample(tokenizer, compiler.compile(JsonSchema(schema=SCHEMAS[name]), [], starts_reasoning=False), seed)

        assert text is not None
        jsonschema.validate(json.loads(text), SCHEMAS[name])


def test_escapes_in_keys_cannot_bypass_the_schema(tokenizer, compiler):
    schema = {"type": "object", "properties": {"line\nbreak": {"type": "integer"}}}
    constraint = compiler.compile(JsonSchema(schema=schema), [], starts_reasoning=False)

    with pytest.raises(ConstraintFailed):
        take(constraint, tokenizer.encode('{"line\\u000abreak": "text"'))


def test_json_object_allows_any_object_and_nothing_else(tokenizer, compiler):
    for text in ["{}", '{"a": [1, {"b": null}], "c": "d"}', '{\n  "a": 1,\n  "b": 2\n}']:
        constraint = compiler.compile(JsonObject(), [], starts_reasoning=False)
        take(constraint, tokenizer.encode(text))
        assert set(END_TOKENS) <= set(allowed(constraint))

    first = compiler.compile(JsonObject(), [], starts_reasoning=False)
    with pytest.raises(ConstraintFailed):
        first.advance(tokenizer.encode("[")[0])


@pytest.mark.parametrize("max_calls", [1, 3])
def test_required_calls_allow_nothing_else(tokenizer, compiler, max_calls):
    wanted = RequiredToolCalls(names=["get", "get_all", "now"], max_calls=max_calls)
    schemas = {"get": SCHEMAS["flat"], "get_all": SCHEMAS["nested"], "now": {"maxProperties": 0}}
    for seed in range(15):
        text = sample(tokenizer, compiler.compile(wanted, TOOLS, starts_reasoning=False), seed, limit=3000)

        calls = _values(text)
        assert 1 <= len(calls) <= max_calls
        for call in calls:
            jsonschema.validate(call["arguments"], schemas[call["name"]])
        different = [call for index, call in enumerate(calls) if call not in calls[:index]]
        assert different[: _first_repeated(calls)] == _join(CallStreamer().feed(text))


def _first_repeated(calls):
    """Return the index of the first call that is identical to an earlier one, or None."""
    return next((index for index, call in enumerate(calls) if call in calls[:index]), None)


def _join(deltas):
    """Join the streamed calls."""
    calls = {}
    for delta in deltas:
        call = calls.setdefault(delta.index, {"name": delta.name, "arguments": ""})
        call["arguments"] += delta.arguments
    return [{**call, "arguments": json.loads(call["arguments"])} for call in calls.values()]


def _values(text):
    """Decode consecutive JSON values."""
    found, at = [], 0
    while text[at:].strip():
        at += len(text[at:]) - len(text[at:].lstrip())
        value, at = json.JSONDecoder().raw_decode(text, at)
        found.append(value)
    return found


def test_only_named_tools_can_be_called(tokenizer, compiler):
    text = sample(tokenizer, compiler.compile(RequiredToolCalls(names=["now"]), TOOLS, starts_reasoning=False), 0)

    assert {"name": "now", "arguments": {}} == json.loads(text)


SUM = 'start: NUMBER ("+" NUMBER)* "\\n"\nNUMBER: /[0-9]{1,3}/'


@pytest.mark.parametrize("max_calls", [1, 3])
def test_text_of_a_call_matches_its_grammar(tokenizer, compiler, max_calls):
    tools = [Tool(name="sum", grammar=SUM), TOOLS[2], Tool(name="yes", grammar='start: "\\"yes\\"\\n"')]
    wanted = RequiredToolCalls(names=["sum", "now", "yes"], max_calls=max_calls)
    patterns = {"sum": r"[0-9]{1,3}(\+[0-9]{1,3})*\n", "yes": '"yes"\n'}
    seen = set()
    for seed in range(15):
        text = sample(tokenizer, compiler.compile(wanted, tools, starts_reasoning=False), seed, limit=3000)
        streamer = CallStreamer()
        *earlier, last = _join([*streamer.feed(text), *streamer.finish()])
        assert {"now"} >= {call["name"] for call in earlier}
        assert len(earlier) < max_calls
        if last["name"] != "now":
            assert re.fullmatch(patterns[last["name"]], last["arguments"]["input"])
        seen.add(last["name"])
    assert seen >= {"sum", "yes"}


@pytest.mark.parametrize("grammar", ["start: missing", "nonsense(", 'start: %json {"type": "object"}', "start: @main"])
def test_invalid_grammar_of_a_tool_is_named(compiler, grammar):
    tools = [*TOOLS, Tool(name="patch", grammar=grammar)]
    with pytest.raises(InvalidRequest, match='"patch"') as caught:
        compiler.compile(RequiredToolCalls(names=["patch"]), tools, starts_reasoning=False)
    assert ("prompt", "tools", 3) == caught.value.location


@pytest.mark.parametrize(
    "parameters",
    [
        {"properties": {"on": {"type": "boolean"}}, "required": ["on"]},
        {"$ref": "#/$defs/f", "$defs": {"f": {"properties": {"on": {"enum": [True]}}, "additionalProperties": False}}},
        {"anyOf": [{"properties": {"on": {"enum": [False]}}, "required": ["on"], "additionalProperties": False}]},
        {"type": "object", "description": "anything", "maxProperties": 0},
    ],
)
def test_arguments_are_an_object_with_declared_properties_only(tokenizer, compiler, parameters):
    for seed in range(10):
        constraint = compiler.compile(RequiredToolCalls(names=["f"]), [tool("f", parameters)], starts_reasoning=False)

        arguments = json.loads(sample(tokenizer, constraint, seed))["arguments"]

        assert arguments in [{}, {"on": True}, {"on": False}]
        jsonschema.validate(arguments, parameters)


def test_arguments_of_another_type_are_rejected(compiler):
    with pytest.raises(InvalidRequest, match=r'the schema of "f" cannot be used: .*`object`'):
        compiler.compile(RequiredToolCalls(names=["f"]), [tool("f", {"type": "string"})], starts_reasoning=False)


def test_white_space_is_limited(tokenizer, compiler):
    blank = frozenset(id_ for id_ in range(17, 49152) if not tokenizer.decode([id_]).strip())
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    schema["additionalProperties"] = False
    for constraint in (JsonSchema(schema=schema), RequiredToolCalls(names=["f"])):
        compiled = compiler.compile(constraint, [tool("f", schema)], starts_reasoning=False)

        text = sample(tokenizer, compiled, 0, limit=120, prefer=blank)

        assert text is not None
        assert text.strip() != "".join(text.split())
        assert max(len(run) for run in _blanks(text)) <= 13


def _blanks(text):
    run = ""
    for character in text:
        run = run + character if character.isspace() else ""
        yield run


def test_a_schema_cannot_relax_the_white_space_limit(tokenizer, compiler):
    schema = {"type": "array", "maxItems": 0, "x-guidance": {"whitespace_pattern": r"\s*", "lenient": True}}
    constraint = compiler.compile(JsonSchema(schema=schema), [], starts_reasoning=False)

    constraint.advance(tokenizer.encode("[")[0])

    assert not any("\t" in tokenizer.decode([token]) for token in allowed(constraint))


# Tokens


def test_end_tokens_are_allowed_exactly_where_the_output_is_complete(tokenizer, compiler):
    constraint = compiler.compile(JsonSchema(schema={"enum": [1, 12, 123]}), [], starts_reasoning=False)
    seen = []
    for token in tokenizer.encode("123"):
        seen.append(set(END_TOKENS) & set(allowed(constraint)))
        constraint.advance(token)

    assert [set(), set(END_TOKENS), set(END_TOKENS)] == seen
    assert END_TOKENS == allowed(constraint)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "object"}, ""),
        ({"type": "string"}, '"hello'),
        (SCHEMAS["flat"], '{"a/b": 12'),
        (SCHEMAS["flat"], '{"a/b": 12, "ok": true, "who": "x"}'),
        ({"type": "integer", "multipleOf": 7}, "1"),
        ({"type": "integer", "multipleOf": 7}, "14"),
    ],
)
def test_checking_one_token_agrees_with_computing_all_allowed_ones(tokenizer, compiler, schema, text):
    constraint = compiler.compile(JsonSchema(schema=schema), [], starts_reasoning=False)
    take(constraint, tokenizer.encode(text) if text else [])

    assert checked(constraint) <= set(allowed(constraint))
    may_end = set(END_TOKENS) <= set(allowed(constraint))
    assert may_end or checked(constraint) == set(allowed(constraint))


@pytest.mark.parametrize("text", [None, "<think>", "<think>hm", "<think>hm</think>", "{"])
def test_checking_one_token_agrees_with_computing_all_allowed_ones_around_reasoning(
    reasoning_tokenizer, reasoning_compiler, text
):
    constraint = reasoning_compiler.compile(JsonObject(), [], starts_reasoning=False)
    take(constraint, reasoning_tokenizer.encode(text) if text else [])

    assert checked(constraint) == set(allowed(constraint))


def test_ids_beyond_the_vocabulary_are_never_allowed(tokenizer, compiler, reasoning_tokenizer, reasoning_compiler):
    constraint = compiler.compile(JsonSchema(schema={"type": "string"}), [], starts_reasoning=False)
    constraint.advance(tokenizer.encode('"')[0])
    thinking = reasoning_compiler.compile(JsonObject(), [], starts_reasoning=True)

    assert max(allowed(constraint)) < len(tokenizer)
    assert max(allowed(thinking)) == len(reasoning_tokenizer) - 1


def test_logits_may_be_narrower_than_the_tokenizers_vocabulary(tokenizer):
    constraint = ConstraintCompiler(tokenizer, 49100, END_TOKENS).compile(JsonObject(), [], starts_reasoning=False)
    row = np.zeros((49100 + 31) // 32, np.int32)

    constraint.fill(row)

    assert row.any()


def test_a_disallowed_token_is_rejected(tokenizer, compiler):
    constraint = compiler.compile(JsonObject(), [], starts_reasoning=False)

    with pytest.raises(ConstraintFailed):
        constraint.advance(tokenizer.encode("hello")[0])


def test_a_fork_is_independent(tokenizer, compiler):
    constraint = compiler.compile(JsonSchema(schema={"enum": ["ab", "ac"]}), [], starts_reasoning=False)
    constraint.advance(tokenizer.encode('"')[0])
    fork = constraint.fork()
    take(constraint, tokenizer.encode('ab"'))

    assert END_TOKENS == allowed(constraint)
    assert not set(END_TOKENS) & set(allowed(fork))
    assert sample(tokenizer, fork, 0) in ('ab"', 'ac"')


# Reasoning


@pytest.mark.parametrize("opened", [True, False])
def test_the_constraint_applies_after_reasoning(reasoning_tokenizer, reasoning_compiler, opened):
    constraint = reasoning_compiler.compile(JsonObject(), [], starts_reasoning=opened)
    start, end = reasoning_tokenizer.think_start_id, reasoning_tokenizer.think_end_id
    if not opened:
        assert start in allowed(constraint)
        constraint.advance(start)
    for token in reasoning_tokenizer.encode("let me think\n"):
        assert len(allowed(constraint)) == len(reasoning_tokenizer) - len(END_TOKENS)
        constraint.advance(token)
    constraint.advance(end)

    assert reasoning_tokenizer.encode("{")[0] in allowed(constraint)
    assert reasoning_tokenizer.encode("\n\n")[0] in allowed(constraint)
    assert not {start, end, *END_TOKENS, *reasoning_tokenizer.encode("hello")} & set(allowed(constraint))


def test_reasoning_is_allowed_only_at_the_beginning(reasoning_tokenizer, reasoning_compiler):
    constraint = reasoning_compiler.compile(JsonObject(), [], starts_reasoning=False)

    constraint.advance(reasoning_tokenizer.encode("{")[0])

    assert reasoning_tokenizer.think_start_id not in allowed(constraint)


def test_an_end_marker_of_several_tokens_ends_reasoning(family):
    tokenizer = family("gemma4")
    constraint = ConstraintCompiler(tokenizer, VOCABULARY, END_TOKENS).compile(JsonObject(), [], starts_reasoning=True)
    take(constraint, [*tokenizer.encode("hm"), *tokenizer.think_end_tokens])

    assert len(allowed(constraint)) < 100


def test_a_model_without_reasoning_starts_with_the_value(tokenizer, compiler):
    constraint = compiler.compile(JsonObject(), [], starts_reasoning=False)

    assert not any(tokenizer.decode([token]).startswith("\n") for token in allowed(constraint))


# Schemas of which a part cannot be enforced

RELAXED = [
    ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, "[1, 2]", "[1, 1]"),
    ({"type": "object", "propertyNames": {"maxLength": 1}}, '{"a": 1}', '{"ab": 1}'),
    ({"type": "object", "minProperties": 2}, '{"a": 1, "b": 2}', '{"a": 1}'),
    ({"type": "object", "minProperties": 2, "patternProperties": {"x": {}}}, '{"ax": 1, "b": 2}', '{"a": 1}'),
    ({"type": "object", "properties": {"a": {}, "b": {}}, "maxProperties": 1}, '{"a": 1}', '{"a": 1, "b": 2}'),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, '{"b": 1}', '{"a": 1}'),
    ({"type": "object", "not": {"required": ["a"]}}, '{"b": 1}', '{"a": 1}'),
    (
        {
            "type": "object",
            "properties": {"kind": {"enum": ["a", "b"]}, "size": {"type": "integer"}},
            "if": {"properties": {"kind": {"const": "b"}}, "required": ["kind"]},
            "then": {"required": ["size"]},
        },
        '{"kind": "a"}',
        '{"kind": "b"}',
    ),
    ({"type": "array", "contains": {"type": "integer"}, "items": {}}, '["a", 1]', '["a"]'),
    (
        {"oneOf": [{"type": "object", "required": ["a"]}, {"type": "object", "required": ["b"]}]},
        '{"a": 1}',
        '{"a": 1, "b": 2}',
    ),
    ({"type": "integer", "not": {"const": 1}}, "12", "1"),
    (  # as Zod describes an email address
        {"type": "string", "format": "email", "pattern": r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)@[a-z.]+$"},
        '"a.b@example.com"',
        '"a..b@example.com"',
    ),
    ({"type": "string", "pattern": r"^(?!\s)[a-z ]+$"}, '"a b"', '" b"'),
    ({"type": "object", "patternProperties": {"^(?!x)": {"type": "integer"}, "^x": {}}}, '{"a": 1}', '{"a": "x"}'),
    (
        {"type": "object", "patternProperties": {"^(?!x)": {}}, "additionalProperties": False},
        '{"a": 1}',
        '{"xa": 1}',
    ),
    ({"$dynamicAnchor": "n", "type": "array", "items": {"$dynamicRef": "#n"}}, "[[]]", "[1]"),
]


def take_output(constraint, tokens):
    """Take the tokens of an output, and return whether it may end there."""
    take(constraint, tokens)
    return set(END_TOKENS) <= set(allowed(constraint))


@pytest.mark.parametrize(("schema", "valid", "invalid"), RELAXED)
def test_an_output_is_checked_against_what_the_grammar_does_not_enforce(tokenizer, compiler, schema, valid, invalid):
    constraint = JsonSchema(schema=schema)

    assert take_output(compiler.compile(constraint, [], starts_reasoning=False), tokenizer.encode(valid))
    try:
        ends = take_output(compiler.compile(constraint, [], starts_reasoning=False), tokenizer.encode(invalid))
    except ConstraintFailed:
        ends = False
    assert not ends


def test_each_call_is_checked_against_what_the_grammar_does_not_enforce(tokenizer, compiler):
    tools = [tool("f", {"type": "object", "properties": {"a": RELAXED[0][0]}}), tool("now")]
    wanted = RequiredToolCalls(names=["f", "now"], max_calls=3)
    first = '{"name": "f", "arguments": {"a": [1, 2]}}\n{"name": "now", "arguments": {}}'
    constraint = compiler.compile(wanted, tools, starts_reasoning=False)

    assert take_output(constraint.fork(), tokenizer.encode(first))
    with pytest.raises(ConstraintFailed, match="non-unique"):
        take_output(constraint, tokenizer.encode(f'{first}\n{{"name": "f", "arguments": {{"a": [1, 1]}}}}'))


@pytest.mark.parametrize("kind", [["object", "null"], ["object"], "object"])
def test_arguments_are_an_object_whatever_else_the_schema_allows(tokenizer, compiler, kind):
    tools = [tool("f", {"type": kind, "properties": {"a": {"type": "integer"}}, "required": ["a"]})]
    constraint = compiler.compile(RequiredToolCalls(names=["f"]), tools, starts_reasoning=False)

    assert take_output(constraint.fork(), tokenizer.encode('{"name": "f", "arguments": {"a": 1}}'))
    with pytest.raises(ConstraintFailed):
        take(constraint, tokenizer.encode('{"name": "f", "arguments": null'))


def test_one_unusual_tool_does_not_make_the_others_unusable(tokenizer, compiler):
    unusual = {"type": "object", "properties": {"tags": {"type": "object", "propertyNames": {"type": "string"}}}}
    tools = [*TOOLS, tool("tag", unusual), tool("ask", {"properties": {"at": {"type": "string", "format": "moment"}}})]
    wanted = RequiredToolCalls(names=[each.name for each in tools])

    text = sample(tokenizer, compiler.compile(wanted, tools, starts_reasoning=False), 3, limit=3000)

    assert json.loads(text)["name"] in wanted.names


def test_a_fork_is_checked_with_the_tokens_before_it(tokenizer, compiler):
    constraint = compiler.compile(JsonSchema(schema=RELAXED[0][0]), [], starts_reasoning=False)
    take(constraint, tokenizer.encode("[1, "))
    fork = constraint.fork()

    assert take_output(constraint, tokenizer.encode("2]"))
    with pytest.raises(ConstraintFailed):
        take_output(fork, tokenizer.encode("1]"))


def test_an_output_may_be_one_of_several_texts(tokenizer, compiler):
    choices = ["yes", "no", 'a "quote"\n', "\u00fc", "\\u00fc"]
    texts = {
        sample(tokenizer, compiler.compile(TextChoice(choices=choices), [], starts_reasoning=False), seed)
        for seed in range(30)
    }

    assert texts <= set(choices)
    assert len(texts) > 2


# Unusable schemas


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "object", "not": {}, "x-guidance": {"lenient": True}}, "not"),
        ({"type": "foo"}, "foo"),
        ({"type": "string", "pattern": "("}, "regex"),
        ({"$ref": "http://localhost/schema"}, "localhost"),
        ({"type": "array", "minItems": 2, "maxItems": 1}, "(?i)unsatisfiable"),
        ({"type": "string", "pattern": "(" * 5000}, "regex"),
    ],
)
def test_an_unenforceable_schema_is_rejected_with_the_reason(compiler, schema, reason):
    with pytest.raises(InvalidRequest, match=reason) as caught:
        compiler.compile(JsonSchema(schema=schema), [], starts_reasoning=False)
    parameters = {"properties": {"x": schema}, "required": ["x"]}
    with pytest.raises(InvalidRequest, match=reason) as caught_in_tool:
        compiler.compile(RequiredToolCalls(names=["f"]), [tool("f", parameters)], starts_reasoning=False)

    assert caught.value.location == ("constraint", "schema")
    assert caught_in_tool.value.location == ("prompt", "tools", 0)
    assert len(caught.value.message) < 700


@pytest.mark.parametrize("depth", [200, 5000])
def test_a_too_deeply_nested_schema_is_rejected(compiler, depth):
    schema = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}

    with pytest.raises(InvalidRequest, match=r"recursion|levels"):
        compiler.compile(JsonSchema(schema=schema), [], starts_reasoning=False)


def test_an_unknown_tool_is_rejected(compiler):
    with pytest.raises(InvalidRequest, match="nothing_such") as caught:
        compiler.compile(RequiredToolCalls(names=["nothing_such"]), TOOLS, starts_reasoning=False)

    assert caught.value.location == ("constraint",)


# Threads and arrays


def test_compiling_is_thread_safe(tokenizer):
    compiler = ConstraintCompiler(tokenizer, VOCABULARY, END_TOKENS)
    made = []

    def compile_one():
        made.append(compiler.compile(JsonSchema(schema=SCHEMAS["flat"]), [], starts_reasoning=False))

    threads = [threading.Thread(target=compile_one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    texts = [sample(tokenizer, constraint, seed) for seed, constraint in enumerate(made)]
    assert [True] * 4 == [json.loads(text).keys() >= {"a/b", "ok"} for text in texts]


def named(name):
    return {"type": "object", "properties": {name: {"type": "integer"}}, "required": [name]}


@pytest.mark.parametrize("text", ["<|im_end|>", "<|im_start|>", "a<|endoftext|>b"])
@pytest.mark.parametrize(
    "build",
    [
        lambda text: (JsonSchema(schema=named(text)), []),
        lambda text: (JsonSchema(schema={"items": {"const": [{"a": text}]}}), []),
        lambda text: (JsonSchema(schema={"anyOf": [{"enum": ["x", text]}]}), []),
        lambda text: (TextChoice(choices=["x", text]), []),
        lambda text: (RequiredToolCalls(names=["f"]), [tool("f", named(text))]),
    ],
    ids=["property", "const", "enum", "choice", "tool"],
)
def test_text_with_a_special_token_cannot_be_required(compiler, text, build):
    constraint, tools = build(text)
    with pytest.raises(InvalidRequest, match="which is a special token of the model"):
        compiler.compile(constraint, tools, starts_reasoning=False)


def test_special_token_in_a_description_or_in_an_unused_tool_is_no_problem(compiler, tokenizer):
    schema = {**SCHEMAS["flat"], "description": "ends with <|im_end|>"}
    tools = [tool("f", schema), tool("g", named("<|im_end|>"))]
    constraint = compiler.compile(RequiredToolCalls(names=["f"]), tools, starts_reasoning=False)
    assert json.loads(sample(tokenizer, constraint, 0))["name"] == "f"


@pytest.mark.parametrize("width", [64, 70, 49152])
def test_apply_masks_disallowed_tokens_only(width):
    random = np.random.default_rng(0)
    logits = random.standard_normal((3, width), np.float32)
    rows = random.integers(-(2**31), 2**31, (3, (width + 31) // 32), np.int32)

    masked = np.array(apply(mx.array(logits), rows))

    bits = [[rows[row, at // 32] >> at % 32 & 1 for at in range(width)] for row in range(3)]
    assert np.array_equal(masked, np.where(np.array(bits, bool), logits, -np.inf))


def test_logits_keep_their_precision():
    logits = mx.zeros((1, 64), mx.bfloat16)

    assert apply(logits, np.zeros((1, 2), np.int32)).dtype == mx.bfloat16


def test_masks_are_compiled_for_any_precision_before_they_are_needed(monkeypatch):
    compiled, mask = [], constraint_module._mask
    monkeypatch.setattr(
        constraint_module, "_mask", lambda logits, *bits: compiled.append(logits.dtype) or mask(logits, *bits)
    )
    compile_masks(50)

    assert {mx.float32, mx.bfloat16, mx.float16} == set(compiled)
