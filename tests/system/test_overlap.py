"""Two fits at a time in one worker process: the bytes of a serial run, and failures that stay alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpcenc.cluster.submit import prepare, submit

Tree = Callable[[Path], dict[str, bytes]]


def test_a_shard_that_cannot_be_written_fails_its_block_alone_and_resumes_to_the_same_bytes(
    study_file: Path,
    edit: Callable[[str, str], None],
    tree: Tree,
    fill_undisturbed: Callable[..., tuple[dict[str, bytes], int]],
) -> None:
    wanted, _ = fill_undisturbed(study_file)
    edit("n_workers = 2", "n_workers = 1")
    store = study_file.parent / "results" / "study.zarr"
    blocked = store / "fits" / "mylab" / "s1" / "weights" / "0.0.0.1"

    def interrupt_before(stage: str) -> Callable[[dict[str, Any]], None]:
        def listen(event: dict[str, Any]) -> None:
            if event.get("stage") == stage:
                raise KeyboardInterrupt

        return listen

    submit(prepare(study_file), "serial", (), interrupt_before("fit"))
    blocked.mkdir()  # the second shard of the first block belongs there
    result = submit(prepare(study_file), "local", (), interrupt_before("report"))
    (reason,) = result.set_aside
    assert reason.startswith("fit s1 block 0: IsADirectoryError: ")
    blocked.rmdir()
    filled = tree(store)
    unmarked = {name for name in wanted if name not in filled}
    block_0 = {"done/0", "scores/0.0.0.0", "weights/0.0.0.1"}
    assert unmarked == {f"fits/mylab/s1/{name}" for name in block_0}
    assert filled.items() <= wanted.items()

    assert submit(prepare(study_file), "local", (), interrupt_before("report")).set_aside == ()
    assert tree(store) == wanted
