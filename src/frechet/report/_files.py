"""Files that are either whole or absent.

`write_atomic` writes beside the target, waits until the data are on the disk, and renames: at every moment, a killed
process and a full disk included, the final name holds the old content or the new one, never a part. Every failure is an
`OSError` whose text is one sentence with the path, the reason and what to do; its `errno` is the original one.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PART = ".part"
PAGE = 1 << 20  # bytes; a page and its JSON take a third to two thirds of that

REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would exceed the size limit",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EIO: "the disk reports an error",
}
SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_atomic(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Replace the file `path` by `content` (text as UTF-8), or leave it as it was and raise `OSError`.

    A symbolic link keeps pointing where it points. The folder must exist (see `ensure_writable`).

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from frechet.report._files import write_atomic
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomic(Path(folder) / "a.txt", "one")
        ...     write_atomic(Path(folder) / "a.txt", "two")
        ...     [(f.name, f.read_text()) for f in Path(folder).iterdir()]
        [('a.txt', 'two')]
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise _failure(path, IsADirectoryError(errno.EISDIR, "it is not a regular file"))
    data = content.encode("utf-8") if isinstance(content, str) else content
    part = target.with_name(f".{target.name[:80]}.{os.getpid()}-{secrets.token_hex(4)}{PART}")
    try:
        _write_part(part, data)
        os.replace(part, target)
        _sync_folder(target.parent)
    except OSError as error:
        raise _failure(path, error) from error
    finally:
        part.unlink(missing_ok=True)  # gone already where the rename happened; runs on Ctrl-C too


def ensure_writable(folder: str | os.PathLike[str], names: Sequence[str] = ()) -> Path:
    """Return `folder`, created with its parents where missing, after a file as large as a page was written in it.

    `names` are the files that will be written there: each must be absent or a regular file whose folder takes files.
    Raises `OSError` with one sentence where that fails, so that a run learns it before it measures for minutes.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # the name is taken by a file
        raise _failure(folder, NotADirectoryError(errno.ENOTDIR, "it is a file, not a folder")) from error
    except OSError as error:
        raise _failure(folder, error) from error
    _probe(folder, folder)
    for name in names:
        path = folder / name
        target = Path(os.path.realpath(path))
        if target.exists() and not target.is_file():
            raise _failure(path, IsADirectoryError(errno.EISDIR, "it is not a regular file"))
        if target.parent != Path(os.path.realpath(folder)):  # a symbolic link leads elsewhere
            _probe(target.parent, path)
    return folder


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other reports out of `folder` while the body runs; remove what a killed run left half-written there.

    The lock is the operating system's, on the folder itself: no file is made, and a killed process holds nothing. Where
    folders cannot be locked (Windows, some network file systems) nothing is locked; names of half-written files are
    each process's own there too.
    """
    descriptor = _lock(folder)
    try:
        if descriptor is not None:  # nobody else writes here: what is half-written belongs to no process
            for part in folder.glob(f".*{PART}"):
                part.unlink(missing_ok=True)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(folder: Path) -> int | None:
    try:
        import fcntl
    except ImportError:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise OSError(
            f"another report is being made in {folder}; wait until it has finished, or choose another folder with --out"
        ) from None
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _probe(folder: Path, told: Path) -> None:
    """Write and remove a file of `PAGE` bytes in `folder`; `told` is the path that a failure names."""
    probe = folder / f".writable.{os.getpid()}-{secrets.token_hex(4)}{PART}"
    try:
        try:
            _write_part(probe, bytes(PAGE))
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise _failure(told, error) from error


def _write_part(path: Path, data: bytes) -> None:
    """Write `data` to the new file `path`; a process killed in the middle leaves nothing, where the system can do that.

    Linux makes files without a name, which vanish with the process; `path` becomes its name once all is on the disk.
    """
    unnamed = getattr(os, "O_TMPFILE", None)
    if unnamed is not None:
        try:
            descriptor = os.open(path.parent, os.O_WRONLY | unnamed, 0o666)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL):
                raise
        else:
            with open(descriptor, "wb") as file:
                _synced(file, data)
                try:
                    # a folder's descriptor makes it the call that follows the link, and not one that links the link
                    os.link(f"/proc/self/fd/{file.fileno()}", path, src_dir_fd=file.fileno(), follow_symlinks=True)
                    return
                except OSError as error:
                    if error.errno not in (errno.ENOENT, errno.EXDEV, errno.EPERM):  # no /proc, or not for us
                        raise
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
        _synced(file, data)


def _synced(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where a folder can be opened (not on Windows)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot; the file is whole
            raise
    finally:
        os.close(descriptor)


def _failure(path: str | os.PathLike[str], error: OSError) -> OSError:
    reason = REASONS.get(error.errno or 0) or error.strerror or str(error)
    advice = "free some space or choose" if error.errno in SPACE else "choose"
    failure = OSError(f"cannot write {os.fspath(path)}: {reason}; {advice} another output folder")
    failure.errno = error.errno
    return failure
