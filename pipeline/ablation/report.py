"""Writes the ablation's tables in the paper's form, with the paper's numbers, as Markdown and as one HTML page."""

import collections
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jinja2
import numpy as np
from matplotlib.axes import Axes

from sllmr.pipeline.ablation import results
from sllmr.pipeline.ablation.arms import ARMS, LATE_FUSION, NONE
from sllmr.pipeline.ablation.cell_format import format_auc, format_difference, format_mean, marked
from sllmr.pipeline.ablation.further_tables import FURTHER_LEGEND, FurtherTable, further_tables
from sllmr.pipeline.ablation.gate_tables import ALPHA_MAP_LEGEND, REGIONS, AlphaMap, alpha_maps, alpha_spread
from sllmr.pipeline.ablation.paper import BACKBONES, SLICES, TABLE_3_BACKBONE, paper_auc
from sllmr.pipeline.ablation.results import Run
from sllmr.pipeline.ablation.scorer_quality import ScorerPoint, scorer_plot, scorer_points
from sllmr.pipeline.ablation.selection import Kept, Selection, in_order, select_arm
from sllmr.pipeline.ablation.statistics import Interval, mean_and_standard_error
from sllmr.pipeline.page import ACCENT, INK, MUTED, WARM, environment, svg

SEEDS_FOR_A_CLAIM = 5

LOW_BASELINE = 0.01
"""How far below the paper the arm `none` may stand before gains over it prove little."""

LEGEND = (
    "AUC on test rows. A cell holds the mean over seeds (its standard error over seeds); then the mean difference to "
    "the arm none of the same seed and the same test rows, with its 95% interval; then the paper's AUC and its "
    "difference to its own backbone alone, where it prints one. A star: the interval excludes zero, as a gain or as a "
    "loss. A dagger: a single seed, so that the interval holds the test rows' part only and says nothing about another "
    "seed. The interval joins the spread over seeds (Student's t) and the standard error over the test users, paired, "
    "which all seeds share; if none was rerun after an arm, that error is still of the first comparison. "
    "The paper states neither seeds nor intervals. The arm late_fusion needs the LLM scorer's "
    "score to serve: it is a reference for the other arms, not a product."
)


class Cell(NamedTuple):
    """One backbone with one arm on one slice, over its seeds."""

    auc: float
    standard_error: float | None
    difference: Interval | None
    paper: float | None
    paper_difference: float | None

    @property
    def lines(self) -> list[str]:
        """The lines of the table cell."""
        result = [format_mean(self.auc, self.standard_error)]
        if self.difference:
            result.append(marked(self.difference))
        if self.paper is not None:
            line = f"paper {format_auc(self.paper)}"
            result.append(
                line if self.paper_difference is None else f"{line}, {format_difference(self.paper_difference)}"
            )
        return result


class SummaryLine(NamedTuple):
    """One arm on one slice, over the backbones of a domain that have a paired difference."""

    gains: int
    losses: int
    not_told_apart: int
    headroom_kept: float | None


class SliceTable(NamedTuple):
    """One slice of a domain: Table 2's block and the columns next to it."""

    name: str
    caption: str
    cells: dict[str, dict[str, Cell | None]]
    paper_only: dict[str, dict[str, float | None]]
    summary: dict[str, SummaryLine]


class Means(NamedTuple):
    """Test AUC by slice, the mean over all backbones of a domain and the seeds that these share.

    `popularity` and the LLM scorer alone depend on neither backbone nor seed.
    """

    seeds: int | None
    auc: dict[str, float | None]


class DomainTables(NamedTuple):
    """Everything that is shown of one domain."""

    name: str
    backbones: list[str]
    arms: list[str]
    caption: str
    slices: list[SliceTable]
    means: dict[str, Means]
    table_3_backbone: str
    table_3_arms: list[str]
    alpha: dict[str, dict[str, str | None]]
    alpha_maps: list[AlphaMap]
    further: list[FurtherTable]
    scorers: dict[str, list[ScorerPoint]]
    warnings: list[str]


