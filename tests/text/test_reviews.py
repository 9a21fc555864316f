"""Laws of the labelled reviews: reading, vocabulary and ids."""

import gzip
import io
import re
import tarfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import DATA, file_refusal, real_corpora, refusal, write

from lstm_jax.text import (
    ReviewSet,
    build_review_vocabulary,
    encode_review,
    read_reviews,
    review_words,
    reviews,
)
from lstm_jax.text.reviews import PAD, START, UNKNOWN, UNUSED

Files = dict[str, bytes]

FILES: Files = {
    "train/pos/10_8.txt": b"tenth",
    "train/pos/9_10.txt": "\ufeffninth, na\u00efve".encode(),
    "train/neg/0_1.txt": b"bad<br />",
    "train/neg/100_2.txt": b"",
    "train/neg/\u00e9.txt": b"named",
    "test/neg/3_1.txt": b"worse",
    "train/unsup/1_0.txt": b"no label",
    "train/pos/.hidden.txt": b"\xff",
    "train/pos/deeper/1_7.txt": b"\xff",
    "train/labeledBow.feat": b"\xff",
    "README": b"\xff",
}
POSITIVE = ("ninth, na\u00efve", "tenth")
NEGATIVE = ("bad<br />", "", "named")


def write_folder(root: Path, files: Files) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def both_ways(root: Path, files: Files) -> list[Path]:
    return [write_folder(root / "data", files), write(root / "a.tar", tar_bytes(files))]


def tar_bytes(files: Files, *extra: tarfile.TarInfo, form: int = tarfile.PAX_FORMAT) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=form) as archive:
        for info in extra:
            archive.addfile(info, io.BytesIO(bytes(info.size)))
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, target: str = "") -> Any:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, target
    return info


def same(left: ReviewSet, right: ReviewSet) -> bool:
    return [half and (half.texts, half.labels.tolist()) for half in left] == [
        half and (half.texts, half.labels.tolist()) for half in right
    ]


read_error = partial(file_refusal, read_reviews)


SMALL = {name: FILES[name] for name in ("train/pos/10_8.txt", "train/neg/0_1.txt")}


@pytest.mark.parametrize("above", ["", "aclImdb/"])
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_folder_and_its_archives_are_the_same(tmp_path: Path, above: str, form: int) -> None:
    """Whatever the names' case."""
    files = {above + name: content for name, content in FILES.items()}
    if form == tarfile.GNU_FORMAT:
        files = {re.sub("^[a-z/]+/", lambda found: found[0].upper(), f): files[f] for f in files}
    data = read_reviews(write_folder(tmp_path / "data", files))
    assert data.training.texts == POSITIVE + NEGATIVE
    assert data.training.labels.tolist() == [1, 1, 0, 0, 0]
    assert data.training.labels.dtype == np.int32
    assert data.test is not None
    assert (data.test.texts, data.test.labels.tolist()) == (("worse",), [0])
    backwards = tar_bytes(dict(reversed(files.items())), form=form)
    for name, content in {
        "a.tar": backwards,
        "a.TAR.GZ": gzip.compress(backwards),
        "a.tgz": gzip.compress(tar_bytes(files)),
        "unpacked by the browser.tar.gz": backwards,
    }.items():
        assert same(read_reviews(write(tmp_path / name, content)), data)
        assert same(read_reviews(str(tmp_path / name)), data)


@pytest.mark.parametrize("above", ["", "aclImdb/"])
def test_a_folder_may_hold_both_labels_itself(tmp_path: Path, above: str) -> None:
    files = {above + name.removeprefix("train/"): text for name, text in FILES.items()}
    for path in both_ways(tmp_path, files):
        data = read_reviews(path)
        assert data.training.texts == POSITIVE + NEGATIVE
        assert data.test is not None and data.test.texts == ("worse",)
    # Where there is a folder train as well, what lies beside it is no review.
    for name, text in SMALL.items():
        files[above + name] = b"of train: " + text
    for path in both_ways(tmp_path, files):
        assert read_reviews(path).training.texts == ("of train: tenth", "of train: bad<br />")


