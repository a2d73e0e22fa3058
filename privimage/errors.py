"""What can go wrong, as one tree; a message says what was found, what was expected, and what to do.

    PrivimageError              exit code 1
    ├── InputError              exit code 2   bad configuration, bad images, a store that does not exist
    │   ├── ConfigError
    │   ├── DataError
    │   └── StoreError
    ├── ArtifactDamaged         exit code 1   a published file is missing or differs from its manifest
    ├── TrainingError           exit code 1   training on public images diverged
    ├── Stopped                 exit code 1   somebody asked the run to stop; it goes on when it is run again
    └── PrivacyRefused          exit code 3   the privacy rules say no; nothing was touched
        ├── BudgetExceeded
        ├── LedgerBroken
        └── Uncharged

No message carries a value computed from sensitive images: such detail is written below `private/` and the
message names the file.
"""

__all__ = [
    "ArtifactDamaged",
    "BudgetExceeded",
    "ConfigError",
    "DataError",
    "InputError",
    "LedgerBroken",
    "PrivacyRefused",
    "PrivimageError",
    "Stopped",
    "StoreError",
    "TrainingError",
    "Uncharged",
]


class PrivimageError(Exception):
    """Base of all errors a user can cause or meet; `exit_code` is what the command line returns."""

    exit_code = 1


class InputError(PrivimageError):
    """Something given from outside is wrong; found before any budget is spent."""

    exit_code = 2


class ConfigError(InputError):
    """The run configuration is contradictory, incomplete, or names something that does not exist."""


class DataError(InputError):
    """Images or labels that cannot be used as they are."""


class StoreError(InputError):
    """The object store does not exist, refuses access, or cannot give the guarantees that are needed."""


class ArtifactDamaged(PrivimageError):
    """A published artifact no longer is what its manifest says."""


class TrainingError(PrivimageError):
    """Training on public images cannot go on."""


class Stopped(PrivimageError):
    """The run was asked to stop and did so where nothing is lost."""


class PrivacyRefused(PrivimageError):
    """An action that would break, or outspend, the stated privacy guarantee."""

    exit_code = 3


class BudgetExceeded(PrivacyRefused):
    """The grant of the data set's owner does not hold what was asked for."""


class LedgerBroken(PrivacyRefused):
    """The ledger's chain has a gap, an edited entry, or an entry that this version cannot read."""


class Uncharged(PrivacyRefused):
    """Sensitive data would be touched, or a private result used, without a matching ledger entry."""
