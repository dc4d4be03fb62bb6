"""Build the file system of a mount from its parts. Sends no request."""

import time
from collections.abc import Callable
from functools import partial

import structlog

from mountpoint.config import ChangeConfig, FileSystemConfig, WriteConfig
from mountpoint.copy.metadata import SelfCopies
from mountpoint.copy.objects import Copies
from mountpoint.fs.attributes import AttributeView
from mountpoint.fs.caches import Caches
from mountpoint.fs.directories import Directories
from mountpoint.fs.filesystem import FileSystem
from mountpoint.fs.handles import DirectoryHandle, HandleTable, OpenFile
from mountpoint.fs.inodes import LONG_BITS, SHORT_BITS, InodeNumber, InodeTable
from mountpoint.fs.open import Opener
from mountpoint.fs.overlay import OverlayNames
from mountpoint.fs.prepared import Preparer
from mountpoint.fs.reads.adoption import Adopter
from mountpoint.fs.reads.handle import ReadContext
from mountpoint.fs.resolver import Resolver
from mountpoint.fs.session.log import SessionLog
from mountpoint.fs.session.recovery import note_file, note_listing, recover
from mountpoint.fs.setattr import AttributeStore
from mountpoint.fs.writes.backend import WriteBackend
from mountpoint.fs.writes.context import WriteContext
from mountpoint.fs.writes.key_locks import KeyLocks
from mountpoint.fs.writes.readers import Readers
from mountpoint.fs.writes.rename import Renamer
from mountpoint.fs.writes.reopen import ReopenedInodes
from mountpoint.fs.writes.staged.writes import StagedWrites
from mountpoint.fs.writes.streamed.writes import StreamedWrites
from mountpoint.fs.writes.unlink import Remover
from mountpoint.listing.cache import ListingCache
from mountpoint.listing.prefetch import WalkPrefetcher
from mountpoint.native._handles import NativeHandles
from mountpoint.native._prepared import PreparedFiles
from mountpoint.read.streams import Streams
from mountpoint.s3.client import ObjectClient
from mountpoint.s3.retry import RetryPolicy
from mountpoint.staging.area import StagingArea
from mountpoint.upload.uploads import Uploads

log = structlog.get_logger(__name__)


def build_filesystem(
    client: ObjectClient,
    *,
    prefix: bytes,
    config: FileSystemConfig,
    change: ChangeConfig,
    write: WriteConfig,
    streams: Streams,
    uploads: Uploads,
    retry_policy: RetryPolicy,
    threads: int = 16,
    staging: StagingArea | None = None,
    on_open: Callable[[bytes, bool], bool] = lambda key, looked_at: False,
    on_damage: Callable[[InodeNumber], None] = lambda inode: None,
    drop_pages: Callable[[InodeNumber], bool] = lambda inode: True,
    session: SessionLog | None = None,
    request: Callable[[], int] = lambda: 0,
    claim: Callable[[], bool] = lambda: True,
    prepared: PreparedFiles | None = None,
) -> FileSystem:
    """Return the file system of a bucket, from `prefix` down.

    At most so many `threads` call it at the same time. Files are written in the area `staging`;
    None: they are streamed. `session` keeps what another process needs to go on, and has what this
    one goes on with; `request` returns the number of the request that is being served. `prepared`
    are the files that are opened without the interpreter. `on_open`: see Opener. `on_damage`: see
    ReadContext. `drop_pages`: see Readers. `claim`: see WriteContext.
    """
    if prepared is None:
        prepared = PreparedFiles(NativeHandles(None if session is None else session.journal))
    native_handles = prepared.handles
    if session is not None:
        session.beside = native_handles.text
    streams.count_also(native_handles.take_read_bytes)
    bits = SHORT_BITS if config.inode32 else LONG_BITS
    inodes = InodeTable(prefix, bits, session, prepared.forget)
    local = OverlayNames(prefix, session, prepared.forget_all)
    readers = Readers(inodes, drop_pages, threads)
    listings = ListingCache(
        config.ttl_s, negative_ttl_s=config.negative_ttl_s, on_change=prepared.forget_all
    )
    resolver = Resolver(
        client,
        retry_policy,
        listings,
        inodes,
        local,
        ttl_s=config.ttl_s,
        negative_ttl_s=config.negative_ttl_s,
        attributes=change.keeps_attributes,
    )
    walks = WalkPrefetcher(client, retry_policy, listings, config.ttl_s)
    caches = Caches(listings, resolver, walks, inodes, prepared.forget_all)
    context = WriteContext(
        client=client,
        retry_policy=retry_policy,
        config=change,
        uploads=uploads,
        copies=Copies(client, write, uploads, retry_policy),
        key_locks=KeyLocks(retry_policy.stopping),
        inodes=inodes,
        local=local,
        readers=readers,
        attribute_store=AttributeStore(
            SelfCopies(client, uploads, retry_policy), inodes, caches, change
        ),
        caches=caches,
        session=session,
        claim=claim,
    )
    staged = None
    if staging is not None:
        staged = StagedWrites(context, staging, write.part_size_bytes)
    backend: WriteBackend = staged or StreamedWrites(context)
    files: HandleTable[OpenFile] = HandleTable(
        None if session is None else partial(note_file, session, request)
    )
    open_directories: HandleTable[DirectoryHandle] = HandleTable(
        None if session is None else partial(note_listing, session, request)
    )
    read_context = ReadContext(inodes, files, readers, caches, backend, prepared, on_damage)
    adopter = Adopter(read_context, streams, session)
    readers.adopt = adopter.adopt
    files.adopt = adopter.adopt_handle
    opener = Opener(
        client,
        retry_policy,
        streams,
        listings,
        resolver,
        read_context,
        adopter,
        asks_always=config.asks_on_open,
        ttl_s=config.ttl_s,
        on_open=on_open,
    )
    resized: dict[InodeNumber, float] = {}
    preparer = Preparer(
        prepared,
        opener,
        adopter,
        streams,
        listings,
        inodes,
        readers,
        local,
        backend,
        resized,
        logs=session is not None,
    )
    reopened = ReopenedInodes(
        client,
        retry_policy,
        inodes,
        local,
        readers,
        is_written=backend.is_written,
        ttl_s=config.ttl_s,
    )
    attribute_view = AttributeView(
        config,
        local,
        keeps=change.keeps_attributes,
        renew_before_s=resolver.renew_before_s,
        mounted_at_ns=time.time_ns(),
    )
    directories = Directories(context, listings, walks)
    if session is not None:
        found = recover(
            session,
            inodes,
            local,
            files,
            open_directories,
            opener,
            directories,
            staged,
            native_handles,
        )
        if any(found):
            log.info("open files and directories go on", **found._asdict())
    return FileSystem(
        inodes=inodes,
        resolver=resolver,
        local=local,
        caches=caches,
        files=files,
        native_handles=native_handles,
        open_directories=open_directories,
        directories=directories,
        opener=opener,
        preparer=preparer,
        readers=readers,
        reopened=reopened,
        backend=backend,
        remover=Remover(context, resolver, backend),
        renamer=Renamer(context, resolver, directories, backend),
        attribute_view=attribute_view,
        resized=resized,
        ttl_s=config.ttl_s,
    )
