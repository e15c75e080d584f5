"""Which case a sample is cut from: every case in its turn, every group with its share, wherever reading begins."""

from collections import Counter
from pathlib import Path

import pytest

from nnssl_reg.pretraining.case_groups import BLOCK, CaseGroup, balanced_shares, case_of, slots

FOLDER = Path("cases")


def group(letter: str, count: int, share: float = 1.0) -> CaseGroup:
    return CaseGroup(FOLDER, tuple(f"{letter}{i}" for i in range(count)), share)


def names(groups, samples, seed: int = 3) -> list[str]:
    return [case_of(groups, sample, seed)[0].name for sample in samples]


def test_every_case_of_one_group_is_read_once_in_each_turn_and_in_another_order_in_the_next():
    groups = (group("a", 5),)
    turns = [names(groups, range(5 * turn, 5 * turn + 5)) for turn in range(4)]
    assert all(sorted(turn) == sorted(groups[0].names) for turn in turns)
    assert len({tuple(turn) for turn in turns}) > 1
    assert names(groups, range(20), seed=4) != names(groups, range(20))


def test_every_group_has_its_exact_share_of_each_block_and_its_cases_take_turns():
    groups = (group("a", 7, 3.0), group("b", 50, 1.0))
    seen = names(groups, range(3 * BLOCK))
    for block in range(3):
        letters = Counter(name[0] for name in seen[block * BLOCK : (block + 1) * BLOCK])
        assert letters == {"a": 3 * BLOCK // 4, "b": BLOCK // 4}
    for letter, count in (("a", 7), ("b", 50)):
        own = [name for name in seen if name[0] == letter]
        turns = [own[i : i + count] for i in range(0, len(own) - count + 1, count)]
        assert turns and all(len(set(turn)) == count for turn in turns)


def test_a_sample_is_the_same_whether_the_run_began_before_it_or_with_it():
    groups = (group("a", 7, 3.0), group("b", 4, 2.0), group("c", 4, 0.001))
    assert names(groups, range(500))[345:360] == names(groups, range(345, 360))
    assert "c" in {name[0] for name in names(groups, range(BLOCK))}  # a small share is not none


@pytest.mark.parametrize("shares", [[1], [1, 1, 1], [1, 1000], [0.1, 0.2, 0.3, 0.4], [1e-9] * 5 + [1]])
def test_slots_add_up_and_are_within_one_of_the_share(shares):
    counts = slots(shares)
    assert sum(counts) == BLOCK and min(counts) >= 1
    exact = [share / sum(shares) * BLOCK for share in shares]
    assert all(abs(count - value) <= 1 or count == 1 or count > BLOCK - 10 for count, value in zip(counts, exact))


SIZES = {("A", "CT"): 60, ("A", "MR"): 20, ("B", "CT"): 40}


def test_without_balance_every_case_and_with_it_every_modality_has_the_same_chance():
    assert balanced_shares(SIZES, 0.0) == pytest.approx({key: count / 120 for key, count in SIZES.items()})
    assert balanced_shares(SIZES, 1.0) == pytest.approx({("A", "CT"): 0.3, ("A", "MR"): 0.5, ("B", "CT"): 0.2})
    half = balanced_shares(SIZES, 0.5)
    ct, mr = half["A", "CT"] + half["B", "CT"], half["A", "MR"]
    assert ct / mr == pytest.approx((100 / 20) ** 0.5) and sum(half.values()) == pytest.approx(1)


def test_weights_of_data_sets_hold_whatever_the_balance_within_them():
    shares = balanced_shares(SIZES, 1.0, {"A": 1.0, "B": 3.0})
    assert shares == pytest.approx({("A", "CT"): 0.125, ("A", "MR"): 0.125, ("B", "CT"): 0.75})
