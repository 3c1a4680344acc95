"""Kraken's signature of private requests.

Source: docs.kraken.com, guide "Spot REST authentication".
"""

import binascii
import hashlib
import hmac
from contextlib import suppress

from krakenbot.errors import ConfigError
from krakenbot.model import Secret


def sign(secret: Secret, path: str, nonce: str, body: bytes) -> str:
    """Return the API-Sign header of a request.

    `path` begins with /0/private/, `nonce` has the digits exactly as in `body`, and `body` is the
    exact bytes sent. Raises ConfigError when the secret is not base64.
    """
    digest = hashlib.sha256(nonce.encode() + body).digest()
    mac = hmac.new(decode_secret(secret), path.encode() + digest, hashlib.sha512)
    return binascii.b2a_base64(mac.digest(), newline=False).decode()


def decode_secret(secret: Secret) -> bytes:
    """Return the secret's bytes; ConfigError when it is not base64."""
    key = b""
    with suppress(ValueError):  # Its message could quote a part of the secret.
        key = binascii.a2b_base64("".join(secret.reveal().split()), strict_mode=True)
    if not key:
        raise ConfigError("the API secret is not base64; copy it again, whole")
    return key


def fingerprint(key: Secret) -> str:
    """Return twelve hex digits that identify an API key without revealing it."""
    return hashlib.sha256(b"krakenbot " + key.reveal().encode()).hexdigest()[:12]
