"""When the exchange holds workers up, and what is said of it; how fast other runs would be."""

from dataclasses import replace
from typing import Any

import pytest

from seedlings_spark.training.capacity import (
    Costs,
    Exchange,
    ExchangeChoice,
    ExchangeWatch,
    Plan,
    advice,
    predict,
    predict_on_one_machine,
    step_on_one_machine,
)


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _run(
    compute: float, outside: float, *, exchanges: int = 40, slow: float = 0.0, steps_of_epoch: int = 1000
) -> list[str]:
    """What is said of two workers that compute and wait so long; the second one computes `slow` seconds more."""
    clock, said = Clock(), list[str]()
    watch = ExchangeWatch(2, 4_000_000, 1, steps_of_epoch, said.append, clock)
    for _ in range(exchanges):
        clock.now += compute + slow + outside
        # In a synchronous run the first one is without work while the second one still computes.
        watch.result(0, compute)
        watch.result(1, compute + slow)
    return said


def test_nothing_is_said_where_workers_compute_most_of_the_time() -> None:
    assert _run(compute=0.1, outside=0.01) == []


def test_an_exchange_that_holds_workers_up_is_told_once_with_the_frequency_that_ends_it() -> None:
    (said,) = _run(compute=0.02, outside=0.03)
    # 3 / (2 + 3) of the time without work; 0.03 / (k * 0.02 + 0.03) <= 0.1 from k = 13.5 on.
    assert "60%" in said and "With frequency 14 " in said and "16.0 MB with 2 workers" in said


def test_a_slow_worker_is_not_taken_for_a_slow_exchange() -> None:
    assert _run(compute=0.02, outside=0.001, slow=0.2) == []


def test_where_no_number_of_steps_within_an_epoch_suffices_it_is_the_epoch() -> None:
    (said,) = _run(compute=0.02, outside=0.03, steps_of_epoch=10)
    assert "With frequency epoch " in said


def test_the_steps_in_which_the_network_is_traced_do_not_count() -> None:
    clock, said = Clock(), list[str]()
    watch = ExchangeWatch(1, 4_000_000, 1, 1000, said.append, clock)
    for number in range(40):
        clock.now += 60.0 if number < 3 else 0.11
        watch.result(0, 0.1)
    assert said == []


def test_a_pause_between_two_epochs_does_not_count() -> None:
    clock, said = Clock(), list[str]()
    watch = ExchangeWatch(1, 4_000_000, 1, 2, said.append, clock)
    for number in range(100):
        if number % 2 == 0:
            clock.now += 10.0  # an evaluation and a checkpoint
            watch.pause()
        clock.now += 0.11
        watch.result(0, 0.1)
    assert said == []


def test_workers_that_already_exchange_once_an_epoch_are_not_told_to() -> None:
    exchange = Exchange(compute=1.0, outside=9.0, steps=10)
    assert advice(exchange, num_workers=2, vector_bytes=10, steps_of_epoch=10) is None


def test_the_steps_for_a_share_give_that_share() -> None:
    exchange = Exchange(compute=0.4, outside=0.6, steps=2)
    steps = exchange.steps_for(0.1)
    assert steps == 27
    assert Exchange(0.2 * steps, 0.6, steps).share_outside <= 0.1 + 1e-12
    assert Exchange(0.2 * (steps - 1), 0.6, steps - 1).share_outside > 0.1


# 40 ms for 32 images; 10 MB at 1 GB/s take 10 ms in each direction.
COSTS = Costs(
    compute=0.040,
    exchange=0.002,
    batch_size=32,
    vector_bytes=10_000_000,
    state_bytes=30_000_000,
    take=0.004,
    merge=0.001,
    apply=0.003,
    adopt=0.006,
    rule=0.005,
    cores=4,
    latency=0.0,
)
FAST, SLOW = 1e12, 1e9


def test_a_synchronous_step_is_the_sum_of_its_parts() -> None:
    # 8 workers: 42 ms, 8 x 4 ms on 4 cores, 8 x 1 ms, 3 ms.
    found = predict(COSTS, Plan(8, FAST))
    assert found.images_per_second == pytest.approx(8 * 32 / (0.042 + 0.008 + 0.008 + 0.003), rel=1e-3)
    assert found.efficiency == pytest.approx(0.040 / 0.061, rel=1e-3)
    assert found.bound == "compute"
    assert (found.saturates, found.saturates_at) == ("server", pytest.approx(0.042 / 0.002))


def test_a_slow_network_bounds_a_synchronous_step() -> None:
    # 8 vectors in and 8 out: 160 ms, in which the 8 ms of the cores are hidden.
    found = predict(COSTS, Plan(8, SLOW))
    assert found.images_per_second == pytest.approx(8 * 32 / (0.042 + 0.160 + 0.011))
    assert found.bound == found.saturates == "network"
    assert found.saturates_at == pytest.approx(2.1)


def test_steps_of_their_own_are_paid_with_the_slots_of_the_optimizer() -> None:
    # 10 steps, then three times as many bytes; the master takes over the mean instead of making a step.
    found = predict(COSTS, Plan(2, SLOW, steps=10))
    seconds = 0.400 + 3 * 0.002 + 2 * 2 * 0.030 + 2 * 3 * 0.001 + 0.006
    assert found.images_per_second == pytest.approx(2 * 10 * 32 / seconds)


def test_asynchronous_workers_are_held_up_by_nothing_until_a_resource_is_full() -> None:
    alone, few, many = (predict(COSTS, Plan(n, FAST, is_synchronous=False)) for n in (1, 4, 400))
    assert few.images_per_second == pytest.approx(4 * alone.images_per_second)
    # The lock: 3 ms an update, whatever the number of workers.
    assert many.images_per_second == pytest.approx(32 / 0.003)
    assert (few.bound, many.bound) == ("compute", "server")
    assert many.saturates_at == pytest.approx((0.040 + 0.002 + 0.004 + 0.003) / 0.003, rel=1e-3)


