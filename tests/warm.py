"""New processes without the seconds that a new interpreter spends on importing torch, datasets and transformers.

``Popen`` is that of `subprocess` for commands of this interpreter. A process that has the libraries imported, and has
done nothing else, forks for each of them; what is forked has arguments, environment, folder, streams, modules of its
own and an exit code as a new one would. What is about imports, about resident memory, or about what an interpreter
does at its end (a standard output that nobody reads) needs `subprocess` itself. All forks have the same hash seed.

Where variables of the Hub differ (HF_HOME, HF_ENDPOINT), which libraries read while they are imported, those libraries
are imported anew. Where the interpreter's own differ (PYTHONHASHSEED), and on systems other than Linux, a new
interpreter does it.
"""

from __future__ import annotations

import atexit
import inspect
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

TESTS = os.path.dirname(os.path.abspath(__file__))
LIBRARIES = (
    "datasets",
    "matplotlib.figure",
    "multiprocess.pool",
    "peft",
    "torch._dynamo",
    "transformers.core_model_loading",
    "transformers.generation",
    "transformers.integrations.hub_kernels",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.qwen3.modeling_qwen3",
)
READ_AT_IMPORT = ("HF_", "TRANSFORMERS_")
READ_AT_START = ("PYTHONDONTWRITEBYTECODE", "PYTHONHASHSEED", "PYTHONOPTIMIZE", "PYTHONUTF8", "PYTHONWARNINGS")
OTHERS = (
    "dill",
    "fsspec",
    "httpx2",
    "jinja2.sandbox",
    "matplotlib.figure",
    "multiprocess.pool",
    "pandas",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "regex",
    "safetensors.torch",
    "tokenizers",
    "torch._dynamo",
    "torch.distributed.tensor",
    "yaml",
)
"""Without those that read variables of the Hub."""
NUMBERS = struct.Struct("<i")


# -- the process that forks -------------------------------------------------------------------------------------------