@given(numbers=st.lists(st.integers(0, 10**30), unique=True, min_size=1), random=st.randoms())
def test_numbers_are_in_numeric_order(tmp_path: Path, numbers: list[int], random: Any) -> None:
    shuffled = random.sample(numbers, len(numbers))
    files = {f"train/pos/{number}_7.txt": str(number).encode() for number in shuffled}
    files |= {"train/neg/1_1.txt": b"x"}
    data = read_reviews(write(tmp_path / "a.tar", tar_bytes(files)))
    assert data.training.texts == (*map(str, sorted(numbers)), "x")
    assert data.test is None


def test_links_are_not_followed(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", SMALL)
    expected = read_reviews(root)
    secret = write(tmp_path / "secret", b"secret")
    (root / "train/pos/1_1.txt").symlink_to(secret)
    (root / "train/pos/2_2.txt").mkdir()
    assert same(read_reviews(root), expected)
    links = [
        member("train/pos/1_1.txt", kind, target=target)
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)
        for target in (str(secret), "train/neg/0_1.txt")
    ]
    packed = write(tmp_path / "a.tar", tar_bytes(SMALL, *links))
    assert same(read_reviews(packed), expected)


def test_every_cut_of_an_archive_and_a_wrong_check_sum_are_noticed(tmp_path: Path) -> None:
    packed, plain = gzip.compress(tar_bytes(SMALL)), tar_bytes(SMALL)
    for length in range(len(packed)):
        assert "damaged" in read_error(write(tmp_path / "a.tgz", packed[:length]))
    end = plain.rindex(SMALL["train/neg/0_1.txt"]) // 512 * 512 + 512
    for length in range(0, end + 1, 64):
        assert "damaged" in read_error(write(tmp_path / "a.tar", plain[:length]))
    wrong = packed[:-8] + bytes([packed[-8] ^ 1]) + packed[-7:]
    for content in (wrong, gzip.compress(b"no archive")):
        assert "damaged" in read_error(tmp_path / "b.tgz", content)


@pytest.mark.parametrize(
    ("size", "kind", "said"),
    [
        (2**40, tarfile.XHDTYPE, "oversized"),
        (2**40, tarfile.XGLTYPE, "oversized"),
        (2**40, tarfile.GNUTYPE_LONGNAME, "oversized"),
        (2**40, tarfile.GNUTYPE_LONGLINK, "oversized"),
        (-512, tarfile.REGTYPE, "oversized"),
        (512, tarfile.GNUTYPE_SPARSE, "sparse"),
        (2**40, tarfile.REGTYPE, "damaged"),
    ],
)
def test_headers_that_tell_of_what_does_not_follow(
    tmp_path: Path, size: int, kind: bytes, said: str
) -> None:
    for name in ("train/pos/0.txt", "ignored"):
        header = member(name, kind, size).tobuf(tarfile.GNU_FORMAT)
        assert said in read_error(tmp_path / f"{Path(name).stem}.tar", header + tar_bytes(SMALL))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (SMALL | {"train/pos/5.txt": b"x" * (2**20 + 1)}, "train/pos/5.txt.* 1048576"),
        (SMALL | {"train/neg/7_3.txt": b"caf\xe9"}, "train/neg/7_3.txt.*offset 3"),
        *(
            ({name: FILES[name] for name in FILES if name.startswith(kept)}, "give some of both")
            for kept in ("train/pos", "train/neg", "test", "README")
        ),
    ],
)
def test_what_a_folder_is_refused_for_an_archive_is_too(
    tmp_path: Path, files: Files, said: str
) -> None:
    for message in map(read_error, both_ways(tmp_path, files)):
        assert re.search(said, message)


def test_the_longest_review_is_a_mebibyte(tmp_path: Path) -> None:
    for path in both_ways(tmp_path, {**SMALL, "train/pos/5.txt": b"x" * 2**20}):
        assert len(read_reviews(path).training.texts) == 3


