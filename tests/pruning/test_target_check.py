"""Whether a measured time meets its target, with invented times, and what is said of it."""

from __future__ import annotations

import pytest

from pruning.selection.targets import NetworkTimes, TargetCheck


def check(target: str, *, predicted: tuple[float, float | None], measured: tuple[float, float | None]) -> TargetCheck:
    """Hold times (now, before) against a target."""
    one, two = (NetworkTimes(now=now, before=before) for now, before in (predicted, measured))
    return TargetCheck(target=target, predicted=one, measured=two, precision="fp32")


@pytest.mark.parametrize(
    ("target", "measured", "is_met"),
    [
        ("ms=4", (4.0, 12.0), True),
        ("ms=4", (3.0, 12.0), True),
        ("ms=4", (4.2, 12.0), True),  # 5 % slower
        ("ms=4", (4.21, 12.0), False),
        ("ms=4", (4.21, None), False),
        ("speedup=3", (4.0, 12.0), True),
        ("speedup=3", (8.0, 24.0), True),  # on a machine that is slower by now
        ("speedup=3", (4.2, 12.0), True),
        ("speedup=3", (4.21, 12.0), False),
        ("ms=50%", (6.0, 12.0), True),
        ("ms=50%", (6.4, 12.0), False),
    ],
)
def test_target_is_met_where_the_measured_time_is_at_most_5_percent_longer(
    target: str, measured: tuple[float, float | None], is_met: bool
) -> None:
    found = check(target, predicted=(4.0, 12.0), measured=measured)
    assert found.is_met is is_met
    assert found.to_dict()["is_met"] is is_met
    assert ("NOT met" in found.as_text()) is not is_met
    assert ("run again" in found.as_text()) is not is_met


def test_text_has_both_numbers_in_the_unit_of_the_target() -> None:
    times = check("ms=4", predicted=(3.9, 12.0), measured=(4.1, 12.3))
    assert times.as_text() == "target ms=4 is met within 5%: 4.10 ms measured, 3.90 ms predicted"
    assert times.to_dict() == {
        **{"target": "ms=4", "wanted": 4.0, "predicted": 3.9, "measured": 4.1, "is_met": True},
        "text": times.as_text(),
    }
    share = check("speedup=3", predicted=(4.0, 12.4), measured=(4.0, 12.0))
    assert share.as_text() == (
        "target speedup=3 is met within 5%: 3.00 times as fast as the dense network in fp32, measured, "
        "3.10 times predicted"
    )


def test_target_to_run_again_with_makes_good_for_what_prediction_missed() -> None:
    slow = check("ms=4", predicted=(4.0, 12.0), measured=(5.0, 12.0))
    assert slow.as_text() == (
        "target ms=4 is NOT met: 5.00 ms measured, 4.00 ms predicted; run again with --target ms=3.2"
    )
    less = check("speedup=3", predicted=(4.0, 12.0), measured=(5.0, 12.0))
    assert less.as_text() == (
        "target speedup=3 is NOT met: 2.40 times as fast as the dense network in fp32, measured, "
        "3.00 times predicted; run again with --target speedup=3.75"
    )
    unknown = check("speedup=3", predicted=(4.0, None), measured=(5.0, 12.0))
    assert unknown.to_dict()["predicted"] is None
    assert unknown.as_text().endswith("in fp32, measured; run again with --target speedup=3.75")


def test_machine_that_became_slower_is_named() -> None:
    drifted = check("ms=4", predicted=(4.0, 12.0), measured=(6.0, 18.0)).as_text()
    assert "the dense network takes 1.50 times its predicted time, too" in drifted
    assert drifted.endswith("; run again with --target ms=2.67")
    # A speedup is one of times of the same minute.
    assert "too" not in check("speedup=4", predicted=(4.0, 12.0), measured=(6.0, 18.0)).as_text()