def test_asynchronous_workers_use_both_directions_of_the_network_at_once() -> None:
    found = predict(COSTS, Plan(400, SLOW, is_synchronous=False))
    assert found.images_per_second == pytest.approx(32 / 0.010)
    assert found.bound == "network"


def test_shards_divide_what_a_server_does_and_compression_what_travels() -> None:
    def network_bound(**changes: Any) -> float:
        return 1 / predict(COSTS, Plan(64, SLOW, **changes)).images_per_second

    whole, sharded, halved = network_bound(), network_bound(shards=4), network_bound(compression=2.0)
    seconds = 64 * 32
    assert whole * seconds == pytest.approx(0.042 + 1.280 + 0.067)
    assert sharded * seconds == pytest.approx(0.042 + 0.320 + 0.067 / 4)
    assert halved * seconds == pytest.approx(0.041 + 0.640 + 2 * 0.064 + 0.003)


def test_more_shards_than_workers_do_not_make_a_workers_own_connection_faster() -> None:
    found = predict(COSTS, Plan(2, SLOW, shards=8))
    seconds = 0.042 + 2 * 0.010 + (2 * 0.001 + 0.003) / 8
    assert found.images_per_second == pytest.approx(2 * 32 / seconds)


def test_a_ring_costs_no_more_network_with_more_workers() -> None:
    two, many = (predict(COSTS, Plan(n, SLOW, is_ring=True)) for n in (2, 1000))
    assert two.images_per_second == pytest.approx(2 * 32 / (0.042 + 0.010 + 0.0005 + 0.003))
    assert many.images_per_second == pytest.approx(1000 * 32 / (0.044 + 0.020 + 0.001 + 0.003), rel=2e-3)
    slow = predict(replace(COSTS, latency=0.001), Plan(1000, SLOW, is_ring=True))
    assert slow.bound == "network" and slow.efficiency < 0.02  # two thousand hops


def test_an_asynchronous_ring_is_refused() -> None:
    with pytest.raises(ValueError, match="synchronous"):
        predict(COSTS, Plan(2, FAST, is_synchronous=False, is_ring=True))


def test_workers_that_share_cores_take_turns() -> None:
    one, two, four = (predict_on_one_machine(COSTS, workers, 2) for workers in (1, 2, 4))
    assert one == pytest.approx(32 / 0.050)
    assert two == pytest.approx(2 * 32 / (0.042 + 0.004 + 0.002 + 0.003))
    assert four == pytest.approx(4 * 32 / (0.084 + 0.008 + 0.004 + 0.003))


def test_owners_carry_two_vectors_a_link_however_many_they_are() -> None:
    # 40 ms, 7/8 of 2 ms and of 4 ms, 7/8 of 10 MB twice at 1 GB/s, 1 ms and an eighth of 3 ms.
    found = predict(COSTS, Plan(8, SLOW, owners=True))
    seconds = 0.040 + 0.875 * 0.006 + 2 * 0.875 * 0.010 + 0.001 + 0.003 / 8
    assert found.images_per_second == pytest.approx(8 * 32 / seconds, rel=1e-3)
    with pytest.raises(ValueError, match="synchronous"):
        predict(COSTS, Plan(8, SLOW, steps=10, owners=True))


@pytest.mark.parametrize(
    ("plan", "seconds"),
    [
        # The network: 16 vectors of 10 ms, in frames of 1,514 bytes for 1,448; 8 x 6 ms on two cores are hidden in it.
        (Plan(8, SLOW), 0.040 + 0.160 * 1514 / 1448 + 8 * 0.001 + 0.003),
        # The processors: 7/8 of 8 x 6 ms on two cores; then 8 means and 8 eighths of an optimizer on them.
        (Plan(8, FAST, owners=True), 0.040 + 0.021 + (8 * 0.001 + 0.003) / 2),
        (Plan(8, SLOW, owners=True), 0.040 + 0.021 + (8 * 0.001 + 0.003) / 2),
        (Plan(8, SLOW / 2, owners=True), 0.040 + 0.035 * 1514 / 1448 + (8 * 0.001 + 0.003) / 2),
    ],
)
def test_machines_that_are_one_share_its_cores_but_not_the_network(plan: Plan, seconds: float) -> None:
    assert step_on_one_machine(COSTS, plan, cores=2) == pytest.approx(seconds, rel=1e-3)


def _chosen(seconds: float, computed: float, hosts: set[str]) -> tuple[bool | None, list[str], int]:
    """What is chosen for four workers, after some rounds of eight; what is said, and after how many rounds."""
    said = list[str]()
    choice = ExchangeChoice(said.append)
    for number in range(1, 100):
        found = choice.round(seconds, [computed, *[computed / 2] * (7 if number < 12 else 3)], hosts)
        if found is not None:
            return found, said, number
    return None, said, 0


def test_workers_average_among_themselves_where_the_driver_holds_them_up() -> None:
    # 160 ms beside the computing are 3/16 of it among four workers.
    assert _chosen(0.2, 0.04, {"a", "b"}) == (
        True,
        [
            "exchange among the workers: a step of 4 workers takes 200 ms through the driver, of which the slowest"
            " computes 40 ms; among the workers 70 ms by the model"
        ],
        11 + 23,
    )
    assert _chosen(0.2, 0.199, {"a", "b"})[0] is False


def test_workers_on_one_machine_have_nothing_to_gain() -> None:
    found, said, rounds = _chosen(0.2, 0.04, {"127.0.0.1"})
    assert (found, rounds) == (False, 1)
    assert "one machine" in said[0]
