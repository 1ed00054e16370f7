"""Generated inputs: random JSON, mutated requests, and hostile schemas."""

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

PATHS = st.sampled_from(["/v1/chat/completions", "/completions"])

# UTF-8 cannot encode half a surrogate pair. `corrupted_requests` contains it as an escape.
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([0, -1, 1, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 10**30, 1e308, -0.0, 1e-320]),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, text)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(text, inner, max_size=5)),
    max_leaves=20,
)

WORDS = [
    "",
    "auto",
    "none",
    "required",
    "function",
    "text",
    "json_object",
    "json_schema",
    "user",
    "tool",
    "\0",
    "<|im_end|>",
]
hostile_values = st.one_of(
    values,
    st.sampled_from([*WORDS, [], {}, [[]], "x" * 2000, ["x"] * 200, [0] * 500, {"type": "function"}, {"a": {"a": {}}}]),
)

CHAT_REQUESTS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "Hello"}]},
    {"messages": [{"role": "system", "content": [{"type": "text", "text": "x"}]}, {"role": "user", "content": "y"}]},
    {
        "messages": [
            {"role": "user", "content": "Weather?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}],
            },
            {"role": "tool", "tool_call_id": "c", "content": "rain"},
        ],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "f",
                    "description": "d",
                    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
                },
            }
        ],
        "tool_choice": "required",
        "parallel_tool_calls": False,
    },
    {
        "messages": [{"role": "user", "content": "JSON"}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": {"type": "object", "properties": {"a": {"type": "string"}}}},
        },
        "logprobs": True,
        "top_logprobs": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
    },
    {
        "messages": [{"role": "user", "content": "Hello"}],
        "n": 2,
        "stop": ["a", "b"],
        "seed": 1,
        "temperature": 0.5,
        "top_p": 0.5,
        "top_k": 3,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.1,
        "presence_penalty": 0.1,
        "logit_bias": {"1": 5},
        "reasoning_effort": "low",
        "chat_template_kwargs": {"a": [1]},
    },
]
COMPLETION_REQUESTS: list[dict[str, Any]] = [
    {"prompt": "Once", "suffix": None},
    {"prompt": ["a", [1, 2]], "echo": True, "logprobs": 2, "n": 1, "best_of": 1},
    {"prompt": [1, 2, 3], "stop": "x", "stream": True, "seed": 3},
]

ANTHROPIC_REQUESTS: list[dict[str, Any]] = [
    {
        "max_tokens": 2,
        "system": [{"type": "text", "text": "x-anthropic-billing-header: a"}, {"type": "text", "text": "x"}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
        "stop_sequences": ["a"],
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.5,
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "metadata": {"user_id": "a"},
        "stream": True,
    },
    {
        "max_tokens": 3,
        "messages": [
            {"role": "user", "content": "Weather?"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": "x"},
                    {"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}},
                ],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "c", "content": "x", "is_error": True}],
            },
        ],
        "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    },
    {
        "max_tokens": 2,
        "messages": [{"role": "user", "content": "JSON"}],
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
    },
]

RESPONSE_REQUESTS: list[dict[str, Any]] = [
    {
        "input": "Hello",
        "instructions": "x",
        "stream": True,
        "include": ["message.output_text.logprobs", "reasoning.encrypted_content"],
        "reasoning": {"effort": "low", "summary": "auto"},
        "metadata": {"a": "b"},
        "truncation": "auto",
    },
    {
        "input": [
            {"role": "developer", "content": "x"},
            {"role": "user", "content": [{"type": "input_text", "text": "y"}]},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "z"}], "encrypted_content": "osaurus1:"},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a":1}', "namespace": "n"},
            {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "rain"}]},
            {"type": "custom_tool_call", "call_id": "d", "name": "g", "input": "x"},
            {"type": "custom_tool_call_output", "call_id": "d", "output": "y"},
            {"type": "compaction", "encrypted_content": "osaurus1:eA=="},
        ],
        "tools": [
            {"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "f", "parameters": {}}]},
            {"type": "custom", "name": "g", "format": {"type": "grammar", "syntax": "regex", "definition": "[0-9]+"}},
            {
                "type": "custom",
                "name": "h",
                "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "a"'},
            },
        ],
        "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": [{"type": "custom", "name": "g"}]},
        "max_tool_calls": 1,
        "parallel_tool_calls": False,
    },
    {
        "input": [],
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}, "verbosity": "low"},
        "store": False,
    },
]
CONVERSATION_REQUESTS: list[dict[str, Any]] = [
    {"items": RESPONSE_REQUESTS[1]["input"], "metadata": {"a": "b"}},
    {"items": [{"role": "user", "content": "Hello", "id": "x"}]},
]

