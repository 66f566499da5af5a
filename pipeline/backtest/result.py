"""What a backtest finds, as backtest.json holds it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from sllmr.components.example_validator.drift_report import Distance
from sllmr.components.llm_comparison.verdict import Answer, SliceVerdict
from sllmr.components.llm_scorer.results import RequestCounts, RescoringReport
from sllmr.pipeline.config import Config

FILE_NAME = "backtest.json"

SLICES = ("overall", "cold", "tail")

SeriesName = Literal["rescored", "scored_once"]
RESCORED: SeriesName = "rescored"
SCORED_ONCE: SeriesName = "scored_once"

_STRICT = ConfigDict(frozen=True, extra="forbid")


class Period(BaseModel):
    """One window: where its parts begin, as ISO 8601.

    Attributes:
        number: 1 is the oldest.
        train_from: start of the window.
        valid_from: end of the train rows.
        test_from: end of the validation rows.
        until: end of the test rows, which is not part of them; data.window.until of its runs.
    """

    model_config = _STRICT

    number: int
    train_from: str
    valid_from: str
    test_from: str
    until: str


class MeanDifference(BaseModel):
    """A difference in test AUC, as the mean over windows weighted by their test rows.

    Attributes:
        difference: weighted mean of the differences of the windows.
        lower, upper: 95% interval, paired and clustered by user over all windows; None if fewer than two users have a
            positive or fewer than two a negative.
        windows: that the mean is over.
        users: distinct users of these windows.
    """

    model_config = _STRICT

    difference: float
    lower: float | None
    upper: float | None
    windows: int
    users: int

    @property
    def answer(self) -> Answer:
        """Whether the interval lies above 0, below 0, or holds it."""
        if self.lower is None or self.upper is None:
            return "not_distinguishable"
        return "helps" if self.lower > 0 else "hurts" if self.upper < 0 else "not_distinguishable"


class WindowResult(BaseModel):
    """The run of one window in one series.

    Attributes:
        number: of the window.
        slices: the model with pairs against the model without, on the test rows of SLICES.
        popularity: test AUC of ordering items by their train count; None if not measurable.
        took_pairs: whether the model with pairs was selected on the validation rows; the other cannot be pushed.
        blessed: whether the model that was taken may be pushed.
        contexts: scoring contexts of the score table.
        pairs: preference pairs that were trained on.
        requests: of the run.
        cost_usd: of the responses that the run needed, including those that an interrupted run had paid for; None
            without a known price.
        rescore: what became of the previous window's scores, and how far preferences drifted; None if nothing was
            rescored.
        cold_because: why the training of the model with pairs started cold; None for a warm start.
        drift: of the train rows from those of the previous window.
        code: fingerprint of the code that ran it.
        seconds: wall time of the run.
    """

    model_config = _STRICT

    number: int
    slices: dict[str, SliceVerdict]
    popularity: float | None
    took_pairs: bool
    blessed: bool
    contexts: int
    pairs: int
    requests: RequestCounts
    cost_usd: float | None
    rescore: RescoringReport | None
    cold_because: str | None
    drift: tuple[Distance, ...]
    code: str
    seconds: float


class Series(BaseModel):
    """The same configuration over all windows.

    Attributes:
        windows: that have been run, in order.
        mean: by slice of SLICES, the gain of the model with pairs; a slice is absent if no window can measure it.
        ended_because: why later windows cannot be run; None unless the scores of window 1 fit none of their rows.
    """

    model_config = _STRICT

    windows: tuple[WindowResult, ...] = ()
    mean: dict[str, MeanDifference] = {}
    ended_because: str | None = None


class WindowDifference(BaseModel):
    """One window: test AUC of the model with rescored pairs minus that of the model with the pairs of window 1.

    Attributes:
        number: of the window.
        difference: on all test rows.
        lower, upper: 95% interval, paired and clustered by user; None as in MeanDifference.
    """

    model_config = _STRICT

    number: int
    difference: float
    lower: float | None
    upper: float | None


class RescoringGain(BaseModel):
    """Whether it was worth querying the LLM again: the models with pairs of both series on the same test rows.

    Attributes:
        windows: from the second one on; in the first one both series are the same run.
        mean: over these windows.
        cost_usd: of the responses in these windows; None without a known price.
        requests: planned in these windows.
    """

    model_config = _STRICT

    windows: tuple[WindowDifference, ...]
    mean: MeanDifference
    cost_usd: float | None
    requests: int


class BacktestReport(BaseModel):
    """What backtest.json holds. It is written anew after every run.

    Attributes:
        schema_version: of this layout.
        name, model, strategy: of the configuration.
        periods: the planned windows.
        series: `rescored` brings its scores up to date in each window; `scored_once` keeps those of the first one.
        rescoring: None until both series have run the second window.
        tables: fingerprint of the files of the tables.
        config: of the command.
    """

    model_config = _STRICT

    schema_version: Literal[1] = 1
    name: str
    model: str
    strategy: str
    periods: tuple[Period, ...]
    series: dict[SeriesName, Series]
    rescoring: RescoringGain | None
    tables: str
    config: Config
