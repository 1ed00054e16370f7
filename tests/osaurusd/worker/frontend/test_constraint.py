import json
import threading

import jsonschema
import mlx.core as mx
import numpy as np
import pytest

from osaurusd.errors import InvalidRequest
from osaurusd.inference.request import JsonObject, JsonSchema, RequiredToolCalls
from osaurusd.worker.frontend.calls import LiveCalls
from osaurusd.worker.frontend.constraint import ConstraintFailed, Grammars, apply
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
    function = {"name": name} if parameters is None else {"name": name, "parameters": parameters}
    return {"type": "function", "function": function}


TOOLS = [tool("get", SCHEMAS["flat"]), tool("get_all", SCHEMAS["nested"]), tool("now")]


@pytest.fixture(scope="module")
def family(tiny_folder, tmp_path_factory):
    """Makes the tokenizer of a family of models."""
    return families.maker(tiny_folder, tmp_path_factory.mktemp("families"))


@pytest.fixture(scope="module")
def grammars(tokenizer):
    return Grammars(tokenizer, VOCABULARY, END_TOKENS)


@pytest.fixture(scope="module")
def thinking_tokenizer(family):
    return family("qwen3")


@pytest.fixture(scope="module")
def thinking_grammars(thinking_tokenizer):
    return Grammars(thinking_tokenizer, VOCABULARY, END_TOKENS)


