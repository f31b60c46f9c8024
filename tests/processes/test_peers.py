"""Many workers that make a mean among themselves, each of which is a process."""

import multiprocessing
import time
from typing import Any

import numpy as np

from seedlings_spark.training.peers import Peers
from seedlings_spark.training.server import Listener
from seedlings_spark.training.tree import Mean, mean_of, nodes_within, shards_of
from seedlings_spark.training.weights import Layout
from seedlings_spark.training.wire import Credentials
from tests.conftest import HANG_SECONDS, with_all

NUM_WORKERS, SIZE, STEPS, COMPUTE_SECONDS = 64, 500_000, 4, 0.3


def below(node: range, step: int) -> Mean:
    """What stands at a node of the tree: of each shard a drawn gradient of 2 MB."""

    def known(each: range) -> Mean | None:
        if len(each) > 1:
            return None
        return Mean(np.random.default_rng([each.start, step]).standard_normal(SIZE, np.float32), 1)

    return mean_of(node, known)


def work(rank: int, credentials: Credentials, together: Any, here: Any, addresses: Any, found: Any) -> None:
    """A worker that sleeps in place of computing."""
    listener, layout = Listener("127.0.0.1"), Layout(((SIZE,),), "float32")
    here.put((rank, listener.port))
    with Peers(listener, credentials, ("this", 0), rank) as peers:
        peers.join(addresses.get(timeout=HANG_SECONDS), NUM_WORKERS, layout)
        nodes, means, seconds = nodes_within(shards_of(rank, NUM_WORKERS, NUM_WORKERS), NUM_WORKERS), [], []
        for step in range(STEPS):
            own = [below(node, step) for node in nodes]
            together.wait(HANG_SECONDS)
            time.sleep(COMPUTE_SECONDS)
            began = time.process_time()
            mean, _ = peers.mean(own)
            seconds.append(time.process_time() - began)
            means.append(mean.tobytes())
        found.put((means, seconds))
        together.wait(HANG_SECONDS)


@with_all
def test_64_processes_have_the_bits_of_the_tree() -> None:
    """With `-s` it says what a step takes of a processor."""
    context, credentials = multiprocessing.get_context("spawn"), Credentials.make()
    together, here, found = context.Barrier(NUM_WORKERS), context.Queue(), context.Queue()
    addresses = [context.Queue() for _ in range(NUM_WORKERS)]
    workers = [
        context.Process(target=work, args=(rank, credentials, together, here, addresses[rank], found))
        for rank in range(NUM_WORKERS)
    ]
    try:
        for worker in workers:
            worker.start()
        ports = dict(here.get(timeout=HANG_SECONDS) for _ in workers)
        for each in addresses:
            each.put([("127.0.0.1", ports[rank]) for rank in range(NUM_WORKERS)])
        handed_in = [found.get(timeout=HANG_SECONDS) for _ in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.join()
    expected = [below(range(NUM_WORKERS), step).vector.tobytes() for step in range(STEPS)]
    assert all(means == expected for means, _ in handed_in)
    shards = [below(range(shard, shard + 1), 0).vector for shard in range(NUM_WORKERS)]
    plain = np.mean(shards, axis=0, dtype=np.float64)
    np.testing.assert_allclose(np.frombuffer(expected[0], np.float32), plain, atol=1e-6)
    spent = np.array([seconds for _, seconds in handed_in])[:, 1:]
    print(f"{spent.mean() * 1000:.1f} ms of a processor for a step of a worker")
