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

In synchronous modes what is computed for a piece of work depends only on the work, the shard and the run's seed:
not on what the worker did before. So any worker may die at any time: the stage is started again from the piece of
work that the master is waiting for, and the weights come out the same, bit for bit. The sums over workers are
taken in the order of their ranks, never in the order of arrival.

In asynchronous modes each worker has its own sequence of updates, and each of them is taken once, from the worker
that holds its rank. Where workers take steps of their own they keep their optimizer's slots between two pieces of
work; a new worker of the rank begins without them, from the master's weights. The order of arrival counts, so nothing
is promised to the bit.

An exception in a worker's own computation travels to the master in its own words and ends the run: it would
happen again. So does what is wrong with a worker's rows, before it says who it is. A worker that vanishes is replaced.

Batches have any size to TensorFlow: a function that was traced for those that a worker happens to have seen would give
another last bit than the same function in a worker that was replaced.
"""
