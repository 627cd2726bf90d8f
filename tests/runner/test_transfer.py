"""Large arrays beside the pipe, small values inside it."""

import multiprocessing
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest

from medseg.runner.transfer import receive, send


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_any_size_come_through_and_may_be_changed(order):
    ours, theirs = multiprocessing.Pipe()
    rng = np.random.default_rng(5)
    large = np.asarray(rng.integers(0, 255, (70, 60, 50)), np.uint8, order=order)
    value = {"large": large, "small": np.arange(3), "real": rng.normal(size=20_001), "text": "x"}
    before = len(list(Path("/proc/self/fd").iterdir()))
    sender = threading.Thread(target=send, args=(ours, value))
    sender.start()
    found = receive(theirs)
    sender.join()
    assert found["text"] == "x"
    for name in ("large", "small", "real"):
        np.testing.assert_array_equal(found[name], value[name])
    assert found["large"].flags.writeable
    assert found["large"].flags[f"{order}_CONTIGUOUS"]
    found["large"][...] = 0
    assert value["large"].any()
    del found
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_what_cannot_be_pickled_is_not_sent():
    ours, theirs = multiprocessing.Pipe()
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        send(ours, lambda: 0)
    assert not theirs.poll()


def test_a_closed_pipe_ends_a_receive():
    ours, theirs = multiprocessing.Pipe()
    ours.send([100])
    ours.close()
    with pytest.raises((EOFError, OSError)):
        receive(theirs)
