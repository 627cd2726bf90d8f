"""Values over a pipe between two processes; large arrays go beside it, in memory that both map, and are copied once.

Through the pipe itself 64 kB go at a time and every byte is copied twice. The memory is an anonymous file whose descriptor is
handed over: it needs no room in ``/dev/shm`` (64 MB in a container) and is gone with the last process that holds it.
"""

from __future__ import annotations

import mmap
import os
import pickle
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler, recv_handle, send_handle
from typing import Any

_LEAST_BYTES = 1 << 16
_ALIGNED = 64


def send(pipe: Connection, value: Any) -> None:
    """Sends a picklable value to the process at the other end, which calls :func:`receive`.

    Raises:
        PicklingError, TypeError, AttributeError: it can't be pickled; nothing was sent.
    """
    buffers: list[memoryview] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < _LEAST_BYTES:
            return True  # inside the pickle
        buffers.append(raw)
        return False

    payload = pickle.dumps(value, protocol=5, buffer_callback=keep)
    pipe.send([buffer.nbytes for buffer in buffers])
    if buffers:
        descriptor = _written(buffers)
        try:
            send_handle(pipe, descriptor, None)  # the process id matters on Windows only
        finally:
            os.close(descriptor)
    pipe.send_bytes(payload)


def receive(pipe: Connection) -> Any:
    """The next value that :func:`send` sent; its large arrays lie in the shared memory and may be written to.

    Raises:
        EOFError, OSError: the other process is gone.
    """
    sizes: list[int] = pipe.recv()
    # What Connection.recv does, with the buffers beside it: the other end is a process of our own.
    if not sizes:
        return ForkingPickler.loads(pipe.recv_bytes())
    try:
        descriptor = recv_handle(pipe)
    except (RuntimeError, ValueError) as error:  # what recv_handle says of a pipe that ends
        raise EOFError from error
    try:
        memory = memoryview(mmap.mmap(descriptor, _starts(sizes)[-1]))
    finally:
        os.close(descriptor)
    views = [memory[start : start + size] for start, size in zip(_starts(sizes), sizes, strict=False)]
    return ForkingPickler.loads(pipe.recv_bytes(), buffers=views)


def _starts(sizes: list[int]) -> list[int]:
    """Where each buffer begins, and after the last one the whole size."""
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + -(-size // _ALIGNED) * _ALIGNED)
    return starts


def _written(buffers: list[memoryview]) -> int:
    starts = _starts([buffer.nbytes for buffer in buffers])
    descriptor = os.memfd_create("medseg", os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, starts[-1])
        with mmap.mmap(descriptor, starts[-1]) as memory:
            for start, buffer in zip(starts, buffers, strict=False):
                memory[start : start + buffer.nbytes] = buffer
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
