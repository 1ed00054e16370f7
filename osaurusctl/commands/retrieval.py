"""Commands for models that compare texts: embed, rerank."""

import json
import sys
from typing import Any

import click
import msgspec

from osaurusctl import completion
from osaurusctl.chat.conversation import read_prompt
from osaurusctl.chat.model import ModelFinder, split_arguments
from osaurusctl.client import connect
from osaurusctl.command import Command
from osaurusctl.formatting import format_table
from osaurusctl.output import Output, is_terminal

_STANDARD_INPUT = "-"


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int


class _Embedding(msgspec.Struct, frozen=True):
    embedding: list[float]


class _EmbeddingReply(msgspec.Struct, frozen=True):
    model: str
    data: list[_Embedding]
    usage: _Usage


class _Result(msgspec.Struct, frozen=True):
    index: int
    relevance_score: float


class _RerankReply(msgspec.Struct, frozen=True):
    model: str
    results: list[_Result]
    usage: _Usage


@click.command(
    "embed",
    cls=Command,
    examples=[
        'osaurusctl embed all-minilm-l6-v2 "A man is eating food."',
        "osaurusctl embed all-minilm-l6-v2 - < notes.txt",
        'osaurusctl embed "Some text." --json',
    ],
)
@click.argument("arguments", metavar="[NAME] [TEXT|-]", nargs=-1, shell_complete=completion.embedders)
@click.option("--dimensions", type=click.IntRange(1), help="Shorten the vector, if the model was trained for that")
@click.option(
    "--prompt", "prompt_name", metavar="PROMPT", help="Name of the model's prompt for the text, such as query"
)
@click.option("--truncate", is_flag=True, help="Cut a text that exceeds the context of the model")
@click.pass_obj
def embed(
    output: Output, arguments: tuple[str, ...], dimensions: int | None, prompt_name: str | None, truncate: bool
) -> None:
    """Print the vector of a text

    The vector is a JSON array on one line. Without TEXT or with "-", the text is standard input. Without NAME, use the
    only embedding model on this machine.
    """
    client = connect()
    finder = ModelFinder(client, output)
    name, text = split_arguments(arguments, finder.names)
    text = _read_text(text)
    model = name or finder.default(command="embed", task="embed")
    finder.check_task(model, "embed")
    options = {"dimensions": dimensions, "prompt_name": prompt_name, "truncate": truncate or None}
    reply = client.send("/v1/embeddings", {"model": model, "input": text, **options}, _EmbeddingReply)
    vector = reply.data[0].embedding
    report = {
        "model": reply.model,
        "prompt_tokens": reply.usage.prompt_tokens,
        "dimensions": len(vector),
        "embedding": vector,
    }
    output.show(report, json.dumps(vector))


@click.command(
    "rerank",
    cls=Command,
    examples=[
        'osaurusctl rerank bge-reranker-v2-m3 "What do pandas eat?" "Pandas eat bamboo." "The sun is a star."',
        'osaurusctl rerank bge-reranker-v2-m3 "error while loading" - < lines.txt --top 5',
    ],
)
@click.argument("name", shell_complete=completion.rerankers)
@click.argument("query")
@click.argument("documents", metavar="[DOCUMENT...|-]", nargs=-1)
@click.option("--top", type=click.IntRange(1), help="Only print this many documents")
@click.option("--truncate", is_flag=True, help="Cut documents that exceed the context of the model")
@click.pass_obj
def rerank(output: Output, name: str, query: str, documents: tuple[str, ...], top: int | None, truncate: bool) -> None:
    """Sort documents by their relevance to a query

    Prints the relevance of each document from 0 to 1, the most relevant first. Without DOCUMENT or with "-", each line
    of standard input is a document.
    """
    client = connect()
    ModelFinder(client, output).check_task(name, "rerank")
    texts = _read_documents(documents)
    body: dict[str, Any] = {"model": name, "query": query, "documents": texts, "top_n": top}
    reply = client.send("/v1/rerank", {**body, "truncate": truncate or None}, _RerankReply)
    report = {
        "model": reply.model,
        "prompt_tokens": reply.usage.prompt_tokens,
        "results": [
            {"index": each.index, "relevance_score": each.relevance_score, "document": texts[each.index]}
            for each in reply.results
        ],
    }
    output.show(report, format_table((f"{each.relevance_score:.4f}", texts[each.index]) for each in reply.results))


def _read_text(argument: str | None) -> str:
    text = argument if argument not in (None, _STANDARD_INPUT) else read_prompt(None)
    if not text:
        raise click.UsageError("missing argument TEXT, the text to embed")
    return text


def _read_documents(arguments: tuple[str, ...]) -> list[str]:
    if arguments not in ((), (_STANDARD_INPUT,)):
        return list(arguments)
    lines = [] if sys.stdin is None or is_terminal(sys.stdin) else sys.stdin.read().splitlines()
    documents = [line for line in lines if line.strip()]
    if not documents:
        raise click.UsageError("missing argument DOCUMENT, a document to rank")
    return documents
