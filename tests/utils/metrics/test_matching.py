import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.metrics.matching import greedy_one_to_one, overlaps


def _one_by_one(predicted, true):
    chosen, used_predicted, used_true = [], set(), set()
    for i, (p, t) in enumerate(zip(predicted, true, strict=True)):
        if p not in used_predicted and t not in used_true:
            chosen.append(i)
            used_predicted.add(p)
            used_true.add(t)
    return chosen


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), unique=True))
def test_rounds_choose_what_one_pass_would(pairs):
    predicted, true = np.array(pairs, np.int64).reshape(-1, 2).T
    assert greedy_one_to_one(predicted, true).tolist() == _one_by_one(predicted, true)


def test_overlaps_number_boxes_through_all_images():
    box = [0, 0, 10, 10]
    predictions = [np.array([[*box, 0.9, 0]]), np.zeros((0, 6)), np.array([[50, 50, 60, 60, 0.8, 1], [*box, 0.7, 1]])]
    truths = [np.zeros((0, 5)), np.array([[0, *box]]), np.array([[0, *box], [1, *box]])]
    pairs = overlaps(predictions, truths, min_iou=0.5, same_class=True)
    assert (pairs.predicted.tolist(), pairs.true.tolist()) == ([2], [2])
    assert len(overlaps(predictions, truths, min_iou=0.5, same_class=False).iou) == 2