def test_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = write(tmp_path / "a.csv", b"text,label\n" + b"a,1\nb,0\n" * 3)
    paths = [*both_ways(tmp_path, FILES), table]
    for name, most in (("_MOST_REVIEWS", 5), ("_MOST_BYTES", 20)):
        with monkeypatch.context() as patch:
            patch.setattr(reviews, name, most)
            assert all("over" in read_error(path) for path in paths)
    # What is ignored counts too where it is unpacked: a bomb need not be a review.
    bomb = gzip.compress(tar_bytes(SMALL, member("zeros", size=2**22)))
    monkeypatch.setattr(reviews, "_MOST_BYTES", 2**21)
    assert "unpacks" in read_error(tmp_path / "bomb.tgz", bomb)


def test_a_review_that_is_there_twice_is_named(tmp_path: Path) -> None:
    twice = tar_bytes({**SMALL, "again/train/neg/0_1.txt": b"other"})
    assert re.search("train/neg/0_1.txt.*twice", read_error(tmp_path / "twice.tar", twice))


def test_what_is_neither_table_nor_archive(tmp_path: Path) -> None:
    assert "does not exist; give" in refusal(read_reviews, tmp_path / "none.txt")
    for name, content in (("data.zip", b"PK"), ("a text.txt", b"but no table")):
        assert "is no table or archive of reviews; give" in read_error(tmp_path / name, content)
    assert re.search("for training, and holds 'a text.txt', 'data.zip';", read_error(tmp_path))


@given(
    rows=st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_characters="\0\r")),
            st.sampled_from(["0", "1", "neg", "pos", "Negative", "POSITIVE", " 1 "]),
        )
    ),
    header=st.sampled_from(["text", "Review", "SENTENCE"]),
    mark=st.sampled_from(["", "\ufeff"]),
    tab=st.booleans(),
)
def test_tables_keep_their_rows(
    tmp_path: Path, rows: list[tuple[str, str]], header: str, mark: str, tab: bool
) -> None:
    rows = [*rows, ("x", "0"), ("", "1")]
    between = "\t" if tab else ","
    lines = [f"{label}{between}7{between}{doubled(text)}\n\n" for text, label in rows]
    table = mark + between.join(["Sentiment", "id", header]) + "\r\n" + "".join(lines)
    data = read_reviews(write(tmp_path / ("a.tsv" if tab else "a.CSV"), table.encode()))
    assert data.test is None
    assert data.training.texts == tuple(text for text, _ in rows)
    labels = [int(label.strip().lower() in ("1", "pos", "positive")) for _, label in rows]
    assert data.training.labels.tolist() == labels


def doubled(text: str, quote: str = '""') -> str:
    return '"' + text.replace('"', quote) + '"'


escaped = partial(doubled, quote='\\"')


@pytest.mark.parametrize("quoted", [doubled, escaped, str])
@pytest.mark.parametrize("last", [True, False])
@given(
    texts=st.lists(
        st.text(st.sampled_from('"" ,;a\u2028\f') | st.characters(codec="utf-8")).map(
            lambda text: re.sub(r"[\0\t\n\r\\\\]", "", text)
        )
    )
)
def test_quotes_are_read_in_each_of_their_ways(
    tmp_path: Path, texts: list[str], quoted: Callable[[str], str], last: bool
) -> None:
    if quoted is str:  # what is all in quotes is read as quoted
        texts = [text.rstrip('"') for text in texts]
    # A quote that opens in one row and closes in another joins no rows.
    texts = ['"Great" film, "he" said', '"Oh no', 'bad "film', 'good film"', "", *texts]
    fields = [quoted(text) for text in texts]
    rows = [f"{n % 2}\t{text}" if last else f"{text}\t{n % 2}" for n, text in enumerate(fields)]
    header = "sentiment\treview" if last else "review\tsentiment"
    path = write(tmp_path / "a.tsv", "\r\n".join([header, *rows]).encode())
    assert read_reviews(path).training.texts == tuple(texts)


