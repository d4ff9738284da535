"""Starts the server, and ends it: what is being answered is answered first."""

import dataclasses
import ipaddress
import os
import socket
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from pipeline.console.logs import note
from pipeline.errors import ConfigError, require_package
from pipeline.generation.config import ServeConfig

if TYPE_CHECKING:
    from pipeline.generation.model import TrainedModel

_KEY_VARIABLE = "DUET_API_KEY"
_SIGNALLED = 128


def serve(config: ServeConfig) -> int:
    """Answer requests until SIGTERM or SIGINT.

    Returns:
        The exit code: 0, or 128 and the number of a second signal, which ends all at once.

    Raises:
        ConfigError: An address that others reach without a key, one that is taken, or a
            package that is missing.
        InputError, ModelError: The folder holds no model that can be loaded.
    """
    config = dataclasses.replace(config, api_key=config.api_key or os.environ.get(_KEY_VARIABLE))
    _check_access(config)
    require_package(
        "fastapi", "uvicorn", "prometheus_client", where="duet serve", install='"duet-t5[serve]"'
    )
    with _bound_socket(config) as listener:  # a port that is taken is said before a model is loaded
        from pipeline.generation.model import open_model

        return _run(open_model(Path(config.model), config), config, listener)


def _run(model: "TrainedModel", config: ServeConfig, listener: socket.socket) -> int:
    import uvicorn

    from pipeline.generation.server.app import Service, make_app

    with model.engine(max_waiting=config.max_queue) as engine:
        service = Service(model, engine, config)
        gate = make_app(service, config, model.decoder.max_rows)

        class Server(uvicorn.Server):
            """Uvicorn's, but that the first signal lets what is being answered end."""

            exit_code = 0

            def handle_exit(self, sig: int, frame: FrameType | None) -> None:
                """Take no more requests; at the second signal, end those that are in."""
                if gate.is_draining:
                    self.exit_code = _SIGNALLED + sig
                    service.cancel_all()
                gate.is_draining = True

            async def on_tick(self, counter: int) -> bool:
                """End when the last request has ended."""
                self.should_exit = gate.is_draining and not gate.in_flight
                return await super().on_tick(counter)

        server = Server(
            uvicorn.Config(
                gate,
                lifespan="off",
                ws="none",
                log_config=None,  # what goes wrong, on stderr
                access_log=False,
                server_header=False,
                # Clients keep a connection for 5 s, too: a request on one that the server is just
                # closing would be lost.
                timeout_keep_alive=75,
                timeout_graceful_shutdown=5,
            )
        )
        listener.listen()  # who reads the next line can connect
        host, port = listener.getsockname()[:2]
        where = f"[{host}]" if ":" in host else host
        note(f"{service.name} answers at http://{where}:{port}/ (OpenAI's interface: /v1)")
        server.run(sockets=[listener])
        return server.exit_code


def _check_access(config: ServeConfig) -> None:
    """Refuse what would let anyone in.

    Raises:
        ConfigError: It would.
    """
    key = config.api_key
    if key is not None and (not key.isascii() or not key.isprintable() or key != key.strip()):
        raise ConfigError(
            "an API key that cannot be sent in an HTTP header",
            where=f"--api-key or {_KEY_VARIABLE}",
            got="characters outside ASCII, or spaces around it",
            do="give ASCII letters, digits and punctuation",
        )
    if key is None and not _is_loopback(config.host):
        raise ConfigError(
            "an address that other machines reach, without an API key",
            where="--host",
            got=config.host,
            do=f"set {_KEY_VARIABLE} or give --api-key; or leave --host out for this machine alone",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bound_socket(config: ServeConfig) -> socket.socket:
    """Return a socket at the address; it is not listened to yet.

    Raises:
        ConfigError: The address cannot be used.
    """
    try:
        found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
        return listener
    except OSError as error:
        raise ConfigError(
            "cannot listen there",
            where="--host, --port",
            got=f"{config.host}, {config.port}: {error.strerror or error}",
            do="give another --port (0: any free one), or an address of this machine",
        ) from error
