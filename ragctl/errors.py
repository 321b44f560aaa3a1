"""Every way in which ragctl ends badly on purpose.

    RagctlError                      exit
    ├── ConfigError                     2   usage or configuration; nothing was started
    │   ├── FilterError                     a metadata filter is not valid
    │   └── MissingExtra                    an optional package is not installed
    ├── PartialFailure                  3   done, but some documents or questions failed
    ├── GateFailed                      4   the evaluation gate was not met
    ├── GateUndecided                   5   the evaluation cannot tell
    ├── Refused                         6   refused for safety
    ├── LeaseHeld                       7   another run holds the lease
    │   └── LeaseLost                       ours was taken over while we worked
    ├── ServiceError                    8   a service failed or refused us
    │   ├── CredentialsError                no, wrong or expired credentials
    │   ├── PermissionDenied                the credentials may not do this
    │   ├── NotFound                        index, endpoint, bucket or model does not exist
    │   ├── QuotaExceeded                   a service quota or limit is used up
    │   ├── Throttled                       still throttled after the retries
    │   ├── TenantLeak                      the store returned another tenant's documents
    │   ├── StateError                      the ledger or another state file cannot be read or written
    │   └── OutputError                     the result cannot be written to stdout
    └── ItemRefused                         one document, chunk or text is at fault, not the run
        ├── DocumentError                   a document cannot be read or parsed
        ├── RecordRefused                   a record breaks a limit of the store
        └── InputRefused                    a model refuses this input (too long, not valid)

An ItemRefused is caught by the stage that handles items and becomes a row in the list of failures; it ends a
run only where a single item is all there was. Anything that is not a RagctlError is a bug: exit 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from ragctl.records import Usage


class RagctlError(Exception):
    """An ending that the user can do something about: `message` says what and where, `hint` what to do."""

    exit_status: ClassVar[int] = 8
    # Tokens that services have counted, and charge, for a question that ended with this; None: they did not say.
    usage: Usage | None = None

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def listed(self, where: str = "") -> str:
        """Its lines in the message of an error that lists several: what is wrong `where`, and below it what to do."""
        return f"\n  {where}{self.message}" + (f"\n    hint: {self.hint}" if self.hint else "")


class ConfigError(RagctlError):
    """Usage or configuration is wrong; nothing was started."""

    exit_status = 2


class FilterError(ConfigError):
    """A metadata filter is not valid; the message carries the path of the fault."""


class MissingExtra(ConfigError):
    """An optional package is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(
            f"{what} needs an optional package", hint=f'install it with: pip install "ragctl[{extra}]"'
        )


class PartialFailure(RagctlError):
    """The work is done and consistent, but some documents or questions failed."""

    exit_status = 3


class GateFailed(RagctlError):
    """The evaluation gate was not met."""

    exit_status = 4


class GateUndecided(RagctlError):
    """The evaluation cannot tell whether the gate is met."""

    exit_status = 5


class Refused(RagctlError):
    """Refused for safety: nothing was removed, replaced or paid for."""

    exit_status = 6


class LeaseHeld(RagctlError):
    """Another run holds the lease on this index."""

    exit_status = 7


class LeaseLost(LeaseHeld):
    """Our lease expired and somebody took it over while we worked."""


class ServiceError(RagctlError):
    """A service failed or refused us."""

    exit_status = 8


class CredentialsError(ServiceError):
    """No, wrong or expired credentials."""


class PermissionDenied(ServiceError):
    """The credentials may not do this; the message names action and resource."""


class NotFound(ServiceError):
    """An index, endpoint, bucket or model does not exist."""


class QuotaExceeded(ServiceError):
    """A service quota or limit is used up."""


class Throttled(ServiceError):
    """Still throttled after the retries."""


class TenantLeak(ServiceError):
    """The store returned another tenant's documents; none is shown, and no later answer can be trusted."""


class StateError(ServiceError):
    """The ledger or another state file cannot be read or written."""


class OutputError(ServiceError):
    """The result cannot be written to stdout; the work may well be done."""


class ItemRefused(RagctlError):
    """One document, chunk or text is at fault, not the run; `document` is its id where that is known."""

    exit_status = 3

    def __init__(self, message: str, *, hint: str | None = None, document: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.document = document


class DocumentError(ItemRefused):
    """A document cannot be read or parsed. `record`: the id of a record that has one but does not get in."""

    def __init__(
        self, message: str, *, hint: str | None = None, document: str | None = None, record: str | None = None
    ) -> None:
        super().__init__(message, hint=hint, document=document)
        self.record = record


class RecordRefused(ItemRefused):
    """A vector record breaks a limit of the store; the message names document, key and bytes."""


class InputRefused(ItemRefused):
    """A model refuses this input, for example because it is too long."""
