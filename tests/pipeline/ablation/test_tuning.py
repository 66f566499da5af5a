import itertools

import optuna
import pytest

from sllmr.pipeline.ablation.tuning import run_trials
from sllmr.pipeline.ablation.tuning_config import TuningConfig

SPACE = {"train.learning_rate": (0.003, 0.001, 0.01), "model.dropout": (0.2, 0.0, 0.1, 0.4)}
START = {"train.learning_rate": 0.003, "model.dropout": 0.2}


class Training:
    """Keeps the values that it was asked to train with; is stopped at the one of the given number."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.seen: list[dict[str, float]] = []
        self._stop_at = stop_at

    def __call__(self, values: dict[str, float]) -> float:
        if len(self.seen) == self._stop_at:
            raise KeyboardInterrupt
        self.seen.append(values)
        return 0.5 + values["model.dropout"] - values["train.learning_rate"]


def search(training: Training, *, file=None, trials: int = 6, seed: int = 0, space=SPACE) -> optuna.Study:
    """As a process of its own would: nothing but the file, if any, goes from one search to the next."""
    storage = file and f"sqlite:///{file}"
    study = optuna.create_study(storage=storage, study_name="dcn none", direction="maximize", load_if_exists=True)
    run_trials(study, space, training, TuningConfig(trials=trials, seed=seed))
    return study


def test_trial_0_has_the_start_values_and_no_combination_comes_twice():
    training = Training()
    study = search(training, trials=9)

    assert training.seen[0] == study.trials[0].params == START
    assert len(training.seen) == 9
    assert all(one != other for one, other in itertools.combinations(training.seen, 2))
    assert all(values[key] in choices for values in training.seen for key, choices in SPACE.items())
    best = max(training.seen, key=Training())
    assert (study.best_params, study.best_value) == (best, Training()(best))


def test_the_seed_decides_the_trials():
    one, again, other = (Training() for _ in range(3))
    search(one)
    search(again)
    search(other, seed=1)

    assert one.seen == again.seen != other.seen
    assert other.seen[0] == START


@pytest.mark.parametrize("stop_at", [0, 4])
@pytest.mark.slow
def test_a_search_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path, stop_at):
    whole, stopped, rest = Training(), Training(stop_at), Training()
    search(whole)
    with pytest.raises(KeyboardInterrupt):
        search(stopped, file=tmp_path / "trials")
    study = search(rest, file=tmp_path / "trials")

    assert stopped.seen + rest.seen == whole.seen
    assert len(stopped.seen) == stop_at
    assert study.best_value == max(Training()(values) for values in whole.seen)


@pytest.mark.slow
def test_a_search_that_is_done_trains_nothing_and_more_trials_go_on_from_it(tmp_path):
    first, second, longer = (Training() for _ in range(3))
    search(first, file=tmp_path / "trials", trials=4)
    search(second, file=tmp_path / "trials", trials=4)
    search(longer, file=tmp_path / "trials", trials=7)
    whole = Training()
    search(whole, trials=7)

    assert second.seen == []
    assert first.seen + longer.seen == whole.seen


def test_a_space_with_fewer_combinations_than_trials_is_searched_wholly():
    training = Training()
    space = {"train.learning_rate": (0.003, 0.001), "model.dropout": (0.2,)}
    search(training, trials=5, space=space)

    assert sorted(values["train.learning_rate"] for values in training.seen) == [0.001, 0.003]
