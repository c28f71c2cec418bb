"""Pure. Where the output of a process is to go, as clients of the original write it.

    /path                            a FIFO or a file that is there
    file:///path                     a file, made where it is missing
    binary:///path?key=value&key     a logging program and its arguments; binary-v2:// likewise

Used by the shim.
"""

from __future__ import annotations

from cradled.errors import Error

_HEX = "0123456789abcdefABCDEF"
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_SCHEME = _LETTERS + "0123456789+-."


def parse(uri: str) -> tuple[str, str, list[str]]:
    """Scheme, path and the words of the query: key, value, key, value, ...

    What has no scheme is the path of a FIFO, whatever is in it. A host and a fragment mean
    nothing; of the query, pairs that are malformed or repeat a key are left out.
    Raises Error for a malformed path.
    """
    scheme, colon, rest = uri.partition(":")
    if not colon or scheme[:1] not in _LETTERS or not scheme or scheme.strip(_SCHEME):
        return "fifo", uri, []
    path, _, query = rest.partition("#")[0].partition("?")
    if path.startswith("//"):
        _, slash, path = path[2:].partition("/")
        path = slash + path
    elif not path.startswith("/"):
        path = ""
    try:
        return scheme.lower(), _unquoted(path), _words(query)
    except ValueError as error:
        raise Error(f'unable to parse stdout uri: parse "{uri}": {error}') from None


def _words(query: str) -> list[str]:
    pairs: dict[str, str] = {}
    for pair in query.split("&"):
        key, _, value = pair.replace("+", " ").partition("=")
        try:
            if pair and ";" not in pair:
                pairs.setdefault(_unquoted(key), _unquoted(value))
        except ValueError:
            continue
    return [word for pair in pairs.items() for word in pair]


def _unquoted(text: str) -> str:
    """Without percent signs. Raises ValueError."""
    first, *parts = text.split("%")
    out = first.encode()
    for part in parts:
        digits = part[:2]
        if len(digits) < 2 or digits.strip(_HEX) or digits == "00":  # no path or word holds NUL
            raise ValueError(f'invalid URL escape "%{digits}"')
        out += bytes.fromhex(digits) + part[2:].encode()
    return out.decode(errors="surrogateescape")
