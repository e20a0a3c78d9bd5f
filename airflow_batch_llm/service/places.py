"""Which local places the service may read and write: what lies below its data roots, symbolic links resolved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from airflow_batch_llm.errors import InvalidRequestError


@dataclass(frozen=True)
class Places:
    """The data roots, resolved. A relative place starts at the first one."""

    roots: tuple[Path, ...]

    def resolve(self, uri: str, *, param: str) -> Path:
        """The local path that ``uri`` means. Raises :class:`InvalidRequestError` where it may not be used."""
        try:
            real = (self.roots[0] / _local_part(uri, param)).resolve()
            real.is_dir()
        except (OSError, RuntimeError, ValueError) as error:  # too long, a loop of links, no URI at all
            raise InvalidRequestError(
                f"The {param.rpartition('.')[2]} {uri[:200]!r} is not a usable place: "
                f"{getattr(error, 'strerror', None) or error}. Nothing was submitted.",
                code="place_not_supported",
                param=param,
            ) from error
        if not any(real.is_relative_to(root) for root in self.roots):
            allowed = ", ".join(str(root) for root in self.roots)
            raise InvalidRequestError(
                f"The {param.rpartition('.')[2]} {uri!r} means {real}, which lies outside the data root ({allowed}). "
                "Nothing was submitted. Move the table there, or start the service with another --data-root.",
                code="place_not_allowed",
                param=param,
            )
        return real


def _local_part(uri: str, param: str) -> str:
    split = urlsplit(uri)
    if split.scheme == "":
        if "\0" not in uri:
            return uri
    elif split.scheme == "file" and split.netloc in ("", "localhost") and "%00" not in uri:
        return unquote(split.path)
    raise InvalidRequestError(
        f"The {param.rpartition('.')[2]} {uri!r} is neither a local path nor a file:// URI. Nothing was submitted.",
        code="place_not_supported",
        param=param,
    )
