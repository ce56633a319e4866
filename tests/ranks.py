"""Processes of torch.distributed over gloo that start once for a world size and run functions by name.

A function runs on every rank with the same arguments and gives a picklable value; importing torch four times takes
longer than most tests.
"""

import importlib
import multiprocessing
import traceback
from pathlib import Path

TIMEOUT_S = 120


def _serve(rank: int, world_size: int, rendezvous: str, pipe) -> None:
    import datetime

    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{rendezvous}", rank=rank, world_size=world_size, timeout=datetime.timedelta(seconds=60)
    )
    while (task := pipe.recv()) is not None:
        module, name, arguments = task
        try:
            pipe.send((True, getattr(importlib.import_module(module), name)(*arguments)))
        except Exception:  # noqa: BLE001  # whatever it was, the test shall see it
            pipe.send((False, traceback.format_exc()))
    if dist.is_initialized():  # a world that lost a rank has none any more
        dist.destroy_process_group()


class Ranks:
    """A world of so many processes."""

    def __init__(self, world_size: int, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.world_size = world_size
        self._pipes, self._processes = [], []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, world_size, str(folder / "rendezvous"), theirs), daemon=True
            )
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, function, *arguments, without: int | None = None) -> list:
        """The results of all ranks, in order; the first rank's traceback when one raised.

        `without` is a rank that will end instead of answering; its place is left out.
        """
        for pipe in self._pipes:
            pipe.send((function.__module__, function.__name__, arguments))
        answers = []
        for rank, pipe in enumerate(self._pipes):
            if rank == without:
                continue
            if not pipe.poll(TIMEOUT_S):
                raise TimeoutError(f"rank {rank} of {self.world_size} did not answer within {TIMEOUT_S} s")
            answers.append(pipe.recv())
        for rank, (is_result, value) in enumerate(answers):
            if not is_result:
                raise AssertionError(f"rank {rank}: {value}")
        return [value for _, value in answers]

    def close(self) -> None:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            if process.is_alive():
                pipe.send(None)
        for process in self._processes:
            process.join(10)
            if process.is_alive():
                process.kill()
