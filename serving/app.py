"""`uvicorn serving.app:create_app --factory`: the address of the service that users know."""

from serving.http.app import create_app

__all__ = ["create_app"]
