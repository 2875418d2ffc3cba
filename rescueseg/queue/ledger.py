"""The campaign lock and the ledger of generations: what is due is counted here, under a lock."""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta

import psutil
import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from rescueseg.errors import QueueError, StorageError
from rescueseg.queue.database import Database
from rescueseg.queue.execute import Clock
from rescueseg.queue.records import GenerationRow
from rescueseg.queue.tables import generations, locks, tickets


class Lock:
    """A named lock of the database that this process holds.

    Parameters
    ----------
    name : str
        Name of the lock.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.lost = threading.Event()
        """Set when the lock could not be renewed and another may have it."""

    def check(self) -> None:
        """Raise if the lock was lost; call before writing what the lock protects.

        Raises
        ------
        QueueError
            If another process may hold the lock by now.
        """
        if self.lost.is_set():
            raise QueueError(
                "the lock was lost: the database was out of reach for longer than the lock lasts",
                where=self.name,
                todo="Run again",
            )


class Ledger:
    """Locks and generations of one campaign.

    Parameters
    ----------
    database : Database
        The queue's.
    clock : callable
        Returns the time in UTC.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    # locks --------------------------------------------------------------------------------------------------------

    @contextmanager
    def lock(self, name: str, owner: str, ttl_seconds: float = 60.0) -> Iterator[Lock]:
        """Hold a named lock; a thread renews it while the block runs.

        Parameters
        ----------
        name : str
            What is locked.
        owner : str
            Who locks, for people.
        ttl_seconds : float
            How long the lock outlasts a killed holder on another machine. A holder that was killed on this machine is
            noticed at once.

        Raises
        ------
        QueueError
            If somebody else holds it.
        """
        token = uuid.uuid4().hex
        self._acquire_lock(name, owner, token, ttl_seconds)
        lock, stop = Lock(name), threading.Event()
        renewer = threading.Thread(
            target=self._renew_lock, args=(lock, token, ttl_seconds, stop), name=f"lock-{name}", daemon=True
        )
        renewer.start()
        try:
            yield lock
        finally:
            stop.set()
            renewer.join()
            # where the database is out of reach, the lock expires by itself
            with suppress(StorageError), self._database.write() as connection:
                connection.execute(sa.delete(locks).where(locks.c.name == name, locks.c.token == token))

    def _acquire_lock(self, name: str, owner: str, token: str, ttl_seconds: float) -> None:
        now = self._clock()
        process = psutil.Process()
        values = {
            "owner": owner,
            "token": token,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": process.create_time(),
            "acquired_at": now,
            "expires_at": now + timedelta(seconds=ttl_seconds),
        }
        with self._database.write() as connection:
            if connection.execute(self._database.insert_if_new(locks).values(name=name, **values)).rowcount:
                return
            query = sa.select(locks).where(locks.c.name == name)
            holder = connection.execute(query.with_for_update()).mappings().first()
            if holder is None:
                raise QueueError("the lock was given up just now", where=name, todo="Run again")
            if holder["expires_at"] > now and not _is_dead(holder):
                raise QueueError(_held_by(holder), where=name, todo="Wait until it has finished")
            connection.execute(sa.update(locks).where(locks.c.name == name).values(**values))

    def _renew_lock(self, lock: Lock, token: str, ttl_seconds: float, stop: threading.Event) -> None:
        mine = (locks.c.name == lock.name, locks.c.token == token)
        expires_at = self._clock() + timedelta(seconds=ttl_seconds)
        lost = True  # whatever ends this thread but `stop`, nobody renews the lock any more
        try:
            while not stop.wait(ttl_seconds / 4):
                until = self._clock() + timedelta(seconds=ttl_seconds)
                try:
                    with self._database.write() as connection:
                        renewal = connection.execute(sa.update(locks).where(*mine).values(expires_at=until))
                except StorageError:
                    if self._clock() < expires_at:
                        continue
                    return
                if not renewal.rowcount:
                    return
                expires_at = until
            lost = False
        finally:
            if lost:
                lock.lost.set()

    # generations --------------------------------------------------------------------------------------------------

    def begin_generation(self, generation: int, accepted_count: int) -> GenerationRow:
        """Write down that a generation has begun; again returns the row as first written.

        Parameters
        ----------
        generation : int
            Its number: the last one, or the next.
        accepted_count : int
            Accepted pool patches in its snapshot.

        Raises
        ------
        QueueError
            If the generation before has not finished, or a number was left out.
        """
        with self._database.write() as connection:
            existing = self._generation(connection, generation)
            if existing is not None:
                return existing
            last = self._last(connection)
            expected = 0 if last is None else last.generation + 1
            if generation != expected or (last is not None and last.finished_at is None):
                unfinished = last is not None and last.finished_at is None
                raise QueueError(
                    f"generation {generation} cannot begin: "
                    + (f"generation {expected - 1} has not finished" if unfinished else f"{expected} is next"),
                    where=self._database.where,
                    todo="Run the generation that is due",
                )
            connection.execute(
                self._database.insert_if_new(generations).values(
                    generation=generation, accepted_count=accepted_count, begun_at=self._clock()
                )
            )
            row = self._generation(connection, generation)
            if row is None:
                raise QueueError(f"generation {generation} could not be written", todo="Run again")
            return row

    def count_accepted(self, generation: int, accepted_count: int) -> None:
        """Write down how many accepted patches the generation's snapshot holds: some may have come in after it began."""
        with self._database.write() as connection:
            connection.execute(
                sa.update(generations)
                .where(generations.c.generation == generation)
                .values(accepted_count=accepted_count)
            )

    def finish_generation(self, generation: int) -> GenerationRow:
        """Write down that a generation has finished; again changes nothing.

        Raises
        ------
        QueueError
            If it has not begun.
        """
        with self._database.write() as connection:
            connection.execute(
                sa.update(generations)
                .where(generations.c.generation == generation, generations.c.finished_at.is_(None))
                .values(finished_at=self._clock())
            )
            row = self._generation(connection, generation)
        if row is None:
            raise QueueError(f"generation {generation} has not begun", todo="Begin it first")
        return row

    def last_generation(self) -> GenerationRow | None:
        """Return the latest generation begun, None before the first."""
        with self._database.read() as connection:
            return self._last(connection)

    def accepted_since_last_generation(self) -> int:
        """Count the accepted pool patches that no generation has counted yet."""
        accepted = sa.select(sa.func.count()).where(tickets.c.status == "accepted", tickets.c.purpose == "pool")
        with self._database.read() as connection:
            last = self._last(connection)
            total = int(connection.execute(accepted.select_from(tickets)).scalar_one())
        return total - (last.accepted_count if last else 0)

    def _generation(self, connection: Connection, generation: int) -> GenerationRow | None:
        query = sa.select(generations).where(generations.c.generation == generation)
        row = connection.execute(query).mappings().first()
        return GenerationRow(**row) if row else None

    def _last(self, connection: Connection) -> GenerationRow | None:
        query = sa.select(generations).order_by(generations.c.generation.desc()).limit(1)
        row = connection.execute(query).mappings().first()
        return GenerationRow(**row) if row else None


def running_locks(connection: Connection, now: datetime) -> list[str]:
    """Return a sentence for each lock that a living process holds."""
    holders = connection.execute(sa.select(locks).where(locks.c.expires_at > now)).mappings()
    return [_held_by(holder) for holder in holders if not _is_dead(holder)]


def _held_by(holder: RowMapping) -> str:
    return (
        f"'{holder['owner']}' (process {holder['pid']} on {holder['host']}) holds the lock since "
        f"{holder['acquired_at']:%Y-%m-%d %H:%M:%S} UTC"
    )


def _is_dead(holder: RowMapping) -> bool:
    """Tell whether a lock's holder ran on this machine and runs no more."""
    if holder["host"] != socket.gethostname():
        return False
    try:
        return bool(abs(psutil.Process(holder["pid"]).create_time() - holder["started"]) > 1.0)
    except psutil.NoSuchProcess:
        return True
