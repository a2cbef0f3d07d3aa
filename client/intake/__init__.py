"""Intake: a customer's own folder becomes a site's dataset, its contract inferred, confirmed and checked."""
