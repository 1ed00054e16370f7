"""Models as OpenAI's own type can read them."""

import json
from pathlib import Path

import msgspec
from openai.types import Model

from osaurusd.models.record import ModelRecord
from osaurusd.protocols.openai.render import models as render
from osaurusd.wire.admin import ModelState


def test_a_model_is_listed_by_the_name_that_is_asked_for():
    record = ModelRecord(
        name="llama-3.2-3b-instruct",
        repo="mlx-community/Llama-3.2-3B-Instruct-4bit",
        path=Path("/x"),
        source="hub",
        state=ModelState.AVAILABLE,
        created=1738193123,
    )
    raw = msgspec.json.encode(render.model(record, "mine"))
    Model.model_validate_json(raw, strict=True)
    assert json.loads(raw) == {
        "id": "mine",
        "object": "model",
        "created": 1738193123,
        "owned_by": "osaurus",
    }


def test_a_list_says_that_it_is_one():
    assert json.loads(msgspec.json.encode(render.ModelList(data=[]))) == {"object": "list", "data": []}