@pytest.mark.parametrize("quoted", [doubled, escaped])
def test_texts_in_quotes_may_hold_line_ends(tmp_path: Path, quoted: Callable[[str], str]) -> None:
    texts = ('"Oh"\tno\n', 'a\n\n"b', '\n"', 'c "d" e')
    rows = [f"{n}\t{n % 2}\t{quoted(text)}\n" for n, text in enumerate(texts)]
    path = write(tmp_path / "a.tsv", "".join(["id\tsentiment\treview\n", *rows]).encode())
    assert read_reviews(path).training.texts == texts


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("first", ["", "sep={}\r\n", '"SEP={}"\n'])
def test_the_separator_is_found(tmp_path: Path, name: str, separator: str, first: str) -> None:
    table = 'id;review;label\r\n1;good, very;1\r\n2;"bad;\nworse";0\r\n'
    if separator != ";":
        table = table.replace(",", " ").replace(";", separator)
    path = write(tmp_path / name, (first.format(separator) + table).encode())
    expected = ("good, very", "bad;\nworse")
    if separator != ";":
        expected = ("good  very", f"bad{separator}\nworse")
    assert read_reviews(path).training.texts == expected
    # The lines of errors are the file's own.
    write(path, path.read_bytes() + f"3{separator}c{separator}x\r\n".encode())
    assert f"line {5 + bool(first)} of" in read_error(path)


word_lists = st.lists(st.lists(st.sampled_from(["a", "b", "c", "d'e", "<pad>", "<unused>"])))


@given(word_lists, st.integers(5, 9))
def test_frequent_words_come_first(texts: list[list[str]], size: int) -> None:
    counts = Counter(word for words in texts for word in words if "<" not in word)
    if not counts:
        refusal(build_review_vocabulary, texts, size)
        return
    vocabulary = build_review_vocabulary(iter(texts), size)
    assert vocabulary.tokens[:4] == ("<pad>", "<start>", "<unknown>", "<unused>")
    assert [vocabulary.tokens[i] for i in (PAD, START, UNKNOWN, UNUSED)] == [*vocabulary.tokens[:4]]
    assert (vocabulary.kind, vocabulary.unknown, vocabulary.padding) == ("word", UNKNOWN, PAD)
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    assert list(vocabulary.tokens[4:]) == [word for word, _ in ranked][: size - 4]


@given(
    st.lists(st.sampled_from(["a", "b", "zzz", "<pad>", "<start>", "<unused>"])), st.integers(1, 9)
)
def test_encoding_equals_the_naive_cut(words: list[str], length: int) -> None:
    vocabulary = build_review_vocabulary([["a", "a", "b"]])
    whole = [START, *({"a": 4, "b": 5}.get(word, UNKNOWN) for word in words)]
    last, first = (encode_review(vocabulary, words, length, keep) for keep in ("last", "first"))
    assert last.tolist() == whole[-length:]
    assert first.tolist() == whole[:length]
    assert last.dtype == first.dtype == np.int32
    assert encode_review(vocabulary, words, length).tolist() == last.tolist()


@real_corpora
def test_the_large_movie_review_dataset() -> None:
    data = read_reviews(DATA / "aclImdb_train.tar.gz")
    assert data.test is None
    assert len(data.training.texts) == 25_000
    assert data.training.labels.tolist() == [1] * 12_500 + [0] * 12_500
    # pos/10_9.txt is not the second, 1_7.txt is: numbers are numbers.
    assert data.training.texts[1].startswith("If you like adult comedy cartoons")
    assert data.training.texts[12_500].startswith("Story of a man who has unnatural feelings")
    words = [review_words(text) for text in data.training.texts[::25]]
    assert sum(map(len, words)) / len(words) == pytest.approx(234, abs=10)
    assert not any(word in ("br", "'") for review in words for word in review)
    assert build_review_vocabulary(words).tokens[4] == "the"
