"""Where autotune keeps its files, and where the files it ships are found."""

import os
import warnings
from pathlib import Path

import platformdirs

_PACKAGE = Path(__file__).resolve().parent


def shipped(name: str) -> Path:
    """Folder `name` (`csrc/cuda`, `migrations`, `db`) of a wheel, an editable install or a checkout."""
    installed = _PACKAGE / "_shipped" / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


def default_database() -> Path:
    """The user's own database file, in the platform's user data folder."""
    return Path(platformdirs.user_data_dir("autotune", appauthor=False)) / "autotune.db"


def database_url(url: str | None = None) -> str:
    """The database in force: `url`, else AUTOTUNE_DB, else the user's own; a plain path means SQLite."""
    chosen = url or os.environ.get("AUTOTUNE_DB") or str(default_database())
    return chosen if "://" in chosen else f"sqlite:///{Path(chosen).expanduser().absolute()}"


def sqlite_path(url: str) -> Path | None:
    """The file behind a SQLite URL, or None for another kind of database."""
    prefix = "sqlite:///"
    return Path(url[len(prefix) :]) if url.startswith(prefix) else None


def lock_folder() -> Path:
    """Folder of locks: the user's own, on this machine, and gone when it restarts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a user without such a folder, who gets one among temporary files
        return platformdirs.user_runtime_path("autotune", appauthor=False, ensure_exists=True)


def cubin_cache() -> Path:
    """Folder of compiled kernels, shared by every process of the user; AUTOTUNE_CACHE moves it."""
    base = os.environ.get("AUTOTUNE_CACHE") or platformdirs.user_cache_dir("autotune", appauthor=False)
    return Path(base) / "cubin"
