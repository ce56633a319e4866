"""Errors that a user may see: one sentence with the cause and the next step, and a stable code.

Every error is also a standard exception, so that library users can catch what they know, and every error pickles,
because it travels from Ray workers to the driver. Subclasses set `code` and, for the command line, `exit_code`.

Exit codes: 0 done; 1 some videos failed; 2 bad input; 3 the machine or its storage is at fault; 4 busy;
70 a bug in Sakuga; 130 interrupted.

`shown` and `did_you_mean` build the sentences: what a user wrote is quoted escaped and cut, so that a file name or a
prompt with terminal codes in it cannot write to the terminal of whoever reads the error.
"""

import difflib
from collections.abc import Iterable

SHOWN_CHARS = 80


def shown(value: object, limit: int = SHOWN_CHARS) -> str:
    """A user's text or value as one short quoted word of a sentence: control characters escaped, the middle cut out.

    >>> shown("a\\x1b[31mb")
    "'a\\\\x1b[31mb'"
    """
    text = repr(str(value)) if not isinstance(value, (int, float)) else str(value)
    head = limit // 3  # of a long path the end says more
    return text if len(text) <= limit else f"{text[:head]}…{text[head + 1 - limit :]}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'width'?"` for a near miss, else the empty string."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word[:SHOWN_CHARS].lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean {by_lower[near[0]]!r}?" if near else ""


class SakugaError(Exception):
    """Base of all errors with a code."""

    code = "E_SAKUGA"
    exit_code = 3

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def as_dict(self) -> dict[str, str]:
        """What `--json` and the API print."""
        return {"code": self.code, "message": self.message}


class InputError(SakugaError, ValueError):
    """The user's input cannot be used; base of everything that a user can mend."""

    code = "E_INPUT"
    exit_code = 2


class SettingsError(InputError):
    """An environment variable of Sakuga with a value that cannot be used."""

    code = "E_SETTINGS"


class RecipeError(InputError):
    """A field of a recipe is unknown, missing, of the wrong type or out of range."""

    code = "E_RECIPE"


class GeometryError(InputError):
    """A size or length that the model cannot render."""

    code = "E_GEOMETRY"


class PromptError(InputError):
    """An empty or an overlong prompt."""

    code = "E_PROMPT"


class ImageError(InputError):
    """A picture that is missing, damaged, of another format or too large."""

    code = "E_IMAGE"


class UrlError(InputError):
    """A web address that may not be used, or that did not give what it should."""

    code = "E_URL"


class VideoError(InputError):
    """A video that is missing, damaged or of another length."""

    code = "E_VIDEO"


class ManifestError(InputError):
    """A manifest that cannot be read as a whole (a single bad row is reported with the row)."""

    code = "E_MANIFEST"


class DataError(InputError):
    """A training data set, or a prepared one, that cannot be used."""

    code = "E_DATA"


class TrainError(InputError):
    """Settings of a training run that do not fit together, or do not fit the run that they would go on with."""

    code = "E_TRAIN"


class SweepError(InputError):
    """A sweep file that cannot be used, or a sweep that cannot go on."""

    code = "E_SWEEP"


class GateError(InputError):
    """A gate file that cannot be used."""

    code = "E_GATE"


class GateFailedError(SakugaError, RuntimeError):
    """Renders below the bars of the gate: the profile is not promoted."""

    code = "E_GATE_FAILED"
    exit_code = 1


class ProfileError(InputError):
    """A speed profile that does not exist, or is for another model or size."""

    code = "E_PROFILE"


class PreflightError(SakugaError, RuntimeError):
    """A training run that would not learn what it was asked to: found before its first step."""

    code = "E_PREFLIGHT"


class ModelError(InputError, LookupError):
    """An unknown model card, or a card asked for something that it cannot do."""

    code = "E_MODEL"


class WeightsError(SakugaError, ValueError):
    """Weight files that are missing, damaged or not those of the card."""

    code = "E_WEIGHTS"


class LoraError(WeightsError):
    """A LoRA that does not fit the model, in names, shapes or values."""

    code = "E_LORA"


class AttentionError(InputError):
    """An attention kernel that this machine or this head size cannot run."""

    code = "E_ATTENTION"


class PrecisionError(InputError):
    """Numbers that this machine cannot compute in."""

    code = "E_PRECISION"


class DeviceError(InputError):
    """A device to compute on that is unknown or not in this machine."""

    code = "E_DEVICE"


class PlanError(InputError):
    """A parallel plan that does not fit the model, the recipe or the ranks."""

    code = "E_PLAN"


class UnverifiedError(InputError):
    """A combination of accelerations that was never held to the plain render."""

    code = "E_UNVERIFIED"


class ConflictError(InputError):
    """Something else is there under the same key or name."""

    code = "E_CONFLICT"


class NotFoundError(InputError):
    """A job, key or object that does not exist, or is somebody else's."""

    code = "E_NOT_FOUND"


class AuthError(InputError):
    """An API key that opens nothing."""

    code = "E_AUTH"


class StoreError(SakugaError, OSError):
    """The database of jobs cannot be used."""

    code = "E_STORE"


class LeaseLostError(SakugaError, RuntimeError):
    """A lane writes for a render that it no longer has."""

    code = "E_LEASE_LOST"


class OutputError(SakugaError, OSError):
    """The place for results cannot be written."""

    code = "E_OUTPUT"

    def __str__(self) -> str:  # OSError would print its own arguments
        return self.message


class DiskFullError(OutputError):
    """No space is left where results go."""

    code = "E_DISK_FULL"


class BusyError(SakugaError, RuntimeError):
    """Another run works in the same folder."""

    code = "E_BUSY"
    exit_code = 4


class StorageError(SakugaError, OSError):
    """Object storage did not give or take a file."""

    code = "E_STORAGE"

    def __str__(self) -> str:
        return self.message


class MemoryLimitError(SakugaError, MemoryError):
    """The device's memory does not hold the model or the render."""

    code = "E_MEMORY"


class RankLostError(SakugaError, RuntimeError):
    """A rank of a render on several ranks ended or stopped answering."""

    code = "E_RANK_LOST"


class NumericsError(SakugaError, ArithmeticError):
    """A render that produced NaN or infinite values; never published as completed."""

    code = "E_NAN"


class MetricError(SakugaError, RuntimeError):
    """A program that measures quality is missing on this machine, lacks a filter or failed."""

    code = "E_METRIC"


class ClusterError(SakugaError, RuntimeError):
    """Ray did not start, ended early, or lost the job."""

    code = "E_CLUSTER"


class FarmError(SakugaError, RuntimeError):
    """A farm that does not answer, or its answer in place of what was asked; then with the code that it gave."""

    code = "E_FARM"


class WorkerDiedError(SakugaError, RuntimeError):
    """The process that rendered a video died each time that it tried."""

    code = "E_WORKER_DIED"
