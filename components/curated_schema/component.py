"""CuratedSchema: writes the schema of the rows, in place of TFX's ImportSchemaGen, which reads it from a file."""

import os

from tfx.dsl.component.experimental.annotations import OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.dsl.io import fileio
from tfx.types import standard_artifacts

FILE_NAME = "schema.pbtxt"


@component
def CuratedSchema(schema: OutputArtifact[standard_artifacts.Schema], text: Parameter[str]) -> None:
    """Writes a schema.

    Args:
        schema: the artifact.
        text: a TensorFlow Metadata schema in text format; part of TFX's cache key, so a changed one is written again.
    """
    with fileio.open(os.path.join(schema.uri, FILE_NAME), "w") as file:
        file.write(text)
