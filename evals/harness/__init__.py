"""lm-eval: our tasks over local files, and the adapter that lets it sample from an engine."""
