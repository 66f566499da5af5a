"""The pipeline as TFX's command line knows it: `tfx run create --engine=local --pipeline_path=local_runner.py`.

Runs configs/quickstart.yaml into runs/quickstart, both beside this file; SLLMR_CONFIG and SLLMR_OUTPUT name others.
"""

import os
import pathlib

from sllmr.pipeline.start import start

ROOT = pathlib.Path(__file__).resolve().parent


def main() -> None:
    """Defines the pipeline and hands it to TFX's LocalDagRunner."""
    config = pathlib.Path(os.environ.get("SLLMR_CONFIG", ROOT / "configs" / "quickstart.yaml"))
    output = pathlib.Path(os.environ.get("SLLMR_OUTPUT", ROOT / "runs" / config.stem))
    start(config, output)


if __name__ == "__main__":
    main()
