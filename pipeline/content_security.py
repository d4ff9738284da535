"""What a page's Content-Security-Policy says of the scripts and styles that stand in the page."""

import base64
import hashlib


def hash_source(text: str) -> str:
    """Return how a policy names a script or style by its text, white space at both ends counted.

    >>> hash_source("alert(1)")
    'sha256-bhHHL3z2vDgxUt0W3dWQOrprscmda2Y5pLsLg4GF+pI='
    """
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
