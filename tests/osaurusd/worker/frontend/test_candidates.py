import math

import pytest

from osaurusd.worker.frontend.candidates import CandidateTree


def test_candidates_with_different_first_tokens_need_one_branch():
    tree = CandidateTree([(1, 2), (3,), (4, 2, 5)])
    assert list(tree.branches()) == [((), [1, 3, 4])]
    assert tree.combine([[-1.0, -2.0, -3.0]]) == [-1.0, -2.0, -3.0]


def test_a_common_beginning_is_followed_until_the_candidates_differ():
    tree = CandidateTree([(1, 2, 9), (1, 3, 9), (4,)])
    assert list(tree.branches()) == [((), [1, 4]), ((1,), [2, 3])]
    assert tree.size == 2
    assert tree.combine([[-1.0, -5.0], [-0.25, -0.5]]) == [-1.25, -1.5, -5.0]


def test_equal_candidates_have_equal_log_probabilities():
    assert CandidateTree([(1, 2), (1, 2)]).combine([[-1.0], [-2.0]]) == [-3.0, -3.0]


def test_probabilities_of_a_complete_tree_sum_to_one():
    tree = CandidateTree([(0, 0), (0, 1), (1,)])
    combined = tree.combine([[math.log(0.25), math.log(0.75)], [math.log(0.5), math.log(0.5)]])
    assert sum(map(math.exp, combined)) == pytest.approx(1)
