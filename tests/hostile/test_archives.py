"""Archives and folders of reviews: links, devices, sizes that lie, bombs, names that climb."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tarfile
from pathlib import Path

from broken import ODD_TEXTS, broken_bytes, rarely
from hypothesis import example, given
from hypothesis import strategies as st
from law import Surface, many

from lstm_jax.text import ReviewSet, read_reviews

BOMB = gzip.compress(bytes(1 << 20), 9)
TYPES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE,
         tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE,
         tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.GNUTYPE_SPARSE,
         tarfile.XHDTYPE, tarfile.XGLTYPE, b"?")  # fmt: skip
SIZES = (-1, 0, 511, 513, 2**20 + 1, 2**33, 2**62)
NAMES = ("../../train/pos/1_9.txt", "/train/pos/1_9.txt", "train/pos/../../../../x.txt",
         "a/" * 120 + "train/pos/1_9.txt", "train/pos/\ud800.txt", "train/pos/1_9.txt\n",
         "train/pos/.hidden.txt", "train/pos/" + "9" * 6_000 + ".txt", "train/pos/a\0b.txt",
         "TRAIN/POS/1_9.TXT")  # fmt: skip
SENTENCES = (b"A good film.", "Très bien !".encode(), b"\xff\xfe", b"", b"bad " * 200, b"a\0b")
PAX_NAMES = ("path", "size", "GNU.sparse.map", "GNU.sparse.size", "hdrcharset", "x")
PAX_VALUES = ("-1", str(2**40), "1,2,3", "BINARY", *ODD_TEXTS)


def beyond_its_end(size: int) -> bytes:
    """An archive whose one member is said to end far beyond it: to read on took days."""
    info = tarfile.TarInfo("notes.bin")
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    """A tar file, packed or not, with something odd in it, or broken."""
    content = draw(_tars())
    content = draw(rarely(st.just(content), broken_bytes(content), 3))
    packed = gzip.compress(content, 1)
    if draw(st.booleans()):
        odd = (packed * 2, gzip.compress(packed), packed + b"trailing", packed + BOMB,
               BOMB + packed)  # fmt: skip
        content = draw(rarely(st.just(packed), st.sampled_from(odd), 3))
    return draw(rarely(st.just(content), broken_bytes(content), 3))


@st.composite
def _tars(draw: st.DrawFn) -> bytes:
    file = io.BytesIO()
    form = draw(st.sampled_from((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT)))
    with tarfile.open(
        fileobj=file, mode="w", format=form, encoding="utf-8", errors="surrogatepass"
    ) as archive:
        for number, label in enumerate(("pos", "neg", "pos")):
            _add(archive, f"aclImdb/train/{label}/{number}_1.txt", SENTENCES[number % 2])
        for _ in range(draw(st.sampled_from((0, 1, 1, 3)))):
            info = tarfile.TarInfo(draw(st.sampled_from(NAMES)))
            content = draw(st.sampled_from(SENTENCES))
            info.type, info.size = draw(st.sampled_from(TYPES)), len(content)
            links = ("/etc/passwd", "../../..", "train/pos/0_1.txt")
            info.linkname = draw(st.sampled_from(links))
            if form == tarfile.PAX_FORMAT and draw(st.booleans()):
                name, value = st.sampled_from(PAX_NAMES), st.sampled_from(PAX_VALUES)
                info.pax_headers = {draw(name): draw(value)}
            try:
                archive.addfile(info, io.BytesIO(content))
            except (ValueError, OverflowError):  # a name too long for this format
                _add(archive, "train/pos/5_5.txt", content)
    return draw(rarely(st.just(file.getvalue()), _lying(file.getvalue()), 3))


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


@st.composite
def _lying(draw: st.DrawFn, content: bytes) -> bytes:
    """Another size or type in a header, whose check sum is mended."""
    changed = bytearray(content)
    ends = range(0, len(content), 512)
    at = draw(st.sampled_from([each for each in ends if content[each + 257 :][:5] == b"ustar"]))
    if draw(st.booleans()):
        size = draw(st.sampled_from(SIZES))
        field = b"%011o\0" % size if 0 <= size < 8**11 else b"\x80" + (size % 2**88).to_bytes(11)
        changed[at + 124 : at + 136] = field
    else:
        changed[at + 156 : at + 157] = draw(st.sampled_from(TYPES))
    changed[at + 148 : at + 156] = b" " * 8
    changed[at + 148 : at + 156] = b"%06o\0 " % sum(changed[at : at + 512])
    return bytes(changed)


def assert_reviews(found: ReviewSet) -> None:
    assert set(found.training.labels.tolist()) == {0, 1}
    assert all(len(text) <= 2**20 for text in found.training.texts)


@many
@given(archives(), st.sampled_from(("reviews.tar.gz", "reviews.tgz", "reviews.tar")))
@example(beyond_its_end(2**33), "reviews.tar")
@example(beyond_its_end(2**62), "reviews.tar")
@example(gzip.compress(beyond_its_end(2**62)), "reviews.tgz")
def test_review_archives(surface: Surface, content: bytes, name: str) -> None:
    with surface.case({name: content}) as place:
        assert_reviews(read_reviews(place / name))


@many
@given(
    st.lists(st.sampled_from(SENTENCES), max_size=2),
    st.lists(st.sampled_from(SENTENCES), min_size=1, max_size=2),
    st.sampled_from(("a secret", "a device", "itself", "a pipe", "a folder", "no folder", "all")),
)
def test_review_folders(surface: Surface, pos: list[bytes], neg: list[bytes], odd: str) -> None:
    with surface.case() as place:
        root, secret = place / "reviews", place / "secret.txt"
        secret.write_bytes(b"not a review")
        for label, texts in (("pos", pos), ("neg", neg)):
            (root / "train" / label).mkdir(parents=True)
            for number, text in enumerate(texts):
                (root / "train" / label / f"{number}_1.txt").write_bytes(text)
        _spoil(root, odd, secret)
        found = read_reviews(root)
        assert_reviews(found)
        assert "not a review" not in found.training.texts, "a link out of the folder was followed"


def _spoil(root: Path, how: str, secret: Path) -> None:
    odd = root / "train" / "pos" / "7_7.txt"
    if how == "a pipe":
        os.mkfifo(odd)
    elif how == "a folder":
        odd.mkdir()
    elif how == "no folder":
        shutil.rmtree(root / "train" / "neg")
        (root / "train" / "neg").write_bytes(b"")
    elif how == "all":
        (root / "test").symlink_to(root)
    else:
        odd.symlink_to({"a secret": secret, "itself": odd}.get(how, Path("/dev/zero")))