def render(
    results_file: pathlib.Path, directory: pathlib.Path, *, commands: Sequence[str] = ()
) -> tuple[pathlib.Path, pathlib.Path]:
    """Writes the tables of `results_file` into `directory`, named after the file; reading them needs no network.

    Args:
        commands: as typed, those that wrote the results and this report; shown at the foot.

    Returns:
        The paths of the Markdown and of the HTML file.

    Raises:
        ResultsError: see pipeline.ablation.results.read.
    """
    runs = results.read(results_file)
    names = list(dict.fromkeys(run.domain for run in runs))
    domains = [domain_tables([run for run in runs if run.domain == name]) for name in names]
    versions: dict[str, set[str]] = collections.defaultdict(set)
    for run in runs:
        for package, version in run.versions.items():
            versions[package].add(version)
    foot = {
        "results": results_file.name,
        "sha256": hashlib.sha256(results_file.read_bytes()).hexdigest(),
        "runs": len(runs),
        "versions": {package: sorted(found) for package, found in sorted(versions.items())},
        "commands": list(commands),
    }
    selection = select_arm(runs)
    plots = {
        (domain.name, table.name): jinja2.utils.markupsafe.Markup(_forest_plot(table))
        for domain in domains
        for table in domain.slices
    }
    scorer_plots = {
        (domain.name, backbone): jinja2.utils.markupsafe.Markup(scorer_plot(points, backbone))
        for domain in domains
        for backbone, points in domain.scorers.items()
    }
    templates = environment()
    templates.filters["auc"] = lambda auc: "–" if auc is None else format_auc(auc)
    templates.filters["interval"] = lambda interval: "–" if interval is None else marked(interval)
    templates.filters["kept"] = lambda kept: "–" if kept is None else _format_kept(kept)
    templates.filters["percent"] = lambda fraction: "–" if fraction is None else f"{fraction:.0%}"
    # Otherwise the line of each template block would split the rows of a Markdown table.
    templates = templates.overlay(trim_blocks=True, lstrip_blocks=True)
    directory.mkdir(parents=True, exist_ok=True)
    written = directory / f"{results_file.stem}.md", directory / f"{results_file.stem}.html"
    for path in written:
        page = templates.get_template(f"ablation{path.suffix}.j2").render(
            domains=domains,
            legend=LEGEND,
            selection=selection,
            selection_legend=selection and _selection_legend(selection),
            summary_legend=_summary_legend(domains),
            further_legend=FURTHER_LEGEND,
            alpha_map_legend=ALPHA_MAP_LEGEND,
            regions=list(REGIONS),
            plots=plots,
            scorer_plots=scorer_plots,
            foot=json.dumps(foot),
        )
        path.write_text(page, encoding="utf-8")
    return written


def _format_kept(kept: Kept) -> str:
    fraction, least, most = (f"{value:.0%}" for value in kept)
    return fraction if least == most else f"{fraction} ({least} to {most})"


def _selection_legend(selection: Selection) -> str:
    means = ", ".join(f"{arm} {format_auc(auc)}" for arm, auc in selection.valid_auc.items())
    return (
        f"{selection.arm} has the best mean validation AUC over the {selection.shared} trainings (domain, "
        f"backbone, seed) that the arms without an LLM at serving time share: {means}. One arm for all, selected on "
        "validation rows. "
        "Below, its test AUC minus that of each other arm with the same seed and the same test rows, with the 95% "
        "interval. Where the file holds no comparison of the two, the sum of their standard errors against none takes "
        "the place of that of the difference, which is never larger. The last column is its difference "
        "to none as a fraction of late fusion's, over all seeds (least to most of a single seed)."
    )


def _summary_legend(domains: Sequence[DomainTables]) -> str:
    summaries = [line for domain in domains for table in domain.slices for line in table.summary.values()]
    excluding_zero = sum(line.gains + line.losses for line in summaries)
    intervals = excluding_zero + sum(line.not_told_apart for line in summaries)
    return (
        "In how many backbones an arm gains, loses, or is not told apart from the arm none; and the fraction of late "
        "fusion's difference that it keeps (a ratio of sums over the backbones that have both). "
        f"{excluding_zero} of {intervals} intervals exclude zero; were no arm different at all, about one in twenty "
        f"would. Fewer than {SEEDS_FOR_A_CLAIM} seeds: no claim."
    )


