"""The bearer token that requests must have, if one is set; of it only the digest leaves the process that reads it."""

import hashlib
import hmac
import os

from vergence.platform.errors import UserError

TOKEN = "VERGENCE_SERVE_TOKEN"


def token_digest() -> bytes | None:
    """SHA-256 of the token in the environment; None: anybody may ask. UserError: it is set and empty."""
    token = os.environ.get(TOKEN)
    if token is None:
        return None
    if not token.strip():
        raise UserError(f"{TOKEN} is set and empty; unset it, or give it a token")
    return _digest(token.strip())


def admits(authorization: str, digest: bytes | None) -> bool:
    """Whether a request with this Authorization header may pass."""
    scheme, _, given = authorization.partition(" ")
    return digest is None or (
        scheme.lower() == "bearer" and hmac.compare_digest(_digest(given.strip()), digest)
    )


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
