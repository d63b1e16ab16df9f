"""Who may call a server: everyone, holders of the API key, or operators."""

from __future__ import annotations

import enum
import hmac

from starlette.datastructures import Headers

from devicekit.server.errors import Unauthorized
from devicekit.server.settings import ServerSettings


class Access(enum.Enum):
    """What an endpoint demands of its callers."""

    OPEN = "open"  # health and metrics: probes carry no keys
    USER = "user"  # the API key, if one is set
    CONTROL = "control"  # the admin key if one is set, otherwise as USER


class Keys:
    """The keys of one server. The admin key opens everything."""

    def __init__(self, settings: ServerSettings) -> None:
        self._user = settings.api_key
        self._admin = settings.admin_api_key

    def check(self, access: Access, headers: Headers) -> bool:
        """Let a caller pass. Returns whether a key was demanded, and given.

        Raises:
            Unauthorized: a key is needed, and this is not it.
        """
        if access is Access.CONTROL and self._admin is not None:
            self._demand((self._admin,), headers, "the admin key")
            return True
        if access is not Access.OPEN and self._user is not None:
            accepted = (self._user,) if self._admin is None else (self._user, self._admin)
            self._demand(accepted, headers, "the API key")
            return True
        return False

    @staticmethod
    def _demand(accepted: tuple[str, ...], headers: Headers, name: str) -> None:
        sent = headers.getlist("authorization")
        scheme, _, given = sent[0].partition(" ") if sent else ("", "", "")
        # Of several, whoever stands in between may have looked at another one.
        if scheme.lower() == "bearer" and len(sent) == 1:
            # Every key is compared, in constant time, so that timing tells nothing.
            # Headers are handed over as latin-1, whatever the client wrote.
            key = given.strip().encode("latin-1", "replace")
            matches = [hmac.compare_digest(key, one.encode()) for one in accepted]
            if any(matches):
                return
        raise Unauthorized(f"This endpoint needs {name}, sent as 'Authorization: Bearer KEY'.")
