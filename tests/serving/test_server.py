"""The service on a socket, as a process of its own; and the guards around uvicorn."""

import asyncio
import socket
import time

import pytest

from medseg.cli.serve import main
from medseg.errors import EnvironmentFault
from medseg.serving.limits import ServiceLimits
from medseg.serving.server import most_connections, open_socket, server_for
from medseg.serving.spool import Spool
from tests.reliability import bombard_service


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "m", "--host", "0.0.0.0"], "can be reached by others, expected a token"),
        (["--model", "m", "--queue", "0"], "--queue: is 0, expected more than 0"),
        (["--model", "m", "--tls-key", "key.pem"], "expected both --tls-certificate and --tls-key"),
        ([], "expected --model DIR"),
    ],
)
def test_a_command_that_makes_no_sense(arguments, message, capsys, monkeypatch):
    monkeypatch.delenv("MEDSEG_SERVE_TOKEN", raising=False)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_short_token_is_refused(capsys, monkeypatch, tmp_path):
    (tmp_path / "token").write_text("secret\n")
    assert main(["--model", "m", "--host", "0.0.0.0", "--token-file", str(tmp_path / "token")]) == 2
    error = capsys.readouterr().err
    assert "has 6 characters, expected 16" in error
    assert "secret" not in error


def test_an_address_that_is_taken():
    with open_socket("127.0.0.1", 0) as first:
        first.listen()
        with pytest.raises(EnvironmentFault, match="can't be listened on"):
            open_socket("127.0.0.1", first.getsockname()[1])


def test_connections_are_at_least_the_queue():
    assert most_connections(ServiceLimits(queue=5000)) == 5008


def test_a_spool_is_private_and_goes_with_its_owner(tmp_path):
    dead = tmp_path / "left"
    dead.mkdir()
    with Spool(tmp_path) as spool:
        assert spool.folder.stat().st_mode & 0o777 == 0o700
        (spool.new() / "body").write_bytes(b"x")
        assert len(spool) == 1
    assert list(tmp_path.iterdir()) == [dead]  # a folder that is none of ours stays


async def long_answer(scope, receive, send):
    headers = [(b"content-length", b"%d" % (1000 * 2**16))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for number in range(1000):
        await send({"type": "http.response.body", "body": b"x" * 2**16, "more_body": number < 999})


@pytest.mark.slow
def test_nobody_holds_a_connection_for_ever():
    limits = ServiceLimits(header_seconds=0.3, write_seconds=0.3, stop_seconds=1)

    async def run(listening):
        server = server_for(long_answer, limits)
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        while not server.started:
            await asyncio.sleep(0.01)
        port = listening.getsockname()[1]
        takes_nothing, says_nothing = (socket.create_connection(("127.0.0.1", port)) for _ in range(2))
        takes_nothing.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await asyncio.sleep(0.2)
        held = len(server.server_state.connections)
        began = time.monotonic()
        while server.server_state.connections and time.monotonic() - began < 20:
            await asyncio.sleep(0.05)
        left = len(server.server_state.connections)
        for client in (takes_nothing, says_nothing):
            client.close()
        server.should_exit = True
        await asyncio.wait_for(serving, 20)
        return held, left

    with open_socket("127.0.0.1", 0) as listening:
        assert asyncio.run(run(listening)) == (2, 0)


@pytest.mark.slow
def test_a_service_lives_through_everything_at_once(tmp_path):
    found = bombard_service.run(tmp_path, uploads=30, leaving=10, seed=3)
    assert found.faults == []
