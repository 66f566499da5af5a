"""The pipeline as Kubeflow Pipelines v2 and Vertex AI know it: `python kubeflow_runner.py` writes pipeline.json.

`tfx pipeline create --engine=vertex --pipeline_path=kubeflow_runner.py` compiles it too. The environment must set
SLLMR_IMAGE, SLLMR_ROOT and SLLMR_PIPELINE_ROOT, which have no default; see docs/runners.md.
"""

import os
import pathlib
import sys

from sllmr.models.errors import UserError
from sllmr.pipeline.kubeflow import compile_pipeline, from_environment

ROOT = pathlib.Path(__file__).resolve().parent


def main() -> None:
    """Defines the pipeline and hands it to TFX's KubeflowV2DagRunner."""
    try:
        compile_pipeline(**from_environment(os.environ, ROOT / "configs" / "quickstart.yaml"))
    except UserError as error:
        sys.exit(f"kubeflow_runner.py: {error}")


if __name__ == "__main__":
    main()
