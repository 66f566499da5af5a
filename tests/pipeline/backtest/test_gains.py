"""Means over windows against plain loops and a bootstrap of users, and what is kept of a window."""

import itertools

import numpy as np
import pytest

from sllmr.models.clustered_auc import compare_auc, compare_parts, user_parts
from sllmr.pipeline.backtest.gains import against, load, mean_gain, parts_of, save
from sllmr.pipeline.folder_lock import FolderError


def window(generator, users: range, rows: int = 6, gain: float = 0.6) -> tuple[np.ndarray, ...]:
    """user, label, and the scores of a better and a worse model; each user has a taste of its own in both."""
    user = np.repeat(list(users), rows)
    label = generator.integers(0, 2, len(user))
    shared = generator.normal(size=1000)[user] * (label - 0.5) + generator.normal(size=len(user))
    worse = label * 0.7 + shared + 0.5 * generator.normal(size=len(user))
    return user, label, label * gain + label * 0.7 + shared, worse


def in_order(label, scores) -> float:
    pairs = itertools.product(scores[label == 1], scores[label == 0])
    return float(np.mean([(p > n) + 0.5 * (p == n) for p, n in pairs]))


def parts(rows: tuple[np.ndarray, ...]):
    user, label, better, worse = rows
    return user_parts(user, label, np.stack([better, worse]))


def test_the_mean_is_the_differences_of_the_windows_weighted_by_their_rows():
    generator = np.random.default_rng(1)
    windows = [window(generator, range(10)), window(generator, range(5, 30))]
    found = mean_gain([parts(rows) for rows in windows], [len(rows[0]) for rows in windows])
    differences = [in_order(label, better) - in_order(label, worse) for _, label, better, worse in windows]
    assert found.difference == pytest.approx((60 * differences[0] + 150 * differences[1]) / 210)
    assert (found.windows, found.users) == (2, 30)


def test_one_window_has_the_interval_of_a_single_comparison():
    rows = window(np.random.default_rng(2), range(40))
    found, expected = mean_gain([parts(rows)], [7]), compare_auc(*rows)
    assert (found.difference, found.lower, found.upper) == pytest.approx(
        (expected.difference, expected.lower, expected.upper)
    )


def test_the_interval_is_that_of_a_bootstrap_of_users_who_are_in_several_windows():
    generator = np.random.default_rng(3)
    users = 120
    taste = generator.normal(size=users)  # what makes the same users gain in every window
    windows = []
    for _ in range(4):
        user = np.repeat(np.arange(users), 6)
        label = np.tile([0, 1], len(user) // 2)
        noise = generator.normal(size=len(user))
        windows.append((user, label, noise + label * (0.5 + taste[user]), noise + 0.5 * label))
    rows = [len(one[0]) for one in windows]
    made = [parts(one) for one in windows]
    found = mean_gain(made, rows)

    draws = []
    for _ in range(300):
        drawn = np.bincount(generator.integers(0, users, users), minlength=users)
        differences = []
        for user, label, better, worse in windows:
            again = np.repeat(np.arange(len(user)), drawn[user])
            one = compare_auc(user[again], label[again], better[again], worse[again])
            differences.append(one.difference)
        draws.append(np.mean(differences))
    half = (found.upper - found.lower) / 2
    assert half == pytest.approx(1.96 * np.std(draws), rel=0.15)
    # Averaging as if the windows had other users each would claim too much.
    apart = [compare_parts(one).standard_error for one in made]
    assert half > 1.5 * 1.96 * np.sqrt(np.sum(np.square(apart))) / 4


def test_answers_follow_the_interval():
    generator = np.random.default_rng(4)
    rows = window(generator, range(60), gain=3.0)
    flipped = (rows[0], rows[1], rows[3], rows[2])
    same = (rows[0], rows[1], rows[3], rows[3])
    assert mean_gain([parts(rows)], [1]).answer == "helps"
    assert mean_gain([parts(flipped)], [1]).answer == "hurts"
    assert mean_gain([parts(same)], [1]).answer == "not_distinguishable"


def test_a_user_alone_gives_no_interval():
    found = mean_gain([parts(window(np.random.default_rng(5), range(1)))] * 2, [1, 1])
    assert (found.lower, found.upper, found.answer) == (None, None, "not_distinguishable")


def test_two_runs_are_compared_by_their_models_with_pairs_whatever_the_order_of_their_rows():
    generator = np.random.default_rng(6)
    user, label, first, second = window(generator, range(30))
    other = generator.normal(size=len(user))
    order = generator.permutation(len(user))
    one = user_parts(user, label, np.stack([first, other]))
    two = user_parts(user[order], label[order], np.stack([second[order], other[order]]))
    found, expected = compare_parts(against(one, two)), compare_auc(user, label, first, second)
    assert tuple(found) == pytest.approx((expected.difference, expected.standard_error, expected.lower, expected.upper))


def test_runs_on_other_users_are_not_compared():
    generator = np.random.default_rng(7)
    with pytest.raises(ValueError, match="must have the same test rows, got 10 and 11 users"):
        against(parts(window(generator, range(10))), parts(window(generator, range(11))))


def test_what_is_saved_gives_the_same_mean_and_a_slice_of_one_label_is_left_out(tmp_path):
    user, label, better, worse = window(np.random.default_rng(8), range(20))
    names = np.array([f"user-{n}".encode() for n in user], object)
    inside = {"overall": np.ones(len(user), bool), "cold": user < 5, "tail": label == 1}
    made = parts_of(names, label, better, worse, inside)
    save(made, tmp_path / "rescored-1.npz")
    read = load(tmp_path / "rescored-1.npz")

    assert set(read) == {"overall", "cold"}
    cold = user < 5
    expected = compare_auc(user[cold], label[cold], better[cold], worse[cold])
    found = mean_gain([read["cold"]], [1])
    assert (found.difference, found.lower) == pytest.approx((expected.difference, expected.lower))
    assert [file.name for file in tmp_path.iterdir()] == ["rescored-1.npz"]


def test_a_file_that_is_gone_names_the_fix(tmp_path):
    with pytest.raises(FolderError, match=r"rescored-1.npz, .* is gone; put it back, or name another --output"):
        load(tmp_path / "rescored-1.npz")
