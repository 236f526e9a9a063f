"""Passwords and keys of the stack: drawn once, kept in one file that only its owner reads."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

from pydantic import BaseModel, SecretStr, ValidationError

from infra.stack.errors import StackError
from infra.stack.place import write_private

USER = "repairlab"
"""The user's name everywhere; it is no secret."""


def _draw() -> SecretStr:
    return SecretStr(secrets.token_urlsafe(24))


class Credentials(BaseModel):
    """Passwords and keys, one for each server."""

    postgres: SecretStr
    prefect: SecretStr
    s3: SecretStr

    @property
    def prefect_auth(self) -> SecretStr:
        """Return user and password as Prefect's settings take them."""
        return SecretStr(f"{USER}:{self.prefect.get_secret_value()}")


def load_credentials(path: Path, data: Path) -> Credentials:
    """Return the credentials in `path`, drawn if there is no such file. Raises StackError if `data` need lost ones."""
    try:
        return Credentials.model_validate_json(path.read_text())
    except FileNotFoundError:
        pass
    except (ValidationError, UnicodeDecodeError, OSError) as error:
        # The cause would print what it could not read.
        raise StackError(
            f"{path} cannot be read ({type(error).__name__}): restore it, or remove {path.parent} to start afresh"
        ) from None
    if data.exists():
        raise StackError(
            f"{path} is gone, and with it the passwords of the data beside it: restore it, or remove {path.parent} to "
            "start afresh"
        )
    drawn = Credentials(postgres=_draw(), prefect=_draw(), s3=_draw())
    write_private(path, json.dumps({name: value.get_secret_value() for name, value in drawn}))
    return drawn