def domain_tables(runs: Sequence[Run]) -> DomainTables:
    """The tables of `runs`, which are of one domain."""
    domain = runs[0].domain
    by_cell: dict[tuple[str, str], list[Run]] = collections.defaultdict(list)
    for run in runs:
        by_cell[run.backbone, run.arm].append(run)
    backbones = in_order(BACKBONES, [backbone for backbone, _ in by_cell])
    arms = in_order(tuple(ARMS), [arm for _, arm in by_cell])
    slices = []
    for name in SLICES:
        cells = {
            backbone: {arm: _cell(by_cell.get((backbone, arm), []), name) for arm in arms} for backbone in backbones
        }
        if not any(cell for row in cells.values() for cell in row.values()):
            continue
        slices.append(
            SliceTable(
                name=name,
                caption=_slice_caption(runs, name),
                cells=cells,
                paper_only=_paper_only(domain, backbones, name),
                summary={arm: _summary_line(cells, arm) for arm in arms if arm != NONE},
            )
        )
    arms_of = {backbone: [arm for arm in arms if (backbone, arm) in by_cell] for backbone in backbones}
    table_3_backbone = TABLE_3_BACKBONE
    if table_3_backbone not in backbones:
        table_3_backbone = max(backbones, key=lambda backbone: len(arms_of[backbone]))
    counts = sorted({len(cell) for cell in by_cell.values()})
    return DomainTables(
        name=domain,
        backbones=backbones,
        arms=arms,
        caption=f"Seeds: {' to '.join(str(count) for count in dict.fromkeys([counts[0], counts[-1]]))}. "
        f"Hash of the test rows: {runs[0].hashes.test_rows}.",
        slices=slices,
        means=_means(runs, by_cell, backbones, arms),
        table_3_backbone=table_3_backbone,
        table_3_arms=arms_of[table_3_backbone],
        alpha={
            arm: spreads
            for arm in arms
            if any((spreads := {b: alpha_spread(by_cell.get((b, arm), [])) for b in backbones}).values())
        },
        alpha_maps=alpha_maps(by_cell, backbones, arms),
        further=further_tables(runs, backbones, arms),
        scorers=scorer_points(runs),
        warnings=_warnings(runs, by_cell),
    )


def _means(
    runs: Sequence[Run],
    by_cell: Mapping[tuple[str, str], Sequence[Run]],
    backbones: Sequence[str],
    arms: Sequence[str],
) -> dict[str, Means]:
    """The baselines that need no training, then the arms that were run on all backbones, in the order of `arms`."""
    result = {}
    for name, aucs in (("popularity", runs[0].baselines.popularity), ("LLM scorer alone", _llm_scorer(runs))):
        if aucs is not None:
            result[name] = Means(seeds=None, auc={name: aucs.get(name) for name in SLICES})
    for arm in arms:
        cells = [by_cell.get((backbone, arm), []) for backbone in backbones]
        shared = set.intersection(*({run.seed for run in cell} for cell in cells))
        if shared:
            taken = [run for cell in cells for run in cell if run.seed in shared]
            result[arm] = Means(seeds=len(shared), auc={name: _mean_auc(taken, name) for name in SLICES})
    return result


def _mean_auc(runs: Sequence[Run], slice_name: str) -> float | None:
    """Mean AUC of the runs on a slice; None if a run has none."""
    aucs = _aucs(runs, slice_name)
    return float(np.mean(aucs)) if len(aucs) == len(runs) else None


def _aucs(runs: Sequence[Run], slice_name: str) -> list[float]:
    """AUCs on a slice, of the runs that have one."""
    return [auc for run in runs if (auc := run.auc(slice_name)) is not None]


def _llm_scorer(runs: Sequence[Run]) -> dict[str, float | None] | None:
    """AUC of the LLM scorer alone, by slice; None where no run has an LLM scorer."""
    return next((run.baselines.llm_scorer for run in runs if run.baselines.llm_scorer), None)


