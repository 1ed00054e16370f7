"""Embeddings and reranking with official clients, against a real daemon, worker and model."""

import gc
import importlib
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlx.core as mx
import numpy as np
import ollama
import openai
import pytest
import tiktoken
from openai import OpenAI
from tokenizers import Tokenizer

from tests import daemons, reranker_model
from tests.daemons import Daemon
from tests.embedding_model import NAME
from tests.models import make_tiny
from tests.osaurusd.worker.runners.embedding.tiny_networks import REFERENCES, weight

REFERENCE = json.loads(Path(__file__).with_name("minilm.json").read_text())
TEXTS = REFERENCE["texts"]
RERANKER, RANDOM_RERANKER, GENERATOR = "minilm-reranker", "tiny-reranker", "tiny"
LONG = "word " * 300


def make_reranker(folder: Path, minilm: Path) -> None:
    """Create a sequence classifier with random weights, and the tokenizer of all-MiniLM-L6-v2."""
    reference = json.loads(REFERENCES.read_text())["bert ranks"]
    shapes = reference["shapes"]
    vocabulary = json.loads((minilm / "config.json").read_text())["vocab_size"]
    shapes["bert.embeddings.word_embeddings.weight"][0] = vocabulary
    config = {**reference["config"], "vocab_size": vocabulary, "architectures": ["BertForSequenceClassification"]}
    folder.mkdir(parents=True)
    weights = {name: mx.array(weight(name, shape)) for name, shape in shapes.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(minilm / name, folder / name)


@pytest.fixture(scope="module")
def daemon(module_home: Path, minilm_folder: Path, tiny_tokenizer: Path) -> Iterator[Daemon]:
    models = module_home / "models"
    shutil.copytree(minilm_folder, models / NAME)
    reranker_model.make(models / RERANKER, minilm_folder)
    make_reranker(models / RANDOM_RERANKER, minilm_folder)
    make_tiny(models / GENERATOR, tiny_tokenizer)
    with daemons.running(module_home) as running:
        yield running


@pytest.fixture(scope="module")
def client(daemon: Daemon) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{daemon.url}/v1", api_key="not-needed", max_retries=0) as openai_client:
        yield openai_client


@pytest.fixture(scope="module")
def native(daemon: Daemon) -> Iterator[ollama.Client]:
    with ollama.Client(daemon.url) as ollama_client:
        yield ollama_client


@pytest.fixture
def _collected() -> Iterator[None]:
    """Collect LangChain's clients, which never close their connections, before the next test starts."""
    yield
    gc.collect()


def tokenizer(folder: Path) -> Tokenizer:
    loaded = Tokenizer.from_file(str(folder / "tokenizer.json"))
    loaded.no_padding()
    loaded.no_truncation()
    return loaded


def count_tokens(folder: Path, texts: list[str]) -> int:
    return sum(len(each.ids) for each in tokenizer(folder).encode_batch(texts))


def vectors_of(response: openai.types.CreateEmbeddingResponse) -> np.ndarray:
    assert list(range(len(response.data))) == [each.index for each in response.data]
    return np.array([each.embedding for each in response.data])


def test_cosines_equal_those_of_sentence_transformers(client: OpenAI, minilm_folder: Path) -> None:
    response = client.embeddings.create(model=NAME, input=TEXTS)
    vectors = vectors_of(response)

    np.testing.assert_allclose(vectors @ vectors.T, REFERENCE["cosines"], atol=1e-5)
    np.testing.assert_allclose(vectors[:, :4], REFERENCE["vectors"], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert response.usage.prompt_tokens == response.usage.total_tokens == count_tokens(minilm_folder, TEXTS)
    assert NAME == response.model


def test_paraphrases_are_closer_than_unrelated_texts(client: OpenAI) -> None:
    texts = ["How do I reset my password?", "I forgot my login credentials.", "Cats like fish."]
    question, paraphrase, unrelated = vectors_of(client.embeddings.create(model=NAME, input=texts))

    assert question @ paraphrase > 0.5 > 0.2 > abs(question @ unrelated)


def test_padding_and_batch_size_change_nothing(client: OpenAI) -> None:
    together = vectors_of(client.embeddings.create(model=NAME, input=TEXTS))
    alone = [vectors_of(client.embeddings.create(model=NAME, input=text))[0] for text in TEXTS]

    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_concurrent_requests_keep_their_order(daemon: Daemon, client: OpenAI) -> None:
    texts = TEXTS[:4]
    expected = vectors_of(client.embeddings.create(model=NAME, input=texts))

    def embed(number: int) -> np.ndarray:
        return vectors_of(client.embeddings.create(model=NAME, input=texts[number:] + texts[:number]))

    with ThreadPoolExecutor(4) as pool:
        for number, vectors in enumerate(pool.map(embed, range(4))):
            np.testing.assert_allclose(vectors, np.roll(expected, -number, axis=0), atol=1e-6)


def test_both_formats_and_token_ids_have_the_same_vector(client: OpenAI, minilm_folder: Path) -> None:
    ids = tokenizer(minilm_folder).encode(TEXTS[0], add_special_tokens=False).ids
    inputs = (TEXTS[0], ids, [ids], [TEXTS[0]])
    for encoding_format in ("float", "base64", openai.omit):
        for value in inputs:
            response = client.embeddings.create(model=NAME, input=value, encoding_format=encoding_format)
            if encoding_format == "base64":
                continue  # the client decodes base64 only if it has chosen it
            np.testing.assert_allclose(response.data[0].embedding[:4], REFERENCE["vectors"][0], atol=1e-5)
    raw = client.embeddings.create(model=NAME, input=TEXTS[0], encoding_format="base64").data[0].embedding
    assert isinstance(raw, str)


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"input": ["a", ""]}, "input[1]", "must not be empty"),
        ({"input": ""}, "input", "must not be empty"),
        ({"input": []}, "input", "must not be empty"),
        ({"input": ["a", LONG]}, "input[1]", "302 tokens exceed the model's context of 256"),
        ({"input": "a", "dimensions": 64}, "dimensions", "not trained for shorter vectors"),
        ({"input": [[50256]]}, "input[0]", "range from 0 to 30521, not 50256"),
        ({"input": ["a"] * 2049}, "input", "at most 2048 inputs, not 2049"),
        ({"input": "a", "model": GENERATOR}, "model", "use it with `/v1/chat/completions`"),
        ({"input": "a", "model": RERANKER}, "model", "use it with `/v1/rerank`"),
    ],
)
def test_invalid_requests_name_their_field(client: OpenAI, fields: dict, param: str, message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as error:
        client.embeddings.create(**{"model": NAME, **fields})
    assert param == error.value.param


def test_truncation_is_reported(client: OpenAI) -> None:
    response = client.embeddings.create(model=NAME, input=["a", LONG], extra_body={"truncate": True})

    assert [1] == response.model_extra["truncated"]
    assert 3 + 256 == response.usage.prompt_tokens


def test_chat_request_to_an_embedder_says_which_endpoint_serves_it(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="use it with `/v1/embeddings`") as error:
        client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": "hi"}])
    assert "model" == error.value.param


def test_model_may_be_omitted_if_only_one_embeds(client: OpenAI) -> None:
    assert NAME == client.embeddings.create(model="", input="a").model


KNOWN = [  # examples of published rerankers, the relevant document first; the reranker was not trained on them
    (
        "What do pandas eat?",
        [
            "Pandas feed on bamboo.",
            "Tigers feed on deer and wild boars.",
            "The sun is a star.",
            "Berlin is in Germany.",
        ],
    ),
    (
        "What is the capital of China?",
        [
            "The capital of China is Beijing.",
            "Gravity is a force that attracts two bodies towards each other.",
            "The capital of Brazil is Brasilia.",
        ],
    ),
    (
        "How many people live in Berlin?",
        [
            "Berlin has a population of 3,520,031 registered inhabitants in an area of 891.82 square kilometers.",
            "New York City is famous for the Metropolitan Museum of Art.",
            "Mix flour, water, yeast and salt, and let the dough rise.",
        ],
    ),
    (
        "Explain gravity",
        ["Gravity is a force that attracts two bodies towards each other.", "The capital of China is Beijing."],
    ),
    (
        "How do I repair a leaking tap?",
        ["Turn off the water, and replace the washer in the tap.", "Cross the ends of the tie, and pull the knot."],
    ),
]


@pytest.mark.parametrize(("query", "documents"), KNOWN)
def test_known_documents_are_in_the_right_order(client: OpenAI, query: str, documents: list[str]) -> None:
    body = {"model": RERANKER, "query": query, "documents": documents[::-1]}
    best, *others = client.post("/rerank", body=body, cast_to=dict)["results"]

    assert len(documents) - 1 == best["index"]
    assert best["relevance_score"] > 0.5 > max(each["relevance_score"] for each in others)


def test_documents_are_ranked(client: OpenAI) -> None:
    documents = ["Pandas eat bamboo.", {"text": "The sun is a star."}, "Paris is in France."]
    body = {"model": RANDOM_RERANKER, "query": "What do pandas eat?", "documents": documents}
    whole = client.post("/rerank", body=body, cast_to=dict)
    scores = {each["index"]: each["relevance_score"] for each in whole["results"]}
    best = client.post("/rerank", body={**body, "top_n": 1, "return_documents": True}, cast_to=dict)
    reversed_ = client.post("/rerank", body={**body, "documents": documents[::-1]}, cast_to=dict)

    assert sorted(scores.values(), reverse=True) == [each["relevance_score"] for each in whole["results"]]
    assert {0, 1, 2} == set(scores)
    assert all(0 < score < 1 for score in scores.values())
    (result,) = best["results"]
    index = result["index"]
    text = documents[index] if isinstance(documents[index], str) else documents[index]["text"]
    assert {"index": index, "relevance_score": max(scores.values()), "document": {"text": text}} == result
    for each in reversed_["results"]:
        assert scores[2 - each["index"]] == pytest.approx(each["relevance_score"], abs=1e-6)
    assert whole["usage"]["prompt_tokens"] == whole["usage"]["total_tokens"] > 30


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"documents": []}, "documents"),
        ({"documents": ["a", "word " * 100]}, "documents[1]"),
        ({"query": "word " * 100}, "query"),
        ({"query": ""}, "query"),
        ({"top_n": 0}, "top_n"),
        ({"instruction": "Find animals"}, "instruction"),
        ({"model": NAME}, "model"),
    ],
)
def test_invalid_rerank_requests_name_their_field(client: OpenAI, fields: dict, param: str) -> None:
    body = {"model": RANDOM_RERANKER, "query": "q", "documents": ["a"], **fields}
    with pytest.raises(openai.BadRequestError) as error:
        client.post("/rerank", body=body, cast_to=dict)
    assert param == error.value.param


