"""A language model that ranks documents, with a real daemon and worker."""

import json
from http.client import HTTPConnection
from urllib.parse import urlsplit

import pytest

from tests import daemons
from tests.models import REASONING_MARKERS, make_tiny, rename_tokens

RERANKER, CHAT = "qwen3-reranker-tiny", "tiny"
QWEN = {"model_type": "qwen3", "head_dim": 16, "rope_theta": 10000.0}
DOCUMENTS = ["Pandas eat bamboo.", "The sun is a star.", "Bread is baked in an oven."]


@pytest.fixture(scope="module")
def daemon(smollm_folder, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    folder = make_tiny(home / "models" / RERANKER, smollm_folder, seed=3, **QWEN)
    rename_tokens(folder, REASONING_MARKERS)
    make_tiny(home / "models" / CHAT, smollm_folder)
    (home / "config.toml").write_text(f'[models]\nrerankers = ["{CHAT}"]\n')
    with daemons.running(home) as daemon:
        yield daemon


def post(daemon, path, **body):
    connection = HTTPConnection(urlsplit(daemon.url).netloc, timeout=120)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.load(response)
    finally:
        connection.close()


def scores(response):
    return {result["index"]: result["relevance_score"] for result in response["results"]}


@pytest.mark.parametrize("model", [RERANKER, CHAT])
def test_documents_are_sorted_by_their_scores(daemon, model):
    status, response = post(daemon, "/v1/rerank", model=model, query="What do pandas eat?", documents=DOCUMENTS)
    assert status == 200
    values = [result["relevance_score"] for result in response["results"]]
    assert values == sorted(values, reverse=True)
    assert all(0 < value < 1 for value in values)
    assert response["usage"]["prompt_tokens"] > 30


def test_a_score_does_not_depend_on_the_other_documents(daemon):
    fields = {"model": RERANKER, "query": "What do pandas eat?"}
    _, together = post(daemon, "/rerank", **fields, documents=DOCUMENTS * 8)
    for index, document in enumerate(DOCUMENTS):
        _, alone = post(daemon, "/rerank", **fields, documents=[document])
        for repetition in range(8):
            assert scores(together)[index + 3 * repetition] == pytest.approx(scores(alone)[0], abs=1e-5)


def test_a_reranker_serves_no_chats(daemon):
    messages = [{"role": "user", "content": "Hello"}]
    status, response = post(daemon, "/v1/chat/completions", model=RERANKER, messages=messages)
    assert status == 400
    assert "/v1/rerank" in response["error"]["message"]
    status, _ = post(daemon, "/v1/chat/completions", model=CHAT, messages=messages, max_tokens=1)
    assert status == 200
