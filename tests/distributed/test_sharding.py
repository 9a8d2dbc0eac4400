"""Weights in parts on two processes, batches in chunks, a resume: the run that two processes with all of it make."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tests.ports import free_port
from tests.shared.training.test_sharding import fit_spmm, same

from polyfm.shared.training.checkpoint import read_checkpoint, write_checkpoint


def work(rank: int, folder: str, ports: list[int]) -> None:
    """One of two processes, as a launcher starts them."""
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    run = Path(folder) / "parts"
    for port, stop in zip(ports, (True, False), strict=True):  # the second goes on from the first's checkpoint
        os.environ["MASTER_PORT"] = str(port)  # at the same one, a process might still find the first's meeting point
        task, _ = fit_spmm(run, sharded=True, devices=2, chunk=2, stop=stop)
        dist.destroy_process_group()
    write_checkpoint({"state_dict": task.state_dict()}, run / str(rank))


def whole(_: int, folder: Path) -> None:
    fit_spmm(folder, sharded=False, devices=2)


@pytest.mark.full
def test_two_processes_with_parts_equal_two_with_all(tmp_path: Path) -> None:
    mp.spawn(work, args=(str(tmp_path), [free_port(), free_port()]), nprocs=2)  # type: ignore[no-untyped-call]
    mp.spawn(whole, args=(tmp_path / "whole",))  # type: ignore[no-untyped-call]  # fresh, because it forks
    found, expected = (read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("parts", "whole"))
    same(found, expected)
    for rank in range(2):  # whole again in both
        own = read_checkpoint(tmp_path / "parts" / str(rank))["state_dict"]
        assert all(torch.equal(value, found["state_dict"][key]) for key, value in own.items())
