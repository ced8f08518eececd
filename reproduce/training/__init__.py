"""From a planned Run to its sealed Result: the step, the loop, workers."""
