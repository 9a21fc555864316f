"""Decode UTF-8, or explain in one line what the bytes may be instead."""

import codecs
import re
import unicodedata

_OFFICE = "save it as plain text (UTF-8), a table as CSV"
_PACKED = {
    rb"\x1f\x8b": ("packed with gzip", "gunzip -k FILE"),
    rb"BZh[1-9]1AY&SY": ("packed with bzip2", "bunzip2 -k FILE"),
    rb"\xfd7zXZ\0": ("packed with xz", "unxz -k FILE"),
    rb"\x28\xb5\x2f\xfd": ("packed with zstd", "unzstd FILE"),
    rb"7z\xbc\xaf\x27\x1c": ("a 7z archive", "7z x FILE"),
    rb"(?s:.{257})ustar[ \0]": ("a tar archive", "tar -xf FILE"),
    rb"(?s:PK\x03\x04.{26}(?:\[Content_Types|_rels/|docProps/|mimetype))": ("a document", _OFFICE),
    rb"\xd0\xcf\x11\xe0": ("a document", _OFFICE),
    rb"PK[\x03\x05]": ("a zip archive", "unzip FILE"),
    rb"%PDF-": ("a PDF", "pdftotext FILE"),
}
"""First bytes of files that contain text in packed form: what they are, and how to unpack them."""
_MARKS = {
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),  # the first begins like UTF-16's
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}
_WIDE = ("UTF-32LE", "UTF-32BE", "UTF-16LE", "UTF-16BE")
_NARROW = (
    *("WINDOWS-1252", "WINDOWS-1251", "KOI8-R"),
    *("SHIFT_JIS", "EUC-JP", "EUC-KR", "GB18030", "BIG5"),
)
# First words of the names of characters that can occur together in a word.
_EAST_ASIAN = {"CJK", "HIR", "KAT", "IDE"}
_SAMPLE = 2**16
# Text in other encodings is rarely valid UTF-8 by accident.
_RIGHT_TO_WRONG = 10


def decode(raw: bytes, shown: str) -> str:
    """Return the text of UTF-8 `raw`; a byte order mark is kept.

    Raises:
        ValueError: a one-line message that refers to it as `shown` and says what it is: packed,
            binary (contains a NUL byte), truncated within a character, or in another encoding.
            Likely encodings are listed with an excerpt, so that a wrong guess does no harm.
    """
    refuse_packed(raw, shown)
    try:
        text = raw.decode("utf-8")
        if "\0" not in text:
            return text
        offset, is_cut = raw.index(0), False
    except UnicodeDecodeError as error:
        offset, is_cut = error.start, error.reason == "unexpected end of data"
    readings = _readings(raw)
    place = f"(byte 0x{raw[offset]:02x} at offset {offset})"
    wrong = _wrong_bytes(raw)
    # A single odd byte at the end of ASCII may also be a letter of another encoding.
    if is_cut and not (readings and offset == len(raw) - 1 and raw[:-1].isascii()):
        problem = f"UTF-8 cut off within its last character {place}"
        cure = "get a whole copy, or remove what is left of that character"
    elif wrong and 0 not in raw:
        more = f"{wrong - 1} more place" + "s" * (wrong > 2)
        times = f", and in {more}" if wrong > 1 else ""
        problem = f"UTF-8 but for what is damaged {place}{times}"
        cure = "mend it, or leave the damage out: iconv -c -f UTF-8 -t UTF-8 OLD > NEW"
    elif readings:
        problem = f"not UTF-8 {place}, but maybe {' or '.join(readings.values())}"
        name = next(iter(readings)) if len(readings) == 1 else "ENCODING"
        cure = f"where it reads right, convert it: iconv -f {name} -t UTF-8 OLD > NEW"
    elif 0 in raw:
        problem = f"a binary file (NUL at byte {raw.index(0)})"
        cure = "give a plain UTF-8 text file"
    else:
        problem = f"not UTF-8 {place}"
        cure = "find out its encoding and convert it: iconv -f ENCODING -t UTF-8 OLD > NEW"
    raise ValueError(f"{shown} is {problem}; {cure}")


def refuse_packed(beginning: bytes, shown: str) -> None:
    """Raise ValueError, with the way to unpack it, if a file with this beginning is packed."""
    for pattern, (kind, cure) in _PACKED.items():
        if re.match(pattern, beginning):
            raise ValueError(f"{shown} is {kind}, not plain text; unpack it first: {cure}")


def _wrong_bytes(raw: bytes) -> int:
    """Return the number of invalid places if `raw` is otherwise evidently UTF-8, else 0."""
    text = raw.decode("utf-8", "replace")
    wrong = text.count("\ufffd")
    right = sum(not char.isascii() for char in text) - wrong
    return wrong if right >= _RIGHT_TO_WRONG * wrong else 0


def _readings(raw: bytes) -> dict[str, str]:
    """Return the encodings in which `raw` looks like text, each with an excerpt."""
    marked = [name for name, marks in _MARKS.items() if raw.startswith(marks)]
    # ASCII is the same in all narrow encodings, so compare from the line in which it ends.
    odd = re.search(rb"[\x80-\xff]", raw)
    first = raw.rfind(b"\n", 0, odd.start()) + 1 if odd and 0 not in raw else 0
    texts: dict[str, str] = {}
    # In a text of wide characters whose bytes read as text, every other byte is NUL.
    others = raw.replace(b"\0", b"").decode("utf-8", "replace")
    is_wide = raw.count(0) > len(raw) / (4 if _is_likely(others) else 100)
    for name in marked[:1] or (_WIDE if is_wide else _NARROW if 0 not in raw else ()):
        try:
            # The incremental decoder tolerates a truncated last character.
            text = codecs.getincrementaldecoder(name)().decode(raw[first : first + _SAMPLE])
        except UnicodeDecodeError:
            continue
        # The wrong byte order leaves no ASCII characters; ASCII alone indicates no narrow encoding.
        is_told = min(text, default="\x80") < "\x80" if name in _WIDE else not text.isascii()
        if (is_told or marked) and _is_likely(text) and text not in texts.values():
            texts[name] = text
    return {name: f"{name} ({_excerpt(text)!r})" for name, text in texts.items()}


def _is_likely(text: str) -> bool:
    """Whether most non-ASCII characters are punctuation or letters of plausible words."""
    odd = [char for char in text if not char.isascii() and not char.isspace()]
    kinds = {char: unicodedata.category(char) for char in set(text)}
    if any(kind[0] == "C" and kind != "Cf" and not char.isspace() for char, kind in kinds.items()):
        return False
    words = (word for word in re.findall(r"[^\W\d_]+", text) if _is_word(word))
    letters = sum(not char.isascii() for word in words for char in word)
    others = sum(kinds[char][0] in "PM" or kinds[char] in ("Sc", "Nd") for char in odd)
    return letters + others >= 0.8 * len(odd)


def _is_word(word: str) -> bool:
    """Whether all letters are of one script, and only the first is a capital."""
    scripts = {unicodedata.name(char, "?")[:3] for char in word}
    is_latin = scripts == {"LAT"} and re.search("[A-Za-z]", word) is not None
    return word[1:] == word[1:].lower() and (
        is_latin or scripts <= _EAST_ASIAN or (len(scripts) == 1 and scripts != {"LAT"})
    )


def _excerpt(text: str) -> str:
    """Return a few characters around the first that is not ASCII."""
    at = next((at for at, char in enumerate(text) if not char.isascii()), 0)
    return " ".join(text[max(0, at - 8) : at + 16].split())
