"""From a store to a server that answers."""

import logging

from seedlings_spark import files
from seedlings_spark.config import ServeOptions
from seedlings_spark.errors import OptionError
from seedlings_spark.serving import server, versions

_log = logging.getLogger(__name__)
_MB = 1024 * 1024


def serve(options: ServeOptions) -> None:
    """Serve versions of a store over HTTP until the process is told to end.

    Args:
        options: Those of the job `serve`.

    Raises:
        OptionError: The store is not on this machine.
        StoreError: There is no such version, or it is not as it was published.
        ClusterError: The port is taken, or the extra `serve` is not installed.
    """
    if not files.is_local(options.store):
        raise OptionError(
            f"--store {options.store}",
            "a folder of this machine: serve runs without Spark",
            "Copy the store here",
        )
    threads = server.num_threads(options.threads)
    catalogue = versions.load(
        files.qualify(options.store), options.models, threads, options.require_signature
    )
    limits = server.Limits(
        options.max_bytes,
        options.max_pixels,
        options.max_requests,
        options.max_waiting_mb * _MB,
        options.timeout,
    )
    answering = server.Server(catalogue, limits, threads)
    with server.bound(options.host, options.port) as listening:
        host, port = listening.getsockname()[:2]
        known = ", ".join(f"{each.name} {each.version.version}" for each in catalogue.served)
        _log.info("serving %s at http://%s:%d/", known, f"[{host}]" if ":" in host else host, port)
        server.run(answering, listening, options.timeout)
