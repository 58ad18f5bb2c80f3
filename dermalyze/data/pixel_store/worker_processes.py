"""Worker processes that decode images into rows of one file.

Each is a fresh `python -c`, spoken to through pipes: unlike `multiprocessing` it never imports the
caller's main module, so it works from a notebook, from standard input and from a script without an
`if __name__ == "__main__"`; unlike a fork it takes nothing over from torch's threads.  It ends when
its pipe does, so no end of this process leaves one behind.
"""

import json
import os
import queue
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from dermalyze.data.pixel_store.decoder import Target
from serving import errors
from serving.errors import DataError

# The same path as here, however it came about.  A Ctrl-C at the terminal reaches the whole group.
_CODE = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from dermalyze.data.pixel_store.decoder import work; work()"
)
_ENVIRONMENT = {
    # A worker is one thread: numpy's own would only take time to start, and memory.
    **dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    # Keep the memory of one image for the next: asking the system anew takes a tenth of the time.
    "PILLOW_BLOCKS_MAX": "32",  # of 16 MB
    **dict.fromkeys(("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), "1000000000"),  # bytes
}
_ADVICE = "run it again, if needed with --workers 1 (in training: training.num_workers)"

Job = tuple[int, str, str, str]  # row, image id, path, member of the zip or nothing
Worker = subprocess.Popen[bytes]


def decode_in_processes(
    chunks: Iterable[list[Job]], target: Target, num_workers: int
) -> Generator[list[bytes]]:
    """Yield the answers of `decoding.work` to each chunk, in order.

    At most two chunks a worker are under way; a worker holds one image at a time.

    Raises:
        DataError: a process cannot be started, or ends before its time.
    """
    workers: list[Worker] = []
    idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="decode")

    def ask_idle(jobs: list[Job]) -> list[bytes]:
        worker = idle.get()
        try:
            return _ask(worker, jobs)
        finally:
            idle.put(worker)

    waiting: deque[Future[list[bytes]]] = deque()
    try:
        for _ in range(num_workers):
            workers.append(_start(target))
            idle.put(workers[-1])
        for jobs in chunks:
            waiting.append(pool.submit(ask_idle, jobs))
            if len(waiting) == 2 * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # an error or Ctrl-C as well: what is under way is dropped
        for worker in workers:
            worker.kill()
        pool.shutdown(wait=True, cancel_futures=True)
        for worker in workers:
            with worker:
                pass


def _start(target: Target) -> Worker:
    roots = [str(Path(__file__).parents[3]), str(Path(str(errors.__file__)).parents[1])]
    path = json.dumps([entry for entry in sys.path if entry] + roots)
    try:
        worker = subprocess.Popen(
            [sys.executable, "-P", "-c", _CODE, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, **_ENVIRONMENT},
        )
    except OSError as error:
        reason = (error.strerror or "unknown reason").lower()
        raise DataError(f"cannot start a process to decode images: {reason}; {_ADVICE}") from error
    _send(worker, asdict(target))
    return worker


def _send(worker: Worker, message: object) -> None:
    assert worker.stdin is not None
    data = memoryview(json.dumps(message).encode() + b"\n")
    try:
        while data:
            data = data[worker.stdin.write(data) :]
    except BrokenPipeError as error:
        raise _ended(worker) from error


def _ask(worker: Worker, jobs: list[Job]) -> list[bytes]:
    """Return one line for each job."""
    assert worker.stdout is not None
    _send(worker, jobs)
    answer = b""
    while answer.count(b"\n") < len(jobs):
        if not (part := worker.stdout.read(1 << 20)):
            raise _ended(worker)
        answer += part
    return answer.splitlines(keepends=True)


def _ended(worker: Worker) -> DataError:
    code = worker.wait()
    how = f"ended with status {code}"
    if code < 0:
        how = f"was killed ({signal.Signals(-code).name}), perhaps for lack of memory"
    return DataError(
        f"a process that decodes images {how}; {_ADVICE}: finished images are not decoded again"
    )
