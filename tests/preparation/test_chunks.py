import numpy as np
import pytest

from medseg.preparation.chunks import ChunkLayout, balanced_chunk, chunk_slices


@pytest.mark.parametrize(
    ("shape", "largest", "chunk"),
    [
        ((70, 64, 1), (64, 64, 64), (35, 64, 1)),
        ((35, 50, 36), (64, 64, 64), (35, 50, 36)),
        ((65, 129, 3), (64, 64, 1), (33, 43, 1)),
    ],
)
def test_chunks_are_balanced(shape, largest, chunk):
    assert balanced_chunk(shape, largest) == chunk


def test_runs_are_the_chunks_that_the_box_meets_joined_where_they_follow_each_other():
    layout = ChunkLayout((10, 10, 10), (5, 5, 5), 1)  # 2 x 2 x 2 chunks, z fastest
    assert [*layout.runs((0, 0, 0), (10, 10, 10))] == [range(8)]
    assert [*layout.runs((0, 0, 5), (10, 10, 5))] == [range(1, 2), range(3, 4), range(5, 6), range(7, 8)]
    assert [*layout.runs((4, 4, -3), (1, 1, 4))] == [range(1)]
    assert [*layout.runs((10, 0, 0), (3, 3, 3))] == []
    assert [*layout.runs((-3, 0, 0), (3, 3, 3))] == []


def test_slices_of_all_chunks_cover_the_box_once():
    layout = ChunkLayout((11, 7, 5), (4, 3, 5), 1)
    rng = np.random.default_rng(3)
    for _ in range(100):
        start = tuple(int(v) for v in rng.integers(-6, 12, 3))
        size = tuple(int(v) for v in rng.integers(1, 15, 3))
        seen = np.zeros(size, int)
        for run in layout.runs(start, size):
            for index in run:
                here, there, shape = chunk_slices(layout, index, start, size)
                seen[there] += 1
                assert all(0 <= s.start < s.stop <= n for s, n in zip(here, shape, strict=True))
        place = np.stack(np.meshgrid(*(np.arange(n) + s for n, s in zip(size, start, strict=True)), indexing="ij"))
        inside = ((place >= 0) & (place < np.array(layout.shape).reshape(3, 1, 1, 1))).all(axis=0)
        assert np.array_equal(seen, inside)
