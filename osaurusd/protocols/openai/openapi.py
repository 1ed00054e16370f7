"""What the OpenAPI description has about OpenAI's API, except for responses."""

import re
from collections.abc import Mapping
from typing import Any

from osaurusd.config import Input
from osaurusd.http.errors import error_type
from osaurusd.http.health import Health
from osaurusd.http.openapi import Api, Operation, Schema, Stream
from osaurusd.inference import limits
from osaurusd.inference.images import DETAILS
from osaurusd.inference.limits import EACH, InputLimit
from osaurusd.inference.request import Location
from osaurusd.protocols.openai.chat import CHAT_PATHS, REASONING_EFFORTS
from osaurusd.protocols.openai.chat_types import NO_OP_VALUES, ChatCompletion, ChatCompletionChunk, ChatRequest
from osaurusd.protocols.openai.common import TOKEN_ID
from osaurusd.protocols.openai.completion_types import Completion, CompletionChunk, CompletionRequest
from osaurusd.protocols.openai.completions import COMPLETION_PATHS
from osaurusd.protocols.openai.decision_types import Decision, DecisionRequest
from osaurusd.protocols.openai.decisions import DECISION_PATHS
from osaurusd.protocols.openai.embeddings import EMBEDDING_PATHS, EmbeddingList, EmbeddingRequest
from osaurusd.protocols.openai.messages import IMAGE_TYPES, ROLES, TEXT_FIELDS
from osaurusd.protocols.openai.models import Model, ModelList
from osaurusd.protocols.openai.output_format import UNSUPPORTED
from osaurusd.protocols.openai.rerank import RERANK_PATHS, RerankBody, RerankResponse
from osaurusd.protocols.openai.tools import MODES, REQUIRED
from osaurusd.wire.errors import ErrorBody, ErrorCode, ErrorEnvelope

_MESSAGES = [{"role": "user", "content": "Say hello."}]
_MODEL = "llama-3.2-3b-instruct"
_VISION_MODEL = "smolvlm-instruct"
_IMAGE_MESSAGES = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is in this image?"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo...", "detail": "low"}},
        ],
    }
]
_EMBEDDER = "all-minilm-l6-v2"
_RERANKER = "bge-reranker-v2-m3"
_WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}

OPERATIONS = (
    Operation(
        method="get", path="/health", id="health", summary="Check that the daemon serves its ports", response=Health
    ),
    Operation(
        method="get", path="/health/live", id="live", summary="Check that the daemon serves its ports", response=Health
    ),
    Operation(
        method="get",
        path="/health/ready",
        id="ready",
        summary="Check that the daemon accepts requests for models",
        response=Health,
    ),
    Operation(method="get", path="/models", id="listModels", summary="List the available models", response=ModelList),
    Operation(
        method="get",
        path="/models/{model}",
        id="showModel",
        summary="Show one model by any of its names",
        response=Model,
    ),
    Operation(
        method="post",
        path="/chat/completions",
        id="createChatCompletion",
        summary="Complete a chat",
        request=ChatRequest,
        response=ChatCompletion,
        stream=Stream([ChatCompletionChunk], end="[DONE]"),
        examples={
            "chat": {"model": _MODEL, "messages": _MESSAGES},
            "stream": {
                "model": _MODEL,
                "messages": _MESSAGES,
                "stream": True,
                "stream_options": {"include_usage": True},
            },
            "image": {"model": _VISION_MODEL, "messages": _IMAGE_MESSAGES},
            "tool": {"model": _MODEL, "messages": _MESSAGES, "tools": [_WEATHER], "tool_choice": "required"},
            "json": {"model": _MODEL, "messages": _MESSAGES, "response_format": {"type": "json_object"}},
        },
    ),
    Operation(
        method="post",
        path="/completions",
        id="createCompletion",
        summary="Complete one or more prompts",
        request=CompletionRequest,
        response=Completion,
        stream=Stream([CompletionChunk], end="[DONE]"),
        examples={
            "text": {"model": _MODEL, "prompt": "Once upon a time", "max_tokens": 16},
            "list": {"model": _MODEL, "prompt": ["One, two,", "Three, four,"], "max_tokens": 4},
        },
    ),
    Operation(
        method="post",
        path="/embeddings",
        id="createEmbedding",
        summary="Embed one or more texts",
        request=EmbeddingRequest,
        response=EmbeddingList,
        examples={
            "text": {"model": _EMBEDDER, "input": "A man is eating food."},
            "list": {"model": _EMBEDDER, "input": ["One text.", "Another text."], "encoding_format": "base64"},
        },
    ),
    Operation(
        method="post",
        path="/rerank",
        id="rerank",
        summary="Sort documents by their relevance to a query",
        request=RerankBody,
        response=RerankResponse,
        examples={
            "documents": {
                "model": _RERANKER,
                "query": "What do pandas eat?",
                "documents": ["Pandas eat bamboo.", "The sun is a star."],
                "top_n": 1,
                "return_documents": True,
            },
        },
    ),
    Operation(
        method="post",
        path="/decisions",
        id="createDecision",
        summary="Return the probabilities of answers to typed questions about an input",
        request=DecisionRequest,
        response=Decision,
        examples={
            "questions": {
                "model": _MODEL,
                "input": "I was charged twice for my subscription.",
                "questions": [
                    {"type": "predicate", "name": "refund", "instructions": "The customer should get money back."},
                    {
                        "type": "choice",
                        "name": "team",
                        "instructions": "Which team should handle the message?",
                        "choices": [{"value": "billing"}, {"value": "support", "description": "technical problems"}],
                    },
                    {
                        "type": "score",
                        "name": "urgency",
                        "instructions": "How urgent is the message?",
                        "levels": [{"label": "low"}, {"label": "medium"}, {"label": "high"}],
                    },
                ],
            },
        },
    ),
    Operation(
        method="get",
        path="/metrics",
        id="metrics",
        summary="Return metrics in Prometheus' text format",
        media_type="text/plain",
        versioned=False,
    ),
    Operation(
        method="get", path="/openapi.json", id="describe", summary="Return this description", response=dict[str, Any]
    ),
)

