"""Whether a request comes from our own page in Airflow.

The browser adds the cookie of a user to requests that any other site makes it send. So what is no mere look also has to
be JSON, carry a header that no form can, and name the page's own origin, which no page can feign.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from fastapi import Request

from airflow_batch_llm.hooks.page_address import base_url
from airflow_batch_llm.plugins.refusals import Refusal
from airflow_batch_llm.plugins.viewer import ViewerDep

PAGE_HEADER: Final = "X-Batch-LLM-Page"
_LOOKS: Final = frozenset({"GET", "HEAD"})


def only_from_own_page(request: Request, viewer: ViewerDep) -> None:
    """Raises :class:`Refusal` for a request of another site. (It asks for the user only to be asked after them.)"""
    if request.method in _LOOKS:
        return
    sent = request.headers.get("content-type", "")
    if sent.partition(";")[0].strip().lower() != "application/json":
        raise Refusal(
            415,
            "invalid_content_type",
            f"The body has the Content-Type {sent or '(none)'}, but it must be application/json. Nothing was done.",
        )
    if PAGE_HEADER not in request.headers:
        raise _not_own_page(f"it has no header {PAGE_HEADER}")
    _check_origin(request)


def _check_origin(request: Request) -> None:
    """By what the browser says, where it does; it does not over plain HTTP, where the origins are compared."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        if site != "same-origin":
            raise _not_own_page(f"the browser says that it is {site}")
        return
    origin = request.headers.get("origin")
    if origin is None:
        raise _not_own_page("it says neither Sec-Fetch-Site nor Origin")
    own = _own_origins(request)
    if origin not in own:
        known = " or ".join(sorted(own))
        raise _not_own_page(f"it comes from {origin}, and Airflow is at {known} (is [api] base_url right?)")


def _own_origins(request: Request) -> set[str]:
    """Airflow's address as it is set, and as this request has it; a proxy may have changed the latter."""
    named = urlsplit(base_url())
    own = {f"{named.scheme}://{named.netloc}"} if named.netloc else set()
    host = request.headers.get("host")
    return own | ({f"{request.url.scheme}://{host}"} if host else set())


def _not_own_page(why: str) -> Refusal:
    return Refusal(403, "not_own_page", f"This call is for Airflow's own pages only: {why}. Nothing was done.")
