"""Pins that outlive their model."""

import pytest

REPO = "org/missing"


@pytest.fixture
def pin(environment):
    """Pins a model that is not on disk, before the daemon starts."""
    (environment.paths.state_dir / "residency.json").write_text(f'{{"version": 1, "pins": ["{REPO}"]}}')


async def test_a_pinned_model_that_is_not_on_disk_is_a_fault_until_it_is_unpinned(pin, daemon, operator):
    (fault,) = (await operator.get("/v0/status"))["faults"]
    assert f'pinned model "{REPO}" is not on disk' in fault
    assert f"osaurusctl unpin {REPO}" in fault
    assert [REPO] == (await operator.get("/v0/pins"))["pinned"]

    assert [] == (await operator.post("/v0/pins", {"model": REPO, "pinned": False}))["pinned"]

    assert [] == (await operator.get("/v0/status"))["faults"]