GENERATION_BODIES = (ChatRequest, CompletionRequest)

BODIES: Mapping[type, Mapping[Location, str]] = {
    ChatRequest: CHAT_PATHS,
    CompletionRequest: COMPLETION_PATHS,
    EmbeddingRequest: EMBEDDING_PATHS,
    RerankBody: RERANK_PATHS,
    DecisionRequest: DECISION_PATHS,
}
"""The request bodies, and their fields by location."""

ENUMS: Mapping[tuple[str, str], list[str]] = {
    ("Message", "role"): list(ROLES),
    ("ContentPart", "type"): [*TEXT_FIELDS, "thinking", *sorted(IMAGE_TYPES)],
    ("ContentPart", "detail"): list(DETAILS),
    ("ImageUrl", "detail"): list(DETAILS),
    ("ToolReference", "type"): ["function", "tool"],
    ("ToolCallParam", "type"): ["function", ""],
    ("ToolChoice", "type"): ["function", "tool", "allowed_tools", *MODES],
    ("AllowedTools", "mode"): ["auto", *REQUIRED],
    ("ResponseFormat", "type"): ["text", "json_object", "json_schema"],
    ("ChatRequest", "reasoning_effort"): list(REASONING_EFFORTS),
}
"""The values of string fields that handlers check themselves, by component and field."""


def error_example(status: int, codes: list[ErrorCode]) -> ErrorEnvelope:
    """Return an error response."""
    return ErrorEnvelope(ErrorBody(message="What failed, why, and what to do.", type=error_type(status), code=codes[0]))


def error_restriction(_: int, codes: list[ErrorCode]) -> Schema:
    """Return what the error responses with a status have in common."""
    return {"properties": {"error": {"properties": {"code": {"enum": codes}}}}}


# Constraints that the types do not express


def add_error_codes(components: dict[str, Schema]) -> None:
    components["ErrorBody"]["properties"]["code"] = {"enum": [None, *ErrorCode]}


def refine(components: dict[str, Schema], maxima: Input) -> None:
    """Add constraints to the components."""
    add_error_codes(components)
    for (component, field), values in ENUMS.items():
        for form in _forms(components[component]["properties"][field], "string"):
            form["enum"] = values
    for field, accepted in NO_OP_VALUES.items():
        components["ChatRequest"]["properties"][field] = {
            "enum": [None, *accepted],
            "default": None,
            "description": "Not supported.",
        }
    for body, paths in BODIES.items():
        schema = components[body.__name__]
        if body in GENERATION_BODIES:
            _add_generation_constraints(schema)
        for location, path in paths.items():
            for limit in limits.limits_at(location):
                for target in _find(components, schema, path):
                    _add_limit(target, limit, getattr(maxima, limit.key))


def _add_generation_constraints(schema: Schema) -> None:
    for field in UNSUPPORTED:
        schema["properties"][field] = {"enum": [None, ""], "default": None, "description": "Not supported."}
    for form in _forms(schema["properties"]["logit_bias"], "object"):
        form["propertyNames"] = {"pattern": f"^(?:{TOKEN_ID})$"}


def _find(components: dict[str, Schema], schema: Schema, path: str) -> list[Schema]:
    """Return the schema of the field at a path such as `tools[{0}].function.name`.

    Where a list may also be given as its only item, the items at `[{0}]` include that form.
    """
    schemas = [schema]
    for step in re.sub(r"\[\{\d\}\]", f".{EACH}", path).split("."):
        schemas = [child for parent in schemas for child in _children(components, parent, step)]
    return schemas


def _children(components: dict[str, Schema], schema: Schema, step: str) -> list[Schema]:
    forms = [
        components[form["$ref"].rpartition("/")[2]] if "$ref" in form else form
        for form in schema.get("anyOf", [schema])
    ]
    if step == EACH:
        items = [form["items"] for form in forms if "items" in form]
        return [*items, *(form for form in forms if form.get("type") == "string")]
    return [form["properties"][step] for form in forms if step in form.get("properties", {})]


def _add_limit(schema: Schema, limit: InputLimit, maximum: int) -> None:
    """Add the JSON Schema keyword of a limit, if there is one, and its description."""
    # A list of token ids is one prompt or input, so its length is not their number.
    if limit.measure is limits.magnitude:
        for form in _forms(schema, "integer"):
            form["maximum"] = maximum
    elif limit.measure is len and limit.location not in (limits.PROMPTS, limits.INPUTS):
        keywords = {"array": "maxItems", "object": "maxProperties", "string": "maxLength"}
        type_, keyword = next((type_, keyword) for type_, keyword in keywords.items() if _forms(schema, type_))
        for form in _forms(schema, type_):
            form[keyword] = maximum
    note = f"At most {maximum} {limit.unit} (`input.{limit.key}`)."
    schema["description"] = f"{schema.get('description', '')} {note}".strip()


def _forms(schema: Schema, type_: str) -> list[Schema]:
    """Return the alternatives of a schema that have a JSON type, except an empty list that stands for an object."""
    return [form for form in schema.get("anyOf", [schema]) if form.get("type") == type_ and form.get("maxItems") != 0]


API = Api(OPERATIONS, ErrorEnvelope, error_example, error_restriction, refine=refine)