DECISION_REQUESTS: list[dict[str, Any]] = [
    {
        "input": [
            {"role": "system", "content": "x"},
            {
                "role": "user",
                "content": [{"type": "input_text", "text": "y"}, {"type": "input_json", "data": {"a": 1}}],
            },
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "rain"},
        ],
        "questions": [
            {"type": "predicate", "name": "p", "instructions": [{"type": "input_json", "data": [{"a": None}]}]},
            {"type": "choice", "instructions": "Which?", "choices": [{"value": True}, {"value": "true"}]},
            {"type": "score", "instructions": "How?", "levels": [{"label": "1", "description": "x"}, {"label": "10"}]},
        ],
        "prompt_cache_options": {"mode": "explicit", "ttl": "30m"},
    },
    {"input": "x", "questions": [{"type": "choice", "instructions": "y", "choices": [{"value": "a"}, {"value": "b"}]}]},
]

OLLAMA_CHATS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "user", "content": "Weather?", "images": []},
            {"role": "assistant", "thinking": "x", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
            {"role": "tool", "content": "rain", "tool_name": "f"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "think": "low",
        "logprobs": True,
        "top_logprobs": 1,
    },
    {"messages": [{"role": "user", "content": "JSON"}], "format": {"type": "object"}, "stream": False},
]
OLLAMA_GENERATIONS: list[dict[str, Any]] = [
    {"prompt": "Once", "system": "x", "raw": False, "format": "json"},
    {"prompt": "Once", "suffix": "end", "stream": False, "context": [], "images": [], "template": ""},
]
OLLAMA_OPTIONS: dict[str, Any] = {
    **{"stop": ["a"], "seed": 1, "temperature": 0.5, "top_k": 3, "top_p": 0.5, "min_p": 0.1, "mirostat": 0},
    **{"repeat_penalty": 1.1, "repeat_last_n": -1, "presence_penalty": 0.1, "frequency_penalty": 0.1, "num_ctx": 10},
}
OLLAMA_MODELS: list[dict[str, Any]] = [{"model": "tiny:latest", "name": "tiny", "verbose": True, "stream": False}]

VALID: dict[str, list[dict[str, Any]]] = {
    "/v1/responses": RESPONSE_REQUESTS,
    "/responses/input_tokens": RESPONSE_REQUESTS,
    "/v1/responses/compact": RESPONSE_REQUESTS,
    "/v1/conversations": CONVERSATION_REQUESTS,
    "/conversations/conv_1": CONVERSATION_REQUESTS,
    "/v1/conversations/conv_1/items": CONVERSATION_REQUESTS,
    "/v1/decisions": DECISION_REQUESTS,
    "/api/chat": OLLAMA_CHATS,
    "/api/generate": OLLAMA_GENERATIONS,
    "/api/show": OLLAMA_MODELS,
    "/api/pull": OLLAMA_MODELS,
    "/api/create": OLLAMA_MODELS,
    "/v1/messages": ANTHROPIC_REQUESTS,
    "/messages/count_tokens": ANTHROPIC_REQUESTS,
}
"""Valid requests by path."""


