"""The machines: the Spark session, what TensorFlow may use of them, the packages on them, what is in the way."""
