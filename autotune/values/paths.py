"""Where autotune keeps its files, and where the files it ships are found."""

import os
import warnings
from pathlib import Path

import platformdirs

from autotune.values.urls import looks_like_url, sqlite_file, without_secrets

Location = str | os.PathLike[str]
"""Of a database: a path, sqlite:///path or postgresql://user@host/name."""

_PACKAGE = Path(__file__).resolve().parents[1]

SET_VARIABLE = "AUTOTUNE_SET"
"""The environment variable that names the pulled set to read, so that all processes of a group read one."""


def shipped(name: str) -> Path:
    """Folder `name` (`csrc/cuda`, `migrations`, `db`) of a wheel, an editable install or a checkout."""
    installed = _PACKAGE / "_shipped" / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


def default_database() -> Path:
    """The user's own database file, in the platform's user data folder."""
    return Path(platformdirs.user_data_dir("autotune", appauthor=False)) / "autotune.db"


def database_url(db: Location | None = None) -> str:
    """The database in force: `db`, else AUTOTUNE_DB, else the user's own; a plain path means SQLite."""
    chosen = os.fsdecode(db or os.environ.get("AUTOTUNE_DB") or default_database())
    if looks_like_url(chosen):
        return chosen  # or a mistyped one; whoever opens it says so, by `why_no_database`
    try:
        return f"sqlite:///{Path(chosen).expanduser().absolute()}"
    except RuntimeError:  # there is no such user; whoever opens it says so, by `why_no_file`
        return f"sqlite:///{chosen}"


def sqlite_path(url: str) -> Path | None:
    """The file behind a SQLite URL, or None for another kind of database."""
    file = sqlite_file(url)
    return None if file is None else Path(file)


def shown(db: Location) -> str:
    """A database as messages, logs and advice show it: as it was given, without its secrets."""
    return without_secrets(os.fsdecode(db))


def why_no_file(path: Path) -> str | None:
    """Why there can be no file of this name, None when there can."""
    if "\0" in str(path):
        return "there is a NUL byte in its name"
    return "no such user has a home here" if str(path).startswith("~") else None


def config_folder() -> Path:
    """The user's keys and the list of those that are trusted, in the platform's configuration folder."""
    return Path(platformdirs.user_config_dir("autotune", appauthor=False))


def download_folder() -> Path:
    """Folder of downloads that have begun; AUTOTUNE_CACHE moves it."""
    return _cache() / "download"


def lock_folder() -> Path:
    """Folder of locks: the user's own, on this machine, and gone when it restarts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a user without such a folder, who gets one among temporary files
        return platformdirs.user_runtime_path("autotune", appauthor=False, ensure_exists=True)


def cubin_cache() -> Path:
    """Folder of compiled kernels, shared by every process of the user; AUTOTUNE_CACHE moves it."""
    return _cache() / "cubin"


def _cache() -> Path:
    base = os.environ.get("AUTOTUNE_CACHE") or platformdirs.user_cache_dir("autotune", appauthor=False)
    return Path(base)
