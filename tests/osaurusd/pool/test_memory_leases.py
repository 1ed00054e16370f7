"""Memory that a host lends to others: it counts like pinned models."""

import pytest

from osaurusd.errors import InsufficientMemory
from osaurusd.pool.memory_leases import MemoryLease
from osaurusd.pool.state import SchedulerConfig
from osaurusd.wire.admin import WorkerState
from tests.osaurusd.pool.helpers import lease_and_generate, running_request, turns

BUDGET = 1000


class Loan:
    """A lease that a test asks for."""

    def __init__(self, pool, nbytes, limit=BUDGET):
        self._context = pool.lend(MemoryLease("m", "a", nbytes), limit)

    async def begin(self):
        await self._context.__aenter__()

    async def end(self):
        await self._context.__aexit__(None, None, None)


@pytest.fixture
async def pool(make_pool):
    return make_pool(scheduler=SchedulerConfig(budget_bytes=BUDGET))


@pytest.fixture
def sized(model):
    """Builds a model whose worker needs this many bytes."""

    def sized(nbytes, name):
        record = model("echo", name)
        (record.path / "serving_bytes").write_text(str(nbytes))
        return record

    return sized


def states(pool):
    return {worker.key: worker.state for worker in pool.snapshot()}


async def test_lent_memory_is_used_until_the_lease_ends(pool):
    loan = Loan(pool, 600)
    await loan.begin()
    assert pool.budget.used_bytes == 600
    assert pool.lendable_bytes(BUDGET) == 400
    await loan.end()
    assert pool.budget.used_bytes == 0


async def test_idle_models_are_evicted_before_a_lease_is_granted(pool, sized):
    await lease_and_generate(pool, sized(500, "Idle"))
    loan = Loan(pool, 600)
    await loan.begin()
    assert states(pool) == {}
    await loan.end()


@pytest.mark.parametrize("use", ["pinned", "busy"])
async def test_pinned_and_busy_models_stay_and_the_lease_is_refused_with_the_numbers(pool, sized, use):
    record = sized(500, "Kept")
    await pool.load(record)
    if use == "pinned":
        pool.pin(record)
        with pytest.raises(InsufficientMemory, match=r"can free only 500 B of 1\.0 kB: `Kept` holds .*pinned"):
            await Loan(pool, 600).begin()
    else:
        async with running_request(pool, record):
            with pytest.raises(InsufficientMemory, match="1 in flight"):
                await Loan(pool, 600).begin()
    assert states(pool) == {"Kept": WorkerState.READY}
    assert pool.budget.used_bytes == 500


@pytest.mark.parametrize(
    ("limit", "message"),
    [(0, "lends no memory; set `distributed.lend_bytes`"), (700, r"lends at most .*, of which .* are lent already")],
)
async def test_all_leases_together_stay_within_the_limit(pool, limit, message):
    first = Loan(pool, 300)
    await first.begin()
    with pytest.raises(InsufficientMemory, match=message):
        await Loan(pool, 401, limit).begin()
    assert pool.budget.used_bytes == 300
    await first.end()


async def test_lease_is_not_evicted_and_models_get_the_rest(pool, sized):
    loan = Loan(pool, 600)
    await loan.begin()
    await pool.load(sized(300, "Small"))
    (worker,) = pool.snapshot()
    assert worker.limit_bytes == 400
    pool.unload_unused()
    assert pool.budget.used_bytes >= 600
    await loan.end()


async def test_model_that_does_not_fit_beside_leases_is_refused_with_their_size(pool, sized):
    record = sized(500, "Large")
    await pool.load(record)
    await pool.unload("Large")
    loan = Loan(pool, 600)
    await loan.begin()
    with pytest.raises(InsufficientMemory, match="are lent to other hosts"):
        await pool.load(record)
    await loan.end()
    assert await lease_and_generate(pool, record, "a") == "a "


async def test_models_get_the_memory_of_a_lease_that_has_ended(pool, sized):
    loan = Loan(pool, 600)
    await loan.begin()
    await pool.load(sized(300, "Small"))
    await loan.end()
    await turns()
    assert pool.snapshot()[0].limit_bytes == BUDGET
