"""Which places a team may read and write: what lies below its data roots, symbolic links resolved.

A link that leads out is found out at each use, not only at submit: see :class:`LocalTree`, which every access goes
through.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote, urlsplit

from airflow_batch_llm.errors import InvalidRequestError
from airflow_batch_llm.settings import ServiceSettings
from airflow_batch_llm.storage import BUCKET, S3, bucket_and_prefix
from airflow_batch_llm.storage.local_tree import LocalTree
from airflow_batch_llm.storage.s3_tree import S3Tree
from airflow_batch_llm.storage.tree import Tree


@dataclass(frozen=True)
class Places:
    """The data roots: local folders, resolved, and prefixes of S3. A relative place starts at the first folder."""

    roots: tuple[Path, ...]
    prefixes: tuple[str, ...] = ()
    """``s3://bucket`` or ``s3://bucket/some/folder``."""

    def __post_init__(self) -> None:
        """Raises :class:`InvalidRequestError` for a prefix without a bucket: every bucket would be below it."""
        for prefix in self.prefixes:
            bucket_and_prefix(prefix, option="The data root")

    @cached_property
    def local(self) -> LocalTree:
        return LocalTree(self.roots)

    @cached_property
    def s3(self) -> S3Tree:
        return S3Tree()

    def tree(self, uri: str) -> Tree:
        """What reads and writes at a resolved place."""
        return self.s3 if uri.startswith(S3) else self.local

    def have(self, uri: str) -> bool:
        """Whether a place that was resolved once may still be used, as far as that can be told without a look at it.

        The service may have been started with other places since. Of a local one its tree tells when it is opened.
        """
        return self._is_below_prefix(uri) if uri.startswith(S3) else bool(self.roots)

    def _is_below_prefix(self, uri: str) -> bool:
        return any(uri == prefix or f"{uri}/".startswith(f"{prefix.rstrip('/')}/") for prefix in self.prefixes)

    def resolve(self, uri: str, *, param: str) -> str:
        """The place as an absolute path or ``s3://`` URI, with a ``/`` at its end only if it was said so.

        Raises :class:`InvalidRequestError` where it may not be used.
        """
        return self._in_bucket(uri, param) if uri.startswith(S3) else self._on_disk(uri, param)

    def _on_disk(self, uri: str, param: str) -> str:
        if not self.roots:
            raise _refused(f"{uri!r} is a local place, and this service has no local data root", param, allowed=self)
        try:
            local = _local_part(uri, param)
            real = (self.roots[0] / local).resolve()
            inside = any(real.is_relative_to(root) for root in self.roots)
            if inside:  # of what lies outside nothing is told, not even whether it is there
                real.is_dir()
        except (OSError, RuntimeError, ValueError) as error:  # too long, a loop of links, no URI at all
            raise InvalidRequestError(
                f"The {param.rpartition('.')[2]} {uri[:200]!r} is not a usable place: "
                f"{getattr(error, 'strerror', None) or error}. Nothing was submitted.",
                code="place_not_supported",
                param=param,
            ) from error
        if not inside:
            raise _refused(f"{uri!r} lies outside the data root, or leads out of it", param, allowed=self)
        return f"{real}/" if local.endswith("/") and real != Path("/") else str(real)

    def _in_bucket(self, uri: str, param: str) -> str:
        bucket, _, key = uri.removeprefix(S3).partition("/")
        if not BUCKET.fullmatch(bucket) or "\0" in key or len(key.encode(errors="replace")) > 1_024:
            raise InvalidRequestError(
                f"The {param.rpartition('.')[2]} {uri[:200]!r} is not a usable place: it looks like "
                "s3://bucket/folder/file.parquet, with a key of at most 1,024 bytes. Nothing was submitted.",
                code="place_not_supported",
                param=param,
            )
        parts = key.split("/")
        if any(part in (".", "..") for part in parts) or "" in parts[:-1]:
            raise InvalidRequestError(
                f"The {param.rpartition('.')[2]} {uri!r} has an empty name, . or .. among its folders, which name "
                "nothing on S3. Nothing was submitted.",
                code="place_not_supported",
                param=param,
            )
        if not self._is_below_prefix(uri):
            raise _refused(f"{uri!r} lies outside the data roots", param, allowed=self)
        return uri


@dataclass(frozen=True)
class TeamPlaces:
    """The places of each team that a service was started with.

    Raises :class:`InvalidRequestError` where one of them cannot be a place.
    """

    settings: ServiceSettings

    def __post_init__(self) -> None:
        self.of("")

    def of(self, team: str) -> Places:
        """The team's own places; where it has none, those that all such teams share."""
        return self._known.get(team, self._shared)

    @cached_property
    def _shared(self) -> Places:
        return Places(tuple(root.resolve() for root in self.settings.data_roots), self.settings.data_prefixes)

    @cached_property
    def _known(self) -> dict[str, Places]:
        return {team: _places(roots) for team, roots in self.settings.team_roots.items()}


def _places(roots: Iterable[str]) -> Places:
    given = list(roots)
    local = tuple(Path(root).resolve() for root in given if not root.startswith(S3))
    return Places(local, tuple(root for root in given if root.startswith(S3)))


def _local_part(uri: str, param: str) -> str:
    split = urlsplit(uri)
    if split.scheme == "":
        if "\0" not in uri:
            return uri
    elif split.scheme == "file" and split.netloc in ("", "localhost") and "%00" not in uri:
        return unquote(split.path)
    raise InvalidRequestError(
        f"The {param.rpartition('.')[2]} {uri[:200]!r} is neither a local path nor a file:// or s3:// URI. "
        "Nothing was submitted.",
        code="place_not_supported",
        param=param,
    )


def _refused(what: str, param: str, *, allowed: Places) -> InvalidRequestError:
    roots = ", ".join([*(str(root) for root in allowed.roots), *allowed.prefixes])
    return InvalidRequestError(
        f"The {param.rpartition('.')[2]} {what} ({roots}). Nothing was submitted. Use a place there, or have the "
        "service started with another --data-root or --team-root.",
        code="place_not_allowed",
        param=param,
    )
