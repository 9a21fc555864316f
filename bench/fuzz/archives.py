"""Archives and folders of reviews: links, devices, sizes that lie, bombs, names that climb."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path
from random import Random

from bench.fuzz.mutations import ODD_TEXTS, broken_bytes
from bench.fuzz.trial import require, require_only
from lstm_jax.text import ReviewSet, read_reviews

_BOMB = gzip.compress(bytes(1 << 20), 9)
_TYPES = (
    tarfile.REGTYPE,
    tarfile.AREGTYPE,
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
    tarfile.CONTTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.GNUTYPE_SPARSE,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    b"?",
)
_SIZES = (-1, 0, 511, 513, 2**20 + 1, 2**33, 2**62)
_NAMES = (
    "../../train/pos/1_9.txt",
    "/train/pos/1_9.txt",
    "train/pos/../../../../x.txt",
    "a/" * 120 + "train/pos/1_9.txt",
    "train/pos/\ud800.txt",
    "train/pos/1_9.txt\n",
    "train/pos/.hidden.txt",
    "train/pos/" + "9" * 6_000 + ".txt",
    "train/pos/a\0b.txt",
    "TRAIN/POS/1_9.TXT",
)
_SENTENCES = (b"A good film.", "Très bien !".encode(), b"\xff\xfe", b"", b"bad " * 200, b"a\0b")


@dataclass(frozen=True)
class Archives:
    """`read_reviews` of `.tar` and `.tar.gz`."""

    name: str = "review archives"
    share: int = 7

    def run(self, rng: Random, place: Path) -> None:
        """See `Surface`."""
        path = place / rng.choice(("reviews.tar.gz", "reviews.tgz", "reviews.tar"))
        path.write_bytes(hostile_archive(rng))
        try:
            found = read_reviews(path)
        finally:
            require_only(place, path.name)
            path.unlink()
        _require_reviews(found)


@dataclass(frozen=True)
class Folders:
    """`read_reviews` of a folder."""

    name: str = "review folders"
    share: int = 2

    def run(self, rng: Random, place: Path) -> None:
        """See `Surface`."""
        root = place / "reviews"
        secret = place / "secret.txt"
        secret.write_bytes(b"not a review")
        try:
            for label in ("pos", "neg"):
                (root / "train" / label).mkdir(parents=True)
                for number in range(rng.choice((0, 1, 1, 2))):
                    target = root / "train" / label / f"{number}_1.txt"
                    target.write_bytes(rng.choice(_SENTENCES))
            self._spoil(rng, root, secret)
            found = read_reviews(root)
        finally:
            shutil.rmtree(root)
            secret.unlink()
        _require_reviews(found)
        require("not a review" not in found.training.texts, "a link out of the folder was followed")

    def _spoil(self, rng: Random, root: Path, secret: Path) -> None:
        odd = root / "train" / "pos" / "7_7.txt"
        match rng.randrange(7):
            case 0:
                odd.symlink_to(secret)
            case 1:
                odd.symlink_to("/dev/zero")
            case 2:
                odd.symlink_to(odd)
            case 3:
                os.mkfifo(odd)
            case 4:
                odd.mkdir()
            case 5:
                shutil.rmtree(root / "train" / "neg")
                (root / "train" / "neg").write_bytes(b"")
            case _:
                (root / "test").symlink_to(root)


def hostile_archive(rng: Random) -> bytes:
    """A tar file, packed or not, with something odd in it, or broken."""
    content = _tar(rng)
    if rng.random() < 0.3:
        content = broken_bytes(rng, content)
    if rng.random() < 0.6:
        content = _packed(rng, content)
    return broken_bytes(rng, content) if rng.random() < 0.3 else content


def _require_reviews(found: ReviewSet) -> None:
    require(set(found.training.labels.tolist()) == {0, 1}, "labels are not 0 and 1")
    for text in found.training.texts:
        require(len(text) <= 2**20, "a review is too long")


def _tar(rng: Random) -> bytes:
    file = io.BytesIO()
    form = rng.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT))
    with tarfile.open(
        fileobj=file, mode="w", format=form, encoding="utf-8", errors="surrogatepass"
    ) as archive:
        for label in ("pos", "neg", "pos"):
            number = rng.randrange(3)
            _add(archive, f"aclImdb/train/{label}/{number}_1.txt", rng.choice(_SENTENCES[:2]))
        for _ in range(rng.choice((0, 1, 1, 3))):
            _add_odd(rng, archive)
    content = bytearray(file.getvalue())
    if rng.random() < 0.4:
        _lie(rng, content)
    return bytes(content)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def _add_odd(rng: Random, archive: tarfile.TarFile) -> None:
    info = tarfile.TarInfo(rng.choice(_NAMES))
    content = rng.choice(_SENTENCES)
    info.type = rng.choice(_TYPES)
    info.linkname = rng.choice(("/etc/passwd", "../../..", "train/pos/0_1.txt"))
    info.size = len(content)
    if archive.format == tarfile.PAX_FORMAT and rng.random() < 0.5:
        name = rng.choice(("path", "size", "GNU.sparse.map", "GNU.sparse.size", "hdrcharset", "x"))
        odd = rng.choice(("-1", str(2**40), "1,2,3", "BINARY", *ODD_TEXTS))
        info.pax_headers = {name: odd}
    try:
        archive.addfile(info, io.BytesIO(content))
    except (ValueError, OverflowError):  # a name too long for this format
        _add(archive, "train/pos/5_5.txt", content)


def _lie(rng: Random, content: bytearray) -> None:
    """Changes a header's size or type, and mends its check sum."""
    headers = [at for at in range(0, len(content), 512) if content[at + 257 : at + 262] == b"ustar"]
    if not headers:
        return
    at = rng.choice(headers)
    if rng.random() < 0.6:
        size = rng.choice(_SIZES)
        field = b"%011o\0" % size if 0 <= size < 8**11 else b"\x80" + (size % 2**88).to_bytes(11)
        content[at + 124 : at + 136] = field
    else:
        content[at + 156 : at + 157] = rng.choice(_TYPES)
    content[at + 148 : at + 156] = b" " * 8
    content[at + 148 : at + 156] = b"%06o\0 " % sum(content[at : at + 512])


def _packed(rng: Random, content: bytes) -> bytes:
    packed = gzip.compress(content, 1)
    match rng.randrange(12):
        case 0:
            return packed + packed
        case 1:
            return gzip.compress(packed)
        case 2:
            return packed + b"trailing"
        case 3:  # a bomb where the archive ends: unpacked and thrown away
            return packed + _BOMB
        case 4:
            return _BOMB + packed
    return packed
