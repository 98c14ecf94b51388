"""DAG search (DTMTL): one central network whose states form a DAG, with a sub-DAG for every task. See `method`."""

from methods.dag_search.method import DagSearch

__all__ = ["DagSearch"]
