"""The two series of a backtest, as configurations of their runs."""

from sllmr.components.llm_scorer.config import REPLAY, LlmConfig
from sllmr.pipeline.backtest.windows import ending
from sllmr.pipeline.config import Config, ConfigError


def check(config: Config) -> None:
    """Refuses a configuration that has nothing to score again or to compare, before anything is read.

    Raises:
        ConfigError: it has no LLM, no comparison, or replays a table.
    """
    if config.loss.llm_weight == 0:
        raise ConfigError(
            "a backtest compares scores of the LLM, and with loss.llm_weight 0 there are none; set loss.llm_weight "
            "above 0 or remove the key"
        )
    if not config.train.compare:
        raise ConfigError(
            "a backtest compares with the model without pairs, got train.compare false; set train.compare: true"
        )
    if config.llm.strategy == REPLAY:
        raise ConfigError(
            f"a backtest scores again in each window, which llm.strategy {REPLAY} cannot; set the strategy that the "
            "table was scored with"
        )


def rescored(config: Config, until: str) -> Config:
    """A run of the series that brings its scores up to date, as a schedule does."""
    changes = {
        "data": ending(config.data, until),
        "llm": config.llm.model_copy(update={"rescore": True}),
        "train": config.train.model_copy(update={"warm_start": True, "compare_vectors": False}),
    }
    return config.model_copy(update=changes)


def scored_once(config: Config, until: str, table: str) -> Config:
    """A run of the series that uses the score table of the first window in each later one, and queries nothing."""
    llm = LlmConfig(
        model=config.llm.model,
        strategy=REPLAY,
        replay_table=table,
        seed=config.llm.seed,
        history_lag=config.llm.history_lag,
        max_failure_rate=config.llm.max_failure_rate,
        candidates=config.llm.candidates,
    )
    return rescored(config, until).model_copy(update={"llm": llm})
