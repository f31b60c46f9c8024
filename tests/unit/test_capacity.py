"""When the exchange holds workers up, and what is said of it."""

from seedlings_spark.training.capacity import Exchange, ExchangeWatch, advice


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
