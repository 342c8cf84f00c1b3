"""The errors that a user's mistake or a failing machine can cause; everything else is a bug of ours.

The command lines print such an error as one block without a traceback and leave with its `exit_code`.
"""


class LowRankError(Exception):
    """Base of all errors here. The message says what is wrong with the value seen, where, and how to mend it.

    Attributes:
        exit_code: 2 when found before the first iteration, 3 when a run stopped later with its state saved.
    """

    exit_code = 2


class ConfigError(LowRankError):
    """A configuration key, value, file or command line argument that cannot be used."""


class DataError(LowRankError):
    """A dataset, annotation file or image that cannot be used."""


class CheckpointError(LowRankError):
    """A checkpoint that is damaged, unsafe to read, or does not fit the model."""


class DeltaError(LowRankError):
    """A delta file that is damaged or belongs to another base, method or set of classes."""


class OutputError(LowRankError):
    """An output folder or file that cannot be written."""


class TrainingError(LowRankError):
    """A run that had to stop after it had started: non-finite losses, a lost worker, a full disk."""

    exit_code = 3
