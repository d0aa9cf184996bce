"""Bench: how fast, how exact and how large each way of running a bundle is on this machine, measured side by side.

`run.bench` measures, what a `plan.Plan` says. Nothing is imported here: the processes that are measured should hold no
more than the product does.
"""
