"""A KV cache's transfer without servers: two processes with NIXL, of which one reads the other's memory."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from typing import Any, NamedTuple

PATIENCE_S = 60.0


class Setup(NamedTuple):
    """How to transfer: the `backend` of NIXL, the memory (`cuda` or `cpu`) and GPU of each side, the bytes of
    a descriptor (vLLM has one for each block and layer), and the environment.
    """

    backend: str
    memory: str
    gpus: tuple[int, int]
    descriptor: int
    env: Mapping[str, str]


class NoTransfer(Exception):
    """Nothing was transferred. The text says why."""


def measure(setup: Setup, sizes: Sequence[int], repeats: int) -> dict[int, list[float]]:
    """Milliseconds of each transfer, by size in bytes. Raises NoTransfer.

    The processes are forked: what has been imported before need not be again. CUDA must not be in use here.
    """
    import multiprocessing

    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    reader: Connection | None = None
    whole = max(sizes)
    workers: list[ForkProcess] = []
    try:
        workers.append(context.Process(target=_side, args=(_serve, theirs, setup, whole, 0)))
        workers[0].start()
        theirs.close()
        described = _received(ours, workers[0])
        reader, answers = context.Pipe()  # not before: a process that has it, too, would keep it open
        workers.append(
            context.Process(target=_side, args=(_read, answers, setup, whole, 1, described, sizes, repeats))
        )
        workers[1].start()
        answers.close()
        times: dict[int, list[float]] = _received(reader, workers[1])
        return times
    finally:
        for worker in workers:
            worker.kill()
            worker.join()
        ours.close()
        if reader is not None:
            reader.close()


def _received(end: Connection, worker: ForkProcess) -> Any:
    if not end.poll(PATIENCE_S):
        raise NoTransfer(f"nothing came within {PATIENCE_S:g} s")
    try:
        answer = end.recv()
    except EOFError:
        worker.join(5)
        raise NoTransfer(f"a process ended with status {worker.exitcode}") from None
    if isinstance(answer, str):
        raise NoTransfer(answer)
    return answer


def _side(work: Any, end: Connection, setup: Setup, size: int, number: int, *more: Any) -> None:
    """One of the two processes: its own environment, its memory, its agent."""
    os.environ.update(setup.env)
    try:
        import torch  # type: ignore[import-not-found]
        from nixl._api import nixl_agent, nixl_agent_config  # type: ignore[import-not-found]

        device = f"cuda:{setup.gpus[number]}" if setup.memory == "cuda" else "cpu"
        memory = torch.full((size,), number, dtype=torch.uint8, device=device)
        agent = nixl_agent(f"side{number}", nixl_agent_config(backends=[setup.backend]))
        agent.register_memory(memory)
        work(end, agent, memory, setup, *more)
    except Exception as error:
        end.send(f"{type(error).__name__}: {error}")
    os._exit(0)  # without clean-up: it may end in a segmentation fault


def _serve(end: Connection, agent: Any, memory: Any, setup: Setup) -> None:
    end.send((agent.get_agent_metadata(), memory.data_ptr()))
    time.sleep(3600)  # until it is killed


def _read(
    end: Connection, agent: Any, memory: Any, setup: Setup, described: Any, sizes: Sequence[int], repeats: int
) -> None:
    metadata, there = described
    peer = agent.add_remote_agent(metadata)
    kind = "VRAM" if setup.memory == "cuda" else "DRAM"

    def descriptors(base: int, size: int, gpu: int) -> Any:
        rows = [(base + at, min(setup.descriptor, size - at), gpu) for at in range(0, size, setup.descriptor)]
        return agent.get_xfer_descs(rows, kind)

    gpus = setup.gpus if setup.memory == "cuda" else (0, 0)
    found: dict[int, list[float]] = {}
    for size in sizes:
        handle = agent.initialize_xfer(
            "READ", descriptors(memory.data_ptr(), size, gpus[1]), descriptors(there, size, gpus[0]), peer
        )
        times = []
        for _ in range(repeats + 1):
            began = time.perf_counter()
            state = agent.transfer(handle)
            while state == "PROC":
                if time.perf_counter() - began > PATIENCE_S / 2:
                    raise NoTransfer(f"{size} bytes took more than {PATIENCE_S / 2:g} s")
                state = agent.check_xfer_state(handle)
            times.append((time.perf_counter() - began) * 1e3)
            if state != "DONE":
                raise NoTransfer(f"NIXL says {state}")
        agent.release_xfer_handle(handle)
        found[size] = times[1:]  # the first one connects
    if int(memory[max(sizes) - 1]) != 0:
        raise NoTransfer("the bytes that arrived are not those of the other side")
    end.send(found)
