"""A coordinator's service: keys and sites, Flower's link behind a public gateway, a queue of runs and their workers."""
