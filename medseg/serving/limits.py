"""What one service takes on, all in one place."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class ServiceLimits:
    """Bounds that keep a service alive whatever is sent to it.

    Attributes:
        queue: requests at once, from the first byte of the body to the mask; one more is answered 429.
        max_body_bytes: of a request as sent; more is answered 413, however long the request said it was.
        max_unpacked_bytes: of the files in a zip archive.
        max_files: in a zip archive.
        max_voxels: values of a scan, channels counted (2^28 is 512 x 512 x 1024, 1 GiB in float32).
        header_seconds: for the request line and headers, and for a body that nobody wants any more.
        grace_seconds: a body may take this long whatever its size, and this long between two pieces.
        least_bytes_per_second: what a longer body has to keep up with.
        read_seconds: for reading one scan.
        write_seconds: for a client to take 64 kB of the answer.
        stop_seconds: for requests under way when the service is asked to stop.
    """

    queue: int = 16
    max_body_bytes: int = 1024 * MIB
    max_unpacked_bytes: int = 2048 * MIB
    max_files: int = 20_000
    max_voxels: int = 2**28
    header_seconds: float = 10.0
    grace_seconds: float = 20.0
    least_bytes_per_second: float = 20_000.0
    read_seconds: float = 300.0
    write_seconds: float = 30.0
    stop_seconds: float = 30.0
