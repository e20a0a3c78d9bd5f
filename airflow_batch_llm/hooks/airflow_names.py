"""What Airflow has moved since 3.1, under one name: the Task SDK took over what lay in Airflow's core."""

from __future__ import annotations

from typing import TYPE_CHECKING

try:
    from airflow.sdk.configuration import conf
    from airflow.sdk.exceptions import (
        AirflowException,
        AirflowFailException,
        AirflowSkipException,
        TaskDeferralError,
        TaskDeferralTimeout,
    )
    from airflow.sdk.plugins_manager import AirflowPlugin
except ImportError:  # before they were moved
    if not TYPE_CHECKING:
        from airflow.configuration import conf
        from airflow.exceptions import (
            AirflowException,
            AirflowFailException,
            AirflowSkipException,
            TaskDeferralError,
            TaskDeferralTimeout,
        )
        from airflow.plugins_manager import AirflowPlugin

__all__ = [
    "AirflowException",
    "AirflowFailException",
    "AirflowPlugin",
    "AirflowSkipException",
    "TaskDeferralError",
    "TaskDeferralTimeout",
    "conf",
]
