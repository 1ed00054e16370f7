"""Models, aliases, pins, events, pulls and keys over the admin API."""

import pytest

from tests.osaurusd.models import disk

pytestmark = pytest.mark.usefixtures("daemon")


@pytest.fixture
def model(environment):
    """A complete model on disk."""
    disk.write(environment.paths.models_dir / "tiny", disk.model())
    return "tiny"


async def test_models_are_listed_with_their_state(environment, operator, model):
    disk.write(environment.paths.models_dir / "broken", {"config.json": disk.config()})

    models = {entry["name"]: entry for entry in await operator.get("/v0/models")}

    assert "available" == models["tiny"]["state"]
    assert models["tiny"]["worker"] is None
    assert "available" != models["broken"]["state"]
    assert models["broken"]["reason"]


async def test_details_include_the_files(operator, model):
    await operator.get("/v0/models")

    details = await operator.post("/v0/models/details", {"model": model})

    assert model == details["model"]["name"]
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= {file["name"] for file in details["files"]}


async def test_an_alias_can_be_added_and_removed(operator, model):
    await operator.get("/v0/models")
    assert {"alias": "mine", "target": model} == await operator.post("/v0/aliases", {"alias": "Mine", "target": model})
    assert [{"alias": "mine", "target": model}] == await operator.get("/v0/aliases")
    assert model == (await operator.post("/v0/models/details", {"model": "mine"}))["model"]["name"]

    await operator.post("/v0/aliases", {"alias": "mine"})

    assert [] == await operator.get("/v0/aliases")


async def test_a_dry_run_of_a_removal_keeps_the_model(environment, operator, model):
    await operator.get("/v0/models")

    reply = await operator.post("/v0/models/remove", {"models": [model], "dry_run": True})

    assert [model] == [removed["name"] for removed in reply["removed"]]
    assert (environment.paths.models_dir / model).is_dir()


async def test_nothing_is_removed_if_one_model_is_unknown(environment, operator, model):
    await operator.get("/v0/models")

    assert "model_not_found" == (await operator.error("POST", "/v0/models/remove", {"models": [model, "other"]}))[1]

    assert (environment.paths.models_dir / model).is_dir()


async def test_unloading_without_workers_unloads_nothing(operator):
    assert {"unloaded": []} == await operator.post("/v0/unload", {"force": True})
    assert [] == await operator.get("/v0/workers")


async def test_loading_an_unknown_model_is_rejected(operator):
    assert (404, "model_not_found") == (await operator.error("POST", "/v0/load", {"model": "other"}))[:2]


async def test_pins_are_empty_without_pinned_models(operator):
    assert [] == (await operator.get("/v0/pins"))["pinned"]


async def test_events_without_follow_end_after_the_history(operator):
    assert (200, []) == await operator.send("GET", "/v0/events")


async def test_pulls_are_listed(operator):
    assert [] == await operator.get("/v0/pulls")
    assert 404 == (await operator.error("POST", "/v0/pulls/cancel", {"pull": "other"}))[0]


async def test_a_key_is_listed_without_its_secret_and_can_be_revoked(operator):
    created = await operator.post("/v0/keys", {"name": "laptop"})
    assert "key" in created

    (listed,) = await operator.get("/v0/keys")
    assert (created["id"], "laptop") == (listed["id"], listed["name"])
    assert "key" not in listed

    assert created["id"] == (await operator.post("/v0/keys/revoke", {"id": created["id"]}))["id"]
    assert [] == await operator.get("/v0/keys")


async def test_a_failed_import_reports_its_reason(operator):
    status, code, message = await operator.error("POST", "/v0/imports", {"path": "/missing"})
    assert (400, "import_failed") == (status, code)
    assert message.startswith("missing: ")


async def test_pruning_without_leftovers_removes_nothing(operator):
    assert {"leftovers": []} == await operator.post("/v0/prune")


@pytest.mark.parametrize("path", ["/v0/load", "/v0/models/remove", "/v0/pulls", "/v0/keys/revoke"])
async def test_requests_with_unknown_fields_are_rejected(operator, path):
    status, code, message = await operator.error("POST", path, {"unknown": 1})
    assert (400, "invalid_request") == (status, code)
    assert message.startswith("`")
