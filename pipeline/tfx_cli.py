"""TFX's command line, with `run create --pipeline_path` as its users know it.

In TFX 1.21 `run create` takes only the name of a pipeline registered before. Here it takes a path as well, and then
registers or updates that pipeline first. Paths may be relative: they are made absolute here, because TFX stores them
and would look for them from wherever a run is started. `--engine=kubeflow` compiles as `--engine=vertex` does, because
TFX 1.21 has dropped its runner of Kubeflow Pipelines v1, and both engines take the same specification. Everything else
is TFX's own.
"""

from typing import Any

import click
from tfx.tools.cli import labels
from tfx.tools.cli.cli_main import cli_group
from tfx.tools.cli.commands.pipeline import pipeline_group
from tfx.tools.cli.commands.run import create_run, run_group
from tfx.tools.cli.handler import base_handler, handler_factory

KUBEFLOW, VERTEX = "kubeflow", "vertex"

_tfx_create_handler = handler_factory.create_handler


def create_handler(flags: dict[str, Any]) -> base_handler.BaseHandler:
    """TFX's handler of an engine; that of Vertex AI for kubeflow too, with a folder of its own."""
    if flags[labels.ENGINE_FLAG] == KUBEFLOW:
        from tfx.tools.cli.handler import vertex_handler  # imports a cloud client

        return vertex_handler.VertexHandler(flags)
    return _tfx_create_handler(flags)


@click.pass_context
def create_run_by_path(context: click.Context, pipeline_path: str | None, **options: Any) -> None:
    """Registers the pipeline at `pipeline_path`, if given, then runs it."""
    if options["engine"] == KUBEFLOW or (options["engine"] == VERTEX and pipeline_path):
        raise click.UsageError(
            f"--engine={options['engine']} compiles alone: tfx pipeline create --engine={options['engine']} "
            "--pipeline_path=kubeflow_runner.py writes the specification, which its own client submits; see "
            "docs/runners.md"
        )
    if not pipeline_path and not options["pipeline_name"]:
        raise click.UsageError("give --pipeline_path=FILE or --pipeline_name=NAME")
    if pipeline_path:
        options["pipeline_name"] = register(options["engine"], pipeline_path, options["pipeline_name"])
    context.invoke(create_run.callback, **options)


def register(engine: str, pipeline_path: str, expected_name: str | None) -> str:
    """Creates the pipeline, or updates it where one of its name exists.

    Returns:
        The pipeline's name, as its file defines it.

    Raises:
        click.UsageError: the file defines another name than `expected_name`.
    """
    handler = handler_factory.create_handler({labels.ENGINE_FLAG: engine, labels.PIPELINE_DSL_PATH: pipeline_path})
    # Private, and the only way TFX has to learn a pipeline's name from its file; held by the pinned version.
    patcher = handler._get_dag_runner_patcher()
    defined = handler.execute_dsl(patcher)
    name = defined[patcher.PIPELINE_NAME]
    if expected_name and expected_name != name:
        raise click.UsageError(f"--pipeline_name is {expected_name}, but {pipeline_path} defines {name}; drop one")
    handler._save_pipeline({labels.PIPELINE_NAME: name, labels.PIPELINE_ROOT: defined[patcher.PIPELINE_ROOT]})
    click.echo(f'Pipeline "{name}" registered.')
    return name


def _install() -> None:
    handler_factory.create_handler = create_handler
    path_option = click.Option(
        ["--pipeline_path", "--pipeline-path"],
        type=click.Path(exists=True, dir_okay=False, resolve_path=True),
        help="Python file that defines the pipeline; registered or updated, then run.",
    )
    for option in create_run.params:
        if option.name == "pipeline_name":
            option.required = False
    run_group.add_command(
        click.Command(
            "create",
            help="Create a new run for a pipeline, by its path or by its name.",
            params=[path_option, *create_run.params],
            callback=create_run_by_path,
        )
    )
    for command in pipeline_group.commands.values():
        for option in command.params:
            if option.name == "pipeline_path":
                option.type = click.Path(resolve_path=True)


def main() -> None:
    """Entry point of bin/tfx."""
    _install()
    cli_group(prog_name="tfx")


if __name__ == "__main__":
    main()