def allowed(constraint):
    """The tokens that may come next."""
    row = np.zeros((VOCABULARY + 31) // 32, np.int32)
    constraint.fill(row)
    return np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist()


def take(constraint, tokens):
    for token in tokens:
        constraint.advance(token)


def write(tokenizer, constraint, seed, *, limit=600, prefer=frozenset()):
    """What a model says that chooses at random among what is allowed, what it prefers first; None if it never ends."""
    random = np.random.default_rng(seed)
    said = []
    while len(said) < limit:
        choices = allowed(constraint)
        token = int(random.choice([choice for choice in choices if choice in prefer] or choices))
        if token in END_TOKENS:
            return tokenizer.decode(said)
        constraint.advance(token)
        said.append(token)
    return None


# What is said


@pytest.mark.parametrize("name", SCHEMAS)
def test_an_answer_that_ends_is_json_that_the_schema_accepts(tokenizer, grammars, name):
    for seed in range(20):
        text = write(tokenizer, grammars.compile(JsonSchema(schema=SCHEMAS[name]), [], thinking=False), seed)

        assert text is not None
        jsonschema.validate(json.loads(text), SCHEMAS[name])


def test_a_key_cannot_be_spelled_in_a_way_that_gets_around_its_schema(tokenizer, grammars):
    schema = {"type": "object", "properties": {"line\nbreak": {"type": "integer"}}}
    constraint = grammars.compile(JsonSchema(schema=schema), [], thinking=False)

    with pytest.raises(ConstraintFailed):
        take(constraint, tokenizer.encode('{"line\\u000abreak": "text"'))


def test_a_json_object_is_any_json_object(tokenizer, grammars):
    for text in ["{}", '{"a": [1, {"b": null}], "c": "d"}', '{\n  "a": 1,\n  "b": 2\n}']:
        constraint = grammars.compile(JsonObject(), [], thinking=False)
        take(constraint, tokenizer.encode(text))
        assert set(END_TOKENS) <= set(allowed(constraint))

    first = grammars.compile(JsonObject(), [], thinking=False)
    with pytest.raises(ConstraintFailed):
        first.advance(tokenizer.encode("[")[0])


@pytest.mark.parametrize("parallel", [False, True])
def test_an_answer_that_is_to_be_calls_is_nothing_else(tokenizer, grammars, parallel):
    wanted = RequiredToolCalls(names=["get", "get_all", "now"], parallel=parallel)
    schemas = {"get": SCHEMAS["flat"], "get_all": SCHEMAS["nested"], "now": {"maxProperties": 0}}
    for seed in range(15):
        text = write(tokenizer, grammars.compile(wanted, TOOLS, thinking=False), seed, limit=3000)

        calls = _values(text)
        assert 1 <= len(calls) <= (8 if parallel else 1)
        for call in calls:
            jsonschema.validate(call["arguments"], schemas[call["name"]])
        assert calls == _told(LiveCalls().feed(text))


def _told(deltas):
    """The calls that were told piece by piece."""
    calls = {}
    for delta in deltas:
        call = calls.setdefault(delta.index, {"name": delta.name, "arguments": ""})
        call["arguments"] += delta.arguments
    return [{**call, "arguments": json.loads(call["arguments"])} for call in calls.values()]


def _values(text):
    """JSON values in a row."""
    found, at = [], 0
    while text[at:].strip():
        at += len(text[at:]) - len(text[at:].lstrip())
        value, at = json.JSONDecoder().raw_decode(text, at)
        found.append(value)
    return found


def test_only_named_tools_are_called(tokenizer, grammars):
    text = write(tokenizer, grammars.compile(RequiredToolCalls(names=["now"]), TOOLS, thinking=False), 0)

    assert {"name": "now", "arguments": {}} == json.loads(text)


@pytest.mark.parametrize(
    "parameters",
    [
        {"properties": {"on": {"type": "boolean"}}, "required": ["on"]},
        {"$ref": "#/$defs/f", "$defs": {"f": {"properties": {"on": {"enum": [True]}}, "additionalProperties": False}}},
        {"anyOf": [{"properties": {"on": {"enum": [False]}}, "required": ["on"], "additionalProperties": False}]},
        {"type": "object", "description": "anything", "maxProperties": 0},
    ],
)
def test_arguments_are_an_object_of_what_the_tool_names(tokenizer, grammars, parameters):
    for seed in range(10):
        constraint = grammars.compile(RequiredToolCalls(names=["f"]), [tool("f", parameters)], thinking=False)

        arguments = json.loads(write(tokenizer, constraint, seed))["arguments"]

        assert arguments in [{}, {"on": True}, {"on": False}]
        jsonschema.validate(arguments, parameters)


def test_arguments_of_another_type_are_refused(grammars):
    with pytest.raises(InvalidRequest, match=r"the schema of 'f' cannot be used: .*`object`"):
        grammars.compile(RequiredToolCalls(names=["f"]), [tool("f", {"type": "string"})], thinking=False)


def test_white_space_comes_to_an_end(tokenizer, grammars):
    blank = frozenset(id_ for id_ in range(17, 49152) if not tokenizer.decode([id_]).strip())
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    schema["additionalProperties"] = False
    for constraint in (JsonSchema(schema=schema), RequiredToolCalls(names=["f"])):
        compiled = grammars.compile(constraint, [tool("f", schema)], thinking=False)

        text = write(tokenizer, compiled, 0, limit=120, prefer=blank)

        assert text is not None
        assert text.strip() != "".join(text.split())
        assert max(len(run) for run in _blanks(text)) <= 13


def _blanks(text):
    run = ""
    for character in text:
        run = run + character if character.isspace() else ""
        yield run


def test_the_schema_does_not_loosen_the_rules_for_white_space(tokenizer, grammars):
    schema = {"type": "array", "maxItems": 0, "x-guidance": {"whitespace_pattern": r"\s*", "lenient": True}}
    constraint = grammars.compile(JsonSchema(schema=schema), [], thinking=False)

    constraint.advance(tokenizer.encode("[")[0])

    assert not any("\t" in tokenizer.decode([token]) for token in allowed(constraint))


# Tokens


def test_end_tokens_are_allowed_exactly_where_the_answer_is_complete(tokenizer, grammars):
    constraint = grammars.compile(JsonSchema(schema={"enum": [1, 12, 123]}), [], thinking=False)
    seen = []
    for token in tokenizer.encode("123"):
        seen.append(set(END_TOKENS) & set(allowed(constraint)))
        constraint.advance(token)

    assert [set(), set(END_TOKENS), set(END_TOKENS)] == seen
    assert END_TOKENS == allowed(constraint)


def test_ids_beyond_the_tokenizers_are_never_allowed(tokenizer, grammars, thinking_tokenizer, thinking_grammars):
    constraint = grammars.compile(JsonSchema(schema={"type": "string"}), [], thinking=False)
    constraint.advance(tokenizer.encode('"')[0])
    thinking = thinking_grammars.compile(JsonObject(), [], thinking=True)

    assert max(allowed(constraint)) < len(tokenizer)
    assert max(allowed(thinking)) == len(thinking_tokenizer) - 1


def test_a_vocabulary_that_is_smaller_than_the_tokenizers_will_do(tokenizer):
    constraint = Grammars(tokenizer, 49100, END_TOKENS).compile(JsonObject(), [], thinking=False)
    row = np.zeros((49100 + 31) // 32, np.int32)

    constraint.fill(row)

    assert row.any()


def test_a_token_that_was_not_allowed_is_told(tokenizer, grammars):
    constraint = grammars.compile(JsonObject(), [], thinking=False)

    with pytest.raises(ConstraintFailed):
        constraint.advance(tokenizer.encode("hello")[0])


def test_a_fork_goes_its_own_way(tokenizer, grammars):
    constraint = grammars.compile(JsonSchema(schema={"enum": ["ab", "ac"]}), [], thinking=False)
    constraint.advance(tokenizer.encode('"')[0])
    fork = constraint.fork()
    take(constraint, tokenizer.encode('ab"'))

    assert END_TOKENS == allowed(constraint)
    assert not set(END_TOKENS) & set(allowed(fork))
    assert write(tokenizer, fork, 0) in ('ab"', 'ac"')


# Thoughts


@pytest.mark.parametrize("opened", [True, False])
def test_the_answer_is_held_to_it_after_the_thought(thinking_tokenizer, thinking_grammars, opened):
    constraint = thinking_grammars.compile(JsonObject(), [], thinking=opened)
    start, end = thinking_tokenizer.think_start_id, thinking_tokenizer.think_end_id
    if not opened:
        assert start in allowed(constraint)
        constraint.advance(start)
    for token in thinking_tokenizer.encode("let me think\n"):
        assert len(allowed(constraint)) == len(thinking_tokenizer) - len(END_TOKENS)
        constraint.advance(token)
    constraint.advance(end)

    assert thinking_tokenizer.encode("{")[0] in allowed(constraint)
    assert thinking_tokenizer.encode("\n\n")[0] in allowed(constraint)
    assert not {start, end, *END_TOKENS, *thinking_tokenizer.encode("hello")} & set(allowed(constraint))


def test_a_thought_may_only_come_first(thinking_tokenizer, thinking_grammars):
    constraint = thinking_grammars.compile(JsonObject(), [], thinking=False)

    constraint.advance(thinking_tokenizer.encode("{")[0])

    assert thinking_tokenizer.think_start_id not in allowed(constraint)


def test_a_marker_of_several_tokens_ends_a_thought(family):
    tokenizer = family("gemma4")
    constraint = Grammars(tokenizer, VOCABULARY, END_TOKENS).compile(JsonObject(), [], thinking=True)
    take(constraint, [*tokenizer.encode("hm"), *tokenizer.think_end_tokens])

    assert len(allowed(constraint)) < 100


def test_a_model_that_does_not_think_begins_at_once(tokenizer, grammars):
    constraint = grammars.compile(JsonObject(), [], thinking=False)

    assert not any(tokenizer.decode([token]).startswith("\n") for token in allowed(constraint))


# What cannot be done


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "object", "not": {}, "x-guidance": {"lenient": True}}, "not"),
        ({"type": "foo"}, "foo"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"$ref": "http://localhost/schema"}, "localhost"),
        ({"type": "array", "minItems": 2, "maxItems": 1}, "(?i)unsatisfiable"),
        ({"type": "object", "minProperties": 2}, "minProperties"),
        ({"minProperties": 2, "patternProperties": {"x": {}}, "additionalProperties": False}, "minProperties"),
        ({"type": "string", "pattern": "(" * 5000}, "regex"),
    ],
)
def test_a_schema_that_cannot_be_held_to_is_refused_with_the_reason(grammars, schema, reason):
    with pytest.raises(InvalidRequest, match=reason) as caught:
        grammars.compile(JsonSchema(schema=schema), [], thinking=False)
    parameters = {"properties": {"x": schema}, "required": ["x"]}
    with pytest.raises(InvalidRequest, match=reason) as caught_in_tool:
        grammars.compile(RequiredToolCalls(names=["f"]), [tool("f", parameters)], thinking=False)

    assert (caught.value.param, caught_in_tool.value.param) == ("response_format", "tools")
    assert len(caught.value.message) < 700