def _slice_caption(runs: Sequence[Run], name: str) -> str:
    first = next(run for run in runs if name in run.metrics)
    rows = first.metrics[name]
    llm_scorer = (_llm_scorer(runs) or {}).get(name)
    popularity, scorer_alone = (
        "not known" if auc is None else format_auc(auc) for auc in (first.baselines.popularity.get(name), llm_scorer)
    )
    definition = first.definitions.get(name, "all test rows" if name == "overall" else "not defined by the run")
    return (
        f"{name}: {definition}; {rows.examples:,} examples, {rows.positives:,} of them positive. "
        f"AUC of popularity {popularity}, of the LLM scorer alone {scorer_alone}."
    )


def _cell(runs: Sequence[Run], slice_name: str) -> Cell | None:
    aucs = _aucs(runs, slice_name)
    if not aucs:
        return None
    mean, standard_error = mean_and_standard_error(aucs)
    paper, paper_none = (paper_auc(runs[0].domain, runs[0].backbone, arm, slice_name) for arm in (runs[0].arm, NONE))
    return Cell(
        auc=mean,
        standard_error=standard_error,
        difference=results.over_seeds(run.versus.get(NONE, {}).get(slice_name) for run in runs),
        paper=paper,
        paper_difference=None if paper is None or paper_none is None or runs[0].arm == NONE else paper - paper_none,
    )


def _paper_only(domain: str, backbones: Sequence[str], slice_name: str) -> dict[str, dict[str, float | None]]:
    columns = {
        heading: {backbone: paper_auc(domain, backbone, arm, slice_name) for backbone in backbones}
        for heading, arm in (("KAR", "kar"), ("LLM-CF", "llm_cf"))
    }
    return {heading: column for heading, column in columns.items() if any(column.values())}


def _summary_line(cells: dict[str, dict[str, Cell | None]], arm: str) -> SummaryLine:
    of_arm = {
        backbone: cell.difference for backbone, row in cells.items() if (cell := row.get(arm)) and cell.difference
    }
    verdicts = collections.Counter(difference.verdict for difference in of_arm.values())
    # A ratio of sums: one backbone's small denominator would rule a mean of ratios.
    kept, headroom = 0.0, 0.0
    for backbone, difference in of_arm.items():
        fusion = cells[backbone].get(LATE_FUSION)
        if fusion and fusion.difference:
            kept += difference.mean
            headroom += fusion.difference.mean
    return SummaryLine(
        gains=verdicts["gain"],
        losses=verdicts["loss"],
        not_told_apart=verdicts["not told apart"],
        headroom_kept=kept / headroom if headroom > 0 and arm != LATE_FUSION else None,
    )


def _warnings(runs: Sequence[Run], by_cell: dict[tuple[str, str], list[Run]]) -> list[str]:
    """What a reader must know before the tables of one domain are believed."""
    result = []
    fewest = min(len(cell) for cell in by_cell.values())
    if fewest < SEEDS_FOR_A_CLAIM:
        result.append(f"Fewer than {SEEDS_FOR_A_CLAIM} seeds ({fewest} for the least repeated cell): no claim.")
    result += _disagreement(
        "the hash of the test rows", [run.hashes.test_rows for run in runs], "their AUCs are not comparable"
    )
    result += _disagreement(
        "the definitions of the slices",
        [json.dumps(run.definitions, sort_keys=True) for run in runs],
        "the first is shown",
    )
    result += _disagreement(
        "the LLM scorer's AUC",
        [json.dumps(run.baselines.llm_scorer, sort_keys=True) for run in runs if run.baselines.llm_scorer],
        "they had different LLM scorers; the first is shown",
    )
    for ranking in sorted({name for run in runs for name in run.rankings}):
        hashes = [run.rankings[ranking].hash for run in runs if ranking in run.rankings]
        result += _disagreement(
            f"the candidates of the ranking among {ranking.replace('_', ' ')}",
            [found[:16] for found in hashes],
            "their NDCG and hit rate are not comparable",
        )
    if over_rows := sum(run.errors_over_rows for run in runs):
        result.append(
            f"{over_rows} of {len(runs)} runs are from before 2026-11-29: their standard errors count rows as "
            "independent, not users."
        )
    for package in sorted({package for run in runs for package in run.versions}):
        result += _disagreement(
            f"the version of {package}",
            [run.versions.get(package, "none named") for run in runs],
            "a difference may come from it",
        )
    # A warning that several backbones share is printed once.
    shared: dict[str, list[str]] = collections.defaultdict(list)
    for (backbone, arm), cell in by_cell.items():
        for text in _cell_warnings(arm, cell, by_cell.get((backbone, NONE), [])):
            shared[text].append(backbone)
    return result + [f"{', '.join(where)}: {text}" for text, where in shared.items()]