def _serve(libraries: Sequence[str]) -> None:
    """Until nobody can ask it anything: what is asked comes through standard input, a socket."""
    import importlib

    control = socket.socket(fileno=0)
    for name in libraries:
        with suppress(ImportError):  # some are extras
            importlib.import_module(name)
    assert libraries is LIBRARIES or "huggingface_hub" not in sys.modules
    assert threading.active_count() == 1
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks for those who wait for the forked
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, 1 << 20, 4)
        if not data:
            return
        if os.fork() == 0:
            _wait_for_a_fork(json.loads(data), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _wait_for_a_fork(asked: dict[str, Any], descriptors: list[int]) -> None:
    """Tells the number of a new process, and later how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *streams, told = descriptors
    number = os.fork()
    if number == 0:
        os.close(told)
        for place, stream in enumerate(streams):
            os.dup2(stream, place)
            os.close(stream)
        _become(**asked)
    for stream in (*streams, 0, 1, 2):  # 0 is who asked: nobody else may wait for what it says
        os.close(stream)
    os.write(told, NUMBERS.pack(number))
    os.write(told, NUMBERS.pack(os.waitpid(number, 0)[1]))
    os._exit(0)


def _become(command: list[str], environment: dict[str, str], folder: str, session: bool) -> None:
    """Does in this process what a new interpreter does with such a command, and ends it."""
    code, interrupted = 1, False
    try:
        if session:
            os.setsid()
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        _run(command)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException as error:  # noqa: BLE001 - it is shown as an interpreter shows it
        sys.excepthook(*sys.exc_info())
        interrupted = isinstance(error, KeyboardInterrupt)
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        if interrupted:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        os._exit(code & 0xFF)


def _run(command: list[str]) -> None:
    import builtins
    import runpy

    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    safe, arguments = command[1] == "-P", [part for part in command[1:] if part != "-P"]
    main = sys.modules["__main__"]  # the same module: dill has kept it
    vars(main).clear()
    vars(main).update(__name__="__main__", __doc__=None, __spec__=None, __loader__=None, __builtins__=builtins)
    paths = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [*paths, *(path for path in sys.path if path not in paths)]
    if arguments[0] == "-c":
        first, sys.argv = "", ["-c", *arguments[2:]]
    elif arguments[0] == "-m":
        first, sys.argv = os.getcwd(), arguments[1:]
    else:
        first, sys.argv = os.path.dirname(os.path.abspath(arguments[0])), arguments
    if not safe:
        sys.path.insert(0, first)
    sys.orig_argv[:] = command
    if arguments[0] == "-c":
        exec(compile(arguments[1], "<string>", "exec", dont_inherit=True), vars(main))
    elif arguments[0] == "-m":
        runpy._run_module_as_main(arguments[1])  # type: ignore[attr-defined]
    else:
        main.__file__ = arguments[0]
        with open(arguments[0], "rb") as script:
            code = compile(script.read(), arguments[0], "exec", dont_inherit=True)
        exec(code, vars(main))


# -- who asks it ------------------------------------------------------------------------------------------------------


class _Warm:
    """The connection to that process; it ends with this one. of: another such process, that it is forked from."""

    def __init__(self, libraries: str, of: _Warm | None = None) -> None:
        self._libraries, self._of = libraries, of
        self._control: socket.socket | None = None
        self._lock = threading.Lock()

    def fork(
        self, command: list[str], environment: dict[str, str], folder: str, session: bool, streams: Sequence[int]
    ) -> tuple[int, int]:
        """Its number, and where how it ends is told."""
        with self._lock:
            if self._control is None:
                self._start()
            assert self._control is not None
            told, tells = os.pipe()
            asked = {"command": command, "environment": environment, "folder": folder, "session": session}
            socket.send_fds(self._control, [json.dumps(asked).encode()], [*streams, tells])
        os.close(tells)
        number = os.read(told, NUMBERS.size)
        assert number, "the process that forks is gone: what it said is above"
        return NUMBERS.unpack(number)[0], told

    def _start(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        code = (
            f"import sys; sys.path.insert(0, {TESTS!r}); import warm; sys.path.remove({TESTS!r}); "
            f"warm._serve(warm.{self._libraries})"
        )
        command = [sys.executable, "-P", "-c", code]
        clean = {name: value for name, value in _environment.items() if name != "PYTHONPATH"}
        if self._of is None:
            self._process = subprocess.Popen(command, env=clean, stdin=theirs, start_new_session=True)
        else:
            self._of.fork(command, clean, os.getcwd(), True, (theirs.fileno(), 1, 2))
        theirs.close()


_others = _Warm("OTHERS")
_all = _Warm("LIBRARIES", _others)
_environment = dict(os.environ)  # once conftest.py has set it


def _for(environment: Mapping[str, str]) -> _Warm | None:
    """Who forks for this environment; None: it takes a new interpreter."""
    changed = {name for name in {*environment, *_environment} if environment.get(name) != _environment.get(name)}
    if sys.platform != "linux" or changed.intersection(READ_AT_START):
        return None
    return _others if any(name.startswith(READ_AT_IMPORT) for name in changed) else _all


class Popen(subprocess.Popen):  # type: ignore[type-arg]
    """That of `subprocess`, for commands that begin with `sys.executable`."""

    _told: int | None = None

    def _execute_child(self, *given: Any) -> None:
        asked = inspect.signature(subprocess.Popen._execute_child).bind(self, *given).arguments  # type: ignore[attr-defined]
        command = [os.fspath(part) for part in asked["args"]]
        environment = {name: os.fspath(value) for name, value in (asked["env"] or os.environ).items()}
        assert command[0] == sys.executable, command[0]
        assert (asked["preexec_fn"], tuple(asked["pass_fds"])) == (None, ()), "not for forked processes"
        warm = _for(environment)
        if warm is None:
            super()._execute_child(*given)  # type: ignore[misc]
            return
        names = ("p2cread", "c2pwrite", "errwrite")
        streams = [place if asked[name] == -1 else asked[name] for place, name in enumerate(names)]
        folder = os.fspath(asked["cwd"] or os.getcwd())
        try:
            self.pid, self._told = warm.fork(command, environment, folder, asked["start_new_session"], streams)
        finally:
            self._close_pipe_fds(*(asked[name] for name in _PIPES))  # type: ignore[attr-defined]
        self._child_created = True

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self._told is None:
            return super()._try_wait(wait_flags)  # type: ignore[misc]
        if not select.select([self._told], [], [], 0 if wait_flags & os.WNOHANG else None)[0]:
            return 0, 0
        data = os.read(self._told, NUMBERS.size)
        assert data, "who waited for it is gone, and how it ended with it"
        os.close(self._told)
        return self.pid, NUMBERS.unpack(data)[0]

    def _internal_poll(self, _deadstate: Any = None, **given: Any) -> int | None:
        if self._told is None:
            return super()._internal_poll(_deadstate, **given)  # type: ignore[misc]
        if self.returncode is None and self._waitpid_lock.acquire(False):  # type: ignore[attr-defined]
            try:
                if self.returncode is None:
                    number, status = self._try_wait(os.WNOHANG)
                    if number == self.pid:
                        self._handle_exitstatus(status)  # type: ignore[attr-defined]
            finally:
                self._waitpid_lock.release()  # type: ignore[attr-defined]
        return self.returncode


_PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
PIPE, STDOUT, DEVNULL = subprocess.PIPE, subprocess.STDOUT, subprocess.DEVNULL
TimeoutExpired, CompletedProcess = subprocess.TimeoutExpired, subprocess.CompletedProcess


def run(command: Sequence[Any], **options: Any) -> subprocess.CompletedProcess[str]:
    """`subprocess.run(capture_output=True, text=True)` of such a command."""
    timeout, check = options.pop("timeout", None), options.pop("check", False)
    with Popen(command, stdout=PIPE, stderr=PIPE, text=True, **options) as process:
        try:
            said, errors = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    if check and process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, said, errors)
    return CompletedProcess(command, process.returncode, said, errors)
