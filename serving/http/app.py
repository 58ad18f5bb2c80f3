"""The HTTP service: `create_app` makes it from settings.  Never imports torch, pandas or MLflow.

`dermalyze serve` starts it; so does `uvicorn serving.app:create_app --factory`, which reads the
same settings from the environment (see `settings.py`) but without the bounds of a connection (see
`server.py`).
"""

import asyncio
import functools
import io
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from serving.base_predictor import PARAMS
from serving.errors import ImageError, RequestError
from serving.http import openapi
from serving.http.inference import run
from serving.http.load import Load
from serving.http.middleware import Envelope
from serving.http.model_holder import LoadedModel, examine, was_examined
from serving.http.model_info import VERSION, describe
from serving.http.multipart import read_photographs
from serving.http.prometheus import CONTENT_TYPE, MULTIPROCESS, Metrics
from serving.http.request_limits import BUSY, Bounds, ClientGoneError, RefusedError, error_body
from serving.http.requests import (
    REFUSALS,
    Asked,
    Item,
    Params,
    answers_for,
    facts_of_text,
    given_once,
    read_csv,
    read_json,
)
from serving.http.settings import ServiceSettings
from serving.machine import return_large_blocks
from serving.metadata import COLUMNS as METADATA_COLUMNS
from serving.metadata import Metadata
from serving.prediction_log import PredictionLog, entries_of
from serving.predictor import Predictor
from serving.preprocess import decode_image
from serving.session import share_cores
from serving.spec import ModelSpec

Result = TypeVar("Result")
_PAGE_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
}
_LOG_SECONDS = 5.0  # to write the end of the prediction log
_MANY = 1000  # images at once: `share_cores` then gives one thread to each


@dataclass
class Service:
    """What the requests share."""

    settings: ServiceSettings
    model: LoadedModel
    pool: ThreadPoolExecutor
    metrics: Metrics
    load: Load
    log: PredictionLog | None  # None: answers are not logged

    async def do(self, request: Request, work: Callable[[Predictor], Result]) -> Result:
        """Do `work` with the present model, within the time of a request."""
        seconds = self.settings.request_seconds
        predictor = self.model.predictor(alone=self.load.is_alone())
        return await run(self.pool, predictor, work, request.receive, seconds)

    async def answers(self, request: Request, read: Callable[[], Asked]) -> list[dict[str, Any]]:
        """Read a request and answer for its images, in the form of JSON.

        Reading is work as well: done in the loop, nobody else would be answered meanwhile.
        """
        bounds, start = self.settings, time.perf_counter()

        def work(predictor: Predictor) -> tuple[list[dict[str, Any]], ModelSpec]:
            answers = answers_for(
                predictor,
                *read(),
                max_images=bounds.max_images,
                max_pixels=bounds.max_pixels,
            )
            return answers, predictor.spec

        found, spec = await self.do(request, work)
        for answer in found:
            self.metrics.answered(answer)
        if self.log is not None:
            seconds = time.perf_counter() - start
            self.log.add(entries_of(found, spec, request.state.request_id, seconds))
        return found

    async def watch(self) -> None:
        """Look for a new model file for ever; the present one answers until it is loaded."""
        while True:
            await asyncio.sleep(self.settings.watch_seconds)
            if self.model.changed():
                ok = await asyncio.to_thread(self.model.reload)
                self.metrics.reloads.labels("ok" if ok else "refused").inc()
                self.metrics.begin(self.model.spec)


