"""The composition root: check, connect, build everything, mount, serve, unmount.

Runs in the process that serves the mount, after the fork. The order matters: checks that need no S3
come first, S3 is asked before anything is mounted (but not if nobody serves a mount that is there),
and after the mount each way out goes through the unmount.
"""

import contextlib
import faulthandler
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import structlog

from mountpoint import __version__
from mountpoint.cache.block_cache import BlockCache
from mountpoint.cache.directory import CacheDirectory, check_directory
from mountpoint.cache.shared.cache import SharedCache
from mountpoint.config import MIB, Config, MountConfig, ReadConfig
from mountpoint.errors import MountError
from mountpoint.fuse import binding
from mountpoint.fuse.binding import llfuse
from mountpoint.fuse.operations import Operations
from mountpoint.log.setup import RecentLines, configure_log, crt_log_level
from mountpoint.metrics.export.exports import Exports
from mountpoint.metrics.recorder import Meters
from mountpoint.mount import preflight
from mountpoint.mount.build import build_filesystem
from mountpoint.mount.cached_files import CachedFiles
from mountpoint.mount.commands import ControlCommands
from mountpoint.mount.control import Control, socket_directory
from mountpoint.mount.kept import leftovers, reached
from mountpoint.mount.kept.link import Link, Turn
from mountpoint.mount.kept.upgrade import Upgrade
from mountpoint.mount.shared_cache import cache_bucket, shared_cache
from mountpoint.mount.signals import SignalWatcher, nudge_workers
from mountpoint.native import _blocks
from mountpoint.native._handles import FIRST_HANDLE, NativeHandles
from mountpoint.native._prepared import PreparedFiles
from mountpoint.read.streams import Streams
from mountpoint.s3.aws.ec2 import Instance
from mountpoint.s3.aws.endpoint import Endpoint
from mountpoint.s3.aws.settings import aws_settings
from mountpoint.s3.client import Body, ObjectInfo
from mountpoint.s3.crt.client import CrtClient, enable_crt_log
from mountpoint.s3.retry import RetryPolicy
from mountpoint.staging.area import StagingArea, check_staging_directory
from mountpoint.system import kernel, memory
from mountpoint.system.spill import FileRange, Spill, default_directories
from mountpoint.upload.pending_journal import BucketAddress, Journal, default_directory
from mountpoint.upload.uploads import Uploads

log = structlog.get_logger(__name__)

#: Freed memory of bodies that waits for its next use: this part of the memory target, but at least
#: one part. With 1 GiB it is eight parts, as many as one reader has in flight.
KEPT_SHARE = 16

#: Blocks that wait to be written to the data cache: this part of the memory target, and at most so
#: many bytes.
QUEUE_SHARE = 16
MAX_QUEUE_BYTES = 64 * MIB


#: Opens without the interpreter may hold this part of the memory target, of files that are open.
HELD_SHARE = 32


def run(config: Config, on_ready: Callable[[], None], link: Link | None = None) -> int:
    """Mount and serve until unmounted or told to end; return the exit code.

    `on_ready` is called once the mount serves requests. `link` leads to the mount's keeper, if it
    has one: then this process may go on with a mount. Raises MountError, with nothing mounted, if
    mounting fails.
    """
    memory.keep_freed(config.read.memory_bytes)
    memory.keep_private()
    _allow_many_files()
    recent, crashes = configure_log(config.log)
    if crashes is not None:
        faulthandler.enable(crashes)  # there is no core file: see keep_private
    if link is None or not link.takes_over:  # nobody answers there yet
        _check_directories(config)
    cache_bucket(config)
    meters = Meters(binding.request_pid, config.mount.max_threads)
    watcher = SignalWatcher(meters.counters.log)
    stopping = threading.Event()
    crt_level = crt_log_level(config.log)
    if crt_level is not None:
        enable_crt_log(crt_level)
    config = aws_settings(config.credentials.profile, os.environ).apply_to(config)
    instance = Instance(config.credentials.profile, os.environ)
    config = instance.apply_to(config)
    log.debug(
        "size",
        event_loops=config.client.event_loops,
        gbps=config.client.link_gbps,
        memory_mib=config.read.memory_bytes >> 20,
    )
    with Exports(config, meters, stopping) as exports:
        turn = None if link is None or not link.unserved else link.take_turn()
        client, reached_before = reached.client_of(
            None if turn is None else turn.log,
            config.bucket,
            config.credentials,
            config.client,
            os.environ,
            stopping,
            meters,
            instance,
        )

        def ready(answers: ControlCommands) -> None:
            exports.serving(client.check_credentials, answers.levels)
            on_ready()

        try:
            preflight.check_kind(config, is_directory=client.is_directory)
            if turn is None and link is not None:
                turn = link.take_turn()
            session = None if turn is None else turn.log
            if session is not None and not reached_before:
                reached.note(session, config.bucket, client)
            with shared_cache(
                config, client.endpoint, os.environ, stopping, meters, instance, session
            ) as shared:
                return _serve(
                    config, client, shared, stopping, meters, recent, watcher, link, turn, ready
                )
        finally:
            stopping.set()
            client.close()


