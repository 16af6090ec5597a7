"""Evaluation: benchmarks, graders, multi-sample metrics, intervals and reports."""
