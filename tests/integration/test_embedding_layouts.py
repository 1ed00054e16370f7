"""Embedding models with the files of published ones compute what sentence-transformers does, through the daemon."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openai
import pytest
from openai import OpenAI

from tests import daemons
from tests.integration.embedding_layouts import DIMENSIONS, MODELS, REFERENCES, TEXTS

VECTORS = json.loads(REFERENCES.read_text())


@pytest.fixture(scope="module")
def client(module_home: Path) -> Iterator[OpenAI]:
    for name, make in MODELS.items():
        make(module_home / "models" / name)
    with (
        daemons.running(module_home) as daemon,
        OpenAI(base_url=f"{daemon.url}/v1", api_key="not-needed", max_retries=0) as client,
    ):
        yield client


def embed(client: OpenAI, model: str, texts: list[str], **fields: object) -> np.ndarray:
    response = client.embeddings.create(model=model, input=texts, extra_body=fields)
    return np.array([each.embedding for each in response.data])


@pytest.mark.parametrize("prompt", ["", "query", "document"])
@pytest.mark.parametrize("model", MODELS)
def test_vectors_equal_those_of_sentence_transformers(client: OpenAI, model: str, prompt: str) -> None:
    fields = {"prompt_name": prompt} if prompt else {}

    np.testing.assert_allclose(embed(client, model, TEXTS, **fields), VECTORS[model][prompt], atol=2e-5)


@pytest.mark.parametrize("model", MODELS)
def test_shorter_vectors_are_the_first_dimensions(client: OpenAI, model: str) -> None:
    short = np.array(VECTORS[model][""])[:, : DIMENSIONS // 2]
    short /= np.linalg.norm(short, axis=1, keepdims=True)

    np.testing.assert_allclose(embed(client, model, TEXTS, dimensions=DIMENSIONS // 2), short, atol=5e-5)


@pytest.mark.parametrize("model", MODELS)
def test_unknown_prompt_is_rejected_with_those_of_the_model(client: OpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError, match="`query`, `document`") as error:
        embed(client, model, TEXTS, prompt_name="passage")
    assert "prompt_name" == error.value.param