def _serve(
    config: Config,
    client: CrtClient,
    shared: SharedCache | None,
    stopping: threading.Event,
    meters: Meters,
    recent: RecentLines,
    watcher: SignalWatcher,
    link: Link | None,
    turn: Turn | None,
    on_ready: Callable[[ControlCommands], None],
) -> int:
    failure: list[Exception] = []

    def ready() -> None:
        log.debug("the kernel asks", at_most_kib=1024 if binding.is_wide() else 128)
        filesystem.preparer.fetches = held_bytes > 0 and binding.is_wide()
        if turn is not None and turn.died:
            _log_turn(turn)
        watcher.serving()
        try:
            on_ready(answers)
        except Exception as error:
            failure.append(error)
            os.kill(os.getpid(), signal.SIGTERM)

    def retry_policy_until(stopping: threading.Event) -> RetryPolicy:
        return RetryPolicy(
            try_s=config.client.try_timeout_s,
            total_s=config.read.timeout_s,
            stopping=stopping,
            max_tries=config.client.max_tries,
            counters=meters.counters,
        )

    retry_policy = retry_policy_until(stopping)
    directory = config.mount.directory
    # A mount that was handed over is not asked for its path: nobody answers yet. With a keeper it
    # is known.
    handed_over = config.mount.descriptor is not None
    mount_point = directory if handed_over or link is not None else os.path.realpath(directory)
    # Reads end when the kernel ends the mount; uploads of what was written still go on.
    held_bytes = 0
    if config.filesystem.asks_on_open and config.cache.directory is None and config.mount.channel:
        held_bytes = config.read.memory_bytes // HELD_SHARE
    native_handles = NativeHandles(None if turn is None else turn.log.journal, held_bytes)
    # Apart from those of another process of this mount, of which the kernel may still know some.
    native_handles.number_from(FIRST_HANDLE + (time.monotonic_ns() >> 28 << 30))
    prepared = PreparedFiles(native_handles)
    cache = _cache(config, client.endpoint, meters, prepared)
    _blocks.keep_at_most(_kept_bytes(config.read, 0 if cache is None else cache.queue_bytes))
    read_config = replace(config.read, memory_bytes=config.read.memory_bytes - held_bytes)
    for each in (cache, shared):
        if each is not None:
            left_bytes = read_config.memory_bytes - each.queue_bytes
            read_config = replace(read_config, memory_bytes=left_bytes)
    streams = Streams(
        client, read_config, retry_policy_until(threading.Event()), meters.counters, cache, shared
    )
    journals = default_directory(os.environ)
    journal = Journal(journals, BucketAddress.of(config.bucket))
    spill = Spill(default_directories(os.environ))
    uploads = Uploads(
        client,
        config.write,
        streams.budget,
        retry_policy,
        journal=journal,
        spill=spill,
        on_written=_keep_written(cache, shared) if config.cache.writes else None,
        room=cache if config.cache.writes else None,
    )
    staging = None
    if config.change.staging_directory is not None:
        staging = _staging_area(config, config.change.staging_directory, turn)
    filesystem = build_filesystem(
        client,
        prefix=config.bucket.prefix,
        config=config.filesystem,
        change=config.change,
        write=config.write,
        streams=streams,
        uploads=uploads,
        retry_policy=retry_policy,
        threads=config.mount.max_threads,
        staging=staging,
        on_open=kernel.ReadAhead(mount_point).set_for,
        on_damage=binding.forget_pages,
        drop_pages=binding.drop_pages,
        session=None if turn is None else turn.log,
        request=binding.request_number,
        claim=binding.claim,
        prepared=prepared,
    )

    def interrupt() -> None:
        stopping.set()
        prepared.end()
        streams.end()
        uploads.interrupt()  # it aborts incomplete uploads, for which it needs the client
        client.interrupt()

    def end_reads() -> None:
        if binding.is_over():
            streams.end()

    upgrade = None if link is None else Upgrade(link, filesystem, meters)
    receivers = binding.Receivers(nudge_workers)
    killed = binding.KilledPrograms(filesystem.give_up)
    answers = ControlCommands(
        config,
        client.endpoint,
        filesystem,
        streams.budget,
        meters,
        recent,
        data_plane=client.data_plane,
        cached_files=CachedFiles(filesystem, cache, shared),
        restarts=None if turn is None else turn.restarts,
        upgrade=upgrade,
    )
    sweeps = [each.sweep for each in (streams, uploads, filesystem, receivers, killed, answers)]
    sweeps += [each.sweep for each in (cache, shared) if each is not None]
    memory.start_sweeping([*sweeps, end_reads], stopping)
    # Listings do not name attributes that objects keep.
    attributes = config.filesystem.ttl_s > 0 and not config.change.keeps_attributes
    binding.widen(config.mount.channel, attributes=attributes)
    binding.serve_lane(meters)
    if config.mount.channel:
        binding.serve_opens(prepared, meters)
    if config.mount.channel and (cache is not None or prepared.fetches):
        threading.Thread(
            target=filesystem.preparer.run, args=(stopping,), name="prepare", daemon=True
        ).start()
    if turn is not None:
        turn.prepare(writes=staging is not None)
    elif config.mount.descriptor is not None:
        binding.take(config.mount.descriptor)
    watcher.mounting(interrupt, None if upgrade is None else upgrade.leave)
    if turn is not None and turn.died:
        turn.log.note(leftovers.RECORD, turn.died, {})
        address = BucketAddress.of(config.bucket)
        threading.Thread(
            target=leftovers.abort_uploads_of_the_dead,
            args=(turn.log, journals, address, client, retry_policy),
            name="leftovers",
            daemon=True,
        ).start()
    try:
        operations = Operations(filesystem, ready, meters)
        taken = handed_over or (link is not None and link.takes_over)
        llfuse.init(operations, directory, mount_options(config.mount, taken=taken))
    except RuntimeError as error:
        raise MountError(
            f"'{directory}' could not be mounted: {error}",
            "see the lines above from the FUSE library",
        ) from error
    log.info("mounted", bucket=config.bucket.name, directory=directory)
    if client.data_plane != "native":
        log.info("the interpreter receives the bytes of objects", data_plane=client.data_plane)
    control = Control(socket_directory(os.environ), answers.commands())
    try:
        llfuse.main(workers=config.mount.max_threads)
    finally:
        watcher.ended()
        control.close()
        interrupt()
        llfuse.close(unmount=not handed_over)
        journal.close()
        if staging is not None:
            staging.close()
        if cache is not None:
            cache.close()
        meters.counters.log()
        log.info("ended" if handed_over else "unmounted", directory=directory)
    if failure:
        raise failure[0]
    return 0


