"""TensorFlow in one thread, as a worker has it."""

from seedlings_spark.cluster import runtime

# Now, not in a fixture: a test module that builds a network while it is collected would start TensorFlow otherwise.
runtime.start(1)
