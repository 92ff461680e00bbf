"""Tokens that stand in files.

Owns how one is read; it never shows a token in an error.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from catalogzero.config.key_files import read_key
from catalogzero.config.renewal import Renewed
from catalogzero.errors import ConfigError

MIN_TOKEN_CHARS = 16


def token_in(path: Path) -> Renewed[str]:
    """The token in a file, as it is renewed.

    Raises:
        ConfigError: As `read_token`, the first time.
    """
    return Renewed(partial(read_token, path), path)


def read_token(path: Path) -> str:
    """The token in a file, without the white space around it.

    Raises:
        ConfigError: The file cannot be read, or holds fewer than 16 characters.
    """
    try:
        token = read_key(path, warn=True).strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8"
        raise ConfigError(
            f"{path}: the token cannot be read ({reason}): make the file, with at least "
            f"{MIN_TOKEN_CHARS} characters"
        ) from None
    if len(token) < MIN_TOKEN_CHARS:
        raise ConfigError(
            f"{path}: a token has at least {MIN_TOKEN_CHARS} characters: write a longer one"
        )
    return token
