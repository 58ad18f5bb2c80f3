"""Answering in threads, so that the service goes on listening; what nobody waits for is stopped."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from serving.http.request_limits import ClientGoneError, Receive, RefusedError
from serving.predictor import Predictor

Result = TypeVar("Result")


async def run(
    pool: ThreadPoolExecutor,
    predictor: Predictor,
    work: Callable[[Predictor], Result],
    receive: Receive,
    seconds: float,
) -> Result:
    """Do `work` in a thread of the pool; end it when its time is over or the client has left.

    Args:
        pool: the threads.
        predictor: the model; `work` gets one that can be stopped by itself.
        work: the work; its network runs are what is stopped.
        receive: tells when the client leaves.
        seconds: how long it may take, waiting included.

    Raises:
        RefusedError: its time is over (504).
        ClientGoneError: nobody waits for the answer.
    """
    own = predictor.stoppable()
    done = asyncio.get_running_loop().run_in_executor(pool, work, own)
    gone = asyncio.ensure_future(_left(receive))
    ends: set[asyncio.Future[Any]] = {done, gone}
    try:
        await asyncio.wait(ends, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if done.done():
            return done.result()
        if gone.done():
            raise ClientGoneError
        raise RefusedError(
            504, f"there was no answer within {seconds:g} seconds; send fewer or smaller images"
        )
    finally:
        gone.cancel()
        if not done.done():  # also when the service is stopped
            own.stop()
            done.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
            done.cancel()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
