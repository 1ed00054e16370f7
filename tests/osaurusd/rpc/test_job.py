"""Reports of a job: often enough to watch, too few to flood. The rest is tested where jobs run."""

from osaurusd.rpc.job import PROGRESS_SECONDS, Throttle


def test_progress_passes_at_most_ten_times_a_second_besides_the_ends_of_a_stage() -> None:
    now = 100.0
    throttle = Throttle(lambda: now)
    hashed = []
    for done in range(1001):
        if throttle.passes("hash", done, 1000):
            hashed.append(done)
        now += 0.001

    assert (0, 1000) == (hashed[0], hashed[-1])
    assert len(hashed) <= 1 / PROGRESS_SECONDS + 2
    assert [0, 10] == [done for done in (0, 5, 10) if throttle.passes("convert", done, 10)]
