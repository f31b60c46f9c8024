"""Data-parallel training: who does what, who may fail, what is promised.

The *master* (the driver) holds the model, its one optimizer and the position in the run. The rows are dealt to
*shards*, whose number belongs to the run. Each *worker* (one Spark task, for the whole run) holds some neighbouring
shards and a copy of the network. A worker knows nothing of modes and epochs to come: it opens a connection, says what
it is (rank, rows of its shards, environment), is told what holds for the whole run, and then does one piece of *work*
after the other: train these steps from these weights, evaluate these weights, stop. It does its part for one shard
after the other, each from the same start. Its answer to one piece is its request for the next.

    worker                                   master
      open(rank, rows, environment)   ->
                                      <-     begin(steps, precision, class weights)
      ready                           ->
                                      <-     work(number, train, epoch, first step, last step) + weights
      result(number, sums) + vectors  ->
                                      <-     work(number + 1, ...) + weights
                                      <-     stop

In synchronous modes what is computed for a piece of work depends only on the work, the shard and the run's seed: not
on the worker, nor on what it did before. What comes of the shards is averaged in one fixed tree (`tree`), never in
the order of arrival; a worker sends the means of the nodes that lie whole within its block. So any worker may die at
any time, and their number may change: the stage is started again from the piece of work that the master is waiting
for, with as many workers as there is room for then, and the weights come out the same, bit for bit. Between two
epochs it is also started again where there is room for more. The workers that are left hear of it before Spark ends
them: their processes stay, and the next generation finds its networks traced. All rows are read anew.

Where it is asked for, shards of a worker that is slow change hands between two epochs (`dealing`), through the master:

                                      <-     work(handing: shard, rows) to the giver
      result(handing) + rows          ->
                                      <-     work(handing: shard, rows) + rows to the taker
      result(handing)                 ->
                                      <-     work(handing: sizes) to all, who answer as well

The next generation begins with blocks of the same size again.

With `exchange="workers"` the master does not see the gradients of single steps: it asks for some steps at once, and
tells each worker where the others are (`peers`). They average among themselves in the same order, each makes the same
step with the same optimizer, on its own slice where that gives the same bits (`owned`), and in the end each hands in a
slice of the state (weights and slots), which the master puts together. What becomes of a lost worker is the same: all
begin again where the piece of work began.

In asynchronous modes there is one shard a worker. Each has its own sequence of updates, and each of them is taken
once, from the worker that holds its rank. Where workers take steps of their own they keep their optimizer's slots
between two pieces of work; a new worker of the rank begins without them, from the master's weights. The order of
arrival counts, so nothing is promised to the bit.

An exception in a worker's own computation travels to the master in its own words and ends the run: it would happen
again. So does what is wrong with a worker's rows, before it says who it is. A worker that vanishes is replaced.

Batches have any size to TensorFlow: a function that was traced for those that a worker happens to have seen would
give another last bit than the same function in a worker that was replaced.
"""
