"""Messages between the process of a run and its workers: a length and so many bytes, and scorers as bytes.

A scorer of ours travels as the arguments that make it again, with the model pinned to its commit; weights never do.
Functions and classes of the user's script travel by value, so it needs no `if __name__ == "__main__":`.
"""

from __future__ import annotations

import io
import pickle
import struct
from typing import TYPE_CHECKING, Any, BinaryIO

from hf_curate.errors import CurateError

if TYPE_CHECKING:
    import pyarrow as pa

LENGTH = struct.Struct(">Q")


def packed(value: Any) -> bytes:
    """A scorer, or settings with functions in them, as bytes for a process on this machine. CurateError: it cannot
    travel."""
    from multiprocess.reduction import ForkingPickler  # type: ignore[import-untyped]

    sink = io.BytesIO()
    try:
        ForkingPickler(sink, recurse=True).dump(value)
    except CurateError:
        raise
    except Exception as error:  # pickling runs code of the scorer, which raises what it likes
        raise CurateError(
            f"the scorer cannot travel to a worker process ({type(error).__name__}: {error}): leave out what cannot "
            "be pickled (open files, locks, live models), or score with workers=1."
        ) from error
    return sink.getvalue()


def unpacked(data: bytes) -> Any:
    import dill  # type: ignore[import-untyped]

    return dill.loads(data)


def as_bytes(table: pa.Table) -> bytes:
    """A table as an Arrow stream."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


def as_table(data: bytes) -> pa.Table:
    import pyarrow as pa

    return pa.ipc.open_stream(data).read_all()


def send(stream: BinaryIO, kind: str, *values: Any) -> None:
    """One message. OSError: nobody is there to read it."""
    data = pickle.dumps((kind, values))
    stream.write(LENGTH.pack(len(data)) + data)
    stream.flush()


def receive(stream: BinaryIO) -> tuple[str, tuple[Any, ...]]:
    """The next message. EOFError: there will be none."""
    data = _exactly(stream, LENGTH.unpack(_exactly(stream, LENGTH.size))[0])
    return pickle.loads(data)


def _exactly(stream: BinaryIO, size: int) -> bytes:
    found = bytearray()
    while len(found) < size:
        more = stream.read(size - len(found))
        if not more:
            raise EOFError
        found += more
    return bytes(found)
