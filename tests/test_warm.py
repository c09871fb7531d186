"""The processes that tests fork: what a new interpreter with the same command does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import warm

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they are new interpreters")

TOLD = """
import json, os, sys
print(json.dumps({
    "argv": sys.argv, "name": __name__, "first": sys.path[0], "folder": os.getcwd(), "own": os.environ.get("OWN"),
    "input": sys.stdin.read(), "names": sorted(name for name in globals() if not name.startswith("__")),
    "flags": sys._getframe().f_code.co_flags,
}))
print("and this", file=sys.stderr)
"""


def both(*command: str, folder: Path) -> list[tuple[int, dict, str]]:
    """What a forked process and a new interpreter say to the same."""
    found = []
    for popen in (warm.Popen, subprocess.Popen):
        process = popen(
            [sys.executable, *command],
            cwd=folder,
            env=os.environ | {"OWN": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        said, errors = process.communicate("what is asked", timeout=60)
        found.append((process.returncode, json.loads(said), errors))
    return found


@pytest.mark.parametrize("way", ["-c", "-m", "script"])
def test_a_command_sees_the_same(way: str, tmp_path: Path) -> None:
    (tmp_path / "told.py").write_text(TOLD)
    command = {"-c": ["-c", TOLD], "-m": ["-m", "told"], "script": [str(tmp_path / "told.py")]}[way]
    forked, new = both(*command, "a", "-b", folder=tmp_path)
    assert forked == new
    assert forked[1]["own"] == "1"


@pytest.mark.parametrize(
    ("code", "ends", "last"),
    [
        ("pass", 0, []),
        ("import sys; sys.exit(3)", 3, []),
        ("import sys; sys.exit('a word')", 1, ["a word"]),
        ("raise ValueError", 1, ["ValueError"]),
        ("raise KeyboardInterrupt", -signal.SIGINT, ["KeyboardInterrupt"]),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, []),
        ("import threading, time; threading.Thread(target=time.sleep, args=(0.1,)).start()", 0, []),
    ],
)
def test_it_ends_as_an_interpreter_does(code: str, ends: int, last: list[str]) -> None:
    done = warm.run([sys.executable, "-c", f"import atexit; atexit.register(print, 'end', flush=True); {code}"])
    assert done.returncode == ends
    assert done.stdout == ("" if ends == -signal.SIGKILL else "end\n")
    assert done.stderr.strip().splitlines()[-1:] == last


def test_it_can_be_waited_for_and_killed() -> None:
    process = warm.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    assert process.poll() is None
    with pytest.raises(warm.TimeoutExpired):
        process.wait(0.05)
    process.kill()
    assert process.wait(30) == -signal.SIGKILL == process.poll()


def test_libraries_that_read_variables_of_the_hub_are_imported_with_them() -> None:
    code = "from huggingface_hub import constants; print(constants.ENDPOINT)"
    other = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:1"}
    assert warm.run([sys.executable, "-c", code], env=other).stdout == "http://127.0.0.1:1\n"
    assert warm.run([sys.executable, "-c", code]).stdout == "https://huggingface.co\n"


def test_what_was_imported_is_there_and_nothing_of_this_project() -> None:
    code = "import sys; print('torch' in sys.modules, [name for name in sys.modules if name.startswith('hf_curate')])"
    assert warm.run([sys.executable, "-c", code]).stdout == "True []\n"


def test_a_command_of_another_hash_seed_is_a_new_interpreter() -> None:
    code = "import sys; print('torch' in sys.modules, hash('a'))"
    first, second = (
        warm.run([sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": "5"}).stdout for _ in range(2)
    )
    assert first == second
    assert first.startswith("False ")
