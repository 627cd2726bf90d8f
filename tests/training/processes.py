"""Runs a function in several processes that are joined as torchrun would join them; importing torch is paid once."""

import contextlib
import multiprocessing
import os
import signal
import socket
import traceback

import torch

from medseg.training.distributed import joined_processes

CPU = torch.device("cpu")
GONE = "gone"
"""The result of a process that was killed."""


def forkserver():
    """A context whose children are forked from a server that has imported torch and the training stage already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed", "medseg.training.stage", "tests.training.processes"])
    return context


def run_together(count, function, *arguments, timeout=120):
    """``function(processes, *arguments)`` in each of ``count`` processes; their results in the order of ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = forkserver()
    ends = [context.Pipe(duplex=False) for _ in range(count)]
    children = [
        context.Process(target=_child, args=(rank, count, port, ends[rank][1], function, arguments), daemon=True)
        for rank in range(count)
    ]
    for child, (_, send) in zip(children, ends, strict=True):
        child.start()
        send.close()
    try:
        results = []
        for receive, _ in ends:
            assert receive.poll(timeout), "a process does not answer"
            try:
                results.append(receive.recv())
            except EOFError:
                results.append(("value", GONE))
    finally:
        for child in children:
            child.join(10)
            if child.is_alive():
                os.kill(child.pid, signal.SIGKILL)
    faults = [text for kind, text in results if kind == "fault"]
    assert not faults, "\n".join(faults)
    return [value for _, value in results]


def _child(rank, count, port, send, function, arguments):
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with contextlib.closing(send):
        try:
            with joined_processes(CPU) as processes:
                send.send(("value", function(processes, *arguments)))
        except BaseException:  # noqa: BLE001 - told to the parent
            send.send(("fault", traceback.format_exc()))
