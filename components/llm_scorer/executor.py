"""Unpacks TFX's artifacts for the scoring job."""

import json
import os

from tfx import types
from tfx.dsl.components.base import base_beam_executor
from tfx.types import artifact_utils

from sllmr.components import examples
from sllmr.components.examples import TRAIN_UNTIL
from sllmr.components.llm_scorer.config import EMBEDDING, LlmConfig
from sllmr.components.llm_scorer.jobs.rescoring import rescore
from sllmr.components.llm_scorer.jobs.scoring import score
from sllmr.components.llm_scorer.jobs.workspace import Workspace
from sllmr.components.pair_yield import PairYield
from sllmr.models.item_vectors import VECTORS_FILE

TRAIN_SPLIT = "train"

LAST_SCORES = "last_scores"
"""Input: the score table of an earlier run."""

EXAMPLES_ID = "examples_id"
"""Custom property of a score table that a later run may bring up to date: the id of the rows that it was made of. The
table also has examples.TRAIN_UNTIL of these rows."""


class Executor(base_beam_executor.BaseBeamExecutor):
    """Scores the train split, the only one that the LLM may see.

    The other splits only say which items of a table of scores by user are left out: see Workspace.held_out_rows.
    """

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, object],
    ) -> None:
        rows = artifact_utils.get_single_instance(input_dict["examples"])
        catalog = artifact_utils.get_single_instance(input_dict["catalog"])
        scores = artifact_utils.get_single_instance(output_dict["scores"])
        vectors_file = None
        if input_dict.get("item_vectors"):
            vectors_file = os.path.join(artifact_utils.get_single_uri(input_dict["item_vectors"]), VECTORS_FILE)
        pair_yield = str(exec_properties["pair_yield"])
        workspace = Workspace(
            config=LlmConfig.model_validate_json(str(exec_properties["config"])),
            catalog_directory=catalog.uri,
            cache_directory=str(exec_properties["cache_directory"]),
            store_url=str(exec_properties["store_url"]) or None,
            work_directory=self._get_tmp_dir(),
            output_directory=scores.uri,
            make_pipeline=self._make_beam_pipeline,
            item_vectors_file=vectors_file,
            pair_yield=PairYield(**json.loads(pair_yield)) if pair_yield else None,
            held_out_rows=examples.read_other_splits(rows, TRAIN_SPLIT),
        )
        if workspace.config.rescore or workspace.config.strategy != EMBEDDING:
            # pipeline.last_scores finds the tables of earlier rows by these properties. It must not find those of
            # train.compare_vectors, whose scores come from item vectors, for comparison with the LLM's.
            scores.set_int_custom_property(EXAMPLES_ID, rows.id)
            if rows.has_custom_property(TRAIN_UNTIL):
                scores.set_int_custom_property(TRAIN_UNTIL, rows.get_int_custom_property(TRAIN_UNTIL))
        train_rows = examples.read_split(rows, TRAIN_SPLIT)
        if input_dict.get(LAST_SCORES):
            last = artifact_utils.get_single_uri(input_dict[LAST_SCORES])
            rescore(workspace, train_rows, last, workspace.config.max_age_days)
        else:
            score(workspace, train_rows)
