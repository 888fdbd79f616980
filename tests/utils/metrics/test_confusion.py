import numpy as np

from utils.metrics.confusion import confusion_matrix

BOX = [0, 0, 10, 10]
FAR = [50, 50, 60, 60]


def test_right_confused_missed_and_invented_boxes_are_counted():
    predictions = [
        np.array([[*BOX, 0.9, 0], [*FAR, 0.8, 1], [80, 80, 90, 90, 0.7, 1], [20, 20, 30, 30, 0.2, 0]]),
        np.zeros((0, 6)),
    ]
    truths = [np.array([[0, *BOX], [0, *FAR], [0, 20, 20, 30, 30]]), np.array([[1, *BOX]])]
    matrix = confusion_matrix(predictions, truths, num_classes=2)
    assert matrix.tolist() == [
        [1, 0, 0],  # predicted 0: right once
        [1, 0, 1],  # predicted 1: a 0 taken for a 1, and one where nothing is
        [1, 1, 0],  # missed: the box whose prediction is not sure enough, and the one of image 2
    ]


def test_largest_overlap_wins_whatever_the_scores():
    # The surer box overlaps by .6, the less sure one fully.
    predictions = [np.array([[0, 0, 6, 10, 0.9, 0], [*BOX, 0.5, 1]])]
    matrix = confusion_matrix(predictions, [np.array([[1, *BOX]])], num_classes=2)
    assert matrix.tolist() == [[0, 0, 1], [0, 1, 0], [0, 0, 0]]


def test_nothing_predicted_and_nothing_true_is_all_zero():
    assert confusion_matrix([np.zeros((0, 6))], [np.zeros((0, 5))], num_classes=3).sum() == 0
