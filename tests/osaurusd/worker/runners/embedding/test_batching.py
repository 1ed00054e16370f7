import pytest

from osaurusd.worker.runners.embedding.batching import BatchQueue


def drain(queue):
    """All batches, as lists of (request, number)."""
    batches = []
    while queue:
        batches.append([(each.request, each.number) for each in queue.next_batch()])
    return batches


def test_batch_has_the_longest_inputs_within_the_budget():
    queue = BatchQueue(budget=20)
    queue.add(1, [3, 10, 9, 2])

    assert [[(1, 2), (1, 1)], [(1, 3), (1, 0)]] == drain(queue)


def test_input_longer_than_the_budget_has_a_pass_for_itself():
    queue = BatchQueue(budget=4)
    queue.add(1, [9, 1])

    assert [[(1, 0)], [(1, 1)]] == drain(queue)


def test_inputs_of_several_requests_share_a_pass():
    queue = BatchQueue(budget=20)
    queue.add(1, [5, 5])
    queue.add(2, [4])
    queue.add(3, [4])

    assert [[(2, 0), (3, 0), (1, 0), (1, 1)]] == drain(queue)


def test_large_request_delays_a_small_one_by_one_pass_only():
    queue = BatchQueue(budget=10)
    queue.add(1, [10] * 50)
    queue.add(2, [1])
    queue.next_batch()

    assert 2 in [each.request for each in queue.next_batch()]


def test_removed_requests_have_no_turn():
    queue = BatchQueue(budget=10)
    queue.add(1, [10, 10])
    queue.add(2, [10])
    queue.remove(1)

    assert [[(2, 0)]] == drain(queue)


@pytest.mark.parametrize("budget", [1, 7, 64, 4096])
def test_every_input_is_computed_once(budget):
    queue = BatchQueue(budget)
    sizes = {1: [7, 1, 33, 5], 2: [64] * 9, 3: [2]}
    for request, lengths in sizes.items():
        queue.add(request, lengths)
    batches = drain(queue)

    expected = [(request, number) for request, lengths in sizes.items() for number in range(len(lengths))]
    assert expected == sorted(each for batch in batches for each in batch)
    for batch in batches:
        longest = max(sizes[request][number] for request, number in batch)
        assert 1 == len(batch) or len(batch) * longest <= budget
