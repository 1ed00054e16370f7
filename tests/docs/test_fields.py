"""The table of request fields per protocol agrees with the types that requests are decoded into."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from osaurusd.protocols.anthropic import types as anthropic
from osaurusd.protocols.ollama import types as ollama
from osaurusd.protocols.ollama.embeddings import EmbedBody, EmbeddingsBody
from osaurusd.protocols.openai import chat_types as openai
from osaurusd.protocols.openai import decision_types as decisions
from osaurusd.protocols.openai.common import StreamOptions
from osaurusd.protocols.openai.completion_types import CompletionRequest
from osaurusd.protocols.openai.embeddings import EmbeddingRequest
from osaurusd.protocols.openai.output_format import UNSUPPORTED
from osaurusd.protocols.openai.rerank import RerankBody
from osaurusd.protocols.openai.responses import types as responses

PAGE = Path(__file__).parents[2] / "docs" / "api" / "fields.md"


class Body(NamedTuple):
    """A request body, or an object in it.

    `accepted` fields have no effect. `rejected` fields are an error, except for null and values without effect.
    """

    name: str
    type: type[msgspec.Struct]
    rejected: Iterable[str] = ()
    accepted: Iterable[str] = ()

    @property
    def row(self) -> str:
        """The row of the table."""
        declared = {field.encode_name for field in msgspec.structs.fields(self.type)}
        rejected, accepted = set(self.rejected), set(self.accepted)
        cells = [declared - rejected - accepted, accepted, rejected]
        texts = [", ".join(f"`{name}`" for name in sorted(cell)) or "-" for cell in cells]
        return f"| `{self.name}` | {' | '.join(texts)} |"


BODIES = [
    Body("POST /chat/completions", openai.ChatRequest, rejected=[*openai.NO_OP_VALUES, *UNSUPPORTED]),
    Body("POST /chat/completions: stream_options", StreamOptions, accepted=["include_obfuscation"]),
    Body("POST /chat/completions: messages[]", openai.Message, rejected=["audio", "function_call"]),
    Body("POST /completions", CompletionRequest, rejected=["best_of", *UNSUPPORTED]),
    Body("POST /embeddings", EmbeddingRequest, accepted=["user"]),
    Body("POST /rerank", RerankBody),
    Body("POST /v1/messages", anthropic.MessagesRequest, anthropic.NO_OP_FIELDS, anthropic.IGNORED_FIELDS),
    Body("POST /v1/messages/count_tokens", anthropic.CountTokensRequest),
    Body("/v1/messages: messages[].content[]", anthropic.ContentBlock),
    Body("/v1/messages: tools[]", anthropic.Tool),
    Body("/v1/messages: tool_choice", anthropic.ToolChoice),
    Body("/v1/messages: thinking", anthropic.Thinking, accepted=["budget_tokens"]),
    Body("/v1/messages: output_config", anthropic.OutputConfig),
    Body("POST /responses", responses.ResponseRequest, responses.NO_OP_VALUES, responses.IGNORED_FIELDS),
    Body("POST /decisions", decisions.DecisionRequest, accepted=decisions.IGNORED_FIELDS),
    Body("POST /decisions: questions[] predicate", decisions.PredicateQuestion),
    Body("POST /decisions: questions[] choice", decisions.ChoiceQuestion),
    Body("POST /decisions: questions[] score", decisions.ScoreQuestion),
    Body("POST /api/chat", ollama.ChatRequest, accepted=ollama.IGNORED_FIELDS),
    Body("POST /api/chat: messages[]", ollama.Message),
    Body("POST /api/generate", ollama.GenerateRequest, ollama.NO_OP_FIELDS, ollama.IGNORED_FIELDS),
    Body("POST /api/embed", EmbedBody, accepted=["options"]),
    Body("POST /api/embeddings", EmbeddingsBody, accepted=["options"]),
    Body("/api/chat, /api/generate: options", ollama.Options, ollama.NO_OP_OPTIONS, ollama.IGNORED_OPTIONS),
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.name)
def test_fields_of_requests_are_documented(body: Body) -> None:
    assert body.row in PAGE.read_text().splitlines()
