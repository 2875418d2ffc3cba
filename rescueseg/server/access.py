"""Who may use the annotation server: bearer tokens, roles, and image addresses that need neither."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from datetime import UTC, datetime
from typing import NamedTuple

from rescueseg.annotation.roles import Role, require_role
from rescueseg.campaign.layout import IMAGE_KEY, TOKEN, is_id
from rescueseg.campaign.record_file import RecordFile
from rescueseg.errors import AccessError, StorageError, UnknownTokenError, damaged
from rescueseg.records import Record
from rescueseg.storage import Storage

_PREFIX = "rescueseg"
_MAC_LETTERS = 32
_LEASE_LETTERS = 32
_KEY_BYTES = 32


class Person(NamedTuple):
    """A person who uses the server."""

    name: str
    role: Role

    def require(self, role: Role) -> None:
        """Check that this person's role covers what another role may do.

        Raises
        ------
        AccessError
            If it does not.
        """
        require_role(self.name, self.role, role)


class Token(Record):
    """A token as the campaign stores it: without the secret."""

    token_id: str
    name: str
    role: Role
    digest: str
    """sha256 of the secret."""
    created_at: datetime


_TOKEN = RecordFile("token", Token)


def check_name(name: str) -> str:
    """Return an annotator's name if it can be used.

    Raises
    ------
    AccessError
        If it is empty, longer than 128 letters, or holds control characters.

    Examples
    --------
    >>> check_name("Anna B.")
    'Anna B.'
    """
    if not 0 < len(name) <= 128 or not name.isprintable() or name != name.strip():
        raise AccessError(
            "this is no name of an annotator",
            todo="Give a name of 1 to 128 printable letters, without spaces around it",
        )
    return name


def add_token(storage: Storage, name: str, role: Role) -> str:
    """Make a token for somebody and return it. Only its digest is stored, so that it cannot be shown again.

    Parameters
    ----------
    storage : Storage
        The campaign's root.
    name : str
        The annotator's name in the queue; one person may have several tokens.
    role : {"annotator", "reviewer", "admin"}
        What they may do.

    Raises
    ------
    AccessError
        If the name cannot be used.
    """
    token_id, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
    token = Token(
        token_id=token_id,
        name=check_name(name),
        role=role,
        digest=_digest(secret),
        created_at=datetime.now(UTC).replace(microsecond=0),
    )
    storage.write_json(TOKEN.path(token_id=token_id), token.to_json())
    return f"{_PREFIX}_{token_id}_{secret}"


def list_tokens(storage: Storage) -> list[Token]:
    """Return all tokens, oldest first.

    Raises
    ------
    StorageError
        If one is damaged, or something else lies among them.
    """
    files = [name for name in storage.list(TOKEN.top) if not name.startswith(".")]
    if strange := [name for name in files if not name.endswith(".json") or not is_id(name.removesuffix(".json"))]:
        raise StorageError(
            "this file is no token",
            where="/".join((storage.path(TOKEN.top), strange[0])),
            todo="Move it out of the campaign",
        )
    names = [name.removesuffix(".json") for name in files]
    tokens = [_read(storage, name) for name in names]
    return sorted(tokens, key=lambda token: (token.created_at, token.token_id))


def _read(storage: Storage, token_id: str) -> Token:
    path = TOKEN.path(token_id=token_id)
    token = _TOKEN.parse(storage.read_json(path), storage.path(path))
    if token.token_id != token_id:
        raise damaged(storage.path(path), f"it holds the token '{token.token_id}'")
    return token


def revoke_token(storage: Storage, token_id: str) -> None:
    """Revoke a token; it stops working at once. One whose file is damaged can be revoked too.

    Raises
    ------
    AccessError
        If there is none of that id.
    """
    if not _exists(storage, token_id):
        raise AccessError(f"there is no token '{token_id}'", todo="See 'rescueseg token list CAMPAIGN'")
    storage.remove(TOKEN.path(token_id=token_id))


def _exists(storage: Storage, token_id: str) -> bool:
    return is_id(token_id) and storage.exists(TOKEN.path(token_id=token_id))


def holder(storage: Storage, token_text: str) -> Person:
    """Return the person whose token this is.

    Raises
    ------
    UnknownTokenError
        If the campaign has no such token.
    StorageError
        If what the campaign knows of it is damaged.
    """
    prefix, _, rest = token_text.partition("_")
    token_id, _, secret = rest.partition("_")
    try:
        token = _read(storage, token_id) if _exists(storage, token_id) else None
    except StorageError as error:  # told to whoever shows the token: not where the campaign lies
        where = TOKEN.path(token_id=token_id)
        raise StorageError(error.what, where=where, todo="Ask an admin for another one: rescueseg token add") from error
    digest = token.digest if token else _digest("")
    if not hmac.compare_digest(digest, _digest(secret)) or token is None or prefix != _PREFIX:
        raise UnknownTokenError("this token is not known here", todo="Ask an admin for one: rescueseg token add")
    return Person(token.name, token.role)


def missing_token() -> UnknownTokenError:
    """Return the error for a request without a token."""
    return UnknownTokenError(
        "this server needs a token",
        todo="Send it as 'Authorization: Bearer TOKEN', or log in with your name and your token",
    )


def bearer(authorization: str) -> str | None:
    """Return the token in an Authorization header; None where there is none.

    Examples
    --------
    >>> bearer("Bearer rescueseg_3f2a91c0_x"), bearer("Basic YW5uYTp4")
    ('rescueseg_3f2a91c0_x', None)
    """
    scheme, _, token = authorization.partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()


def image_key(storage: Storage) -> bytes:
    """Return the campaign's key for image addresses, made on the first call.

    Raises
    ------
    StorageError
        If it is shorter or longer than the one that was made: anybody could sign with an empty key.
    """
    path = IMAGE_KEY.path()
    if not storage.exists(path):
        storage.write_bytes(path, secrets.token_bytes(_KEY_BYTES))
    key = storage.read_bytes(path)
    if len(key) != _KEY_BYTES:
        raise damaged(storage.path(path), f"it holds {len(key)} bytes, not {_KEY_BYTES}")
    return key


def image_id(key: bytes, lease_id: str) -> str:
    """Return the secret id of a lease's image: whoever knows it can load the image while the lease runs."""
    return lease_id + hmac.new(key, lease_id.encode(), hashlib.sha256).hexdigest()[:_MAC_LETTERS]


def lease_of_image(key: bytes, image: str) -> str:
    """Return the lease of an image id.

    Raises
    ------
    UnknownTokenError
        If the server did not make the id.

    Examples
    --------
    >>> lease = "3f2a91c0" * 4
    >>> lease_of_image(b"key", image_id(b"key", lease)) == lease
    True
    """
    lease_id = image[:_LEASE_LETTERS]
    if not image.isascii() or not hmac.compare_digest(image_id(key, lease_id), image):
        raise UnknownTokenError("this image address is not valid", todo="Take it from a running lease")
    return lease_id