def _cell_warnings(arm: str, cell: Sequence[Run], none: Sequence[Run]) -> list[str]:
    """Warnings about one backbone with one arm, compared with the runs of the same backbone with the arm none."""
    result = []
    seeds, none_seeds = {run.seed for run in cell}, {run.seed for run in none}
    if missing := sorted(none_seeds - seeds):
        result.append(f"{arm} lacks seeds of the arm none, {_join(missing)}; run them.")
    if extra := sorted(seeds - none_seeds):
        result.append(f"the arm none lacks seeds of {arm}, {_join(extra)}; run them.")
    result += _disagreement(
        f"the hyper-parameters of {arm}", [run.settings for run in cell], "its mean is over more than seeds"
    )
    result += _disagreement(
        f"the fraction of users scored of {arm}",
        [str(run.fraction_of_users_scored) for run in cell],
        "its mean is over more than seeds",
    )
    collapses = [str(run.training["alpha_collapse"]) for run in cell if run.training.get("alpha_collapse")]
    if collapses:
        how = " or ".join(sorted(set(collapses)))
        result.append(f"the gate of {arm} has collapsed ({how}) in {len(collapses)} of {len(cell)} runs.")
    without = sum(run.training.get("valid_auc_without_pairs") == run.valid_auc for run in cell)
    if without:
        result.append(
            f"the pairs of {arm} did not raise the validation AUC in {without} of {len(cell)} runs, whose model is the "
            "one trained without them."
        )
    auc, paper = _cell(cell, "overall"), paper_auc(cell[0].domain, cell[0].backbone, NONE, "overall")
    if arm == NONE and auc and paper and auc.auc < paper - LOW_BASELINE:
        result.append(
            f"none stands at {format_auc(auc.auc)}, more than {format_auc(LOW_BASELINE)} below the paper's "
            f"{format_auc(paper)}: gains over it prove little; tune it first."
        )
    return result


def _disagreement(what: str, values: Sequence[str], consequence: str) -> list[str]:
    counts = collections.Counter(values)
    if len(counts) < 2:
        return []
    found = "; ".join(f"{number} with {text}" for text, number in counts.most_common())
    return [f"Runs disagree in {what} ({found}): {consequence}."]


def _join(seeds: Sequence[int]) -> str:
    return ", ".join(str(seed) for seed in seeds)


def _forest_plot(table: SliceTable) -> str:
    """The paired differences of a slice, gains and losses alike; empty where there are none."""
    rows = [
        (f"{arm}, {backbone}", cell.difference, cell.paper_difference)
        for arm in table.summary
        for backbone in table.cells
        if (cell := table.cells[backbone][arm]) and cell.difference
    ]
    if not rows:
        return ""
    colors = {"gain": ACCENT, "loss": WARM, "not told apart": MUTED}

    def draw(axes: Axes) -> None:
        for y, (_, difference, paper_difference) in enumerate(rows):
            color = colors[difference.verdict]
            axes.plot([difference.lower, difference.upper], [y, y], color=color, linewidth=2)
            axes.plot(difference.mean, y, "o", color=color)
            if paper_difference is not None:
                axes.plot(paper_difference, y, "x", color=INK)
        for verdict, color in colors.items():
            axes.plot([], [], "o-", color=color, linewidth=2, label=verdict)
        axes.plot([], [], "x", color=INK, label="the paper's, no interval")
        axes.axvline(0, color=MUTED, linewidth=0.8, linestyle=":")
        axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(f"AUC minus AUC of none, {table.name}, 95% interval")
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4)

    return svg(draw, 7.2, 0.9 + 0.2 * len(rows), f"AUC minus AUC of none by arm and backbone, {table.name}")
