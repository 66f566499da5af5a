import os
import pathlib
from collections.abc import Callable

import pytest

from sllmr.components import scores


def write_table(folder: pathlib.Path, name: str, shards: int) -> pathlib.Path:
    folder.mkdir(parents=True)
    for shard in range(shards):
        (folder / f"scores-{shard:05}-of-{shards:05}.tfrecord.gz").write_text(f"{name} {shard}")
    (folder / "failures-00000-of-00001.jsonl.gz").write_text(name)
    (folder / scores.LEDGER_FILE).write_text(name)
    return folder


def content(folder: str | os.PathLike) -> dict[str, str]:
    return {file.name: file.read_text() for file in pathlib.Path(folder).iterdir() if file.is_file()}


class Crash(Exception):
    pass


@pytest.mark.parametrize("earlier", ["published", "by an earlier version"])
def test_a_crash_at_any_step_of_publishing_leaves_one_table_whole(tmp_path, monkeypatch, earlier):
    """The oracle is the content of the two tables: readers find one of them whatever step is the last."""
    seen = []
    for last in range(40):
        output, steps = tmp_path / str(last) / "output", iter(range(last))
        if earlier == "published":
            output.mkdir(parents=True)
            scores.publish(str(write_table(output / "work", "old", 3)), str(output))
        else:
            write_table(output, "old", 3)
        old = content(scores.table_directory(str(output)))
        table = write_table(output / "new", "new", 2)
        new = content(table)

        def until_the_crash(call: Callable, steps=steps) -> Callable:
            def called(*arguments, **options):
                if next(steps, None) is None:
                    raise Crash
                return call(*arguments, **options)

            return called

        with monkeypatch.context() as patch:
            for name in ("rename", "replace", "symlink", "unlink", "makedirs", "rmdir"):
                patch.setattr(os, name, until_the_crash(getattr(os, name)))
            try:
                scores.publish(str(table), str(output))
                crashed = False
            except Crash:
                crashed = True
        found = content(scores.table_directory(str(output)))
        assert found in (old, new)
        seen.append(found == new)
        if not crashed:
            # What other programs find at the top is the same.
            assert content(output) == new
            break
    assert seen[0] is False
    assert seen[-1] is True
