"""Errors a user can cause. Each message says what, where, what was expected, what to do."""

from __future__ import annotations


class PotluckError(Exception):
    """Base of every error that is reported to the user as one line, without a stack trace."""

    exit_code = 2
    """Of the command: 1 for what goes wrong in the middle of a run, 2 for what keeps it from beginning."""


class CheckpointError(PotluckError):
    """A model directory is missing, truncated, or of another architecture."""


class ModelFilesFailed(CheckpointError):
    """A model's file was changed, or could not be read, while a run used it."""

    exit_code = 1


class ClusterFileError(PotluckError):
    """A cluster file does not say what a cluster file must say."""


class HardwareFileError(PotluckError):
    """The catalogue of hardware, or what its classes reach, does not say what such a file must say."""


class StudyFileError(PotluckError):
    """A study file does not describe a grid of plans, or a results folder belongs to another study."""


class RoutingFileError(PotluckError):
    """A routing statistics file is unreadable or of another shape or model."""


class PlanError(PotluckError):
    """A plan is unreadable, of another version, or made for another model."""


class PlanDoesNotFit(PlanError):
    """The experts do not fit the memory the nodes give."""


class KvDoesNotFit(PotluckError):
    """Keys and values of a sequence need more memory than their pages were given."""


class InputError(PotluckError):
    """A prompt, token id or option value that the model cannot take."""


class WorkerStartError(PotluckError):
    """A worker could not start: its process died, its port is taken, its plan does not match."""


class WorkerLost(PotluckError):
    """A worker that owed an answer is gone and no other worker holds its experts."""

    exit_code = 1


class WorkerRefused(PotluckError):
    """A worker answered a request with an error that asking again does not mend."""

    exit_code = 1


class BoxUnreachable(PotluckError):
    """A box of the cluster cannot be reached over ssh, or a command there did not do what it should."""


class KeyFilesError(PotluckError):
    """A file of keys, a certificate or a token is missing, damaged, or open to other users."""


class KeysRequired(PotluckError):
    """An endpoint that other machines can reach was asked for without keys."""


class NotServed(PotluckError):
    """A server is not there, does not let this client in, or gives it no answer now."""


class AnswerLost(NotServed):
    """A server's answer broke off."""

    exit_code = 1


class NonFiniteError(PotluckError):
    """A layer produced a number that is not finite: broken weights, not a user's typing mistake."""

    exit_code = 1
    REMEDY = (
        "expected finite ones: the model's files are damaged, compare their checksums with the published "
        "ones or download them again"
    )


class NativeCodeNotBuilt(PotluckError, ImportError):
    """The native code was not compiled for this Python."""

    REMEDY = "run `make demo` or `pip install -e .` in the clone"
