"""YAML to stages to a run folder; the command line, executors and the report."""
