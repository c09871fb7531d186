"""Serve a Hub by hand until Ctrl-C."""

from __future__ import annotations

import argparse
import signal
import threading

from .accounts import USERS
from .server import LoopbackHub


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hub.loopback", description=__doc__)
    parser.add_argument("--port", type=int, default=8765, help="0 takes a free one (default: 8765)")
    parser.add_argument("--folder", help="keeps the repositories (default: a temporary folder, removed at the end)")
    parser.add_argument("--page-size", type=int, default=1000, help="entries per page of a listing (default: 1000)")
    parser.add_argument("--user", choices=sorted(USERS), default="alice", help="whose token is printed")
    options = parser.parse_args()
    for end in (signal.SIGINT, signal.SIGTERM):  # shells start background jobs with SIGINT ignored
        signal.signal(end, signal.default_int_handler)
    try:
        hub = LoopbackHub(options.folder, page_size=options.page_size, port=options.port)
    except OSError as error:
        parser.exit(1, f"Cannot listen on 127.0.0.1:{options.port} ({error.strerror}): choose another --port, or 0\n")
    with hub:
        print(f"A loopback Hub in {hub.folder}, user {options.user}. Paste this into another shell:\n", flush=True)
        print(f"export HF_ENDPOINT={hub.url}")
        print(f"export HF_TOKEN={USERS[options.user]['token']}")
        print("export HF_HUB_DISABLE_XET=1", flush=True)
        print("\nCtrl-C ends it.", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    main()