def create_app(settings: ServiceSettings | None = None) -> FastAPI:
    """Make the service.

    Args:
        settings: what it is told; None: the environment tells.

    Raises:
        ConfigError: a setting cannot be used.
        ArtifactError: the model cannot be used.
    """
    by_server = settings is None
    settings = settings or ServiceSettings.from_environment()
    if by_server and not was_examined(Path(settings.model)):
        examine(Path(settings.model), settings.load_seconds)
    return_large_blocks()
    metrics = Metrics()
    workers, _ = share_cores(_MANY, settings.threads)
    shared = os.environ.get(MULTIPROCESS)
    service = Service(
        settings,
        LoadedModel(Path(settings.model), num_threads=workers, load_seconds=settings.load_seconds),
        ThreadPoolExecutor(workers, thread_name_prefix="predict"),
        metrics,
        Load(metrics.in_flight.set, Path(shared) if shared else None),
        PredictionLog(
            settings.prediction_log, settings.prediction_log_bytes, metrics.lost_in_log.inc
        )
        if settings.prediction_log
        else None,
    )
    metrics.begin(service.model.spec)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(service.watch()) if settings.watch_seconds else None
        yield
        if watching is not None:
            service.model.give_up()
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
        service.pool.shutdown(wait=False, cancel_futures=True)
        if service.log is not None:
            await asyncio.to_thread(service.log.close, _LOG_SECONDS)

    # FastAPI's own pages of documentation would load scripts from another host.
    app = FastAPI(
        title="Dermalyze",
        version=VERSION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        root_path=settings.root_path,
        redirect_slashes=False,  # they would name our scheme, which is not that of a proxy
    )
    _add_routes(app, service)
    document = functools.lru_cache(maxsize=1)(functools.partial(openapi.document, app))
    app.openapi = lambda: document(service.model.spec)  # type: ignore[method-assign]
    _add_head(app)
    open_paths = [*_add_page(app), str(app.openapi_url)]
    _add_errors(app)
    app.add_middleware(Bounds, settings=settings, load=service.load, routes=app.routes)
    app.add_middleware(
        Envelope,
        settings=settings,
        routes=app.routes,
        open_paths=open_paths,
        observe=service.metrics.observe,
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-api-key", "x-request-id"],
            expose_headers=["x-request-id", "retry-after"],
        )
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    @app.post(
        "/predict",
        summary="Classify one or several photographs",
        responses=openapi.POST_ERRORS,
        response_model=openapi.Predictions,
    )
    async def predict(request: Request) -> Response:
        body, kind = await request.body(), request.headers.get("content-type", "")

        def read() -> Asked:
            photographs, fields = read_photographs(body, kind)
            query = request.query_params.multi_items()
            values = given_once(query, fields, (*PARAMS, *METADATA_COLUMNS))
            facts = facts_of_text(values)
            return [Item(data, facts) for data in photographs], Params.of_text(values)

        return _json({"predictions": await service.answers(request, read)})

    @app.post(
        "/explain",
        summary="Return a PNG with the photograph, the map of a class over it, and an explanation",
        response_class=Response,
        responses={
            200: {"content": {"image/png": {}}, "description": "a picture"},
            **openapi.POST_ERRORS,
        },
    )
    async def explain(request: Request) -> Response:
        body, kind = await request.body(), request.headers.get("content-type", "")

        def draw(predictor: Predictor) -> bytes:
            photographs, fields = read_photographs(body, kind)
            query = request.query_params.multi_items()
            values = given_once(query, fields, ("class_name", *METADATA_COLUMNS))
            if len(photographs) != 1:
                raise RequestError(f"a map needs exactly one image, got {len(photographs)}")
            image = decode_image(photographs[0], max_pixels=service.settings.max_pixels)
            facts, class_name = facts_of_text(values), values.get("class_name", "")
            metadata = Metadata.of(facts) if facts else None
            shown = predictor.explain(image, class_name=class_name, metadata=metadata)
            file = io.BytesIO()
            shown.page().save(file, "PNG")
            return file.getvalue()

        return Response(await service.do(request, draw), media_type="image/png")

    @app.post(
        "/invocations",
        summary="Same API as `mlflow models serve`",
        responses=openapi.POST_ERRORS,
        response_model=openapi.Predictions,
    )
    async def invocations(request: Request) -> Response:
        read = _reader(request.headers.get("content-type", ""))
        body, max_images = await request.body(), service.settings.max_images
        try:
            if request.query_params:
                raise RequestError("this path takes no query; send params in the JSON")
            answers = await service.answers(request, lambda: read(body, max_images=max_images))
        except REFUSALS as error:  # MLflow's server has no other word for it
            raise RefusedError(400, str(error)) from error
        return _json({"predictions": answers})

    @app.get("/health", summary="Whether the process is running")
    async def health() -> Response:
        return _json({"status": "ok"})

    @app.get("/ready", summary="Whether the service can accept a request")
    async def ready(request: Request) -> Response:
        if getattr(request.state, "ending", False):  # `dermalyze serve` after SIGTERM
            raise RefusedError(503, "the service is shutting down; try another one")
        if service.load.in_flight >= service.settings.max_in_flight:
            raise RefusedError(*BUSY)
        return _json({"status": "ready"})

    @app.get("/version", summary="Version of the program, the model and its features")
    async def version() -> Response:
        return _json(describe(service.model.spec))

    @app.get("/metrics", summary="Counts for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.text(service.model.spec), media_type=CONTENT_TYPE)


def _add_head(app: FastAPI) -> None:
    """Let each route that answers GET answer HEAD as well, with the same headers and no body."""
    for route in app.routes[:]:
        if isinstance(route, APIRoute) and route.methods == {"GET"}:
            endpoint = route.endpoint
            app.add_api_route(route.path, endpoint, methods=["HEAD"], include_in_schema=False)


def _json(value: Any) -> Response:
    return Response(json.dumps(value), media_type="application/json")


def _reader(content_type: str) -> Callable[..., Asked]:
    """Return what reads a body of `/invocations`.

    Raises:
        RefusedError: its type is another (415).
    """
    kind, *parameters = (part.strip().lower() for part in content_type.split(";"))
    readers = {"application/json": read_json, "text/csv": read_csv}
    if kind not in readers or not set(parameters) <= {"", "charset=utf-8", 'charset="utf-8"'}:
        raise RefusedError(415, "the content type must be application/json or text/csv, in UTF-8")
    return readers[kind]


def _add_page(app: FastAPI) -> list[str]:
    """Serve the files of the page, and no others, from memory; return their paths."""

    def give(content: bytes, kind: str) -> Callable[[], Awaitable[Response]]:
        async def answer() -> Response:
            return Response(content, media_type=kind, headers={"cache-control": "no-cache"})

        return answer

    paths: list[str] = []
    for file in (resources.files("serving.http") / "static").iterdir():
        kind = _PAGE_TYPES.get(Path(file.name).suffix)
        if kind is None:
            continue
        answer = give(file.read_bytes(), kind)
        for path in ("/", "/index.html") if file.name == "index.html" else (f"/{file.name}",):
            app.add_api_route(path, answer, methods=["GET", "HEAD"], include_in_schema=False)
            paths.append(path)
    return paths


def _add_errors(app: FastAPI) -> None:
    """Answer whatever goes wrong with one sentence."""

    def answer(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
        return Response(
            error_body(status, sentence), status, headers, media_type="application/json"
        )

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, RefusedError)
        return answer(error.status, error.sentence, error.headers)

    async def unfit(_: Request, error: Exception) -> Response:
        return answer(400 if isinstance(error, (ImageError, RequestError)) else 422, str(error))

    async def gone(_: Request, error: Exception) -> Response:
        return Response(status_code=499)  # never arrives; it is for the log and the counts

    async def other(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        sentence = {
            404: "there is nothing at this path",
            405: "this path takes another method",
        }.get(error.status_code, "the request cannot be answered")
        document = f"{request.scope.get('root_path', '')}{app.openapi_url}"
        return answer(error.status_code, f"{sentence}; see {document}", error.headers)

    app.add_exception_handler(RefusedError, refused)
    app.add_exception_handler(ClientGoneError, gone)
    app.add_exception_handler(HTTPException, other)
    for kind in REFUSALS:
        app.add_exception_handler(kind, unfit)
