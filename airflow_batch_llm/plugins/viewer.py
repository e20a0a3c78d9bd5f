"""Who looks at the pages, and what Airflow's own permissions let them see and do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.core_api.security import GetUserDep
from airflow.models.dag import DagModel
from fastapi import Depends

from airflow_batch_llm.hooks.airflow_names import conf
from airflow_batch_llm.plugins.refusals import Refusal

LONGEST_NAME: Final = 128
"""Of a person, as the service keeps it."""
ANY_DAG: Final = "batch_llm:any-dag"
"""No Dag has this id. Only who may see every Dag may see it."""


@dataclass(frozen=True)
class Permission:
    """One of Airflow's permissions on a Dag, and what it is needed for here."""

    method: Literal["GET", "PUT"]
    entity: DagAccessEntity
    thing: str
    purpose: str


SEE: Final = Permission("GET", DagAccessEntity.TASK_INSTANCE, "task instances", "see batches")
READ: Final = Permission("GET", DagAccessEntity.XCOM, "XComs", "read rows and answers of batches")
ACT: Final = Permission("PUT", DagAccessEntity.TASK_INSTANCE, "task instances", "change batches")


class Viewer:
    """A user of Airflow. Every answer but the name may ask a database: for threads, not for the event loop."""

    def __init__(self, user: BaseUser) -> None:
        self._user = user

    @property
    def name(self) -> str:
        name = str(self._user.get_name() or self._user.get_id()).strip()
        return name[:LONGEST_NAME] or "?"

    def may(self, permission: Permission, dag_id: str | None) -> bool:
        """Whether they have it on that Dag, or on all Dags where none is named."""
        if dag_id is None:
            return all(self._may(permission, ANY_DAG, team) for team in _teams())
        return self._may(permission, dag_id, _team_of(dag_id))

    def check(self, permission: Permission, dag_id: str | None, what: str, *, no_dag: str) -> None:
        """Raises :class:`Refusal` where they may not. ``what`` says of which thing, as a sentence's beginning, and
        ``no_dag`` why it is of no Dag, as whole sentences. A Dag is named to those alone who may see it."""
        if self.may(permission, dag_id):
            return
        sees = dag_id is not None and self.may(SEE, dag_id)
        dags = "all Dags" if dag_id is None else f"the Dag {dag_id}" if sees else "its Dag"
        why = f" {no_dag}" if dag_id is None else ""
        raise Refusal(
            403,
            "forbidden",
            f"{what}: {self.name} may not {permission.purpose} there. That needs Airflow's permission "
            f"{permission.method} on {permission.thing} of {dags}.{why} Nothing was done.",
        )

    def check_somewhere(self) -> None:
        """Raises :class:`Refusal` where they may see the batches of no Dag, so that they learn of no batch."""
        if not self.may_somewhere(SEE):
            raise self._sees_nothing()

    def visible_dag_ids(self) -> set[str] | None:
        """The Dags whose batches they see, which are those that Airflow's own lists of task instances show them; None
        for all that there are. Raises :class:`Refusal` where there are none."""
        if self.may(SEE, None):
            return None
        visible = self._dag_ids(SEE)
        if not visible:
            raise self._sees_nothing()
        return visible

    def may_somewhere(self, permission: Permission) -> bool:
        return self.may(permission, None) or bool(self._dag_ids(permission))

    def _sees_nothing(self) -> Refusal:
        return Refusal(
            403,
            "forbidden",
            f"{self.name} may not see the batches of any Dag. That needs Airflow's permission {SEE.method} on "
            f"{SEE.thing} of a Dag. Nothing was done.",
        )

    def _dag_ids(self, permission: Permission) -> set[str]:
        if not self._may(permission, None, None):
            return set()
        return set(get_auth_manager().get_authorized_dag_ids(user=self._user, method=permission.method))

    def _may(self, permission: Permission, dag_id: str | None, team: str | None) -> bool:
        allowed: bool = get_auth_manager().is_authorized_dag(
            method=permission.method,
            access_entity=permission.entity,
            details=DagDetails(id=dag_id, team_name=team),
            user=self._user,
        )
        return allowed


def _team_of(dag_id: str) -> str | None:
    team: str | None = DagModel.get_team_name(dag_id) if _has_teams() else None
    return team


def _teams() -> set[str | None]:
    """What a Dag may belong to: none of Airflow's teams, and each one where Airflow has teams."""
    if not _has_teams():
        return {None}
    from airflow.models.team import Team

    return {None, *Team.get_all_team_names()}


def _has_teams() -> bool:
    return bool(conf.getboolean("core", "multi_team", fallback=False))


def viewer(user: GetUserDep) -> Viewer:
    """Whom Airflow takes the request's cookie or token for; it refuses a request without. (A function: the FastAPI of
    Airflow 3.1 would take the annotation of a class for a parameter of the query.)"""
    return Viewer(user)


ViewerDep = Annotated[Viewer, Depends(viewer)]


def seeing_viewer(viewer: ViewerDep) -> Viewer:
    """One who may see the batches of some Dag at least; who may see none is refused before anything is looked up."""
    viewer.check_somewhere()
    return viewer


SeeingViewerDep = Annotated[Viewer, Depends(seeing_viewer)]
