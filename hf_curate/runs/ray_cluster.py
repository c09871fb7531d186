"""The Ray cluster that a run is scored on: one that is there, or one of this machine for one call alone."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hf_curate.errors import CurateError, MissingPackageError
from hf_curate.scorers.base import Scorer
from hf_curate.scorers.model import ModelScorer

try:
    import ray
    from ray import exceptions
except ImportError as error:
    raise MissingPackageError("ray", "ray", "engine='ray'") from error

ANSWERS = 10.0
"""Seconds within which a cluster has to answer."""
HEX = re.compile(r"\b[0-9a-f]{32,}\b ?")
ADDRESS = re.compile(
    r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b"
    r"|\b[0-9a-f]{1,4}(?:(?::[0-9a-f]{1,4})*::(?:[0-9a-f]{1,4}(?::[0-9a-f]{1,4})*)?|(?::[0-9a-f]{1,4}){7})(?!\w)",
    re.I,
)
"""Of a node: IPv4, with a port or without, and IPv6."""


@contextmanager
def connected(address: str | None, cpus: int) -> Iterator[None]:
    """While this lasts, this process is connected to a cluster. One that was there before is left as it is."""
    if ray.is_initialized():
        _check_connected(address)
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    with _as_before():
        _begin(address, cpus)
        try:
            yield
        finally:
            ray.shutdown()


def _begin(address: str, cpus: int) -> None:
    """Connects this process. CurateError: it cannot."""
    said: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        with _own_signals():
            if address == "local":
                with _alone():
                    ray.init("local", num_cpus=cpus, include_dashboard=False, **said)
            else:
                _check_reachable(address)
                ray.init(address, **said)
    except (ConnectionError, ValueError, RuntimeError, OSError, exceptions.RayError) as error:
        what = "a Ray cluster cannot be started here" if address == "local" else f"no Ray cluster at {address!r}"
        raise CurateError(
            f"{what} ({type(error).__name__}: {first_line(str(error))}). Without one: engine='local', workers=N."
        ) from error


def _check_connected(address: str | None) -> None:
    """CurateError: this process is connected to another cluster than the one that was asked for."""
    now = ray.get_runtime_context().gcs_address
    if address not in (None, "auto", now):
        raise CurateError(
            f"ray_address={address!r}, but this process is connected to the Ray cluster at {now!r}: leave "
            "ray_address= away, or call ray.shutdown() first."
        )


def _check_reachable(address: str) -> None:
    """OSError: nobody listens there, which Ray takes minutes to say."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), ANSWERS).close()


def check_address(address: str | None) -> None:
    """CurateError: an address that `ray.init` knows and a run cannot use."""
    if address is not None and "://" in address:
        raise CurateError(
            f"ray_address={address!r} is that of Ray's client server: run on a node of the cluster (or by `ray job "
            "submit`) and give 'host:port', 'auto', or nothing."
        )


@contextmanager
def _alone() -> Iterator[None]:
    """While this lasts, a cluster that is started listens on the loopback interface alone, and reports to nobody."""
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False  # no other node may join it: its own address is then 127.0.0.1
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray would have SIGTERM abort this process; it ends it as before."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def _as_before() -> Iterator[None]:
    """The variables that Ray sets in this process for a session are gone after it."""
    before = {name: value for name, value in os.environ.items() if _of_ray(name)}
    try:
        yield
    finally:
        for name in [name for name in os.environ if _of_ray(name)]:
            del os.environ[name]
        os.environ.update(before)


def _of_ray(name: str) -> bool:
    """PYTHONBREAKPOINT: Ray names its own debugger there."""
    return name.startswith("RAY_") or name == "PYTHONBREAKPOINT"


def check_device(scorer: Any) -> None:
    """CurateError: the scorer, or what makes its rollouts, asks for one of several devices."""
    for one in (scorer, getattr(scorer, "rollouts", None)):
        if isinstance(one, ModelScorer) and re.search(r"\d", str(one.device)):
            raise CurateError(
                f"device={str(one.device)!r} of {type(one).__name__} is one of several, and an actor on Ray sees none "
                "but the one that Ray gives it: leave device= away (device='cpu' for none), or engine='ray'."
            )


def resources_for(scorer: Any, threads: int) -> dict[str, float]:
    """What an actor asks for: a GPU where there are any and the scorer may use one, else CPUs for its threads."""
    uses_none = isinstance(scorer, Scorer) and not isinstance(scorer, ModelScorer)
    if uses_none or str(getattr(scorer, "device", None)) == "cpu" or not ray.cluster_resources().get("GPU"):
        return {"num_cpus": threads}
    return {"num_cpus": 1, "num_gpus": 1}


def first_line(text: str) -> str:
    """Of a message of Ray's, without its ids and the addresses of nodes."""
    text = ADDRESS.sub("an address", HEX.sub("", text))
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return f"{line[:300]}..." if len(line) > 300 else line
