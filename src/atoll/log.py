"""Driver: where the messages of the loggers `atoll.*` go: warnings to the terminal, everything to the run's folder."""

import json
import logging
import sys
from contextlib import suppress
from pathlib import Path

from atoll.errors import SaveFailed


def setup(run: Path | None, debug: bool = False) -> None:
    """Send warnings to stderr in short lines and, given a run's folder, everything to its `log.jsonl`.

    `debug`: everything goes to stderr too, with tracebacks. May be called again; the last call holds. SaveFailed: no
    log can be written there.
    """
    logger = logging.getLogger("atoll")
    for handler in [h for h in logger.handlers if isinstance(h, _Terminal | _File)]:
        logger.removeHandler(handler)
        handler.close()
    logger.addHandler(_Terminal(debug))
    if run is not None:
        logger.addHandler(_File(run / "log.jsonl"))
    logger.setLevel(logging.DEBUG if debug or run is not None else logging.WARNING)


class _Terminal(logging.Handler):
    """Looks up `sys.stderr` for each line, as a live view may stand in its place for a while."""

    def __init__(self, debug: bool) -> None:
        super().__init__(logging.DEBUG if debug else logging.WARNING)
        self.setFormatter(_Line(with_traceback=debug))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
        except Exception:
            self.handleError(record)


class _File(logging.FileHandler):
    def __init__(self, path: Path) -> None:
        try:
            super().__init__(path, encoding="utf-8")
        except OSError as error:
            raise SaveFailed(f"can't write {path}: {error.strerror}; choose another folder") from error
        self.setFormatter(_Json())
        self._told = False

    def close(self) -> None:
        with suppress(OSError):  # for what has found no room
            super().close()

    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk is said once, and ends nothing."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._told:
            self._told = True
            sys.stderr.write(f"warning: can't write {self.baseFilename}: {error.strerror}; the log has gaps now\n")


class _Line(logging.Formatter):
    def __init__(self, with_traceback: bool) -> None:
        super().__init__()
        self._with_traceback = with_traceback

    def format(self, record: logging.LogRecord) -> str:
        line = f"{record.levelname.lower()}: {record.getMessage()}"
        if self._with_traceback and record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "t": record.created,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)
