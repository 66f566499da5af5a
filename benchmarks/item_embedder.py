"""How long ItemEmbedder takes for a catalog with the bundled model, and how long if the vectors are in the cache.

    python -m benchmarks.item_embedder [--items 12000] [--words 24]

Titles consist of common English words, about 35 tokens each with categories and brand, as in Amazon's Beauty. The
first run embeds every text, the second none, the third only the texts that a catalog grown by a hundredth adds. Each
run is a process of its own, so imports and loading the model's weights count. results/item_embedder.jsonl gets a line
for each cell; cells that it already has are skipped.
"""

import argparse
import os
import pathlib
import random
import sys
import tempfile

from benchmarks.measurement import Results, measure, versions

FOLDER = pathlib.Path(__file__).parent
RESULTS = FOLDER / "results" / "item_embedder.jsonl"
SEED = 7
_WORDS = (
    *("oil", "rose", "gel", "polish", "matte", "lipstick", "cream", "night", "day", "skin", "care", "brush", "set"),
    *("color", "palette", "natural", "black", "white", "blue", "red", "hair", "dryer", "shampoo", "mint", "drum"),
    *("wood", "toy", "train", "puzzle", "game", "board", "pack", "ounce", "organic", "coconut", "travel", "size"),
)


def write_items(directory: str, items: int, words: int) -> None:
    """Writes a catalog; whatever its size, its first items are the same."""
    from sllmr.components.catalog import Item, write_catalog

    source = random.Random(SEED)
    catalog = []
    for number in range(items):
        title = f"{' '.join(source.choices(_WORDS, k=words))} {number}"
        catalog.append(Item(item_id=str(number), title=title, categories=("Nail Polish", "Makeup"), brand="Rose & Co"))
    write_catalog(directory, catalog)


def embed(directory: pathlib.Path, cache: pathlib.Path) -> None:
    """Embeds the catalog in `directory`; prints the report."""
    import apache_beam as beam

    from sllmr.components.item_embedder.config import ItemVectorsConfig
    from sllmr.components.item_embedder.job import EmbeddingJob
    from sllmr.pipeline.beam_config import BeamConfig

    def make_pipeline() -> beam.Pipeline:
        return beam.Pipeline(argv=list(BeamConfig().pipeline_args))

    report = EmbeddingJob(
        config=ItemVectorsConfig(),
        catalog_directory=str(directory / "catalog"),
        cache_directory=str(cache),
        work_directory=str(directory),
        output_directory=str(directory / "vectors"),
        make_pipeline=make_pipeline,
    ).run()
    print(report.model_dump_json())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=12_000)
    parser.add_argument("--words", type=int, default=24)
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--weights", type=pathlib.Path, default=pathlib.Path("~/.cache/sllmr/models"))
    parser.add_argument("--embed", type=pathlib.Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.embed is not None:
        embed(arguments.embed, arguments.embed / "cache")
        return
    results = Results(arguments.results)
    with tempfile.TemporaryDirectory(prefix="item-embedder-benchmark-") as folder:
        directory = pathlib.Path(folder)
        weights = arguments.weights.expanduser().resolve()
        weights.mkdir(parents=True, exist_ok=True)
        (directory / "cache").mkdir()
        (directory / "cache" / "models").symlink_to(weights)
        for run, items in (
            ("first", arguments.items),
            ("cached", arguments.items),
            ("grown", arguments.items + arguments.items // 100),
        ):
            cell = {"run": run, "items": items, "words": arguments.words, **versions("tensorflow")}
            if results.holds(cell) and run != "first":
                continue
            write_items(str(directory / "catalog"), items, arguments.words)
            command = [sys.executable, "-m", "benchmarks.item_embedder", "--embed", str(directory)]
            used = measure(command, environment=dict(os.environ), log=directory / "log")
            if not results.holds(cell):
                seconds = {"seconds": round(used.seconds, 1), "cpu_s": round(used.cpu_s, 1)}
                results.append(cell, {**seconds, "peak_rss_mb": round(used.peak_rss_mb)})


if __name__ == "__main__":
    main()