def list_paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every nested value."""
    if path:
        yield path
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, member in members:
        yield from list_paths(member, (*path, key))


def find_parent(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        value = value[key]
    return value


@st.composite
def mutated_requests(draw: st.DrawFn) -> tuple[str, bytes]:
    """A path, and a valid request body with one to three values replaced, removed or added."""
    path = draw(PATHS)
    request = draw(mutations(CHAT_REQUESTS if "chat" in path else COMPLETION_REQUESTS))
    return path, json.dumps({**request, "max_tokens": draw(st.sampled_from([1, 2, 3]))}).encode()


@st.composite
def requests_to(draw: st.DrawFn, prefix: str) -> tuple[str, bytes]:
    """A path among those of `VALID` with this prefix, and a valid request with values replaced, or any JSON."""
    path = draw(st.sampled_from([path for path in VALID if prefix in path]))
    if draw(st.integers(0, 9)) == 0:
        return path, json.dumps(draw(values)).encode()
    request = draw(mutations(VALID[path]))
    return path, json.dumps(limit_output(path, request, draw(st.sampled_from([1, 2])))).encode()


def limit_output(path: str, request: dict[str, Any], tokens: int) -> dict[str, Any]:
    """Limit the length of the output, and keep the model loaded."""
    if path.startswith("/api/"):
        request = {name: value for name, value in request.items() if name != "keep_alive"}
        return {**request, "options": {**OLLAMA_OPTIONS, "num_predict": tokens}}
    return {**request, "max_output_tokens": tokens, "max_tokens": tokens}


def create_event(request: dict[str, Any]) -> str:
    """Make a message over a WebSocket from a request."""
    return json.dumps({"type": "response.create", **request, "max_output_tokens": 2})


@st.composite
def mutations(draw: st.DrawFn, valid: list[dict[str, Any]]) -> dict[str, Any]:
    """One of these requests with one to three values replaced, removed or added."""
    request = copy.deepcopy(draw(st.sampled_from(valid)))
    for _ in range(draw(st.integers(1, 3))):
        paths = list(list_paths(request))
        position = draw(st.sampled_from(paths))
        container = find_parent(request, position)
        match draw(st.sampled_from(["replace", "remove", "add"])):
            case "replace":
                container[position[-1]] = copy.deepcopy(draw(hostile_values))
            case "remove" if len(paths) > 1:
                del container[position[-1]]
            case _ if isinstance(container, dict):
                container[draw(text)] = copy.deepcopy(draw(hostile_values))
            case _:
                container.append(copy.deepcopy(draw(hostile_values)))
        if not request:
            break
    return request


@st.composite
def corrupted_requests(draw: st.DrawFn) -> tuple[str, bytes]:
    """A path, and a valid request body with some bytes replaced, inserted or removed."""
    path = draw(PATHS)
    valid = json.dumps(
        {**draw(st.sampled_from(CHAT_REQUESTS if "chat" in path else COMPLETION_REQUESTS)), "max_tokens": 1}
    ).encode()
    start = draw(st.integers(0, len(valid)))
    end = draw(st.integers(start, min(start + 5, len(valid))))
    pieces = [b'"', b"\\", b"\\ud800", b"\\u0000", b"\0", b"\xff", b"\xed\xa0\x80", b"{}", b"[", b"}", b",", b":"]
    piece = draw(
        st.one_of(st.binary(max_size=4), st.sampled_from([*pieces, b"1e999", b"NaN", b"9" * 5000, b"[" * 600]))
    )
    return path, valid[:start] + piece + valid[end:]


patterns = st.one_of(
    st.sampled_from(["^a{1,1000}$", "(a|b)*c", "^(a+)+$", r"\d{4}", r"(a)\1", "(?=a)", "[^\\]]*", "(", ".{0,9999}"]),
    st.text("ab()|*+?{}[]^$\\d0,", max_size=12),
)
sizes = st.one_of(st.integers(-2, 5), st.sampled_from([0, 10**3, 10**6, 10**18, 2**64]))


def extend_schema(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    named_schemas = st.dictionaries(st.sampled_from(["a", "b", "type", "$ref", ""]), inner, max_size=4)
    schema_lists = st.lists(inner, max_size=4)
    return st.fixed_dictionaries(
        {},
        optional={
            "type": st.one_of(st.sampled_from(TYPES), st.lists(st.sampled_from(TYPES), max_size=3)),
            "properties": named_schemas,
            "required": st.lists(st.sampled_from(["a", "b", "zzz", ""]), max_size=4),
            "additionalProperties": st.one_of(st.booleans(), inner),
            "patternProperties": st.dictionaries(patterns, inner, max_size=3),
            "items": inner,
            "prefixItems": schema_lists,
            "anyOf": schema_lists,
            "oneOf": schema_lists,
            "allOf": schema_lists,
            "not": inner,
            "enum": st.lists(values, max_size=4),
            "const": values,
            "$ref": st.sampled_from(["#", "#/$defs/a", "#/properties/a", "#/$defs/none", "http://localhost/x", ""]),
            "$defs": named_schemas,
        },
    )


TYPES = ["object", "array", "string", "integer", "number", "boolean", "null", "nonsense"]
schemas = st.recursive(
    st.one_of(
        st.fixed_dictionaries(
            {"type": st.sampled_from(TYPES)},
            optional={
                "pattern": patterns,
                "format": st.sampled_from(["date", "uuid", "email", "ipv6", "nonsense"]),
                **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minProperties"), sizes),
                **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "multipleOf"), numbers),
            },
        ),
        st.booleans(),
        values,
    ),
    extend_schema,
    max_leaves=8,
)


@st.composite
def constrained_requests(draw: st.DrawFn) -> bytes:
    """A chat request with a hostile schema for its content or for a required tool call."""
    schema = draw(st.one_of(extend_schema(schemas), schemas))
    request: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
    if draw(st.booleans()):
        response_format = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
        return json.dumps({**request, "response_format": response_format}).encode()
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    return json.dumps({**request, "tools": [tool], "tool_choice": "required"}).encode()
