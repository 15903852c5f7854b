"""Which process count was asked for, and how rows are shared out."""

from __future__ import annotations

import pytest

from mmrl.distributed import requested_in, slice_of


@pytest.mark.parametrize(
    ("command", "count"),
    [
        ("python -m accelerate.commands.launch --cpu --num_processes 2 train.py", 2),
        ("/venv/bin/python /venv/bin/accelerate launch --cpu --num-processes=4 -m mmrl train x", 4),
        ("/venv/bin/accelerate-launch --num_processes 3 x.py", 3),
        ("accelerate launch --cpu x.py", None),
        ("python train.py --num_processes 8", None),
        ("bash", None),
    ],
)
def test_launcher_request_is_read_from_its_command_line(command: str, count: int | None) -> None:
    assert requested_in(command.split()) == count


@pytest.mark.parametrize("count", [0, 1, 2, 7, 9, 64])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_slices_cover_every_row_once(count: int, world: int) -> None:
    rows = [row for rank in range(world) for row in range(count)[slice_of(count, rank, world)]]
    assert rows == list(range(count))
    sizes = [len(range(count)[slice_of(count, rank, world)]) for rank in range(world)]
    assert max(sizes) - min(sizes) <= 1
