"""How the report's tables print numbers."""

from sllmr.pipeline.ablation.statistics import Interval


def format_auc(value: float) -> str:
    """`.8051`, as the paper prints it; a standard error likewise."""
    return f"{value:.4f}".removeprefix("0")


def format_difference(value: float) -> str:
    """`+.0012`, always signed."""
    # Adding 0 turns the -0 that rounding leaves into 0.
    return f"{round(value, 4) + 0.0:+.4f}".replace("0.", ".", 1)


def format_mean(mean: float, standard_error: float | None) -> str:
    """`.8051 (.0007)`, or the mean alone."""
    return format_auc(mean) if standard_error is None else f"{format_auc(mean)} ({format_auc(standard_error)})"


def format_interval(interval: Interval) -> str:
    """`+.0012 [-.0003, +.0027]`."""
    mean, lower, upper = (format_difference(value) for value in interval[:3])
    return f"{mean} [{lower}, {upper}]"


def marked(interval: Interval) -> str:
    """The interval with a star if it excludes zero, and a dagger if it is of a single seed."""
    line = format_interval(interval)
    if interval.verdict != "not told apart":
        line += " *"
    return f"{line} †" if interval.seeds == 1 else line
