"""Which encoding bytes are in, and text that is safe to keep: no lone surrogates, no control characters."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from typing import Final

from charset_normalizer import from_bytes

from ragctl.errors import DocumentError

_BOMS: Final = (  # UTF-32 first: its little-endian mark begins like that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Python's names of the encodings that documents are written in. Its codecs also hold some that only look like
# one (unicode_escape, punycode), which a hostile page could name.
_TEXT_CODECS: Final = re.compile(
    r"ascii|utf-(8|16|32)(-[bl]e)?|iso8859-\d+|cp\d+|koi8-[rtu]|mac-\w+|gb(2312|k|18030)|hz|big5\w*|euc_\w+"
    r"|shift_jis\w*|iso2022_\w+|johab|tis-620"
)
_STEP: Final = 1 << 20  # bytes that are checked at a time, so that no copy of a large file is made
_SAMPLE: Final = 1 << 16
_RUBBISH_SHARE: Final = 0.1  # of characters that no text has; a photograph decoded as Latin-1 has 0.2
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")
_UNCLEAN: Final = re.compile(f"{_CONTROL.pattern}|{_SURROGATE.pattern}")
_REPLACEMENT: Final = "\ufffd"
# The bytes of control characters in UTF-8: nearly all files have none, which a look at their bytes finds quickest.
_CONTROL_BYTES: Final = bytes(byte for byte in range(128) if _CONTROL.match(chr(byte)))
_CONTROL_PAIR: Final = re.compile(rb"\xc2[\x80-\x9f]")
_HIGH: Final = re.compile(rb"[\x80-\xff]+")
# What files without a mark are written in, as far as browsers know it (the WHATWG Encoding Standard's list).
_GUESSES: Final = [
    *("cp1250", "cp1251", "cp1252", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp1258", "cp874"),
    *("iso8859_2", "koi8_r", "koi8_u", "cp866", "mac_roman"),
    *("cp932", "euc_jp", "iso2022_jp", "gb18030", "big5", "cp949"),
]


@dataclass(frozen=True, slots=True)
class Encoding:
    """How to decode: `data.decode(encoding.codec, encoding.errors)`."""

    codec: str
    errors: str = "strict"
    warning: str | None = None


def decode(data: bytes, *, declared: str | None = None) -> tuple[str, tuple[str, ...]]:
    """The text in bytes of unknown encoding, cleaned (see `clean`), and what is to be said about it.

    DocumentError when they are no text. `declared` is the charset that the document names, believed after a byte
    order mark and valid UTF-8.
    """
    if (plain := _plain_utf8(data)) is not None:
        return plain, ()
    encoding = detect(data, declared=declared)
    text = data.decode(encoding.codec, encoding.errors)
    refuse_rubbish(text)
    return clean(text), (encoding.warning,) if encoding.warning else ()


def detect(data: bytes, *, declared: str | None = None) -> Encoding:
    """The encoding of bytes: by mark, as UTF-8, as declared, or by what the letters look like."""
    for mark, codec in _BOMS:
        if data.startswith(mark):
            return Encoding(codec, "replace")  # the mark is certain; damage behind it shows as U+FFFD
    if wide := _wide_without_mark(data):
        return Encoding(wide, "replace")
    faults = _utf8_faults(data)
    if faults == 0:
        return Encoding("utf-8")
    if (named := _known(declared)) and _decodes(data, named):
        return Encoding(named)
    if faults:
        return Encoding("utf-8", "replace", f"{faults} bytes or sequences are not valid UTF-8")
    return Encoding(_guess(data), "replace")


def clean(text: str) -> str:
    """The text with newlines as LF, control characters as spaces and lone surrogates as U+FFFD."""
    text = _with_line_feeds(text)
    if not _UNCLEAN.search(text):
        return text
    return _SURROGATE.sub(_REPLACEMENT, _CONTROL.sub(" ", text))


def _with_line_feeds(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def refuse_rubbish(text: str) -> None:
    """DocumentError when too much of the text is what no text is made of."""
    rubbish = len(_CONTROL.findall(text)) + text.count(_REPLACEMENT)
    if rubbish > _RUBBISH_SHARE * len(text):
        raise DocumentError(
            "is not text: it looks like binary data", hint="exclude it, or give it its right ending"
        )


def _wide_without_mark(data: bytes) -> str | None:
    """UTF-16 without a mark: in text of most languages one byte of each pair is often 0, the other never."""
    sample = data[:_SAMPLE]
    if 0 not in sample:
        return None
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    if len(data) % 2 or max(even, odd) <= len(sample) / 20 or min(even, odd) > max(even, odd) / 50:
        return None
    codec = "utf-16-le" if odd > even else "utf-16-be"
    return codec if _decodes(data, codec) else None


def _plain_utf8(data: bytes) -> str | None:
    """The text of UTF-8 that is clean as it is, but for its newlines; None where there is more to see to."""
    if data.translate(None, _CONTROL_BYTES) != data or _CONTROL_PAIR.search(data) or _has_mark(data):
        return None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return None if _REPLACEMENT in text else _with_line_feeds(text)


def _has_mark(data: bytes) -> bool:
    return data.startswith(tuple(mark for mark, _ in _BOMS))


def _utf8_faults(data: bytes) -> int | None:
    """How many faults otherwise good UTF-8 has; None when it is something else.

    Text with letters beyond ASCII in UTF-8 that has one fault per hundred of them was once UTF-8: guessing
    another encoding would spoil the ninety-nine.
    """
    if _decodes(data, "utf-8"):
        return 0
    text = data.decode("utf-8", "replace")
    faults = text.count(_REPLACEMENT)
    letters = len(text) - len(text.encode("ascii", "ignore")) - faults
    return faults if faults * 100 <= letters else None


def _decodes(data: bytes, codec: str) -> bool:
    decoder = codecs.getincrementaldecoder(codec)()
    try:
        for start in range(0, len(data), _STEP):
            decoder.decode(data[start : start + _STEP])
        decoder.decode(b"", final=True)
    except UnicodeError:
        return False
    return True


def _known(label: str | None) -> str | None:
    """Python's name for a declared charset; None when it is no encoding of text that we know."""
    if not label:
        return None
    try:
        name = codecs.lookup(label.strip()).name
    except (LookupError, ValueError):  # ValueError: a NUL in the name
        return None
    if name in ("ascii", "iso8859-1"):
        return "cp1252"  # what pages that say so are written in, and how browsers read them
    return name if _TEXT_CODECS.fullmatch(name) else None


def _guess(data: bytes) -> str:
    """By the look of the letters; where they show no language and are mostly ASCII, Western European.

    A handful of letters fits a dozen encodings, and the odd é or “ is what most short files have.
    """
    best = from_bytes(data, cp_isolation=_GUESSES).best()
    high = sum(len(run) for run in _HIGH.findall(data))
    if (best is None or not best.coherence) and high * 2 <= len(data) and _decodes(data, "cp1252"):
        return "cp1252"
    if best is None:
        raise DocumentError("is in no encoding that could be recognised", hint="convert it to UTF-8")
    return best.encoding
