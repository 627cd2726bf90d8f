#!/usr/bin/env python3
"""`medseg serve` under everything that a network brings: does it answer, live on, and leave nothing behind?

    python tests/reliability/bombard_service.py --uploads 200 --output benchmarks/results/service_2026-01-31.md

A service with a tiny model is started as a process of its own and is sent, at the same time: many good scans, bodies that
are too large (as they say, or only in fact), slow ones (headers, bodies, clients that take no answer), garbage of every kind,
and clients that leave. Each must get the status in the table. Afterwards the service must answer as before, hold no file of
any request, no more descriptors and threads than before, and end on SIGTERM with its folder gone.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import io
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
if str(_ROOT) not in sys.path:
    sys.path.insert(0, str(_ROOT))

from tests.inference.stand_ins import write_model  # noqa: E402
from tests.synthetic import scan, write_scan  # noqa: E402

MAX_MIB = 4
QUEUE = 16
BODY_SECONDS = 2.0
_MOST_SECONDS = 300.0


@dataclass(frozen=True)
class Answer:
    """What came back: the status (0 where the connection was closed without one), headers and body."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Service:
    """The process, its port, and where it keeps bodies."""

    process: subprocess.Popen[str]
    port: int
    spool: Path
    log: Path

    def descriptors(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self.process.pid}/fd").iterdir())

    def threads(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self.process.pid}/task").iterdir())

    def resident_mib(self) -> float:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines())
        return int(fields["VmRSS"].split()[0]) / 1024

    def request_files(self) -> list[str]:
        """What lies in the spool besides the service's own folder."""
        return [str(path.relative_to(self.spool)) for path in self.spool.rglob("*") if path.parent != self.spool]


def start(model: Path, folder: Path, *more: str) -> Service:
    """`medseg serve` on a free port, ready."""
    spool, log = folder / "spool", folder / "serve.log"
    command = [
        sys.executable,
        "-m",
        "medseg.cli.main",
        "serve",
        "--model",
        str(model),
        "--port",
        "0",
        "--device",
        "cpu",
    ]
    command += ["--max-mib", str(MAX_MIB), "--queue", str(QUEUE), "--body-seconds", str(BODY_SECONDS)]
    command += ["--spool", str(spool), *more]
    with log.open("w") as stream:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
            cwd=_ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("serving on "), log.read_text()
    return Service(process, int(line.rsplit(":", 1)[1]), spool, log)


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    head = b""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        while head.startswith(b"HTTP/1.1 100"):
            head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        if headers.get("transfer-encoding") == "chunked":
            body = await reader.read()
        else:
            body = await reader.readexactly(int(headers.get("content-length", "0")))
        return Answer(int(lines[0].split()[1]), headers, body)
    except (asyncio.IncompleteReadError, ConnectionError):
        return Answer(0, {}, head)


