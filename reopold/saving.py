"""Writing checkpoints behind the training: one at a time, and waited for where it matters."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class SaveFailed(RuntimeError):
    """A checkpoint could not be written: the disk is full, or the folder is read-only."""


class Saver:
    """Runs one write at a time in a thread of its own.

    Whoever needs what is being written calls :meth:`wait`: the next checkpoint, the end of the run,
    a stop. A write that failed is raised there, or at the next :meth:`look`.
    """

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.under_way: Future[None] | None = None

    def submit(self, write: Callable[[], None]) -> None:
        """Start a write, after the one before."""
        self.wait()
        self.under_way = self.pool.submit(write)

    def look(self) -> None:
        """Raises SaveFailed if the last write has failed meanwhile; never waits."""
        if self.under_way is not None and self.under_way.done():
            self.wait()

    def wait(self) -> None:
        """Return once the last write is on disk.

        Raises:
            SaveFailed: it is not; what was there before is untouched.
        """
        write, self.under_way = self.under_way, None
        if write is None:
            return
        try:
            write.result()
        except OSError as error:
            reason = error.strerror or str(error)
            where = f" ({error.filename})" if error.filename else ""
            raise SaveFailed(
                f"a checkpoint could not be written: {reason}{where}; mend that and start the run "
                "again: it goes on from the checkpoint before"
            ) from error

    def close(self) -> None:
        self.pool.shutdown(wait=True)
