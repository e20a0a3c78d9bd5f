"""Users of Airflow with rights on single Dags, as an auth manager for teams gives them; its own simple one does not."""

from __future__ import annotations

from typing import Any, Final

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

EVERY_DAG: Final = "*"
_READS: Final = {("GET", None), ("GET", DagAccessEntity.TASK_INSTANCE), ("GET", DagAccessEntity.XCOM)}
_ACTS: Final = {("PUT", None), ("PUT", DagAccessEntity.TASK_INSTANCE)}
RIGHTS: Final[dict[str, dict[str, set[tuple[str, DagAccessEntity | None]]]]] = {
    "root": {EVERY_DAG: _READS | _ACTS},
    "auditor": {EVERY_DAG: _READS},
    "editor": {"reviews": _READS | _ACTS},
    "reader": {"reviews": _READS},
    "watcher": {"reviews": {("GET", None), ("GET", DagAccessEntity.TASK_INSTANCE)}},
    "analyst": {"reviews": _READS, "salaries": _READS},
    "stranger": {},
    "label_editor": {"labels": _READS | _ACTS},
    "label_reader": {"labels": _READS},
}
"""Who may do what on which Dag."""


class PerDagAuthManager(SimpleAuthManager):
    def is_authorized_dag(
        self,
        *,
        method: str,
        user: SimpleAuthManagerUser,
        access_entity: DagAccessEntity | None = None,
        details: DagDetails | None = None,
    ) -> bool:
        rights: dict[str, Any] = RIGHTS[user.username]
        dag_id = details.id if details else None
        held = (rights[dag] for dag in rights if dag_id is None or dag in (EVERY_DAG, dag_id))
        return any((method, access_entity) in each for each in held)