def test_ollama_client_embeds_and_truncates(native: ollama.Client) -> None:
    response = native.embed(NAME, ["A man is eating food.", LONG])
    legacy = native.embeddings(NAME, TEXTS[0])

    np.testing.assert_allclose(response.embeddings[0][:4], REFERENCE["vectors"][0], atol=1e-5)
    np.testing.assert_allclose(legacy.embedding[:4], REFERENCE["vectors"][0], atol=1e-5)
    assert 8 + 256 == response.prompt_eval_count
    assert 0 < response.total_duration
    with pytest.raises(ollama.ResponseError, match="302 tokens exceed") as error:
        native.embed(NAME, LONG, truncate=False)
    assert 400 == error.value.status_code
    assert ["embedding"] == native.show(NAME).capabilities
    assert [] == native.embed(NAME, "").embeddings


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("_collected")
@pytest.mark.long
def test_langchain_embeds(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    # Take a second in each process that collects tests.
    langchain_openai, langchain_ollama = map(importlib.import_module, ("langchain_openai", "langchain_ollama"))
    with_text = langchain_openai.OpenAIEmbeddings(
        model=NAME, base_url=f"{daemon.url}/v1", api_key="not-needed", check_embedding_ctx_length=False
    )
    native = langchain_ollama.OllamaEmbeddings(model=NAME, base_url=daemon.url)
    for embeddings in (with_text, native):
        np.testing.assert_allclose(np.array(embeddings.embed_documents(TEXTS))[:, :4], REFERENCE["vectors"], atol=1e-5)
        np.testing.assert_allclose(embeddings.embed_query(TEXTS[0])[:4], REFERENCE["vectors"][0], atol=1e-5)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("_collected")
def test_langchain_embeds_token_ids(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    # By default, LangChain sends the ids of an encoding that tiktoken downloads. This one has 256 tokens.
    encoding = tiktoken.Encoding("bytes", pat_str=r".", mergeable_ranks={bytes([n]): n for n in range(256)},
                                 special_tokens={})  # fmt: skip
    monkeypatch.setattr(tiktoken, "encoding_for_model", lambda _: encoding)
    embeddings = importlib.import_module("langchain_openai").OpenAIEmbeddings(
        model=NAME, base_url=f"{daemon.url}/v1", api_key="not-needed"
    )

    first, second = embeddings.embed_documents(["abc", "xyz"])
    assert 384 == len(first) == len(second)
    assert first != second


def test_embedder_is_counted_and_listed(daemon: Daemon, client: OpenAI) -> None:
    client.embeddings.create(model=NAME, input="hi")
    _, models = daemon.admin("GET", "/v0/models")
    tasks = {model["name"]: model["task"] for model in models}
    (embedder,) = (model for model in models if model["name"] == NAME)

    assert {NAME: "embed", RERANKER: "rerank", RANDOM_RERANKER: "rerank", GENERATOR: "generate"} == tasks
    assert 256 == embedder["context_length"]
    assert "ready" == embedder["worker"]["state"]
    assert embedder["worker"]["needs_bytes"] > 90_000_000
