"""What is asked of glibc's allocator, and what of one that refuses it."""

from __future__ import annotations

import pytest

from kotoe.memory import M_MMAP_THRESHOLD, set_thresholds


@pytest.mark.parametrize(
    ("most", "threshold"), [(2**31, 2**30), (2**25, 2**25), (2**20, 0)], ids=["2.35 and later", "until 2.34", "less"]
)
def test_a_refused_threshold_is_asked_smaller_or_nothing_is_set(most: int, threshold: int) -> None:
    taken = dict[int, int]()

    def mallopt(parameter: int, value: int) -> int:
        if parameter == M_MMAP_THRESHOLD and value > most:
            return 0
        taken[parameter] = value
        return 1

    assert set_thresholds(mallopt) == threshold
    assert taken.get(M_MMAP_THRESHOLD, 0) == threshold
    assert list(taken)[:1] == [M_MMAP_THRESHOLD] * bool(threshold)  # first, or the others turn off what raises it
    assert len(taken) == (3 if threshold else 0)
