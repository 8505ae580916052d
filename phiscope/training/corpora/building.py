"""Building: from an input to a finished folder, whatever happens between.

A shard that was finished is recorded in `unfinished.json`, which a build that goes on trusts, and
nothing else of what lies there. The last shards, which the end of the input cuts, are recorded only
in the manifest; that appears last. So an interrupted build writes what an uninterrupted one does.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from phiscope.errors import TrainingError
from phiscope.extraction.inputs import Source
from phiscope.store.disk import Disk
from phiscope.store.folder import LOCK_NAME
from phiscope.store.lock import FolderLock
from phiscope.tokenizer import Tokenizer
from phiscope.training.bars import shown
from phiscope.training.corpora.documents import (
    Document,
    DocumentReader,
    check_texts,
    digest_input,
)
from phiscope.training.corpora.folder import (
    MANIFEST_NAME,
    UNFINISHED_NAME,
    list_leftovers,
    survey,
)
from phiscope.training.corpora.options import CorpusOptions
from phiscope.training.corpora.records import (
    FORMAT,
    PARTS,
    Header,
    Manifest,
    Part,
    Records,
    check_same,
    list_records,
    make_header,
    read_manifest,
    read_unfinished,
)
from phiscope.training.corpora.shard_writer import ShardWriter

_BATCH_DOCUMENTS = 256
_BATCH_CHARACTERS = 2**20


def build_corpus(
    source: Source,
    tokenizer: Tokenizer,
    folder: Path | str,
    options: CorpusOptions | None = None,
    *,
    disk: Disk | None = None,
) -> Manifest:
    """Write the documents of a source as shards of tokens, or go on with that.

    A finished folder is left as it is. Raises `TrainingError` for a folder of another tokenizer,
    input or options, and where no document is kept; `InputError` for what cannot be read as texts;
    `StoreError` for what the disk refuses, or while another build writes the folder;
    `MissingExtraError` where datasketch is absent.
    """
    check_texts(source)
    folder, options, disk = Path(folder), options or CorpusOptions(), disk or Disk()
    header = make_header(tokenizer, options)
    if survey(folder) == "finished" and not _has_traces(folder):
        return _check_finished(source, folder, header)
    disk.make_folder(folder)
    lock = FolderLock(folder)
    try:
        if survey(folder) != "finished":  # another build may have ended just before
            manifest = _Build(source, tokenizer, folder, options, disk).run(header)
        else:
            manifest = _check_finished(source, folder, header)
        _remove_traces(folder, disk)
        return manifest
    finally:
        lock.release()


class _Build:
    def __init__(
        self, source: Source, tokenizer: Tokenizer, folder: Path, options: CorpusOptions, disk: Disk
    ) -> None:
        self._reader = DocumentReader(source, options)
        self._tokenizer = tokenizer
        self._folder = folder
        self._options = options
        self._disk = disk
        self._writers: dict[Part, ShardWriter] = {}

    def run(self, header: Header) -> Manifest:
        self._open(header)
        for documents in _batches(shown(self._reader, "documents")):
            self._write(header, documents)
        for writer in self._writers.values():
            writer.check_met()
            writer.flush()
        return self._finish(header)

    def _open(self, header: Header) -> None:
        """Take up what an earlier build had recorded, and remove the rest of it."""
        path = self._folder / UNFINISHED_NAME
        records: Records = {part: [] for part in PARTS}
        if path.exists():
            stored, records = read_unfinished(path)
            check_same(path, stored, header)
        for part in PARTS:
            writer = ShardWriter(self._folder, part, header, records[part], self._disk)
            self._writers[part] = writer
        kept = {name for writer in self._writers.values() for name in writer.names()}
        for leftover in list_leftovers(self._folder, kept):
            self._disk.remove(leftover)
        if not path.exists():
            self._record(header)

    def _write(self, header: Header, documents: Iterable[Document]) -> None:
        new = [(one, writer) for one in documents if not (writer := self._choose(one)).has(one)]
        texts = [document.text for document, _ in new]
        ids = self._tokenizer.encode_batch(texts, allow_special=False)
        for (document, writer), tokens in zip(new, ids, strict=True):
            if writer.add(document, tokens):
                self._record(header)

    def _choose(self, document: Document) -> ShardWriter:
        is_heldout = document.is_heldout(self._options.heldout_share)
        return self._writers["heldout" if is_heldout else "train"]

    def _record(self, header: Header) -> None:
        value = {**FORMAT, "header": header, **list_records(self._records())}
        self._disk.replace_json(self._folder / UNFINISHED_NAME, value)

    def _records(self) -> Records:
        return {part: writer.records for part, writer in self._writers.items()}

    def _finish(self, header: Header) -> Manifest:
        reader, records = self._reader, self._records()
        if not records["train"]:
            raise TrainingError(
                f"no document to train on is left of {reader.digest.num_rows} rows; dropped:"
                f" {_name_drops(reader.drops)}"
            )
        manifest = Manifest(
            header=header,
            parts=records,
            num_rows=reader.digest.num_rows,
            input_sha256=reader.digest.sha256,
            drops=reader.drops,
            num_replaced=reader.num_replaced,
            faults=reader.faults,
        )
        self._disk.replace_json(self._folder / MANIFEST_NAME, manifest.to_json())
        return manifest


def _check_finished(source: Source, folder: Path, header: Header) -> Manifest:
    """The manifest of a folder that needs no build; `TrainingError` if it is of another one."""
    path = folder / MANIFEST_NAME
    manifest = read_manifest(path)
    check_same(path, manifest.header, header)
    found = digest_input(source)
    check_same(
        path,
        {"num_rows": manifest.num_rows, "input_sha256": manifest.input_sha256},
        {"num_rows": found.num_rows, "input_sha256": found.sha256},
    )
    return manifest


def _has_traces(folder: Path) -> bool:
    """Whether a build was killed between its manifest and its end."""
    return (folder / UNFINISHED_NAME).exists()


def _remove_traces(folder: Path, disk: Disk) -> None:
    for name in (UNFINISHED_NAME, LOCK_NAME):
        disk.remove(folder / name)
    disk.sync_folder(folder)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents some at a time, as many as are tokenized at once."""
    some: list[Document] = []
    size = 0
    for document in documents:
        some.append(document)
        size += len(document.text)
        if len(some) == _BATCH_DOCUMENTS or size >= _BATCH_CHARACTERS:
            yield some
            some, size = [], 0
    if some:
        yield some


def _name_drops(drops: dict[str, int]) -> str:
    named = [f"{count} {reason}" for reason, count in drops.items() if count]
    return ", ".join(named) or "none"
