"""``medseg serve``: a model behind HTTP, for this machine, or with a token for others."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medseg.cli.entry import Context, run_verb
from medseg.errors import EnvironmentFault, UsageError
from medseg.runner.resources import quick_imports

if TYPE_CHECKING:
    from medseg.inference.ensemble import MaskMaker
    from medseg.serving.limits import ServiceLimits
    from medseg.serving.service import Service

_TOKEN_VARIABLE = "MEDSEG_SERVE_TOKEN"  # noqa: S105 - the name of the variable
_LEAST_TOKEN = 16


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until a signal; 143 after SIGTERM, 130 after SIGINT."""
    purpose = "Take scans over HTTP and give back their masks; the model is loaded once."
    return run_verb(
        "serve", argv, body=_serve, add_arguments=_arguments, description=purpose, needs_config=False, graceful=True
    )


def _arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", action="append", type=Path, metavar="DIR", help="model folder; several are averaged")
    add(
        "--host",
        default="127.0.0.1",
        help="address to listen on; others than this machine's need a token [%(default)s]",
    )
    add("--port", type=int, default=8000, help="0 takes a free one [%(default)s]")
    add("--token-file", type=Path, metavar="FILE", help=f"the token, of 16 characters or more [{_TOKEN_VARIABLE}]")
    add("--tls-certificate", type=Path, metavar="FILE", help="speak HTTPS")
    add("--tls-key", type=Path, metavar="FILE", help="private key of the certificate")
    add("--queue", type=int, default=16, metavar="N", help="requests at once; one more is answered 429 [%(default)s]")
    add("--max-mib", type=int, default=1024, metavar="N", help="largest body [%(default)s]")
    add("--max-voxels", type=int, default=2**28, metavar="N", help="largest scan, channels counted [%(default)s]")
    add("--body-seconds", type=float, default=20, metavar="S", help="a body may pause so long [%(default)s]")
    add("--read-seconds", type=float, default=300, metavar="S", help="longest time to read one scan [%(default)s]")
    add("--stop-seconds", type=float, default=30, metavar="S", help="for requests under way at the end [%(default)s]")
    add("--spool", type=Path, metavar="DIR", help="where bodies lie meanwhile [the system's temporary folder]")


def _serve(context: Context) -> int:
    args, token = context.args, _token(context.args)
    limits = _limits(args)
    _require_packages()
    if not args.model:
        raise UsageError("serve: expected --model DIR; see medseg serve --help")
    if bool(args.tls_certificate) != bool(args.tls_key):
        raise UsageError("serve: expected both --tls-certificate and --tls-key, or neither")
    from medseg.serving.access import is_loopback
    from medseg.serving.server import open_socket
    from medseg.serving.service import Service
    from medseg.serving.spool import Spool

    if token is None and not is_loopback(args.host):
        raise UsageError(
            f"serve: --host {args.host} can be reached by others, expected a token; name one with --token-file or "
            f"{_TOKEN_VARIABLE}"
        )
    with Spool(args.spool) as spool, open_socket(args.host, args.port) as listening:
        service = Service(_engine(context, spool.folder), limits=limits, spool=spool)
        asyncio.run(_run(service, listening, token, args))
        if service.computing:
            # A scan that is in the network can't be called back, and leaving in the usual way would wait for it.
            shutil.rmtree(spool.folder, ignore_errors=True)
            os._exit(context.stop.exit_code)
    return 0


def _require_packages() -> None:
    missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise EnvironmentFault(f"serve: lacks {' and '.join(missing)}; pip install medseg[serve]")


def _token(args: argparse.Namespace) -> str | None:
    if args.token_file is None:
        token = os.environ.get(_TOKEN_VARIABLE)
    else:
        try:
            token = args.token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"{args.token_file.name}: can't be read as a token; write one line of text into it"
            ) from error
    if token is not None and len(token) < _LEAST_TOKEN:
        raise UsageError(
            f"serve: the token has {len(token)} characters, expected {_LEAST_TOKEN} or more; take a random one"
        )
    return token


def _limits(args: argparse.Namespace) -> ServiceLimits:
    from medseg.serving.limits import MIB, ServiceLimits

    for name in ("queue", "max_mib", "max_voxels", "body_seconds", "read_seconds", "stop_seconds"):
        if getattr(args, name) <= 0:
            raise UsageError(f"--{name.replace('_', '-')}: is {getattr(args, name):g}, expected more than 0")
    return ServiceLimits(
        queue=args.queue,
        max_body_bytes=args.max_mib * MIB,
        max_unpacked_bytes=2 * args.max_mib * MIB,
        max_voxels=args.max_voxels,
        grace_seconds=args.body_seconds,
        read_seconds=args.read_seconds,
        stop_seconds=args.stop_seconds,
    )


def _engine(context: Context, scratch: Path) -> MaskMaker:
    with quick_imports():
        from medseg.inference.ensemble import build_engine
        from medseg.inference.experiment import own_section
        from medseg.inference.model import load_models
        from medseg.networks.precision import choose_device

    device = choose_device(context.device)
    models = [model for folder in context.args.model for model in load_models(folder, device=device)]
    section = own_section(models[0]) if context.config is None else context.config.infer
    return build_engine(models, section, device=device, scratch=scratch)


async def _run(service: Service, listening: socket.socket, token: str | None, args: argparse.Namespace) -> None:
    from medseg.serving.access import Access
    from medseg.serving.app import build_app
    from medseg.serving.server import server_for

    server = server_for(
        build_app(service, Access(token)),
        service.limits,
        certificate=str(args.tls_certificate) if args.tls_certificate else None,
        key=str(args.tls_key) if args.tls_key else None,
    )
    async with service:
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        if server.started:
            host, port = listening.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            sys.stdout.write(f"serving on http{'s' if args.tls_certificate else ''}://{shown}:{port}\n")
            sys.stdout.flush()
        await serving


if __name__ == "__main__":
    sys.exit(main())
