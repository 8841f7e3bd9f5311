"""Files that are either whole or absent.

`write_atomic` writes beside the target, waits until the data are on the disk, and renames: at every moment, a killed
process and a full disk included, the final name holds the old content or the new one, never a part. Every failure is an
`OSError` whose text is one sentence with the path, the reason and what to do; its `errno` is the original one.
"""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

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
        >>> from frechet.report.files import write_atomic
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
    part = target.with_name(f".{target.name[:80]}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        _write_synced(part, data)
        os.replace(part, target)
        _sync_folder(target.parent)
    except OSError as error:
        raise _failure(path, error) from error
    finally:
        part.unlink(missing_ok=True)  # gone already where the rename happened; runs on Ctrl-C too


def ensure_writable(folder: str | os.PathLike[str]) -> Path:
    """`folder`, created with its parents where missing, after a small file was written in it and removed again.

    Raises `OSError` with one sentence where that fails, so that a run learns it before it measures for minutes.
    """
    folder = Path(folder)
    probe = folder / f".writable.{os.getpid()}-{secrets.token_hex(4)}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            _write_synced(probe, b"frechet\n")
        finally:
            probe.unlink(missing_ok=True)
    except FileExistsError as error:  # mkdir: the name is taken by a file
        raise _failure(folder, NotADirectoryError(errno.ENOTDIR, "it is a file, not a folder")) from error
    except OSError as error:
        raise _failure(folder, error) from error
    return folder


def _write_synced(path: Path, data: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
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
