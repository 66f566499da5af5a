"""InteractionsExampleGen: turns tables of interactions, items and users into the rows of train, valid and test."""

import hashlib
import os

from tfx.dsl.components.base import base_beam_component, executor_spec
from tfx.types import channel, component_spec, standard_artifacts

from sllmr.components.artifacts import DataReport, ItemCatalog
from sllmr.components.interactions_example_gen import executor
from sllmr.components.interactions_example_gen.config import DataConfig
from sllmr.components.interactions_example_gen.tables import check_tables, table_paths


class InteractionsExampleGenSpec(component_spec.ComponentSpec):
    """Inputs, outputs and execution properties of InteractionsExampleGen."""

    # ComponentSpec declares these as instance variables, so ClassVar would be refused by the type checker.
    PARAMETERS = {  # noqa: RUF012
        executor.CONFIG: component_spec.ExecutionParameter(type=str),
        executor.INPUT_FINGERPRINT: component_spec.ExecutionParameter(type=str),
        executor.CODE_FINGERPRINT: component_spec.ExecutionParameter(type=str),
    }
    INPUTS: dict[str, component_spec.ChannelParameter] = {}  # noqa: RUF012
    OUTPUTS = {  # noqa: RUF012
        executor.EXAMPLES: component_spec.ChannelParameter(type=standard_artifacts.Examples),
        executor.CATALOG: component_spec.ChannelParameter(type=ItemCatalog),
        executor.REPORT: component_spec.ChannelParameter(type=DataReport),
    }


class InteractionsExampleGen(base_beam_component.BaseBeamComponent):
    """Reads, checks and splits the tables of a DataConfig.

    Outputs: `examples` (train, valid, test of `models.features.row_features`), `catalog`, `report`.

    The files' sizes and modification times are an execution property, so that TFX's cache notices a changed file
    as it does for its own FileBasedExampleGen.
    """

    SPEC_CLASS = InteractionsExampleGenSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(executor.Executor)

    def __init__(self, *, config: DataConfig, code_fingerprint: str) -> None:
        """Checks the files and their columns before the run.

        Args:
            config: the tables and how they are split.
            code_fingerprint: of the sources; part of TFX's cache key and of nothing else.

        Raises:
            DataError: a file or a column is missing.
        """
        check_tables(config)
        spec = InteractionsExampleGenSpec(
            config=config.model_dump_json(),
            input_fingerprint=input_fingerprint(config),
            code_fingerprint=code_fingerprint,
            examples=channel.Channel(type=standard_artifacts.Examples),
            catalog=channel.Channel(type=ItemCatalog),
            report=channel.Channel(type=DataReport),
        )
        super().__init__(spec=spec)


def input_fingerprint(config: DataConfig) -> str:
    """Hash of the paths, sizes and modification times of the tables' files."""
    states = []
    for name in ("interactions", "items", *(["users"] if config.users else [])):
        for path in table_paths(getattr(config, name), f"data.{name}"):
            state = os.stat(path)
            states.append(f"{name}:{path}:{state.st_size}:{state.st_mtime_ns}")
    return hashlib.sha256("\n".join(states).encode()).hexdigest()