@pytest.mark.parametrize("depth", [200, 5000])
def test_a_schema_that_is_nested_too_deep_is_refused(grammars, depth):
    schema = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}

    with pytest.raises(InvalidRequest, match=r"recursion|levels"):
        grammars.compile(JsonSchema(schema=schema), [], thinking=False)


def test_a_tool_that_is_not_there_is_refused(grammars):
    with pytest.raises(InvalidRequest, match="nothing_such") as caught:
        grammars.compile(RequiredToolCalls(names=["nothing_such"]), TOOLS, thinking=False)

    assert caught.value.param == "tool_choice"


# Threads and arrays


def test_many_threads_may_compile_at_once(tokenizer):
    grammars = Grammars(tokenizer, VOCABULARY, END_TOKENS)
    made = []

    def compile_one():
        made.append(grammars.compile(JsonSchema(schema=SCHEMAS["flat"]), [], thinking=False))

    threads = [threading.Thread(target=compile_one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    texts = [write(tokenizer, constraint, seed) for seed, constraint in enumerate(made)]
    assert [True] * 4 == [json.loads(text).keys() >= {"a/b", "ok"} for text in texts]


@pytest.mark.parametrize("width", [64, 70, 49152])
def test_forbidden_tokens_get_no_chance_and_the_others_keep_theirs(width):
    random = np.random.default_rng(0)
    logits = random.standard_normal((3, width), np.float32)
    rows = random.integers(-(2**31), 2**31, (3, (width + 31) // 32), np.int32)

    masked = np.array(apply(mx.array(logits), rows))

    bits = [[rows[row, at // 32] >> at % 32 & 1 for at in range(width)] for row in range(3)]
    assert np.array_equal(masked, np.where(np.array(bits, bool), logits, -np.inf))


def test_logits_keep_their_precision():
    logits = mx.zeros((1, 64), mx.bfloat16)

    assert apply(logits, np.zeros((1, 2), np.int32)).dtype == mx.bfloat16
