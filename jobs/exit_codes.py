"""The exit codes of `batchloom` and their meanings."""

from enum import IntEnum


class ExitCode(IntEnum):
    """How a command ended, for shells, schedulers and `batchloom submit`."""

    OK = 0
    FAILED = 1
    WRONG_JOB = 2
    ERROR_LIMIT = 3
    HUNG_UP = 129  # 128 + SIGHUP, the shells' convention
    INTERRUPTED = 130  # 128 + SIGINT
    TERMINATED = 143  # 128 + SIGTERM

    @property
    def meaning(self) -> str:
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.OK: "every row is accounted for",
    ExitCode.FAILED: "the job failed; finished parts are kept and the same command goes on from there",
    ExitCode.WRONG_JOB: "the job file or the command line is wrong; nothing was computed",
    ExitCode.ERROR_LIMIT: "more rows failed or are degenerate than limits allow; finished parts are kept",
    ExitCode.HUNG_UP: "the job's terminal was closed; finished parts are kept and the same command goes on from there",
    ExitCode.INTERRUPTED: "the job was interrupted; finished parts are kept and the same command goes on from there",
    ExitCode.TERMINATED: "the job was told to end (SIGTERM); finished parts are kept and the same command goes on from "
    "there",
}
