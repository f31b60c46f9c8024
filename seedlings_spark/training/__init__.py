"""Data-parallel training: who does what, who may fail, what is promised.

The *master* (the driver) holds the model, its one optimizer and the position in the run. Each *worker* (one
Spark task, for the whole run) holds one shard of the rows and a copy of the network. A worker knows nothing
of modes and epochs to come: it opens a connection, says what it is (rank, rows, environment), is told what
holds for the whole run, and then does one piece of *work* after the other: train these steps from these
weights, evaluate these weights, stop. Its answer to one piece is its request for the next.

    worker                                   master
      open(rank, rows, environment)   ->
                                      <-     begin(steps, precision, class weights)
      ready                           ->
                                      <-     work(number, train, epoch, first step, last step) + weights
      result(number, sums) + vector   ->
                                      <-     work(number + 1, ...) + weights
                                      <-     stop

What is computed for a piece of work depends only on the work, the shard and the run's seed: not on what the
worker did before. So any worker may die at any time: the stage is started again from the piece of work that
the master is waiting for, and the weights come out the same, bit for bit. The sums over workers are taken in
the order of their ranks, never in the order of arrival.

An exception in a worker's own computation travels to the master in its own words and ends the run: it would
happen again. A worker that vanishes is replaced.
"""
