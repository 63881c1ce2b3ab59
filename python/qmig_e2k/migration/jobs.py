"""Jobs: what a QMP command has only begun, and `query-jobs` tells the end of (spec/control-plane 14.1).

They run one after the other, each in a thread of its own. A job that has ended stays until it is dismissed.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qmig_e2k.errors import MigrationError, begin, migration_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmig_e2k._core import Control

__all__ = ["Jobs"]

log = logging.getLogger(__name__)

_ID = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
_CLOSED = "the machine is closed"
_CANCELLED = "the job was cancelled"
_JOIN_POLL = 0.05
"""Seconds between attempts to end a job of a machine that is closed."""


@dataclass(slots=True)
class _Job:
    id: str
    type: str
    thread: threading.Thread
    cancel: Callable[[], object] | None
    status: str = "undefined"
    begun: bool = False
    cancelled: bool = False
    done: int = 0
    error: str | None = None

    def record(self) -> dict[str, Any]:
        """Its entry in the answer to `query-jobs`; all it does is one step."""
        made = {
            "id": self.id,
            "type": self.type,
            "status": self.status,
            "current-progress": self.done,
            "total-progress": 1,
        }
        return made if self.error is None else made | {"error": self.error}


class Jobs:
    """The jobs of one machine. Usable from any thread."""

    def __init__(self, control: Control) -> None:
        """`control` is told of every change (JOB_STATUS_CHANGE)."""
        self._control = control
        self._lock = threading.Lock()
        self._newest: threading.Thread | None = None
        self._jobs: dict[str, _Job] = {}
        self._closed = False

    def start(
        self, job_id: str, kind: str, work: Callable[[], object], cancel: Callable[[], object] | None = None
    ) -> None:
        """Begin `work`, whose MigrationError is the job's.

        Args:
            job_id: its name.
            kind: the QMP command that began it.
            work: called in the job's thread, when those before have ended.
            cancel: makes `work`, which has begun, fail soon; must not wait. None: nothing can.

        Raises:
            MigrationError: `invalid-argument` for a name that is taken or cannot be one; `invalid-state` once closed.
        """
        if not _ID.fullmatch(job_id):
            raise migration_error("invalid-argument", f"Invalid job ID '{job_id}'")
        with self._lock:
            if self._closed:
                raise migration_error("invalid-state", _CLOSED)
            if job_id in self._jobs:
                raise migration_error("invalid-argument", f"Job ID '{job_id}' already in use")
            arguments = (job_id, work, self._newest)
            thread = threading.Thread(target=self._run, args=arguments, name=f"job-{job_id}")
            job = _Job(job_id, kind, thread, cancel)
            begin(thread)  # waits for the lock
            self._newest = thread
            self._enter(job, "created")
            self._enter(job, "running")
            self._jobs[job_id] = job

    def query(self) -> list[dict[str, Any]]:
        """What `query-jobs` answers, the newest first."""
        with self._lock:
            return [job.record() for job in reversed(self._jobs.values())]

    def dismiss(self, job_id: str) -> None:
        """Forget a job that has ended. Raises MigrationError (`invalid-argument`, `invalid-state`)."""
        with self._lock:
            job = self._find(job_id, "dismiss", ended=True)
            del self._jobs[job_id]
            self._enter(job, "null")

    def cancel(self, job_id: str) -> None:
        """Ask for the end of a job, which then fails; one that waits for its turn never begins.

        Raises:
            MigrationError: `invalid-argument` if there is none; `invalid-state` if it has ended, or cannot be stopped.
        """
        with self._lock:
            job = self._find(job_id, "cancel", ended=False)
            if job.begun:
                if job.cancel is None:
                    text = f"Job '{job_id}' cannot be cancelled: {job.type} is not given up half-way"
                    raise migration_error("invalid-state", text)
                job.cancel()
            job.cancelled = True

    def _find(self, job_id: str, verb: str, *, ended: bool) -> _Job:
        job = self._jobs.get(job_id)
        if job is None:
            raise migration_error("invalid-argument", "Job not found")
        if (job.status == "concluded") != ended:
            text = f"Job '{job_id}' in state '{job.status}' cannot accept command verb '{verb}'"
            raise migration_error("invalid-state", text)
        return job

    def close(self, cancel: Callable[[], None]) -> None:
        """Begin no job any more, and wait for the end of all, which `cancel` brings closer. Idempotent."""
        with self._lock:
            self._closed = True
            threads = [job.thread for job in self._jobs.values()]
        for thread in threads:
            while thread.is_alive():
                cancel()
                thread.join(_JOIN_POLL)

    def _run(self, job_id: str, work: Callable[[], object], before: threading.Thread | None) -> None:
        with self._lock:
            job = self._jobs[job_id]
        error: str | None = None
        if before is not None:
            before.join()  # one after the other, in the order in which they were begun
        with self._lock:
            job.begun = True
            if self._closed or job.cancelled:
                error = _CLOSED if self._closed else _CANCELLED
        try:
            if error is None:
                work()
        except MigrationError as failure:
            error = str(failure)
        except Exception as failure:
            log.exception("job %s failed", job_id)
            error = f"{type(failure).__name__}: {failure}"
        with self._lock:
            job.done, job.error = 1, error
            for status in ("waiting", "pending") if error is None else ("aborting",):
                self._enter(job, status)
            self._enter(job, "concluded")

    def _enter(self, job: _Job, status: str) -> None:
        job.status = status
        self._control.emit("JOB_STATUS_CHANGE", json.dumps({"id": job.id, "status": status}))