def head_of(length: int | None, *, path: str = "/segment", method: str = "POST", **headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    lines += [f"content-length: {length}"] if length is not None else ["transfer-encoding: chunked"]
    return "\r\n".join([*lines, "", ""]).encode()


async def talk(port: int, send: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> Answer:
    """One connection: what ``send`` sends, and the answer, read while it is still sending."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sending = asyncio.ensure_future(send(writer))
    try:
        return await asyncio.wait_for(read_answer(reader), _MOST_SECONDS)
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.close()


def whole(body: bytes, **headers: str) -> Callable[[asyncio.StreamWriter], Awaitable[None]]:
    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(head_of(len(body), **headers) + body)
        await writer.drain()

    return send


def chunked(blocks: Sequence[bytes], *, pause: float = 0.0) -> Callable[[asyncio.StreamWriter], Awaitable[None]]:
    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(head_of(None))
        for block in blocks:
            writer.write(f"{len(block):x}\r\n".encode() + block + b"\r\n")
            await writer.drain()
            await asyncio.sleep(pause)
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    return send


def cut(body: bytes, say: int) -> Callable[[asyncio.StreamWriter], Awaitable[None]]:
    """A body that is shorter than it says, and nothing more."""

    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(head_of(say) + body)
        await writer.drain()

    return send


def drip(data: bytes, *, pause: float) -> Callable[[asyncio.StreamWriter], Awaitable[None]]:
    """Byte by byte, for ever at the last."""

    async def send(writer: asyncio.StreamWriter) -> None:
        for at in range(len(data)):
            writer.write(data[at : at + 1])
            await writer.drain()
            await asyncio.sleep(pause)

    return send


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def forged_sizes(archive: bytes) -> bytes:
    """The archive's first file said to unpack to 100 bytes."""
    at = archive.rindex(b"PK\x01\x02")
    return archive[: at + 24] + struct.pack("<L", 100) + archive[at + 28 :]


def nifti_claiming(shape: tuple[int, int, int], good: bytes) -> bytes:
    raw = bytearray(gzip.decompress(good))
    raw[40:56] = struct.pack("<8h", 3, *shape, 1, 1, 1, 1)
    return gzip.compress(bytes(raw))


def hostile_requests(good: bytes) -> dict[str, tuple[set[int], Callable[[asyncio.StreamWriter], Awaitable[None]]]]:
    """Name to the statuses that are right and what is sent; 0 is a connection closed without an answer."""
    big, rng = os.urandom(1 << 20), random.Random(5)
    noise = rng.randbytes(20_000)
    slice_ = b"\0" * 128 + b"DICM" + noise
    bomb = zipped({"a.dcm": b"\0" * (64 << 20)})
    picture = b"\x89PNG\r\n\x1a\n" + noise
    return {
        "4 GiB by its own word": ({413}, cut(b"x", 4 << 30)),
        "too large by its own word": ({413}, whole(big * (MAX_MIB + 1))),
        "too large in fact, in chunks": ({413}, chunked([big] * (MAX_MIB + 2))),
        "endless, in chunks": ({413}, chunked([big] * 64, pause=0.05)),
        "headers byte by byte": ({0}, drip(b"POST /segment HTTP/1.1\r\nx: " + b"a" * 600, pause=0.2)),
        "no byte at all": ({0}, drip(b"", pause=0)),
        "body that stops": ({408}, cut(good[:1000], len(good))),
        "body byte by byte": ({408}, drip(head_of(len(good)) + good, pause=0.001)),
        "body byte by byte, in chunks": ({408}, chunked([good[i : i + 1] for i in range(2000)], pause=0.05)),
        "empty": ({422}, whole(b"")),
        "empty, in chunks": ({422}, chunked([])),
        "noise": ({422}, whole(noise)),
        "text": ({422}, whole(b"hello" * 99)),
        "HTML": ({422}, whole(b"<html><body>login first</body></html>")),
        "gzip of noise": ({422}, whole(gzip.compress(noise))),
        "gzip cut": ({422}, whole(good[: len(good) // 2])),
        "gzip with a flipped byte": ({422}, whole(good[:9000] + bytes([good[9000] ^ 255]) + good[9001:])),
        "NIfTI that claims 32767^3": ({422}, whole(nifti_claiming((32767, 32767, 32767), good))),
        "NIfTI that claims more than it has": ({422}, whole(nifti_claiming((200, 200, 200), good))),
        "NIfTI with size 0": ({422}, whole(nifti_claiming((0, 30, 30), good))),
        "PNG of noise": ({422}, whole(picture)),
        "NRRD that names another file": ({422}, whole(b"NRRD0004\ntype: float\ndimension: 3\nsizes: 9 9 9\n"
                                                       b"encoding: raw\ndata file: ../../../etc/passwd\n")),
        "MHA that names another file": ({422}, whole(b"ObjectType = Image\nNDims = 3\nDimSize = 9 9 9\n"
                                                     b"ElementType = MET_UCHAR\nElementDataFile = /etc/passwd\n")),
        "DICOM of noise": ({422}, whole(slice_)),
        "zip cut": ({422}, whole(zipped({"a.dcm": noise})[:-9])),
        "zip of nothing": ({422}, whole(zipped({}))),
        "zip of text": ({422}, whole(zipped({"a.txt": b"hello", "b.txt": b"hello"}))),
        "zip that leaves its folder": ({422}, whole(zipped({"../../evil.dcm": slice_, "/tmp/evil2.dcm": slice_}))),
        "zip bomb": ({422}, whole(bomb)),
        "zip with forged sizes": ({422}, whole(forged_sizes(bomb))),
        "zip of broken slices": ({422}, whole(zipped({f"{i}.dcm": slice_ for i in range(9)}))),
        "Content-Encoding": ({415}, whole(good, content_encoding="gzip")),
        "form": ({415}, whole(good, content_type="multipart/form-data; boundary=x")),
        "web page": ({403}, whole(good, origin="https://example.org")),
        "unknown query": ({400}, whole(good, path="/segment?format=exe")),
        "unknown path": ({404}, whole(good, path="/../../etc/passwd")),
        "unknown method": ({405}, whole(b"", method="DELETE")),
        "no HTTP": ({400}, drip(b"\x16\x03\x01\x02\x00\x01 hello\r\n\r\n", pause=0)),
        "headers of 1 MB": ({400, 0}, whole(good, x="a" * (1 << 20))),
        "two lengths": ({400}, drip(b"POST /segment HTTP/1.1\r\nhost: localhost\r\ncontent-length: 3\r\n"
                                    b"content-length: 5\r\n\r\nabcde", pause=0)),
        "slash and length": ({400}, drip(b"POST /segment HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n", pause=0)),
    }  # fmt: skip


async def leaving_client(port: int, good: bytes, rng: random.Random) -> None:
    """Sends a part or the whole, waits a moment, and is gone."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head_of(len(good)) + good[: rng.choice((0, 10, len(good) // 2, len(good)))])
    await writer.drain()
    await asyncio.sleep(rng.uniform(0, 0.5))
    writer.transport.abort()


async def good_client(port: int, good: bytes, tally: Counter[str], mask: bytes, rng: random.Random) -> None:
    """A scan until it has its mask; a service that is full is asked again, as it says."""
    while True:
        answer = await talk(port, whole(good))
        tally[str(answer.status)] += 1
        if answer.status == 200:
            tally["right mask" if answer.body == mask else "WRONG MASK"] += 1
            return
        if answer.status != 429 or "retry-after" not in answer.headers:
            tally["NO MASK"] += 1
            return
        await asyncio.sleep(rng.uniform(0.2, 2.0))


@dataclass
class Findings:
    """What was seen; ``faults`` should be empty."""

    faults: list[str] = field(default_factory=list)
    uploads: Counter[str] = field(default_factory=Counter)
    statuses: dict[str, int] = field(default_factory=dict)
    sentences: dict[str, str] = field(default_factory=dict)
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


def state(service: Service) -> dict[str, float]:
    return {"descriptors": service.descriptors(), "threads": service.threads(), "MiB": round(service.resident_mib())}


async def bombard(service: Service, good: bytes, *, uploads: int, leaving: int, seed: int) -> Findings:
    """Everything at the same time, then whether the service is as it was."""
    found, rng = Findings(), random.Random(seed)
    first = await talk(service.port, whole(good))
    assert first.status == 200, first
    again = await talk(service.port, whole(good))
    if again.body != first.body:
        found.faults.append("the same scan gave two masks")
    await asyncio.sleep(0.5)
    found.before = state(service)
    began = time.monotonic()

    async def hostile(name: str, right: set[int], send: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> None:
        answer = await talk(service.port, send)
        while answer.status == 429:
            await asyncio.sleep(rng.uniform(0.2, 2.0))
            answer = await talk(service.port, send)
        found.statuses[name] = answer.status
        if answer.status not in right:
            found.faults.append(f"{name}: {answer.status}, expected {sorted(right)}")
        elif answer.status in (413, 408, 415, 422):
            sentence = json.loads(answer.body)["error"]
            found.sentences[name] = sentence
            if "/" in sentence.replace("kB/s", "").replace("--", "") and str(service.spool) in sentence:
                found.faults.append(f"{name}: its answer holds a path")

    work = [good_client(service.port, good, found.uploads, first.body, rng) for _ in range(uploads)]
    work += [hostile(name, right, send) for name, (right, send) in hostile_requests(good).items()]
    work += [leaving_client(service.port, good, rng) for _ in range(leaving)]
    rng.shuffle(work)
    await asyncio.gather(*work)
    found.seconds = time.monotonic() - began
    await settle(service)
    found.after = state(service)
    check_after(service, found, uploads)
    if (await talk(service.port, whole(good))).body != first.body:
        found.faults.append("afterwards the scan has another mask")
    return found


async def settle(service: Service) -> None:
    """Until the service has no request, 30 s at most."""
    for _ in range(300):
        page = (await talk(service.port, whole(b"", path="/metrics", method="GET"))).body.decode()
        if "medseg_requests_now 0" in page:
            break
        await asyncio.sleep(0.1)
    await asyncio.sleep(1.0)


def check_after(service: Service, found: Findings, uploads: int) -> None:
    if service.process.poll() is not None:
        found.faults.append(f"the service ended with {service.process.returncode}")
        return
    if found.uploads["right mask"] != uploads:
        found.faults.append(f"{found.uploads['right mask']} right masks, expected {uploads}")
    if left := service.request_files():
        found.faults.append(f"files left: {left[:5]}")
    if found.after["descriptors"] > found.before["descriptors"] + 2:
        found.faults.append(f"descriptors: {found.before['descriptors']} before, {found.after['descriptors']} after")
    if found.after["threads"] > found.before["threads"] + 34:  # asyncio's pool for files grows to cores + 4
        found.faults.append(f"threads: {found.before['threads']} before, {found.after['threads']} after")
    for name in ("evil.dcm", "evil2.dcm"):
        if (service.spool.parent / name).exists() or Path("/tmp", name).exists():
            found.faults.append(f"{name}: left its folder")


def stop(service: Service, found: Findings) -> None:
    """SIGTERM, and what is left then."""
    service.process.send_signal(signal.SIGTERM)
    code = service.process.wait(timeout=60)
    if code != 143:
        found.faults.append(f"ended with {code} after SIGTERM, expected 143")
    if left := list(service.spool.iterdir()):
        found.faults.append(f"left in the spool at the end: {[path.name for path in left]}")
    log = service.log.read_text()
    if "Traceback" in log:
        found.faults.append("a traceback is in the log")


def run(folder: Path, *, uploads: int, leaving: int, seed: int) -> Findings:
    """The whole thing in ``folder``."""
    image, _ = write_scan(scan("oblique"), folder)
    service = start(write_model(folder / "model"), folder, "--stop-seconds", "20")
    try:
        found = asyncio.run(bombard(service, image.read_bytes(), uploads=uploads, leaving=leaving, seed=seed))
        stop(service, found)
    finally:
        service.process.kill()
        service.process.wait()
        if service.process.stdout is not None:
            service.process.stdout.close()
    return found


def report(found: Findings, uploads: int, seed: int) -> str:
    lines = [
        f"# `medseg serve` under {uploads} uploads at once and everything hostile, {time.strftime('%Y-%m-%d')}",
        "",
    ]
    lines += [f"- command: `python tests/reliability/bombard_service.py --uploads {uploads} --seed {seed}`"]
    lines += [
        f"- queue {QUEUE}, largest body {MAX_MIB} MiB, {BODY_SECONDS:g} s for a body to pause; took {found.seconds:.0f} s"
    ]
    lines += [
        f"- uploads: {dict(found.uploads)} (a 429 is asked again)",
        f"- before: {found.before}; after: {found.after}",
    ]
    lines += [
        f"- faults: {'; '.join(found.faults) or 'none'}",
        "",
        "| sent | answer | sentence |",
        "| --- | --: | --- |",
    ]
    lines += [
        f"| {name} | {status or 'closed'} | {found.sentences.get(name, '')} |"
        for name, status in sorted(found.statuses.items())
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs it and prints the table; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--uploads", type=int, default=200, help="good scans, all at once [200]")
    parser.add_argument("--leaving", type=int, default=40, help="clients that go away [40]")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, help="Markdown file for the table")
    args = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="bombard-"))
    try:
        found = run(folder, uploads=args.uploads, leaving=args.leaving, seed=args.seed)
        text = report(found, args.uploads, args.seed)
        sys.stdout.write(text)
        if args.output is not None:
            args.output.write_text(text)
        if found.faults:
            sys.stdout.write((folder / "serve.log").read_text()[-3000:])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if found.faults else 0


if __name__ == "__main__":
    sys.exit(main())
