"""Weights in parts on two processes: the run that two processes with whole weights make."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tests.shared.training.test_sharding import fit_spmm, same

from polyfm.shared.training.checkpoint import read_checkpoint, write_checkpoint


def work(rank: int, folder: str, port: int) -> None:
    """One of two processes, as a launcher starts them."""
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    for name, settings in (("plain", {}), ("chunks", {"chunk": 2})):
        task, _ = fit_spmm(Path(folder) / name, sharded=True, devices=2, **settings)
        write_checkpoint({"state_dict": task.state_dict()}, Path(folder) / name / str(rank))
        dist.destroy_process_group()


def test_two_processes_with_parts_equal_two_with_all(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(work, args=(str(tmp_path), port), nprocs=2)  # type: ignore[no-untyped-call]
    fit_spmm(tmp_path / "whole", sharded=False, devices=2)
    expected = read_checkpoint(tmp_path / "whole" / "checkpoints" / "last.ckpt")
    for name in ("plain", "chunks"):
        found = read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt")
        same(found, expected)
        for rank in range(2):  # whole again in both
            own = read_checkpoint(tmp_path / name / str(rank))["state_dict"]
            assert all(torch.equal(value, found["state_dict"][key]) for key, value in own.items())
