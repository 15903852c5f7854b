"""`mmrl serve-rewards CONFIG`: the config of a reward server, and the process."""

from __future__ import annotations

import errno
import socket
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from mmrl.config.builder import Builder
from mmrl.config.schema import RewardSpec, Spec
from mmrl.config.source import read
from mmrl.config.validate import validate
from mmrl.errors import ConfigError, UserError
from mmrl.reward import Reward
from mmrl.rewards.remote.connection import bearer, is_loopback
from mmrl.rewards.remote.media import Limits
from mmrl.rewards.remote.service import Service

STAGE = ", ".join(key for key in RewardSpec.model_fields if key != "name")
"""What a stage says of a reward, and a server does not."""


class ServeSection(BaseModel):
    """Where a server listens and what it takes."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    host: str = "127.0.0.1"
    port: int = Field(default=8400, ge=0, le=65535)
    """0 takes a free port."""
    token_env: str = "MMRL_REWARD_TOKEN"
    """Environment variable that holds the bearer token; a host that others can reach needs one."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_batch: PositiveInt = 64
    """Samples of one request."""
    max_bytes: PositiveInt = 64 << 20
    """Bytes of one request."""
    max_pixels: PositiveInt = 4096 * 4096
    """Pixels of one picture or frame."""
    max_frames: PositiveInt = 512
    max_waiting: PositiveInt = 64
    """Requests that may wait; more are asked to come again."""
    max_decoded: PositiveInt = 1 << 30
    """Bytes that the media of one request may hold, decoded."""
    body_seconds: PositiveFloat = 60.0
    """A request whose body is not there by then is refused, and a connection without a request is closed after half of that."""
    stop_seconds: PositiveInt = 30
    """How long requests that are under way may take to end when the server is stopped."""
    media_root: str | None = None
    """Folder below which a `uri` may point; default: no `uri` is taken."""

    def limits(self, folder: Path) -> Limits:
        """What is taken; `media_root` relative to `folder`."""
        root = None if self.media_root is None else folder / self.media_root
        return Limits(
            self.max_bytes, self.max_batch, self.max_pixels, self.max_frames, root, max_decoded=self.max_decoded
        )


class ServeConfig(BaseModel):
    """A server's config: the rewards by the name that clients ask for, and the `serve` block."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    rewards: dict[str, Spec] = Field(min_length=1)
    serve: ServeSection = ServeSection()


def load(config: str, overrides: Sequence[str] = ()) -> tuple[ServeSection, Service]:
    """The settings and the service (not yet loaded) of a config file. Raises ConfigError listing every problem."""
    source = read(config, overrides)
    typed = validate(ServeConfig, source.tree, source)
    build = Builder(source)
    rewards: dict[str, Reward] = {}
    for name, spec in typed.rewards.items():
        of_stage = [key for key in RewardSpec.model_fields if key in spec.options()]
        for key in of_stage:
            build.problem(("rewards", name, key), f"{STAGE} belong to the stage that asks; leave it out here")
        options = {key: value for key, value in spec.options().items() if key not in of_stage}
        rewards[name] = build.named("reward", spec.name, options, ("rewards", name))
    if build.problems:
        raise ConfigError("\n".join(build.problems))
    device = typed.serve.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return typed.serve, Service(rewards, typed.serve.limits(source.folder), torch.device(device))


def token_of(section: ServeSection) -> str | None:
    """The bearer token from the environment. Raises UserError where the host needs one and there is none, or it is none."""
    token = bearer(section.token_env)
    if token is None and not is_loopback(section.host):
        raise UserError(
            f"serve.host {section.host} can be reached by others, so a bearer token is needed: set the environment variable "
            f"{section.token_env}, or listen on 127.0.0.1"
        )
    return token


def listening(host: str, port: int) -> socket.socket:
    """A socket that is bound and listens. Raises UserError where the address cannot be had."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        mend = "serve.host must be an address or a name of this machine"
        if error.errno == errno.EADDRINUSE:
            mend = "another program listens there; stop it, or choose another serve.port (0 takes a free one)"
        elif error.errno == errno.EACCES:
            mend = "choose a serve.port from 1024 on"
        why = (error.strerror or str(error)).partition(" (while")[0]
        raise UserError(f"cannot listen at {host}:{port} ({why}); {mend}") from error


def serve(config: str, overrides: Sequence[str] = ()) -> None:
    """Serve until interrupted. Raises UserError for a missing extra, a missing token or an address that cannot be had."""
    try:
        import uvicorn

        from mmrl.rewards.remote.server import Impatient, make_app
    except ImportError as error:
        raise UserError(f"serving needs fastapi and uvicorn: pip install 'mmrl[serve]' ({error})") from error
    warnings.filterwarnings("ignore", module=r"PIL\.")  # a picture may have one for each of thousands of broken tags
    section, service = load(config, overrides)
    app = make_app(service, token_of(section), section.max_waiting, section.body_seconds)
    settings = uvicorn.Config(
        app,
        http=type("Connection", (Impatient,), {"seconds": section.body_seconds / 2}),
        ws="none",
        log_level="info",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=section.stop_seconds,
    )
    named = ", ".join(f"{name} ({reward.scope})" for name, reward in service.rewards.items())
    host = f"[{section.host}]" if ":" in section.host else section.host
    with listening(section.host, section.port) as bound, suppress(KeyboardInterrupt):
        print(f"serving {named} at http://{host}:{bound.getsockname()[1]}", file=sys.stderr, flush=True)
        uvicorn.Server(settings).run(sockets=[bound])
