"""`embed` and `rerank`, and what `run` says about models that do not generate text."""

import json

import pytest

MINILM, RERANKER = "all-minilm-l6-v2", "bge-reranker-v2-m3"
EMBEDDINGS, RERANK = "/v1/embeddings", "/v1/rerank"


def http(body):
    content = json.dumps(body).encode()
    return b"HTTP/1.1 200 OK\r\nOsaurus-Api: 1\r\nContent-Length: %d\r\n\r\n%b" % (len(content), content)


@pytest.fixture
def retrieval(daemon, fake):
    """A fake daemon with an embedding model, a reranker and a text model."""
    tasks = {MINILM: "embed", RERANKER: "rerank", "llama-3.2-3b-instruct": "generate"}
    daemon.models = [fake.model(name, task=task) for name, task in tasks.items()]
    usage = {"prompt_tokens": 4, "total_tokens": 4}
    data = [{"object": "embedding", "index": 0, "embedding": [0.25, -1.0]}]
    results = [{"index": 1, "relevance_score": 0.875}, {"index": 0, "relevance_score": 0.125}]
    daemon.raw[EMBEDDINGS] = http({"object": "list", "model": MINILM, "data": data, "usage": usage})
    daemon.raw[RERANK] = http({"id": "x", "model": RERANKER, "results": results, "usage": usage})
    return daemon


def test_vector_is_printed_on_one_line(invoke, retrieval):
    result = invoke("embed", MINILM, "some text")

    assert (0, "[0.25, -1.0]\n") == (result.exit_code, result.stdout)
    (body,) = retrieval.bodies(EMBEDDINGS)
    assert (MINILM, "some text") == (body["model"], body["input"])


def test_name_may_be_omitted_and_the_text_piped(invoke, retrieval):
    assert 0 == invoke("embed", "two words").exit_code
    assert 0 == invoke("embed", MINILM, "-", input="piped\n").exit_code
    assert 0 == invoke("embed", MINILM, input="piped\n").exit_code

    bodies = retrieval.bodies(EMBEDDINGS)
    assert [MINILM] * 3 == [body["model"] for body in bodies]
    assert ["two words", "piped", "piped"] == [body["input"] for body in bodies]


def test_options_are_sent_and_the_json_is_one_document(invoke, retrieval):
    options = ("--dimensions", "2", "--prompt", "query", "--truncate", "--json")
    result = invoke("embed", MINILM, "text", *options)

    expected = {"model": MINILM, "prompt_tokens": 4, "dimensions": 2, "embedding": [0.25, -1.0]}
    assert expected == json.loads(result.stdout)
    (body,) = retrieval.bodies(EMBEDDINGS)
    assert (2, "query", True) == (body["dimensions"], body["prompt_name"], body["truncate"])


def test_documents_are_printed_by_relevance(invoke, retrieval):
    result = invoke("rerank", RERANKER, "query", "first", "second", "--top", "2")

    assert ["0.8750  second", "0.1250  first"] == result.stdout.splitlines()
    (body,) = retrieval.bodies(RERANK)
    assert ("query", ["first", "second"], 2) == (body["query"], body["documents"], body["top_n"])


def test_lines_of_standard_input_are_documents(invoke, retrieval):
    result = invoke("rerank", RERANKER, "query", "-", "--json", input="first\n\nsecond\n")

    assert ["second", "first"] == [each["document"] for each in json.loads(result.stdout)["results"]]


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("run", MINILM, "hi"), "cannot generate text; it can compute embeddings", "osaurusctl embed --help"),
        (("run", RERANKER, "hi"), "cannot generate text; it can rank documents", "osaurusctl rerank --help"),
        (("embed", RERANKER, "hi"), "cannot compute embeddings; it can rank documents", "osaurusctl rerank --help"),
        (("rerank", MINILM, "q", "d"), "cannot rank documents; it can compute embeddings", "osaurusctl embed --help"),
        (("embed", MINILM), "missing argument TEXT", "osaurusctl embed --help"),
        (("rerank", RERANKER, "q"), "missing argument DOCUMENT", "osaurusctl rerank --help"),
    ],
)
def test_wrong_model_or_missing_text_is_explained(invoke, retrieval, arguments, message, hint):
    result = invoke(*arguments)

    assert 2 == result.exit_code
    assert message in result.stderr
    assert hint in result.stderr


def test_tasks_are_listed(invoke, retrieval):
    tasks = {model["name"]: model["task"] for model in json.loads(invoke("ls", "--json").stdout)}

    assert ("embed", "rerank") == (tasks[MINILM], tasks[RERANKER])