def _staging_area(config: Config, directory: str, turn: Turn | None) -> StagingArea:
    """Return the area for staged files: that of the process before, if there was one."""
    if turn is None:
        return StagingArea(directory, config.bucket.name, config.change.staging_limit_bytes)
    found = turn.log.records("area").get(directory, {})
    limit_bytes = found.get("limit_bytes", config.change.staging_limit_bytes)
    area = StagingArea(directory, config.bucket.name, limit_bytes, name=found.get("name"))
    turn.log.note("area", directory, {"name": area.path.name, "limit_bytes": area.limit_bytes})
    return area


def _log_turn(turn: Turn) -> None:
    """Log that this process goes on with a mount."""
    requests = "repeated" if binding.repeats() else "failed"
    facts = {"died": turn.died, "restarts": turn.restarts, "requests_in_progress": requests}
    if turn.upgraded:
        log.info("this process has taken the mount over", version=__version__, **facts)
    else:
        log.warning("the mount's process died; this one goes on", **facts)


def _check_directories(config: Config) -> None:
    """Raise MountError if a directory that the options name cannot be used."""
    if config.mount.descriptor is None:
        preflight.check_directory(config.mount.directory)
        preflight.check_fuse(config.mount)
    if config.change.staging_directory is not None:
        check_staging_directory(config.change.staging_directory, config.mount.directory)
    if config.cache.directory is not None:
        check_directory(config.cache.directory, config.mount.directory)


def _kept_bytes(config: ReadConfig, queue_bytes: int) -> int:
    """Return how much freed memory of bodies waits for its next use.

    With a data cache, bodies come back in bursts of what was queued. Without room for these, twice
    as much new memory is needed to read a file, and the system zeroes it.
    """
    return max(config.memory_bytes // KEPT_SHARE, config.part_size_bytes) + queue_bytes


def _cache(
    config: Config, endpoint: Endpoint, meters: Meters, prepared: PreparedFiles
) -> BlockCache | None:
    """Return the data cache, if there is to be one. Raises MountError if it cannot be used."""
    if config.cache.directory is None:
        return None
    return BlockCache(
        CacheDirectory.open(config.cache.directory),
        endpoint.host + endpoint.base_path,
        config.bucket.name,
        meters.counters,
        max_bytes=config.cache.max_bytes,
        queue_bytes=min(config.read.memory_bytes // QUEUE_SHARE, MAX_QUEUE_BYTES),
        on_failure=prepared.forget_all,
    )


def _keep_written(
    *caches: BlockCache | SharedCache | None,
) -> Callable[[ObjectInfo, Body], None]:
    """Return a function that gives a new object's body to the caches."""

    def keep(info: ObjectInfo, body: Body) -> None:
        pieces = [each for each in body.pieces if not isinstance(each, FileRange)]
        if not info.size_bytes or len(pieces) < len(body.pieces):
            return  # some bytes are in a temporary file: memory is short
        for each in caches:
            if each is not None:
                each.keep_written(info, pieces)

    return keep


def _allow_many_files() -> None:
    """Raise the limit of open descriptors to the maximum: staged files and connections use many.

    The usual limit of 1024 is for programs that use select(2).
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def mount_options(config: MountConfig, *, taken: bool = False) -> set[str]:
    """Return the options for the FUSE library. `taken`: it is mounted already.

    default_permissions makes the kernel check modes, as in mountpoint-s3. nonempty allows a
    directory with files in it, as mount(8) does. big_writes allows more than 4 KiB in a write.
    atomic_o_trunc tells `open` that a file is to be replaced. A descriptor that is mounted already
    gets only the options that libfuse itself follows, which refuses the others.
    """
    options = {"big_writes", "atomic_o_trunc"}
    if config.allow_root:
        options.add("allow_root")
    if taken:
        return options
    options |= {
        f"fsname={_escaped(config.fsname or kernel.SUBTYPE)}",
        f"subtype={kernel.SUBTYPE}",
        "default_permissions",
        "nonempty",
        "nosuid",
        "nodev",
        "noatime",
        "ro" if config.read_only else "rw",
    }
    if config.auto_unmount and not config.keep_alive:  # else the keeper unmounts
        options.add("auto_unmount")
    if config.allow_other:
        options.add("allow_other")
    return options | {_escaped(each) for each in config.kernel_options}


def _escaped(text: str) -> str:
    """Escape a text so that libfuse reads it as one option (fuse_opt.c)."""
    return text.replace("\\", r"\\").replace(",", r"\,")
